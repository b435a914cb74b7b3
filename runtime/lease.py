"""A holder's lease: whether it may name people now, and what it has to do next. No I/O; the clock is injected.

Nodes hold one, and so does every control plane through which results leave. In: when renewals were sent and what they
were answered with, commands' positions, cursors. Out: what to do. What always holds: names are allowed only in SERVING
and before the lease runs out, counted from the SENDING of the renewal on a clock that goes on while the machine sleeps;
an answer counts only for the incarnation that asked; a holder that lost its lease serves again only under a new
incarnation, after it reconciled from nothing; and nothing is applied out of the log's order, or for the log as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from runtime.clock import Clock
from runtime.errors import Stale, Unavailable


class LeaseState(Enum):
    """Where a holder stands in the fleet."""

    JOINING = auto()  # has not reconciled yet, under its first or a new incarnation
    SERVING = auto()  # holds what it should, and may name while the lease lasts
    FENCED = auto()  # the lease ran out: the store has to be wiped and a new incarnation asked for


class HolderState(Enum):
    """What a holder says of itself."""

    JOINING = auto()
    SERVING = auto()
    DRAINING = auto()
    FENCED = auto()


class Next(Enum):
    """What a holder has to do."""

    NOTHING = auto()
    SYNC = auto()  # read the log on from the cursor
    WIPE_AND_SYNC = auto()  # forget everything, then read the log from 0


class Judgement(Enum):
    """What to do with a command of the control plane."""

    APPLY = auto()
    RESTATE = auto()  # applied already, and still so as far as the node knows: holding it again can only mend
    KNOWN = auto()  # applied already, or overtaken since: acknowledge
    SYNC_FIRST = auto()  # the node is behind it: read the log, which holds the command too


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal was answered with. epoch: of the fleet's history; a restored backup begins another."""

    incarnation: int
    lease_s: float
    head: int
    resync: bool
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A renewal on its way: under which incarnation, and when (lease clock) it was sent."""

    incarnation: int
    sent_s: float


class Lease:
    """One holder's lease."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = 0.0
        self.state = LeaseState.JOINING
        self.incarnation = 0
        self.cursor = 0
        self.epoch = ""

    def __repr__(self) -> str:
        left_s = self.remaining_s()
        return f"Lease({self.state.name}, incarnation {self.incarnation}, cursor {self.cursor}, {left_s:.1f} s left)"

    def allows(self) -> bool:
        """Whether anybody may be named at this moment."""
        return self.state is LeaseState.SERVING and self.remaining_s() > 0

    def remaining_s(self) -> float:
        """What is left of the lease; 0 without one."""
        return max(0.0, self._until_s - self._clock.lease_now_s())

    def has_lapsed(self) -> bool:
        """Whether it ran out since it was given, and `fence` is due."""
        return self.incarnation != 0 and self.state is not LeaseState.FENCED and self.remaining_s() <= 0

    def fence(self) -> None:
        """The lease is gone: nothing is held, and the next renewal asks for a new incarnation."""
        self._move(LeaseState.FENCED)
        self.incarnation, self.cursor, self._until_s = 0, 0, 0.0

    def ask(self) -> Asked:
        """A renewal is about to be sent."""
        return Asked(self.incarnation, self._clock.lease_now_s())

    def answered(self, asked: Asked, renewal: Renewal) -> Next | None:
        """A renewal came back; None where it says nothing: its incarnation has ended meanwhile, or lapsed."""
        if asked.incarnation != self.incarnation or self.has_lapsed():
            return None
        return self.renewed(asked.sent_s, renewal)

    def refused(self, asked: Asked) -> bool:
        """A renewal was refused; whether `fence` is due with it."""
        return asked.incarnation != 0 and asked.incarnation == self.incarnation

    def lasts_until_s(self, sent_s: float, lease_s: float) -> float:
        """How long, on the lease clock, a lease may be relied upon that was asked for at sent_s."""
        return sent_s + lease_s

    def renewed(self, sent_s: float, renewal: Renewal) -> Next:
        """A renewal came back. sent_s: `clock.lease_now_s()` when it was sent."""
        is_new = renewal.incarnation != self.incarnation
        self.epoch = renewal.epoch
        if is_new:
            self.incarnation, self.cursor, self._until_s = renewal.incarnation, 0, 0.0
            self._move(LeaseState.JOINING)
        if renewal.lease_s > 0:
            self._until_s = max(self._until_s, self.lasts_until_s(sent_s, renewal.lease_s))
        if renewal.resync and not is_new:
            self._move(LeaseState.JOINING)
        if is_new or renewal.resync:
            return Next.WIPE_AND_SYNC
        if self.state is LeaseState.JOINING or renewal.head > self.cursor:
            return Next.SYNC
        return Next.NOTHING

    def restart(self) -> None:
        """What is held is about to be emptied: nothing of the log is applied, and nobody is named until it is again."""
        self.cursor = 0
        if self.state is LeaseState.SERVING:
            self._move(LeaseState.JOINING)

    def applied(self, incarnation: int, revision: int) -> None:
        """All of the log up to a revision is applied. Raises Stale if the incarnation ended meanwhile."""
        self.require(incarnation)
        self.cursor = max(self.cursor, revision)

    def reconciled(self, incarnation: int) -> None:
        """The store holds what it should, up to the head of the log. Raises Stale if the incarnation ended."""
        self.require(incarnation)
        if self.state is LeaseState.JOINING and self.remaining_s() > 0:
            self._move(LeaseState.SERVING)

    def judge(self, incarnation: int, revision: int, as_of: int = 0) -> Judgement:
        """What to do with a command. Raises Stale for another incarnation, Unavailable without a lease.

        as_of: the head of the log at which an enrolment was read and found to hold; 0: not said. One that is as new as
        all that the node has applied may be held again; whatever undoes it comes later in the log. One from before may
        be undone already, by an eviction that this node has applied.
        """
        if self.incarnation == 0 or self.remaining_s() <= 0:
            raise Unavailable("this node has no lease: it will read the command from the fleet log when it has one")
        self.require(incarnation)
        if revision <= self.cursor:
            is_current = as_of >= self.cursor and self.state is LeaseState.SERVING
            return Judgement.RESTATE if is_current else Judgement.KNOWN
        if revision == self.cursor + 1 and self.state is LeaseState.SERVING:
            return Judgement.APPLY
        return Judgement.SYNC_FIRST

    def require_next(self, incarnation: int, revision: int) -> None:
        """An entry of the log was read. Raises Stale if the incarnation ended, Unavailable if one is left out."""
        self.require(incarnation)
        if revision > self.cursor + 1:
            raise Unavailable(f"the fleet log jumps from revision {self.cursor} to {revision}: read it again")

    def require(self, incarnation: int) -> None:
        """Raises Stale unless this is the incarnation that lasts."""
        if incarnation != self.incarnation:
            raise Stale(f"incarnation {incarnation} of this holder has ended; it is {self.incarnation} now")

    def _move(self, state: LeaseState) -> None:
        allowed = {
            LeaseState.JOINING: {LeaseState.JOINING, LeaseState.SERVING, LeaseState.FENCED},
            LeaseState.SERVING: {LeaseState.JOINING, LeaseState.FENCED},
            LeaseState.FENCED: {LeaseState.JOINING},
        }
        assert state in allowed[self.state], f"{self.state.name} to {state.name}"
        self.state = state

"""The node's lease: whether it may name people now, and what it has to do next. No I/O; the clock is injected.

In: when renewals were sent and what they were answered with, commands' positions, cursors. Out: what to do. What
always holds: names are allowed only in SERVING and before the lease runs out, counted from the SENDING of the renewal
on a clock that goes on while the machine sleeps; a node that lost its lease serves again only under a new
incarnation, after it reconciled from an empty store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from runtime.clock import Clock
from runtime.errors import Stale, Unavailable


class LeaseState(Enum):
    """Where a node stands in the fleet."""

    JOINING = auto()  # has not reconciled yet, under its first or a new incarnation
    SERVING = auto()  # holds what it should, and may name while the lease lasts
    FENCED = auto()  # the lease ran out: the store has to be wiped and a new incarnation asked for


class Next(Enum):
    """What a node has to do."""

    NOTHING = auto()
    SYNC = auto()  # read the log on from the cursor
    WIPE_AND_SYNC = auto()  # forget everything, then read the log from 0


class Judgement(Enum):
    """What to do with a command of the control plane."""

    APPLY = auto()
    KNOWN = auto()  # applied already: acknowledge
    SYNC_FIRST = auto()  # the node is behind it: read the log, which holds the command too


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal was answered with."""

    incarnation: int
    lease_s: float
    head: int
    resync: bool


class Lease:
    """One node's lease."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = 0.0
        self.state = LeaseState.JOINING
        self.incarnation = 0
        self.cursor = 0

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

    def renewed(self, sent_s: float, renewal: Renewal) -> Next:
        """A renewal came back. sent_s: `clock.lease_now_s()` when it was sent."""
        is_new = renewal.incarnation != self.incarnation
        if is_new:
            self.incarnation, self.cursor, self._until_s = renewal.incarnation, 0, 0.0
            self._move(LeaseState.JOINING)
        if renewal.lease_s > 0:
            self._until_s = max(self._until_s, sent_s + renewal.lease_s)
        if renewal.resync and not is_new:
            self._move(LeaseState.JOINING)
        if is_new or renewal.resync:
            return Next.WIPE_AND_SYNC
        if self.state is LeaseState.JOINING or renewal.head > self.cursor:
            return Next.SYNC
        return Next.NOTHING

    def restart(self) -> None:
        """The store was emptied: nothing of the log is applied."""
        self.cursor = 0

    def applied(self, incarnation: int, revision: int) -> None:
        """All of the log up to a revision is applied. Raises Stale if the incarnation ended meanwhile."""
        self.require(incarnation)
        self.cursor = max(self.cursor, revision)

    def reconciled(self, incarnation: int) -> None:
        """The store holds what it should, up to the head of the log. Raises Stale if the incarnation ended."""
        self.require(incarnation)
        if self.state is LeaseState.JOINING and self.remaining_s() > 0:
            self._move(LeaseState.SERVING)

    def judge(self, incarnation: int, revision: int) -> Judgement:
        """What to do with a command. Raises Stale for another incarnation, Unavailable without a lease."""
        if self.incarnation == 0 or self.remaining_s() <= 0:
            raise Unavailable("this node has no lease: it will read the command from the fleet log when it has one")
        self.require(incarnation)
        if revision <= self.cursor:
            return Judgement.KNOWN
        if revision == self.cursor + 1 and self.state is LeaseState.SERVING:
            return Judgement.APPLY
        return Judgement.SYNC_FIRST

    def require(self, incarnation: int) -> None:
        """Raises Stale unless this is the incarnation that lasts."""
        if incarnation != self.incarnation:
            raise Stale(f"incarnation {incarnation} of this node has ended; it is {self.incarnation} now")

    def _move(self, state: LeaseState) -> None:
        allowed = {
            LeaseState.JOINING: {LeaseState.JOINING, LeaseState.SERVING, LeaseState.FENCED},
            LeaseState.SERVING: {LeaseState.JOINING, LeaseState.FENCED},
            LeaseState.FENCED: {LeaseState.JOINING},
        }
        assert state in allowed[self.state], f"{self.state.name} to {state.name}"
        self.state = state

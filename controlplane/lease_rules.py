"""What the control plane decides about leases: pure, on times that its callers read. No I/O.

In: rows as they stand in one transaction, a report, and instants. Out: rows as they should stand. What always holds: an
incarnation that is fenced or superseded never renews; a lease is not prolonged while its holder leaves an eviction
unapplied for too long; and a holder is taken for silent only after this very process has waited, on its own clock that
counts suspension, for longer than any node may rely on the lease. The database's clock never decides that, so that a
clock that is set, or a failover to a machine with another clock, can cost time and not safety.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from runtime.clock import Clock

NODE = "node"
RELAY = "relay"
"""Kinds of holder. A relay holds no voices: it withholds the names of those that are being erased."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """How long leases last. node_lease_s: at the holder, from sending; lease_s: in the database, from receipt."""

    node_lease_s: float
    lease_s: float
    renew_s: float
    hold_s: float

    def silent_s(self, relied_s: float) -> float:
        """How long a lease has to be seen unchanged before its holder is taken for silent.

        relied_s: how long the holder was told to rely on it. Half of what lies between the two leases is added for
        clocks that drift apart and for a holder's last step.
        """
        return max(self.node_lease_s, relied_s) + (self.lease_s - self.node_lease_s) / 2


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a holder says of itself as it renews.

    incarnation 0: it wants a new one and holds nothing. epoch: of the answer before; empty: none yet.
    """

    node_id: str
    process_id: str
    incarnation: int
    cursor: int
    num_voices: int
    voices_digest: bytes
    address: str
    model: str
    state: str
    kind: str = NODE
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A row: one incarnation. deadline_s: on the database's lease clock. renewals: how often it was prolonged.

    relied_s: how long its holder was ever told that it may rely on it, by whichever control plane, however configured.
    held_revision: the head when a renewal was last held because an eviction had waited for too long; 0: never.
    """

    incarnation: int
    node_id: str
    process_id: str
    deadline_s: float
    joined_revision: int
    cursor: int
    num_voices: int
    address: str
    model: str
    state: str
    superseded: bool
    kind: str = NODE
    renewals: int = 0
    relied_s: float = 0.0
    held_revision: int = 0
    voices_digest: bytes = bytes(32)
    fenced: bool = False
    wiped: bool = False

    def has_applied(self, revision: int) -> bool:
        """Whether it is past a revision: it applied it, or joined, holding nothing, after it."""
        return max(self.cursor, self.joined_revision) >= revision

    def serves(self, now_s: float) -> bool:
        """Whether work may be sent to it."""
        return self.kind == NODE and self.state == "serving" and not self.superseded and self.deadline_s >= now_s


@dataclass(frozen=True, slots=True)
class Renewed:
    """The row as it stands now. is_held: not prolonged, because an eviction is left unapplied."""

    lease: Lease
    is_held: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """It has to forget everything and ask for a new incarnation. fence: whether the row is fenced with it."""

    fence: bool


class LeaseRules:
    """The decisions. Each method is one rule, so that a test can break one and see it caught."""

    def __init__(self, times: LeaseTimes) -> None:
        self.times = times

    def __repr__(self) -> str:
        return f"LeaseRules({self.times})"

    def renewal(
        self,
        lease: Lease | None,
        report: NodeReport,
        *,
        head: int,
        epoch: str,
        unapplied_since_s: float | None,
        now_s: float,
    ) -> Renewed | Refused:
        """What becomes of a renewal.

        lease: the row of the incarnation, if it is not fenced. unapplied_since_s: since when (the database's clock) the
        oldest eviction waits that the holder has not applied.
        """
        if lease is None or not self.may_renew(lease, report):
            return Refused(fence=False)
        if report.cursor > head or (report.epoch and report.epoch != epoch):
            # The log was cut back, as by a restored backup: what is held is of another history.
            return Refused(fence=True)
        told = replace(
            lease,
            cursor=max(lease.cursor, report.cursor),
            num_voices=report.num_voices,
            voices_digest=report.voices_digest,
            address=report.address,
            model=report.model,
            state=report.state,
        )
        if report.state == "fenced":
            # It has let go by itself: nobody needs to wait for it.
            return Renewed(replace(told, fenced=True, wiped=True), is_held=True)
        if self.must_hold(unapplied_since_s, now_s):
            return Renewed(replace(told, held_revision=head), is_held=True)
        if unapplied_since_s is not None and self.stays_held(told):
            return Renewed(told, is_held=True)
        prolonged = replace(
            told,
            deadline_s=now_s + self.times.lease_s,
            renewals=lease.renewals + 1,
            relied_s=max(lease.relied_s, self.times.node_lease_s),
        )
        return Renewed(prolonged, is_held=False)

    def may_renew(self, lease: Lease, report: NodeReport) -> bool:
        """Whether this row is the reporter's, and nobody has taken its place."""
        is_its_own = (lease.node_id, lease.process_id) == (report.node_id, report.process_id)
        return is_its_own and not lease.superseded and not lease.fenced

    def must_hold(self, unapplied_since_s: float | None, now_s: float) -> bool:
        """The hold rule: it bounds how long an erasure can take, whatever a holder does."""
        if unapplied_since_s is None:
            return False
        # A time in the future was written before the database's clock was set back: long enough ago.
        return not 0.0 <= now_s - unapplied_since_s <= self.times.hold_s

    def stays_held(self, lease: Lease) -> bool:
        """Whether it was held before and has not caught up: a clock that is set back makes no eviction young again."""
        return not lease.has_applied(lease.held_revision)

    def grant(
        self, report: NodeReport, rows: Iterable[Lease], *, incarnation: int, head: int, now_s: float
    ) -> tuple[Lease, list[Lease]]:
        """A new incarnation, and the rows of the same node id as they stand beside it.

        The same process says that it forgot what it held under them; another process's memory is taken for gone, as
        nobody was found at its address. A lease that was superseded is waited for all the same: this request may be an
        old one that was long under way, and its sender may since have been given the incarnation that it supersedes,
        and rely on it until it renews.
        """
        changed = []
        for row in rows:
            if not row.fenced:
                changed.append(replace(row, superseded=True, wiped=True))
            elif row.process_id == report.process_id and not row.wiped:
                changed.append(replace(row, wiped=True))
        granted = Lease(
            incarnation=incarnation,
            node_id=report.node_id,
            process_id=report.process_id,
            deadline_s=now_s + self.times.lease_s,
            joined_revision=head,
            cursor=0,
            num_voices=0,
            address=report.address,
            model=report.model,
            state=report.state,
            superseded=False,
            kind=report.kind,
            relied_s=self.times.node_lease_s,
        )
        return granted, changed

    def contenders(self, rows: Iterable[Lease], report: NodeReport, now_s: float) -> list[Lease]:
        """Leases of other processes under the same node id that may be alive: they are asked before it is given."""
        return [
            row
            for row in rows
            if row.process_id != report.process_id and not row.fenced and not row.superseded and row.deadline_s >= now_s
        ]

    def has_lost_name(self, rows: Iterable[Lease], report: NodeReport) -> bool:
        """Whether this process once held the node id and lost it to another."""
        return any(row.process_id == report.process_id and row.superseded for row in rows)

    def acknowledgement(self, lease: Lease | None, *, incarnation: int, cursor: int, head: int) -> Lease | None:
        """The row after a holder said how far it is, or None where that says nothing.

        lease: the row of the incarnation that the command was sent to, if it is not fenced; incarnation: the one that
        answered. Acknowledgements may come late: the cursor never goes back.
        """
        if lease is None or lease.fenced or incarnation != lease.incarnation:
            return None
        if cursor > head or cursor <= lease.cursor:
            return None  # of a log that was cut back since, or known already
        return replace(lease, cursor=cursor)

    def reads_whole(self, cursor: int, *, floor: int, head: int, far_behind: int) -> bool:
        """Whether a reader gets a snapshot rather than the log after its cursor.

        floor: the last revision that was trimmed from the log; far_behind: entries past which a snapshot is quicker.
        """
        return cursor == 0 or cursor < floor or cursor > head or head - cursor > far_behind

    def relay_begins_at(self, head: int, oldest_unproven: int | None) -> int:
        """Where a relay that joins begins to read: before the evictions that are not proven yet."""
        return head if oldest_unproven is None else min(head, oldest_unproven - 1)


_Seen = tuple[str, int]
"""Whose lease it was, and how often prolonged: after a failover that lost a moment, a number may come again."""


class LeaseWatch:
    """Which leases this process has seen unchanged, and since when, on its own clock that counts suspension.

    Ask `look` right after reading rows: what was read then was prolonged before, and relied upon from before that.
    """

    def __init__(self, clock: Clock, times: LeaseTimes) -> None:
        self._clock = clock
        self._times = times
        self._since: dict[int, tuple[_Seen, float]] = {}

    def __repr__(self) -> str:
        return f"LeaseWatch({len(self._since)} leases)"

    def look(self, holders: Iterable[Lease]) -> None:
        """Take note of every lease that is not fenced; those not among them are forgotten."""
        now_s = self._clock.lease_now_s()
        known = self._since
        self._since = {}
        for lease in holders:
            seen = (lease.process_id, lease.renewals)
            before, since_s = known.get(lease.incarnation, (None, now_s))
            self._since[lease.incarnation] = (seen, since_s if before == seen else now_s)

    def is_silent(self, lease: Lease) -> bool:
        """Whether nobody can rely on this lease any more."""
        seen, since_s = self._since.get(lease.incarnation, (None, 0.0))
        if seen != (lease.process_id, lease.renewals):
            return False
        return self._clock.lease_now_s() - since_s >= self._times.silent_s(lease.relied_s)

"""The protocol with one rule broken at a time. Each is one override of the code that the daemons run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from controlplane.erasure_rules import ErasureRules, IsSilent, Settlement
from controlplane.lease_rules import NODE, Lease, LeaseRules, LeaseTimes, LeaseWatch, NodeReport
from controlplane.relay_guard import RelayGuard
from runtime.clock import Clock
from runtime.lease import Asked, Judgement, LeaseState, Next, Renewal
from runtime.lease import Lease as HeldLease
from tests.simulator.loop import Process
from tests.simulator.planes import Redis
from tests.simulator.world import Rules


class _OnlyThoseThatRedisLists(ErasureRules):
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def waited_for(self, holders: Sequence[Lease], revision: int) -> list[Lease]:
        return [lease for lease in super().waited_for(holders, revision) if self._redis.lists(lease)]


class _NoSelfEviction(HeldLease):
    def allows(self) -> bool:
        return self.state is LeaseState.SERVING

    def has_lapsed(self) -> bool:
        return False


class _CountedFromReceipt(HeldLease):
    def lasts_until_s(self, sent_s: float, lease_s: float) -> float:
        return self._clock.lease_now_s() + lease_s


class _NoAsOf(HeldLease):
    def judge(self, incarnation: int, revision: int, as_of: int = 0) -> Judgement:
        return super().judge(incarnation, revision, as_of and 1 << 62)


class _WithGaps(HeldLease):
    def judge(self, incarnation: int, revision: int, as_of: int = 0) -> Judgement:
        found = super().judge(incarnation, revision, as_of)
        return Judgement.APPLY if found is Judgement.SYNC_FIRST and self.state is LeaseState.SERVING else found

    def require_next(self, incarnation: int, revision: int) -> None:
        self.require(incarnation)


class _WithoutIncarnation(HeldLease):
    """A node that takes commands, entries and answers for whichever incarnation."""

    def require(self, incarnation: int) -> None:
        return

    def answered(self, asked: Asked, renewal: Renewal) -> Next | None:
        return None if self.has_lapsed() else self.renewed(asked.sent_s, renewal)


class _AcknowledgedWithoutIncarnation(LeaseRules):
    def acknowledgement(self, lease: Lease | None, *, incarnation: int, cursor: int, head: int) -> Lease | None:
        return (
            None
            if lease is None
            else super().acknowledgement(lease, incarnation=lease.incarnation, cursor=cursor, head=head)
        )


class _WaitsForNobodySilent(ErasureRules):
    """Whoever does not answer for a moment is taken for gone, whatever lease it holds."""

    def settlement(self, holders: Sequence[Lease], revision: int, is_silent: IsSilent) -> Settlement | None:
        return super().settlement(holders, revision, lambda _lease: True)


class _HoldsNothing(LeaseRules):
    def must_hold(self, unapplied_since_s: float | None, now_s: float) -> bool:
        return False


class _ForgetsThatItHeld(LeaseRules):
    """Whether a holder is held is asked of the database's clock each time anew."""

    def stays_held(self, lease: Lease) -> bool:
        return False


class _SupersededMayRenew(LeaseRules):
    def may_renew(self, lease: Lease, report: NodeReport) -> bool:
        return True


class _SupersededIsGone(LeaseRules):
    """The lease that a request to join supersedes is not waited for."""

    def grant(
        self, report: NodeReport, rows: Iterable[Lease], *, incarnation: int, head: int, now_s: float
    ) -> tuple[Lease, list[Lease]]:
        granted, changed = super().grant(report, rows, incarnation=incarnation, head=head, now_s=now_s)
        return granted, [replace(row, fenced=True) for row in changed]


class _ServesBeforeItReconciles(HeldLease):
    def renewed(self, sent_s: float, renewal: Renewal) -> Next:
        todo = super().renewed(sent_s, renewal)
        if self.state is LeaseState.JOINING:
            self._move(LeaseState.SERVING)
        return todo


class _RelayWithoutLease(RelayGuard):
    """It withholds whom it knows to be erased, and does not ask whether it still would know."""

    def names_under(self, incarnation: int) -> bool:
        return incarnation != 0 and self._lease.state is LeaseState.SERVING


class _RelaysAreNotWaitedFor(ErasureRules):
    def waited_for(self, holders: Sequence[Lease], revision: int) -> list[Lease]:
        return [lease for lease in super().waited_for(holders, revision) if lease.kind == NODE]


class _RelayBeginsAtTheHead(LeaseRules):
    def relay_begins_at(self, head: int, oldest_unproven: int | None) -> int:
        return head


class _DatabaseClockDecides(LeaseWatch):
    """Silence told by the deadline in the database, on a clock that may be set."""

    def __init__(self, clock: Clock, times: LeaseTimes, database_s: Callable[[], float]) -> None:
        super().__init__(clock, times)
        self._database_s = database_s

    def is_silent(self, lease: Lease) -> bool:
        return lease.deadline_s < self._database_s()


def _watch_by_database(process: Process, database_s: Callable[[], float], times: LeaseTimes) -> LeaseWatch:
    return _DatabaseClockDecides(process, times, database_s)


MUTANTS: dict[str, Rules] = {
    "redis-listed-holders-only": Rules(erasures=_OnlyThoseThatRedisLists),
    "no-self-eviction": Rules(lease=_NoSelfEviction),
    "lease-counted-from-receipt": Rules(lease=_CountedFromReceipt),
    "no-as-of": Rules(lease=_NoAsOf),
    "acknowledgements-with-gaps": Rules(lease=_WithGaps),
    "without-incarnation": Rules(lease=_WithoutIncarnation, leases=_AcknowledgedWithoutIncarnation),
    "not-waiting-for-silent-leases": Rules(erasures=lambda _redis: _WaitsForNobodySilent()),
    "no-hold-rule": Rules(leases=_HoldsNothing),
    "hold-is-forgotten": Rules(leases=_ForgetsThatItHeld),
    "serve-before-reconcile": Rules(lease=_ServesBeforeItReconciles),
    "superseded-is-gone": Rules(leases=_SupersededIsGone),
    "relay-without-lease": Rules(guard=_RelayWithoutLease),
    "relays-not-waited-for": Rules(erasures=lambda _redis: _RelaysAreNotWaitedFor()),
    "relay-begins-at-the-head": Rules(leases=_RelayBeginsAtTheHead),
    "database-clock-decides": Rules(watch=_watch_by_database),
}

REDUNDANT: dict[str, Rules] = {
    # Defence in depth: whoever was superseded goes on being waited for, so that its renewing harms nobody.
    "superseded-may-renew": Rules(leases=_SupersededMayRenew),
}

"""The lease: counted from sending, gone when it lapses, and back only under a new incarnation after reconciling."""

from __future__ import annotations

import pytest

from node.standing import NodeState, Standing
from runtime.clock import SteppedClock
from runtime.errors import Stale, Unavailable
from runtime.lease import Judgement, Lease, LeaseState, Next, Renewal


def renewal(incarnation: int = 7, *, lease_s: float = 9.0, head: int = 0, resync: bool = False) -> Renewal:
    return Renewal(incarnation, lease_s, head, resync)


def joined(clock: SteppedClock, *, head: int = 0) -> Lease:
    lease = Lease(clock)
    assert lease.renewed(clock.lease_now_s(), renewal(head=head)) is Next.WIPE_AND_SYNC
    lease.applied(7, head)
    lease.reconciled(7)
    return lease


def test_nobody_is_named_before_the_node_has_reconciled() -> None:
    clock = SteppedClock()
    lease = Lease(clock)
    assert not lease.allows()
    lease.renewed(clock.lease_now_s(), renewal())
    assert lease.state is LeaseState.JOINING and not lease.allows()
    lease.reconciled(7)
    assert lease.allows()


def test_the_lease_counts_from_the_sending_of_the_renewal() -> None:
    clock = SteppedClock()
    lease = Lease(clock)
    sent_s = clock.lease_now_s()
    clock.step(8.0)
    lease.renewed(sent_s, renewal())
    lease.reconciled(7)
    assert lease.remaining_s() == pytest.approx(1.0)
    clock.step(1.0)
    assert not lease.allows() and lease.has_lapsed()


def test_a_lease_that_is_not_prolonged_runs_out_at_its_old_time() -> None:
    clock = SteppedClock()
    lease = joined(clock)
    clock.step(5.0)
    assert lease.renewed(clock.lease_now_s(), renewal(lease_s=0.0, head=3)) is Next.SYNC
    assert lease.remaining_s() == pytest.approx(4.0)


def test_answers_out_of_order_never_shorten_the_lease() -> None:
    clock = SteppedClock()
    lease = joined(clock)
    early = clock.lease_now_s()
    clock.step(2.0)
    lease.renewed(clock.lease_now_s(), renewal())
    lease.renewed(early, renewal())
    assert lease.remaining_s() == pytest.approx(9.0)


def test_a_fenced_node_asks_for_a_new_incarnation_and_reconciles_from_nothing() -> None:
    clock = SteppedClock()
    lease = joined(clock, head=5)
    clock.step(9.0)
    lease.fence()
    assert (lease.state, lease.incarnation, lease.cursor) == (LeaseState.FENCED, 0, 0)
    assert lease.renewed(clock.lease_now_s(), renewal(8, head=6)) is Next.WIPE_AND_SYNC
    assert not lease.allows()
    with pytest.raises(Stale):
        lease.applied(7, 6)
    with pytest.raises(Stale):
        lease.reconciled(7)
    lease.applied(8, 6)
    lease.reconciled(8)
    assert lease.allows() and lease.cursor == 6


def test_a_node_that_holds_something_else_than_it_should_names_nobody_until_it_has_read_the_log_again() -> None:
    clock = SteppedClock()
    lease = joined(clock, head=5)
    assert lease.renewed(clock.lease_now_s(), renewal(head=5, resync=True)) is Next.WIPE_AND_SYNC
    assert not lease.allows()


def test_commands_are_applied_only_in_the_order_of_the_log() -> None:
    clock = SteppedClock()
    lease = joined(clock, head=5)
    assert lease.judge(7, 5) is Judgement.KNOWN
    assert lease.judge(7, 6) is Judgement.APPLY
    assert lease.judge(7, 7) is Judgement.SYNC_FIRST
    with pytest.raises(Stale):
        lease.judge(6, 6)
    clock.step(9.0)
    with pytest.raises(Unavailable):
        lease.judge(7, 6)


def test_a_node_that_drains_goes_on_naming_and_a_fenced_one_does_not() -> None:
    clock = SteppedClock()
    standing = Standing(joined(clock))
    standing.draining = True
    assert standing.state is NodeState.DRAINING and standing.allows()
    with pytest.raises(Unavailable):
        standing.require_serving()
    clock.step(9.0)
    assert not standing.allows()


def test_a_standalone_node_always_may_name() -> None:
    standing = Standing(None)
    standing.require_serving()
    assert standing.allows() and standing.state is NodeState.SERVING

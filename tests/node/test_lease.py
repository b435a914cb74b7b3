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


def test_an_enrolment_is_held_again_only_if_it_is_as_new_as_all_that_was_applied() -> None:
    clock = SteppedClock()
    lease = joined(clock, head=5)
    assert lease.judge(7, 3, as_of=5) is Judgement.RESTATE
    assert lease.judge(7, 3, as_of=9) is Judgement.RESTATE
    assert lease.judge(7, 3, as_of=4) is Judgement.KNOWN  # entry 5 may be its eviction
    assert lease.judge(7, 6, as_of=9) is Judgement.APPLY
    lease.restart()
    assert lease.judge(7, 3, as_of=9) is Judgement.SYNC_FIRST


def test_an_entry_after_a_gap_is_not_taken() -> None:
    lease = joined(SteppedClock(), head=5)
    lease.require_next(7, 6)
    with pytest.raises(Unavailable):
        lease.require_next(7, 7)
    with pytest.raises(Stale):
        lease.require_next(8, 6)


def test_a_store_that_is_being_refilled_serves_nobody() -> None:
    lease = joined(SteppedClock(), head=5)
    lease.restart()
    assert (lease.state, lease.cursor) == (LeaseState.JOINING, 0) and not lease.allows()
    lease.applied(7, 5)
    lease.reconciled(7)
    assert lease.allows()


def test_an_answer_counts_only_for_the_incarnation_that_asked_and_while_its_lease_lasts() -> None:
    clock = SteppedClock()
    lease = joined(clock)
    asked = lease.ask()
    clock.step(9.0)
    assert lease.answered(asked, renewal()) is None  # it lapsed on the way
    lease.fence()
    assert lease.answered(asked, renewal()) is None
    assert not lease.refused(asked)
    anew = lease.ask()
    assert lease.answered(anew, renewal(8)) is Next.WIPE_AND_SYNC and lease.incarnation == 8

"""The decisions on leases and erasures, without tables or time of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.erasure_rules import ErasureRules
from controlplane.lease_rules import (
    NODE,
    RELAY,
    Lease,
    LeaseRules,
    LeaseTimes,
    LeaseWatch,
    NodeReport,
    Refused,
    Renewed,
)
from runtime.clock import SteppedClock

TIMES = LeaseTimes(node_lease_s=9.0, lease_s=10.0, renew_s=2.0, hold_s=4.0)
RULES = LeaseRules(TIMES)


def report(**fields: object) -> NodeReport:
    known = NodeReport("n1", "p1", 7, 5, 0, bytes(32), "a:1", "m@1", "serving", NODE, "e1")
    return replace(known, **fields)  # type: ignore[arg-type]


def lease(incarnation: int = 7, **fields: object) -> Lease:
    known = Lease(incarnation, "n1", "p1", 110.0, 2, 5, 0, "a:1", "m@1", "serving", False, relied_s=9.0)
    return replace(known, **fields)  # type: ignore[arg-type]


def renewed(
    row: Lease | None, told: NodeReport, *, head: int = 5, unapplied_since_s: float | None = None, now_s: float = 100.0
) -> Renewed | Refused:
    return RULES.renewal(row, told, head=head, epoch="e1", unapplied_since_s=unapplied_since_s, now_s=now_s)


def test_a_renewal_prolongs_and_counts() -> None:
    verdict = renewed(lease(renewals=3), report(cursor=6), head=6)
    assert isinstance(verdict, Renewed) and not verdict.is_held
    assert (verdict.lease.deadline_s, verdict.lease.renewals, verdict.lease.cursor) == (110.0, 4, 6)


@pytest.mark.parametrize(
    ("row", "told", "fence"),
    [
        (None, report(), False),
        (lease(superseded=True), report(), False),
        (lease(process_id="p0"), report(), False),
        (lease(node_id="n0"), report(), False),
        (lease(), report(cursor=6), True),
        (lease(), report(epoch="e0"), True),
    ],
)
def test_who_lost_its_lease_or_is_of_another_history_starts_over(
    row: Lease | None, told: NodeReport, fence: bool
) -> None:
    assert renewed(row, told) == Refused(fence)


def test_a_holder_that_leaves_an_eviction_unapplied_is_heard_and_not_prolonged() -> None:
    for since_s, is_held in ((None, False), (100.0, False), (96.0, False), (95.9, True), (100.1, True)):
        verdict = renewed(lease(), report(cursor=4), unapplied_since_s=since_s)
        assert isinstance(verdict, Renewed) and verdict.is_held is is_held, since_s
        assert (verdict.lease.renewals == 0) is is_held


def test_a_clock_that_is_set_back_does_not_prolong_what_was_held() -> None:
    held = renewed(lease(), report(cursor=4), head=8, unapplied_since_s=95.0)
    assert isinstance(held, Renewed) and held.is_held
    for now_s in (94.0, 96.0):
        again = renewed(held.lease, report(cursor=7), head=9, unapplied_since_s=95.0, now_s=now_s)
        assert isinstance(again, Renewed) and again.is_held and again.lease.renewals == 0, now_s
    # It caught up with what there was when it was held; what came since is judged for itself.
    for since_s in (None, 95.0):
        caught_up = renewed(held.lease, report(cursor=8), head=9, unapplied_since_s=since_s, now_s=96.0)
        assert isinstance(caught_up, Renewed) and not caught_up.is_held and caught_up.lease.renewals == 1
    # A time before the eviction was asked for tells that the clock was set back, and is remembered as well.
    ahead = renewed(lease(), report(cursor=4), head=8, unapplied_since_s=95.0, now_s=94.0)
    assert isinstance(ahead, Renewed)
    later = renewed(ahead.lease, report(cursor=4), head=8, unapplied_since_s=95.0, now_s=96.0)
    assert isinstance(later, Renewed) and later.is_held


@pytest.mark.fault("F20", "P1")
def test_a_cursor_never_goes_back_whatever_comes_late() -> None:
    verdict = renewed(lease(cursor=5), report(cursor=3))
    assert isinstance(verdict, Renewed) and verdict.lease.cursor == 5
    assert RULES.acknowledgement(lease(cursor=5), incarnation=7, cursor=4, head=9) is None


@pytest.mark.fault("F20", "P1")
def test_an_acknowledgement_counts_for_the_incarnation_that_gave_it_and_not_beyond_the_log() -> None:
    assert RULES.acknowledgement(lease(), incarnation=8, cursor=6, head=9) is None
    assert RULES.acknowledgement(lease(), incarnation=7, cursor=10, head=9) is None
    assert RULES.acknowledgement(None, incarnation=7, cursor=6, head=9) is None
    told = RULES.acknowledgement(lease(), incarnation=7, cursor=6, head=9)
    assert told is not None and told.cursor == 6


def test_what_is_superseded_goes_on_being_waited_for() -> None:
    old = [lease(5, fenced=True), lease(6, process_id="p0"), lease(4, fenced=True, process_id="p0")]
    granted, beside = RULES.grant(report(incarnation=0), old, incarnation=8, head=9, now_s=100.0)
    assert (granted.incarnation, granted.joined_revision, granted.cursor) == (8, 9, 0)
    assert [(row.incarnation, row.superseded, row.fenced, row.wiped) for row in beside] == [
        (5, False, True, True),
        (6, True, False, True),
    ]


def test_silence_is_told_by_what_this_process_saw_on_its_own_clock() -> None:
    clock = SteppedClock()
    watch = LeaseWatch(clock, TIMES)
    row = lease(deadline_s=-1e9)  # whatever a database's clock makes of it
    assert not watch.is_silent(row)
    watch.look([row])
    clock.step(9.4)
    watch.look([row])
    assert not watch.is_silent(row)
    clock.step(0.2)
    assert watch.is_silent(row)
    prolonged = replace(row, renewals=1)
    assert not watch.is_silent(prolonged)
    watch.look([prolonged])
    clock.step(9.4)
    assert not watch.is_silent(prolonged)
    clock.step(0.2)
    assert watch.is_silent(prolonged)


def test_who_was_told_to_rely_on_a_longer_lease_is_waited_for_as_long() -> None:
    clock = SteppedClock()
    watch = LeaseWatch(clock, TIMES)
    row = lease(relied_s=30.0)
    watch.look([row])
    clock.step(30.4)
    assert not watch.is_silent(row)
    clock.step(0.2)
    assert watch.is_silent(row)
    verdict = renewed(row, report())
    assert isinstance(verdict, Renewed) and verdict.lease.relied_s == 30.0


def test_an_erasure_waits_for_every_holder_that_neither_applied_it_nor_is_silent() -> None:
    rules = ErasureRules()
    applied, joined_later, behind = lease(1, cursor=9), lease(2, cursor=0, joined_revision=9), lease(3, cursor=8)
    relay, superseded = lease(4, cursor=8, kind=RELAY), lease(5, cursor=0, superseded=True)
    holders = [applied, joined_later, behind, relay, superseded]
    assert rules.waited_for(holders, 9) == [behind, relay, superseded]
    assert rules.to_push(holders, 9, lambda row: row is relay) == [behind]
    assert rules.settlement(holders, 9, lambda row: row is not behind) is None
    settled = rules.settlement(holders, 9, lambda _row: True)
    assert settled is not None
    assert settled.applied == (applied, joined_later) and settled.silent == (behind, relay, superseded)


def test_a_snapshot_is_read_by_who_is_new_far_behind_or_behind_what_is_left_of_the_log() -> None:
    whole = [RULES.reads_whole(cursor, floor=10, head=100, far_behind=50) for cursor in (0, 9, 10, 49, 50, 100, 101)]
    assert whole == [True, True, True, True, False, False, True]
    assert RULES.reads_whole(10, floor=10, head=60, far_behind=50) is False


def test_a_relay_begins_before_what_is_not_proven() -> None:
    assert RULES.relay_begins_at(10, None) == 10
    assert RULES.relay_begins_at(10, 4) == 3

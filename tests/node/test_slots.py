"""Slots are bounded, and a tenancy of one is never taken for another."""

from __future__ import annotations

import pytest

from node.slots import SlotTable
from runtime.errors import Overloaded


def test_a_full_table_refuses_with_a_retry_hint() -> None:
    slots = SlotTable(2, what="stream")
    slots.take(), slots.take()
    with pytest.raises(Overloaded, match="2 stream slots") as refused:
        slots.take()
    assert refused.value.retry_after_s is not None and refused.value.retry_after_s > 0
    assert slots.num_taken == 2


def test_a_slot_taken_again_is_another_tenancy_of_the_same_ring() -> None:
    slots = SlotTable(1, what="stream", first_index=7)
    first = slots.take()
    slots.release(first)
    second = slots.take()
    assert first.index == second.index == 7
    assert first != second
    assert slots.holds(second) and not slots.holds(first)


def test_releasing_twice_is_a_fault_of_the_caller() -> None:
    slots = SlotTable(1, what="stream")
    slot = slots.take()
    slots.release(slot)
    with pytest.raises(AssertionError):
        slots.release(slot)


def test_tables_beside_each_other_share_no_ring() -> None:
    streams, files = SlotTable(3, what="stream"), SlotTable(2, what="file", first_index=3)
    indices = [streams.take().index for _ in range(3)] + [files.take().index for _ in range(2)]
    assert sorted(indices) == [0, 1, 2, 3, 4]

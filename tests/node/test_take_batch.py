"""What goes into a batch: live before files, in turns, within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.batcher import Due, take_batch
from node.slots import Slot

A, B, C, F, G = (Slot(index, 1) for index in range(5))


def batch(*due: Due, windows_max: int = 8, windows_a_slot_max: int = 4) -> dict[Slot, int]:
    return take_batch(due, windows_max=windows_max, windows_a_slot_max=windows_a_slot_max)


def test_all_due_live_windows_go_first_and_files_fill_what_is_left() -> None:
    taken = batch(Due(F, live=False, num_windows=9), Due(A, live=True, num_windows=2), Due(B, live=True, num_windows=3))
    assert taken == {A: 2, B: 3, F: 3}


def test_no_file_window_is_taken_while_live_ones_fill_the_batch() -> None:
    taken = batch(Due(F, live=False, num_windows=1), Due(A, live=True, num_windows=9), Due(B, live=True, num_windows=9))
    assert taken == {A: 4, B: 4}


def test_a_stream_that_is_behind_does_not_keep_the_others_out() -> None:
    due = [Due(A, live=True, num_windows=9), Due(B, live=True, num_windows=1), Due(C, live=True, num_windows=1)]
    assert batch(*due, windows_max=4) == {A: 2, B: 1, C: 1}


def test_who_waits_longest_is_served_first_when_not_all_fit() -> None:
    due = [Due(slot, live=True, num_windows=1) for slot in (C, A, B)]
    assert batch(*due, windows_max=2) == {C: 1, A: 1}


def test_files_share_what_is_left() -> None:
    assert batch(Due(F, live=False, num_windows=9), Due(G, live=False, num_windows=9), windows_max=4) == {F: 2, G: 2}


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=12),
    st.integers(1, 40),
    st.integers(1, 8),
)
def test_a_batch_is_within_its_bounds_and_leaves_no_room_unused(
    sources: list[tuple[bool, int]], windows_max: int, windows_a_slot_max: int
) -> None:
    due = [Due(Slot(index, 1), live, num) for index, (live, num) in enumerate(sources)]
    taken = take_batch(due, windows_max=windows_max, windows_a_slot_max=windows_a_slot_max)
    offered = {entry.slot: min(entry.num_windows, windows_a_slot_max) for entry in due}
    assert all(0 < count <= offered[slot] for slot, count in taken.items())
    assert sum(taken.values()) == min(windows_max, sum(offered.values()))
    live_left = any(entry.live and taken.get(entry.slot, 0) < offered[entry.slot] for entry in due)
    assert not (live_left and any(not entry.live and entry.slot in taken for entry in due))

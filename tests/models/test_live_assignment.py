"""Who a window's speakers are: where no agreement with other windows could change it, it is not asked for."""

from __future__ import annotations

import pytest

from models.local_window import LocalWindow
from models.online_clustering import SessionClustering
from tests.models.test_online import Speech, final_turns

SCENE = [
    Speech(0, 0.0, 9.0),
    Speech(1, 7.0, 15.0),  # over each other
    Speech(2, 16.0, 16.3),  # a fragment, without an embedding
    Speech(0, 18.0, 30.0),
    Speech(2, 27.0, 36.0),
    Speech(1, 37.0, 40.0),
]


def test_the_turns_are_those_of_windows_that_are_all_decided_together(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = SessionClustering._whatever_others_say, SessionClustering._assign_together
    was_clear: list[bool] = []
    num_together = 0

    def counted_alone(
        self: SessionClustering, window: LocalWindow, costs: list[list[float]], nobody: list[float]
    ) -> list[tuple[int, int]] | None:
        found = alone(self, window, costs, nobody)
        was_clear.append(found is not None)
        return found

    def counted_together(
        self: SessionClustering,
        windows: list[LocalWindow],
        costs: list[list[list[float]]],
        nobody: list[list[float]],
    ) -> None:
        nonlocal num_together
        num_together += 1
        together(self, windows, costs, nobody)

    monkeypatch.setattr(SessionClustering, "_assign_together", counted_together)
    monkeypatch.setattr(SessionClustering, "_whatever_others_say", counted_alone)
    turns = final_turns(SCENE, 42.0)
    assert {turn.speaker for turn in turns} == {0, 1, 2}
    assert any(was_clear) and not all(was_clear)
    num_steps = 84
    assert 0 < num_together < num_steps // 2

    num_together = 0
    monkeypatch.setattr(SessionClustering, "_whatever_others_say", lambda *_: None)
    assert final_turns(SCENE, 42.0) == turns
    assert num_together > num_steps // 2

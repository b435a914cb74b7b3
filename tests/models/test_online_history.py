"""A second look at a stream's memory: what was said of one speaker moves to another, and nothing else does."""

from __future__ import annotations

import numpy as np

from models.analysis import FloatArray
from models.online_history import Move, SpokenHistory
from models.speaker_memory import SpeakerMemory
from models.timeline import Turn

STEP = 320
SECOND = 50  # frames


def remembered(*entries: tuple[int, float, float]) -> SpeakerMemory:
    """A memory of (speaker, from, to), in seconds."""
    memory = SpeakerMemory(4, capacity=100)
    for at, (speaker, start_s, end_s) in enumerate(entries):
        voice: FloatArray = np.eye(4, dtype=np.float32)[at % 4]
        memory.remember(voice, 100.0, speaker, (int(start_s * SECOND), int(end_s * SECOND)))
    return memory


def history_of(*said: tuple[int, float, float], minutes: float = 10.0) -> SpokenHistory:
    """What was said by whom (speaker, from, to), in seconds, in final pieces of half a second, as streams tell it."""
    history = SpokenHistory(STEP, round(minutes * 60 * 16_000))
    for speaker, start_s, end_s in said:
        for start in np.arange(start_s, end_s, 0.5).tolist():
            until = min(start + 0.5, end_s)
            history.add([Turn(0, speaker, round(start * 16_000), round(until * 16_000), final=True)])
    return history


def test_what_was_said_of_one_speaker_follows_his_memory_to_another() -> None:
    history = history_of((0, 1, 6), (1, 6, 9), (0, 20, 24))
    memory = remembered((0, 1, 5), (0, 2, 6), (1, 6, 9), (0, 20, 24))
    before = memory.speakers
    memory.relabel(np.array([2, 2, 1, 0]))
    assert history.moves(memory, before) == [Move(0, 2, 1 * 16_000, 6 * 16_000)]
    assert history.moves(memory, memory.speakers) == []
    memory.relabel(np.array([0, 0, 1, 0]))
    assert history.moves(memory, np.array([2, 2, 1, 0])) == [Move(2, 0, 1 * 16_000, 6 * 16_000)]


def test_what_is_remembered_of_both_alike_stays_where_it_is() -> None:
    history = history_of((0, 1, 6))
    memory = remembered((0, 1, 6), (0, 1, 6))
    before = memory.speakers
    memory.relabel(np.array([0, 2]))
    assert history.moves(memory, before) == []


def test_a_merge_renames_what_was_said_and_what_nobody_remembers_stays() -> None:
    history = history_of((1, 0, 4), (1, 50, 53))
    history.rename(1, 0)
    memory = remembered((0, 50, 53))
    before = memory.speakers
    memory.relabel(np.array([3]))
    assert history.moves(memory, before) == [Move(0, 3, 50 * 16_000, 53 * 16_000)]
    assert history.frames_by_speaker() == {0: 4 * SECOND, 3: 3 * SECOND}


def test_the_history_forgets_what_is_older_than_its_length() -> None:
    history = history_of((0, 0, 600), minutes=1.0)
    assert history.frames_by_speaker()[0] <= 60 * SECOND
    assert history.pieces[-1].tolist() == [0, 599.5 * SECOND, 600 * SECOND]

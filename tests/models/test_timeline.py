"""From activities to turns, frame by frame."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from models.timeline import Timeline, TimelineParams, Turn

PARAMS = TimelineParams(onset=0.6, offset=0.4, gap_samples=40, speech_samples_min=30, overlap_threshold=0.65)


def timeline(latency_samples: int = 100, *, exclusive: bool = False) -> Timeline:
    """Frames of ten samples."""
    return Timeline(PARAMS, step_samples=10, latency_samples=latency_samples, exclusive=exclusive)


def told(
    line: Timeline, *activities: Sequence[float], speakers: Sequence[int] = (0,), flush: bool = False
) -> list[Turn]:
    activity = np.array(activities, np.float32).T  # (L, K)
    return line.step(speakers, activity.T, np.minimum(activity.sum(axis=1), 1.0), flush=flush)[0]


def spans(turns: Sequence[Turn]) -> list[tuple[int, int, int]]:
    return [(turn.speaker, turn.start_samples, turn.end_samples) for turn in turns]


def test_speech_that_reaches_the_onset_counts_from_offset_to_offset() -> None:
    activity = [0.3] * 2 + [0.5] * 3 + [0.7] * 2 + [0.5] * 4 + [0.3] * 9 + [0.5] * 5 + [0.3]
    assert spans(told(timeline(), activity, flush=True)) == [(0, 20, 110)]


def test_short_gaps_are_filled_and_short_bursts_dropped() -> None:
    activity = [1.0] * 5 + [0.0] * 3 + [1.0] * 5 + [0.0] * 6 + [1.0] * 2 + [0.0] * 6
    assert spans(told(timeline(), activity, flush=True)) == [(0, 0, 130)]


def test_hysteresis_goes_on_over_the_horizon() -> None:
    line = timeline(latency_samples=50)
    first = told(line, [0.7] * 6)
    second = told(line, [0.5] * 6)
    assert spans(first) == [(0, 0, 10), (0, 10, 60)]
    assert [turn.final for turn in second] == [True, False]
    assert {turn.turn for turn in first + second} == {0}


def test_a_gap_that_began_at_the_horizon_is_still_filled() -> None:
    line = timeline(latency_samples=50)
    told(line, [1.0] * 5 + [0.0] * 5)
    assert spans(told(line, [0.0] * 2 + [1.0] * 8)) == [(0, 50, 100), (0, 100, 150)]


def test_no_frame_is_final_before_it_is_as_old_as_the_latency() -> None:
    line = timeline(latency_samples=100)
    assert [turn.final for turn in told(line, [1.0] * 10)] == [False]
    assert line.horizon_frames == 0
    assert [turn.final for turn in told(line, [1.0] * 11)] == [True, False]
    assert line.horizon_frames == 1


def test_exclusive_gives_a_frame_to_the_strongest_alone() -> None:
    turns = told(timeline(exclusive=True), [0.9] * 10 + [0.7] * 10, [0.7] * 5 + [0.8] * 15, speakers=(0, 4), flush=True)
    assert spans(turns) == [(0, 0, 100), (4, 100, 200)]


def test_what_is_open_of_a_merged_speaker_goes_on_under_the_other() -> None:
    line = timeline(latency_samples=50)
    before = told(line, [0.0] * 10, [1.0] * 10, speakers=(0, 1))
    line.merge(1, 0)
    after = told(line, [0.5] * 10, speakers=(0,))
    assert spans(after) == [(0, 50, 100), (0, 100, 150)]
    assert not {turn.turn for turn in before} & {turn.turn for turn in after}


def test_state_goes_through_json_and_loses_nothing() -> None:
    line, other = timeline(latency_samples=50), timeline(latency_samples=50)
    told(line, [1.0] * 3 + [0.0] * 4 + [1.0] * 5, [0.0] * 9 + [1.0] * 3, speakers=(0, 2))
    other.load(json.loads(json.dumps(line.state())))
    later = ([0.5] * 12, [1.0] * 12)
    assert told(line, *later, speakers=(0, 2)) == told(other, *later, speakers=(0, 2))

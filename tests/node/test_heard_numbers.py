"""What a stream keeps of its numbers: bounded for days, while speech and labels stay whose they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.live_naming import SHOWN_MAX, LiveNaming, NamingOutcome, Relabel
from models.naming import NamingParameters, all_of
from models.online import Merge, SessionSpeaker, StepOutcome, Turn
from node.checkpoint import StreamState
from node.heard_numbers import LISTED_MAX, HeardNumbers
from node.null_engine import NAMING

SECOND = 16_000
CENTROID = np.zeros(4, np.float32)


def naming() -> LiveNaming:
    parameters: NamingParameters = NAMING
    return LiveNaming(parameters)


def step(
    live: LiveNaming, heard: HeardNumbers, present: list[int], turns: list[tuple[int, int]], merges: list[Merge]
) -> NamingOutcome:
    """A step of a stream nobody is enrolled in: turns of a second each, (session speaker, its first second)."""
    said = [Turn(k, k, at * SECOND, (at + 1) * SECOND, final=True) for k, at in turns]
    speakers = [SessionSpeaker(index, CENTROID, SECOND) for index in present]
    told = live.step(StepOutcome(said, merges, 0), speakers, [], all_of(np.zeros((len(speakers), 0), np.float32)))
    for turn in told.turns:
        heard.count(turn.speaker, turn.turn.end_samples - turn.turn.start_samples)
    heard.note(told)
    heard.forget(live.numbers())
    return told


@pytest.mark.deep
def test_days_of_speakers_opened_in_doubt_leave_a_bounded_checkpoint_and_every_second_of_speech() -> None:
    live, heard = naming(), HeardNumbers(StreamState())
    step(live, heard, [0, 1], [(0, 0), (1, 1)], [])
    sizes = []
    count = 4 * SHOWN_MAX
    for index in range(2, count):
        merges = [Merge(index - 1, 0)] if index > 2 else []
        step(live, heard, [0, 1, index], [(index, index)], merges)
        sizes.append(len(json.dumps(heard.state())) + len(json.dumps(live.state())))
    assert max(sizes[3 * SHOWN_MAX :]) < 1.1 * max(sizes[: 2 * SHOWN_MAX])
    step(live, heard, [0, 1], [(0, count), (1, count + 1)], [Merge(count - 1, 0)])
    assert heard.speech() == {0: count * SECOND, 1: 2 * SECOND}
    assert heard.num_left_out == 0
    assert (heard.index(0), heard.index(1), heard.root(count - 1)) == (0, 1, 0)


def test_of_very_many_strangers_who_left_the_longest_silent_are_left_out_of_the_summary_and_counted() -> None:
    live, heard = naming(), HeardNumbers(StreamState())
    strangers = SHOWN_MAX + LISTED_MAX + 100
    for index in range(1, strangers):
        step(live, heard, [0, index], [(0, index), (index, index)], [])
    step(live, heard, [0], [(0, strangers)], [])
    speech = heard.speech()
    assert speech[0] == strangers * SECOND
    assert heard.num_left_out + len(speech) == strangers
    assert len(speech) <= SHOWN_MAX + LISTED_MAX + 2
    assert sorted(speech)[2] > heard.num_left_out  # number 1 went first, and so on
    again = HeardNumbers(StreamState(**heard.state()))
    assert (again.speech(), again.num_left_out) == (speech, heard.num_left_out)


def test_what_was_shown_under_a_name_is_no_stranger_after_his_other_numbers_are_forgotten() -> None:
    heard = HeardNumbers(StreamState(speech={0: 1, 1: 2, 2: 3}, numbers={0: 0, 1: 1, 2: 2}, named=[2]))
    heard.note(NamingOutcome([Relabel(2, 1, None, 0.0, 0), Relabel(1, 0, None, 0.0, 0)], []))
    heard.forget({0})
    assert heard.was_named(0)
    assert heard.speech() == {0: 6}
    assert heard.state()["shown_as"] == {}
    assert heard.index(2) == -1

"""Names in a running stream: given when it is safe, told when they change, taken back when a voice leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from models.live_naming import LiveNaming, NamedTurn, NamingOutcome, Relabel
from models.naming import NamingParameters, all_of
from models.online import Merge, SessionSpeaker, StepOutcome, Turn

NAMING = NamingParameters(
    bias=-8.0,
    cosine_weight=16.0,
    margin_weight=0.0,
    speech_weight=0.0,
    background_cosine=0.0,
    probability_min=0.5,
    margin_min=0.05,
    net_speech_samples_min=24_000,
)
CENTROID = np.zeros(4, np.float32)
SECOND = 16_000


def step(
    naming: LiveNaming,
    scores: dict[int, Sequence[float]],
    voices: Sequence[str],
    *,
    turns: Sequence[tuple[int, int, int]] = (),
    merges: Sequence[Merge] = (),
    clean_s: float = 10.0,
) -> NamingOutcome:
    """One step: cosines of each session speaker to each voice, and turns (speaker, start, end) in seconds."""
    outcome = StepOutcome(
        turns=[Turn(n, k, a * SECOND, b * SECOND, final=True) for n, (k, a, b) in enumerate(turns)],
        merges=list(merges),
        final_samples=0,
    )
    speakers = [SessionSpeaker(index, CENTROID, int(clean_s * SECOND)) for index in scores]
    cosines = np.array(list(scores.values()), np.float32).reshape(len(scores), len(voices))
    return naming.step(outcome, speakers, voices, all_of(cosines))


def labels(turns: Sequence[NamedTurn]) -> list[tuple[int, str | None]]:
    return [(turn.speaker, turn.voice) for turn in turns]


def changes(relabels: Sequence[Relabel]) -> list[tuple[int, int, str | None, int]]:
    return [(relabel.speaker, relabel.shown_as, relabel.voice, relabel.since_samples) for relabel in relabels]


def test_speakers_are_numbered_by_their_first_turns_and_keep_their_numbers() -> None:
    naming = LiveNaming(NAMING)
    scores: dict[int, Sequence[float]] = {0: [], 3: [], 5: []}
    assert labels(step(naming, scores, [], turns=[(5, 4, 6), (3, 1, 3)]).turns) == [(1, None), (0, None)]
    assert labels(step(naming, scores, [], turns=[(0, 7, 8), (3, 8, 9)]).turns) == [(2, None), (0, None)]


def test_a_name_known_before_the_first_turn_needs_no_relabel() -> None:
    naming = LiveNaming(NAMING)
    told = step(naming, {0: [0.8]}, ["ann"], turns=[(0, 1, 3)])
    assert labels(told.turns) == [(0, "ann")]
    assert told.relabels == []
    assert naming.voices == {0: "ann"}
    assert told.turns[0].probability == pytest.approx(1 / (1 + np.exp(-4.8)), abs=1e-4)


def test_a_speaker_recognised_late_is_relabelled_since_his_first_turn() -> None:
    naming = LiveNaming(NAMING)
    assert labels(step(naming, {0: [0.8]}, ["ann"], turns=[(0, 1, 2)], clean_s=1.0).turns) == [(0, None)]
    told = step(naming, {0: [0.8]}, ["ann"], turns=[(0, 2, 3)], clean_s=2.0)
    assert changes(told.relabels) == [(0, 0, "ann", 1 * SECOND)]
    assert labels(told.turns) == [(0, "ann")]
    assert step(naming, {0: [0.8]}, ["ann"], turns=[(0, 3, 4)]).relabels == []


def test_an_evicted_voice_names_nobody_from_the_next_step_on() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.2, 0.8]}, ["bob", "ann"], turns=[(0, 1, 3)])
    told = step(naming, {0: [0.2]}, ["bob"], turns=[(0, 3, 4)])
    assert changes(told.relabels) == [(0, 0, None, 1 * SECOND)]
    assert labels(told.turns) == [(0, None)]


def test_a_voice_enrolled_in_mid_stream_is_recognised_in_the_next_step() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: []}, [], turns=[(0, 1, 3)])
    assert changes(step(naming, {0: [0.8]}, ["ann"]).relabels) == [(0, 0, "ann", 1 * SECOND)]


def test_a_voice_names_one_speaker_and_goes_to_whom_it_fits_clearly_better() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.60], 1: [0.50]}, ["ann"], turns=[(0, 1, 3), (1, 3, 5)])
    assert step(naming, {0: [0.60], 1: [0.62]}, ["ann"]).relabels == []
    told = step(naming, {0: [0.60], 1: [0.75]}, ["ann"], turns=[(1, 5, 6)])
    assert sorted(changes(told.relabels)) == [(0, 0, None, 1 * SECOND), (1, 1, "ann", 3 * SECOND)]
    assert labels(told.turns) == [(1, "ann")]


def test_a_name_does_not_flicker_at_its_threshold() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.51]}, ["ann"], turns=[(0, 1, 3)])
    assert [step(naming, {0: [cosine]}, ["ann"]).relabels for cosine in (0.49, 0.51, 0.46)] == [[], [], []]
    assert changes(step(naming, {0: [0.40]}, ["ann"]).relabels) == [(0, 0, None, 1 * SECOND)]


def test_a_merged_speaker_is_shown_as_the_one_he_turned_out_to_be_then_and_later() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.1], 1: [0.2]}, ["ann"], turns=[(0, 1, 3), (1, 4, 6)])
    told = step(naming, {0: [0.1]}, ["ann"], merges=[Merge(source=1, target=0)], turns=[(0, 7, 8)])
    assert changes(told.relabels) == [(1, 0, None, 4 * SECOND)]
    told = step(naming, {0: [0.8]}, ["ann"], turns=[(0, 8, 9)])
    assert changes(told.relabels) == [(0, 0, "ann", 1 * SECOND), (1, 0, "ann", 4 * SECOND)]


def test_a_speaker_given_up_as_long_silent_keeps_his_name_until_the_voice_leaves() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.8]}, ["ann"], turns=[(0, 1, 3)])
    assert step(naming, {}, ["ann"]).relabels == []
    assert changes(step(naming, {}, []).relabels) == [(0, 0, None, 1 * SECOND)]


def test_state_goes_through_json_and_loses_nothing() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.8], 1: [0.1]}, ["ann"], turns=[(0, 1, 3), (1, 4, 6)])
    step(naming, {0: [0.8]}, ["ann"], merges=[Merge(1, 0)])
    other = LiveNaming(NAMING)
    other.load(json.loads(json.dumps(naming.state())))
    later = [step(each, {0: [0.1]}, ["ann"], turns=[(0, 8, 9)]) for each in (naming, other)]
    assert later[0] == later[1]
    assert len(later[0].relabels) == 2

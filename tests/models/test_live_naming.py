"""Names in a running stream: given when it is safe, told when they change, taken back when a voice leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from models.live_naming import SHOWN_MAX, LiveNaming, NamedTurn, NamingOutcome, Relabel
from models.naming import NamingParameters, all_of
from models.online import Merge, Move, SessionSpeaker, StepOutcome, Turn

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
    moves: Sequence[tuple[int, int, int, int]] = (),
    clean_s: float = 10.0,
) -> NamingOutcome:
    """One step: cosines of each session speaker to each voice, and turns (speaker, start, end) in seconds.

    moves: (source, target, start, end), in seconds.
    """
    outcome = StepOutcome(
        turns=[Turn(n, k, a * SECOND, b * SECOND, final=True) for n, (k, a, b) in enumerate(turns)],
        merges=list(merges),
        final_samples=0,
        moves=[Move(source, target, a * SECOND, b * SECOND) for source, target, a, b in moves],
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


def test_a_name_is_taken_back_also_where_a_turn_began_earlier_than_it_was_first_shown() -> None:
    naming = LiveNaming(NAMING)
    shown = step(naming, {0: [0.8]}, ["ann"], turns=[(0, 4, 5)])  # provisional: what is final begins earlier
    final = step(naming, {0: [0.8]}, ["ann"], turns=[(0, 2, 3)])
    assert labels([*shown.turns, *final.turns]) == [(0, "ann"), (0, "ann")]
    assert changes(step(naming, {0: []}, []).relabels) == [(0, 0, None, 2 * SECOND)]


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


def applied(relabels: Sequence[Relabel], speaker: int, second: float) -> str | int:
    """What a client who applies relabels in their order shows of a speaker's turn at a moment; his number at first."""
    shown: str | int = speaker
    for relabel in relabels:
        if relabel.speaker == speaker and second * SECOND > relabel.since_samples:
            shown = relabel.voice or relabel.shown_as
    return shown


def test_a_part_of_what_was_said_that_was_anothers_is_relabelled_and_the_rest_stays() -> None:
    naming = LiveNaming(NAMING)
    scores: dict[int, Sequence[float]] = {0: [0.8], 1: [0.1]}
    told = step(naming, {0: [0.8]}, ["ann"], turns=[(0, 1, 9), (0, 20, 29)])
    assert labels(told.turns) == [(0, "ann"), (0, "ann")]
    told = step(naming, scores, ["ann"], moves=[(0, 1, 1, 9)], turns=[(0, 29, 30), (1, 30, 31)])
    assert changes(told.relabels) == [(0, 1, None, 1 * SECOND), (0, 0, "ann", 9 * SECOND)]
    assert labels(told.turns) == [(0, "ann"), (1, None)]
    assert step(naming, scores, ["ann"], turns=[(1, 31, 32)]).relabels == []
    # Whoever the part belongs to now is recognised later, and the voice of the rest is evicted.
    told = step(naming, {0: [0.1], 1: [0.8]}, ["bob"], turns=[])
    assert [applied(told.relabels, 0, second) for second in (5, 25)] == ["bob", 0]
    assert applied(told.relabels, 1, 31) == "bob"


def test_a_part_in_the_middle_moves_and_moves_back() -> None:
    naming = LiveNaming(NAMING)
    scores: dict[int, Sequence[float]] = {0: [0.8], 1: [0.1]}
    step(naming, scores, ["ann"], turns=[(0, 1, 30), (1, 30, 35)])
    told = step(naming, scores, ["ann"], moves=[(0, 1, 10, 15)])
    assert [applied(told.relabels, 0, second) for second in (12, 20)] == [1, "ann"]
    assert min(relabel.since_samples for relabel in told.relabels) == 10 * SECOND
    told = step(naming, scores, ["ann"], moves=[(1, 0, 10, 15)])
    assert [applied(told.relabels, 0, second) for second in (12, 20)] == ["ann", "ann"]
    assert step(naming, scores, ["ann"], turns=[(0, 35, 36)]).relabels == []


def test_parts_follow_a_later_merge_of_the_speaker_whose_they_are() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.1], 1: [0.8]}, ["ann"], turns=[(0, 1, 9), (1, 10, 12), (2, 13, 14)])
    step(naming, {0: [0.1], 1: [0.8], 2: [0.1]}, ["ann"], moves=[(0, 2, 3, 5)])
    told = step(naming, {0: [0.1], 1: [0.8]}, ["ann"], merges=[Merge(2, 1)])
    assert [applied(told.relabels, 0, second) for second in (4, 8)] == ["ann", 0]
    assert applied(told.relabels, 2, 13.5) == "ann"


def test_an_early_look_names_only_whom_it_is_nearly_sure_of() -> None:
    careful = replace(NAMING, live_probability_min=0.9, live_speech_samples=20 * SECOND)
    likely = {0: [0.56]}  # three to one
    naming = LiveNaming(careful)
    assert labels(step(naming, likely, ["ann"], turns=[(0, 1, 3)]).turns) == [(0, None)]
    assert labels(step(naming, likely, ["ann"], turns=[(0, 3, 5)], clean_s=25.0).turns) == [(0, None)]
    assert labels(step(naming, likely, ["ann"], turns=[(0, 5, 7)], clean_s=40.0).turns) == [(0, "ann")]
    assert labels(step(LiveNaming(careful), {0: [0.68]}, ["ann"], turns=[(0, 1, 3)]).turns) == [(0, "ann")]


def test_a_name_that_was_taken_back_has_to_stand_for_longer_each_time() -> None:
    naming = LiveNaming(NAMING)
    clean_s, waited = 10.0, []
    for _ in range(3):
        start_s = clean_s
        while labels(step(naming, {0: [0.8]}, ["ann"], turns=[(0, 1, 2)], clean_s=clean_s).turns) == [(0, None)]:
            clean_s += 1.0
        waited.append(clean_s - start_s)
        step(naming, {0: [0.1]}, ["ann"], clean_s=clean_s)
    assert waited == [0.0, 2.0, 4.0]


def test_what_was_said_before_a_part_moved_says_nothing_of_those_who_fell_silent_earlier() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.1], 1: [0.1]}, ["ann"], turns=[(0, 1, 9), (1, 10, 12)])
    step(naming, {0: [0.1]}, ["ann"], merges=[Merge(1, 0)], turns=[(0, 20, 30)])
    told = step(naming, {0: [0.1], 2: [0.8]}, ["ann"], moves=[(0, 2, 20, 25)])
    assert {relabel.speaker for relabel in told.relabels} == {0}


def test_what_is_known_stays_bounded_however_many_speakers_come_and_go() -> None:
    naming = LiveNaming(NAMING)
    for index in range(1, 3 * SHOWN_MAX):
        merges = [Merge(index - 1, 0)] if index > 1 else []
        told = step(naming, {0: [0.8], index: [0.1]}, ["ann"], turns=[(0, 1, 2), (index, 2, 3)], merges=merges)
        assert labels(told.turns)[0] == (0, "ann")
    state = naming.state()
    assert len(state["shown"]) <= SHOWN_MAX + 2
    assert len(state["merged"]) <= SHOWN_MAX + 2
    assert len({shown[1] for shown in state["shown"]}) == len(state["shown"])
    relabels = step(naming, {0: [0.1]}, ["ann"]).relabels
    assert (0, 0, None, 1 * SECOND) in changes(relabels)


def test_a_speaker_given_up_as_long_silent_keeps_his_name_until_the_voice_leaves() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.8]}, ["ann"], turns=[(0, 1, 3)])
    assert step(naming, {}, ["ann"]).relabels == []
    assert changes(step(naming, {}, []).relabels) == [(0, 0, None, 1 * SECOND)]


def test_state_goes_through_json_and_loses_nothing() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.8], 1: [0.1]}, ["ann"], turns=[(0, 1, 3), (1, 4, 6)])
    step(naming, {0: [0.8], 2: [0.1]}, ["ann"], merges=[Merge(1, 0)], moves=[(0, 2, 2, 3)])
    other = LiveNaming(NAMING)
    other.load(json.loads(json.dumps(naming.state())))
    later = [step(each, {0: [0.1]}, ["ann"], turns=[(0, 8, 9)]) for each in (naming, other)]
    assert later[0] == later[1]
    assert {relabel.speaker for relabel in later[0].relabels} == {0, 1}


def test_numbers_that_are_forgotten_are_the_longest_silent_and_nobody_is_told_to_be_another_for_it() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.1], 1: [0.1]}, ["ann"], turns=[(0, 0, 1), (1, 1, 2)])
    # 1 leaves without a word more; whoever was taken for somebody new and was he goes before him, if silent longest.
    for index in range(2, 2 * SHOWN_MAX):
        told = step(naming, {0: [0.1], index: [0.1]}, ["ann"], turns=[(index, index, index + 1)])
        merged = step(naming, {0: [0.1]}, ["ann"], merges=[Merge(index, 1)])
        assert changes(told.relabels) == []
        assert changes(merged.relabels) == [(index, 1, None, index * SECOND)]
    assert {0, 1, 2 * SHOWN_MAX - 1} <= naming.numbers()
    assert 2 not in naming.numbers()


def test_a_name_that_went_to_one_who_proves_to_be_the_same_person_was_in_no_doubt() -> None:
    naming = LiveNaming(NAMING)
    step(naming, {0: [0.8]}, ["ann"], turns=[(0, 1, 9)])
    told = step(naming, {0: [0.7], 1: [0.95]}, ["ann"], turns=[(1, 10, 12)])
    assert changes(told.relabels) == [(0, 0, None, 1 * SECOND)]
    step(naming, {0: [0.1], 1: [0.1]}, ["ann"])
    told = step(naming, {0: [0.8]}, ["ann"], merges=[Merge(1, 0)])
    assert changes(told.relabels) == [(0, 0, "ann", 1 * SECOND), (1, 0, "ann", 10 * SECOND)]

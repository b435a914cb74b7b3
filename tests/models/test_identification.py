"""Identification: one calibrated probability a pair, a threshold on the score shown, and either rule of exclusivity."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.identification import identify, score_of
from models.naming import NamingParameters, all_of, match_probabilities

NAMING = NamingParameters(
    bias=-6.0,
    cosine_weight=14.0,
    margin_weight=6.0,
    speech_weight=0.5,
    background_cosine=0.2,
    probability_min=0.5,
    margin_min=0.0,
    net_speech_samples_min=16_000,
)
SECOND = 16_000


def found(cosines: list[list[float]], *, exclusive: bool = True, threshold: float = 0) -> list[int | None]:
    matrix = np.array(cosines, np.float32)
    speech = np.full(len(matrix), 10 * SECOND)
    return [one.match for one in identify(all_of(matrix), speech, NAMING, exclusive=exclusive, threshold=threshold)]


def test_each_speaker_is_who_sounds_most_like_it() -> None:
    assert found([[0.9, 0.1, 0.2], [0.1, 0.2, 0.8]]) == [0, 2]


def test_a_voiceprint_matches_one_speaker_unless_it_may_match_several() -> None:
    cosines = [[0.9, 0.1], [0.8, 0.1]]
    assert found(cosines)[0] == 0
    assert found(cosines)[1] != 0
    assert found(cosines, exclusive=False) == [0, 0]


def test_the_threshold_cuts_on_the_score_that_is_shown() -> None:
    cosines = np.array([[0.34, 0.1]], np.float32)
    speech = np.array([10 * SECOND])
    (score,) = {score_of(float(p)) for p in match_probabilities(all_of(cosines), speech, NAMING)[0, :1]}
    assert 1 < score < 99
    assert found(cosines.tolist(), threshold=score) == [0]
    assert found(cosines.tolist(), threshold=score + 0.5) == [None]


def test_a_score_of_zero_is_never_a_match() -> None:
    assert found([[-0.4]], threshold=0) == [None]
    assert found([[-0.4]], threshold=0, exclusive=False) == [None]


@pytest.mark.parametrize("exclusive", [True, False])
def test_without_candidates_or_speakers_nobody_is_anybody(exclusive: bool) -> None:
    empty = np.zeros((2, 0), np.float32)
    speech = np.full(2, SECOND)
    assert [one.match for one in identify(all_of(empty), speech, NAMING, exclusive=exclusive, threshold=0)] == [
        None
    ] * 2
    none = np.zeros((0, 3), np.float32)
    assert identify(all_of(none), np.zeros(0), NAMING, exclusive=exclusive, threshold=0) == []


matrices = st.integers(1, 4).flatmap(
    lambda speakers: st.integers(1, 4).flatmap(
        lambda voices: st.lists(
            st.lists(st.floats(-0.25, 1.0, width=32), min_size=voices, max_size=voices),
            min_size=speakers,
            max_size=speakers,
        )
    )
)


@settings(max_examples=150, deadline=None)
@given(cosines=matrices, threshold=st.integers(0, 100))
def test_no_injective_assignment_is_better_than_the_one_that_is_made(
    cosines: list[list[float]], threshold: int
) -> None:
    matrix = np.array(cosines, np.float32)
    speech = np.full(len(matrix), 5 * SECOND)
    results = identify(all_of(matrix), speech, NAMING, exclusive=True, threshold=threshold)
    made = [one.match for one in results]
    probabilities = np.stack([one.probabilities for one in results]).astype(np.float64)
    acceptable = np.round(100 * probabilities) >= max(threshold, 1)
    given_out = [match for match in made if match is not None]
    assert len(set(given_out)) == len(given_out)
    assert all(match is None or acceptable[speaker, match] for speaker, match in enumerate(made))
    total = sum(probabilities[speaker, match] for speaker, match in enumerate(made) if match is not None)
    slots = [*range(matrix.shape[1]), *[None] * len(matrix)]
    best = max(
        sum(
            probabilities[speaker, voice]
            for speaker, voice in enumerate(order)
            if voice is not None and acceptable[speaker, voice]
        )
        for order in permutations(slots, len(matrix))
    )
    assert total == pytest.approx(best, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(cosines=matrices, threshold=st.integers(0, 100))
def test_without_exclusivity_everybody_gets_the_best_of_what_is_acceptable(
    cosines: list[list[float]], threshold: int
) -> None:
    matrix = np.array(cosines, np.float32)
    speech = np.full(len(matrix), 5 * SECOND)
    for one in identify(all_of(matrix), speech, NAMING, exclusive=False, threshold=threshold):
        best = float(one.probabilities.max())
        if one.match is None:
            assert score_of(best) < max(threshold, 1)
        else:
            assert one.probabilities[one.match] == best

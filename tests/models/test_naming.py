"""Naming: calibrated, exclusive, and never without enough speech."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.naming import (
    Candidates,
    Reason,
    all_of,
    margins,
    match_probabilities,
    name_speakers,
    same_voice_probability,
)
from tests.models.builtin_engine import bundle

NAMING = bundle().naming
LONG = 30 * 16_000


def _named(cosines, seconds=None, **changes):
    cosines = np.array(cosines, np.float32)
    net_speech = np.full(len(cosines), LONG) if seconds is None else np.array(seconds) * 16_000
    return name_speakers(all_of(cosines), net_speech, dataclasses.replace(NAMING, **changes))


def test_two_speakers_never_get_one_name():
    verdicts = _named([[0.9, 0.1], [0.8, 0.1]])
    assert [verdict.voice for verdict in verdicts] == [0, None]
    assert verdicts[1].reason is Reason.TAKEN


def test_the_best_pairing_of_all_wins_over_the_first_come():
    # Taken one by one, the first speaker would have voice 0 and leave the second without any.
    verdicts = _named([[0.85, 0.80], [0.80, 0.1]], margin_min=-1.0)
    assert [verdict.voice for verdict in verdicts] == [1, 0]


def test_a_stranger_and_a_whisper_of_speech_are_not_named():
    assert _named([[0.15, 0.1]])[0].reason is Reason.BELOW_THRESHOLD
    assert _named([[0.9, 0.1]], seconds=[1])[0].reason is Reason.TOO_LITTLE_SPEECH
    assert _named([[0.9, 0.89]])[0].reason is Reason.THIN_MARGIN


def test_without_voices_or_without_speakers_nobody_is_named():
    assert [v.reason for v in name_speakers(all_of(np.zeros((2, 0), np.float32)), np.full(2, LONG), NAMING)] == [
        Reason.NO_VOICES,
        Reason.NO_VOICES,
    ]
    assert name_speakers(all_of(np.zeros((0, 3), np.float32)), np.zeros(0), NAMING) == []


def test_a_match_grows_likelier_with_the_cosine_and_with_the_margin():
    cosines = np.array([[0.3, 0.1], [0.5, 0.1], [0.5, 0.45], [0.7, 0.1]], np.float32)
    low, middle, contested, high = match_probabilities(all_of(cosines), np.full(4, LONG), NAMING)[:, 0]
    assert low < middle < high
    assert contested < middle


def test_margins_are_to_the_best_other_voice_or_to_the_background():
    found = margins(np.array([[0.6, 0.4, 0.1]], np.float32), 0.0)
    np.testing.assert_allclose(found, [[0.2, -0.2, -0.5]], atol=1e-6)
    np.testing.assert_allclose(margins(np.array([[0.6]], np.float32), 0.1), [[0.5]], atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8))
def test_a_name_is_given_once_and_only_above_every_bound(seed, num_speakers, num_voices):
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-0.2, 1.0, (num_speakers, num_voices)).astype(np.float32)
    net_speech = rng.integers(0, LONG, num_speakers)
    verdicts = name_speakers(all_of(cosines), net_speech, NAMING)
    given_names = [verdict.voice for verdict in verdicts if verdict.voice is not None]
    assert len(given_names) == len(set(given_names))
    for verdict, net in zip(verdicts, net_speech, strict=True):
        assert (verdict.reason is Reason.MATCHED) == (verdict.voice is not None)
        if verdict.voice is not None:
            assert verdict.probability >= NAMING.probability_min
            assert verdict.margin >= NAMING.margin_min
            assert net >= NAMING.net_speech_samples_min


def test_the_same_likeness_counts_for_less_among_more_voices():
    cosines = np.array([[0.5, 0.2]], np.float32)
    few, many = (Candidates(cosines, np.full(2, LONG), size) for size in (2, 500))
    assert (
        match_probabilities(few, np.full(1, LONG), NAMING)[0, 0]
        > match_probabilities(many, np.full(1, LONG), NAMING)[0, 0]
    )


def test_speech_on_both_sides_counts():
    weighed = dataclasses.replace(NAMING, speech_weight=-1.0, voice_speech_weight=-1.0)

    def probability(heard_s, enrolled_s):
        voices = all_of(np.array([[0.45]], np.float32), np.array([enrolled_s * 16_000]))
        return match_probabilities(voices, np.array([heard_s * 16_000]), weighed)[0, 0]

    assert probability(2, 2) > probability(4, 2) > probability(4, 4)
    assert probability(4, 6) == probability(4_000, 6_000)  # beyond a bound, more of it says no more


def test_a_verdict_reports_the_runner_up_the_margin_and_the_speech_behind_both():
    voices = all_of(np.array([[0.2, 0.85, 0.4]], np.float32), np.array([3, 5, 7]) * 16_000)
    verdict = name_speakers(voices, np.array([LONG]), NAMING)[0]
    assert (verdict.voice, verdict.best, verdict.runner_up) == (1, 1, 2)
    assert verdict.margin == pytest.approx(0.45)
    assert verdict.runner_up_cosine == pytest.approx(0.4)
    assert verdict.runner_up_probability < verdict.probability
    assert verdict.voice_speech_samples == 5 * 16_000
    alone = name_speakers(all_of(np.array([[0.1]], np.float32)), np.array([LONG]), NAMING)[0]
    assert (alone.voice, alone.best, alone.runner_up) == (None, 0, None)


def test_two_clips_of_one_voice_are_likelier_one_person_than_clips_of_two():
    one, near, far = (np.array(v, np.float32) for v in ([1, 0], [0.8, 0.6], [0, 1]))
    assert same_voice_probability(one, near, LONG, LONG, NAMING) > 0.9
    assert same_voice_probability(one, far, LONG, LONG, NAMING) < 0.01


def test_voices_of_one_person_are_no_rivals_of_each_other() -> None:
    cosines = np.array([[0.8, 0.79, 0.78, 0.3], [0.1, 0.2, 0.15, 0.7]], np.float32)
    persons = np.array([7, 7, 7, 3])
    np.testing.assert_allclose(margins(cosines, 0.0, persons)[0], [0.5, 0.49, 0.48, -0.5], atol=1e-6)
    alone = margins(cosines[:, :3], 0.1, persons[:3])
    np.testing.assert_allclose(alone, cosines[:, :3] - 0.1, atol=1e-6)
    several = Candidates(cosines, np.full(4, LONG), 4)
    apart = name_speakers(several, np.full(2, LONG), NAMING)
    assert (apart[0].voice, apart[0].runner_up) == (None, 1)
    together = name_speakers(dataclasses.replace(several, persons=persons), np.full(2, LONG), NAMING)
    assert [(verdict.voice, verdict.runner_up) for verdict in together] == [(0, 3), (3, 1)]
    only = dataclasses.replace(
        several, cosines=cosines[:, :3], net_speech_samples=np.full(3, LONG), persons=persons[:3]
    )
    assert name_speakers(only, np.full(2, LONG), NAMING)[0].runner_up is None


def test_persons_of_one_voice_each_change_nothing() -> None:
    generator = np.random.default_rng(0)
    cosines = generator.uniform(-0.2, 0.9, (5, 30)).astype(np.float32)
    np.testing.assert_array_equal(margins(cosines, 0.1), margins(cosines, 0.1, generator.permutation(30)))

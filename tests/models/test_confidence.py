"""Confidence: high where everything agrees, low near changes and in doubt, and as often right as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.calibration import expected_calibration_error
from models.confidence import REACH_FRAMES, frame_confidence, frame_evidence, speaker_confidence
from models.engines import collecting
from models.file_turns import Diarization, turns_of_activity
from models.seams import SlotKind
from scripts.simulate_mixtures import load_any_voices
from scripts.simulated_talks import Talk, make_talk, split_voices
from tests.models.builtin_engine import bundle, engine

SETTINGS, PARAMETERS = bundle().clustering, bundle().confidence
STEP = 320


def two_in_turns() -> tuple[np.ndarray, np.ndarray]:
    """Activity (F, 2) and speech (F,): one speaks for 3 s, then the other, whom the windows do not agree on."""
    activity = np.zeros((300, 2), np.float32)
    activity[:150, 0] = 0.99
    activity[150:, 1], activity[150:, 0] = 0.6, 0.4
    return activity, np.full(300, 0.99, np.float32)


def found(activity: np.ndarray, speech: np.ndarray) -> Diarization:
    centroids = np.eye(2, 8, dtype=np.float32)
    return turns_of_activity(
        activity,
        speech,
        centroids,
        SETTINGS,
        step_samples=STEP,
        total_samples=len(speech) * STEP,
        confidence=PARAMETERS,
    )


def test_where_windows_disagree_a_turn_is_less_sure():
    sure, unsure = found(*two_in_turns()).turns
    assert sure.confidence is not None
    assert unsure.confidence is not None
    assert 0.9 < sure.confidence <= 1.0
    assert unsure.confidence < sure.confidence - 0.05


def test_frames_near_a_change_of_speakers_are_less_sure_than_those_far_from_it():
    result = found(*two_in_turns())
    assert result.confidence is not None
    values = result.confidence.values
    assert (values.dtype, values.shape, result.confidence.step_samples) == (np.uint8, (300,), STEP)
    assert values[149] < values[100]
    spoken = np.zeros((300, 2), bool)
    spoken[:150, 0], spoken[150:, 1] = True, True
    away = np.expm1(frame_evidence(*two_in_turns(), spoken)[:, 4])
    np.testing.assert_allclose(away[[0, 149, 150, 140, 100, 299]], [25, 0, 0, 9, REACH_FRAMES, 25], atol=1e-4)


def test_turns_speakers_and_frames_agree_on_one_scale():
    activity, speech = two_in_turns()
    result = found(activity, speech)
    spoken = np.zeros((300, 2), bool)
    spoken[:150, 0], spoken[150:, 1] = True, True
    own = speaker_confidence(activity, speech, spoken, column=1, speaker=1, parameters=PARAMETERS)
    assert result.turns[1].confidence == pytest.approx(float(own.mean()), abs=1e-6)
    assert result.speakers[1].confidence == pytest.approx(float(own.mean()), abs=1e-6)
    np.testing.assert_array_equal(result.confidence.values, frame_confidence(activity, speech, spoken, PARAMETERS))


def test_nothing_is_said_where_nothing_was_fitted():
    activity, speech = two_in_turns()
    result = turns_of_activity(
        activity, speech, np.eye(2, 8, dtype=np.float32), SETTINGS, step_samples=STEP, total_samples=300 * STEP
    )
    assert result.confidence is None
    assert {turn.confidence for turn in result.turns} == {None}


@pytest.fixture(scope="module")
def talk(audio: Path) -> Talk:
    """A talk of three members, whom no fit has heard."""
    folder = audio / "librispeech" / "members"
    voices = split_voices(load_any_voices([folder]), np.random.default_rng(3))
    return make_talk(voices, sorted(voices)[:3], np.random.default_rng(8))


def test_frames_are_as_often_right_as_is_said_on_voices_that_the_fit_has_not_heard(talk: Talk):
    from models.diarize import diarize_blocks

    device = engine()
    samples = talk.samples[: 75 * 16_000]
    result = diarize_blocks(device, [samples], collecting(bundle(), device)(SlotKind.FILE), SlotKind.FILE)
    names = sorted({name for _, _, name in talk.spoken})
    truth = np.zeros((len(samples) // STEP, len(names)), bool)
    for begin, end, name in talk.spoken:
        truth[begin // STEP : end // STEP, names.index(name)] = True
    said = np.zeros_like(truth)
    for turn in result.turns:
        frames = slice(turn.start_samples // STEP, turn.end_samples // STEP)
        own = [t for t in result.turns if t.speaker == turn.speaker]
        shared = [truth[t.start_samples // STEP : t.end_samples // STEP].sum(axis=0) for t in own]
        said[frames, int(np.sum(shared, axis=0).argmax())] = True
    right = (said == truth).all(axis=1)
    values = result.confidence.values[: len(right)] / 255
    assert right.mean() > 0.8
    assert expected_calibration_error(values, right) <= 0.08
    # What it is least sure of is what is wrong.
    order = np.argsort(values)
    assert right[order[: len(order) // 10]].mean() < right[order[len(order) // 2 :]].mean() - 0.1


def test_a_recording_of_silence_has_frames_to_be_sure_of():
    quiet = found(np.zeros((50, 2), np.float32), np.zeros(50, np.float32))
    assert quiet.turns == ()
    assert quiet.confidence is not None
    assert (quiet.confidence.values > 200).all()

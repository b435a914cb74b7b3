"""Calibration: probabilities that mean something on voices that no fit has heard, and a file that carries them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.calibration import (
    KnownVoice,
    draw_trials,
    equal_error_rate,
    error_rates,
    expected_calibration_error,
    fit_naming,
)
from models.calibration_file import calibration_text, with_calibration
from models.naming import match_weights
from models.recalibrate import HeardClip, recalibrate
from runtime.errors import InvalidRequest, NotFound
from scripts.voice_conditions import in_condition
from tests.models.builtin_engine import bundle, engine

NAMING = bundle().naming
DIM = 32


def people(count: int, clips: int, *, spread: float, seed: int = 3) -> list[HeardClip]:
    """Clips of made-up voices: unit vectors scattered around each person's own."""
    rng = np.random.default_rng(seed)
    found = []
    for person in range(count):
        own = rng.normal(size=DIM) / np.sqrt(DIM)
        for clip in range(clips):
            heard = own + spread * rng.normal(size=DIM) / np.sqrt(DIM)
            unit = (heard / np.linalg.norm(heard)).astype(np.float32)
            found.append(HeardClip(f"person{person}", f"person{person}/{clip}.wav", unit, 5 * 16_000))
    return found


def known(clips: list[HeardClip]) -> list[KnownVoice]:
    return [KnownVoice(clip.person, clip.embedding, clip.net_speech_samples) for clip in clips]


def test_the_error_of_a_calibration_is_the_distance_between_what_is_said_and_what_is_so():
    said = np.array([0.9] * 10 + [0.2] * 10)
    so = np.array([True] * 9 + [False] + [True] * 7 + [False] * 3)
    assert expected_calibration_error(said, so) == pytest.approx(0.25)
    assert expected_calibration_error(said, so, np.array([1.0] * 10 + [0.0] * 10)) == pytest.approx(0.0)


def test_a_fit_finds_the_weights_that_made_its_trials():
    rng = np.random.default_rng(1)
    trials = draw_trials(known(people(40, 1, spread=0.8)), known(people(40, 8, spread=0.8)), NAMING, (1, 4, 16), rng)
    truth = dataclasses.replace(NAMING, bias=-6.0, cosine_weight=12.0, margin_weight=3.0, gallery_weight=-0.5)
    drawn = dataclasses.replace(trials, match=rng.random(len(trials)) < trials.probabilities(truth))
    fitted = fit_naming(drawn, NAMING)
    assert expected_calibration_error(drawn.probabilities(fitted), drawn.match) < 0.03
    assert fitted.cosine_weight == pytest.approx(12.0, abs=3.0)
    # Trust in what was there before holds a fit near it.
    trusting = fit_naming(drawn, NAMING, trust=1e6)
    np.testing.assert_allclose(match_weights(trusting), match_weights(NAMING), atol=0.05)


def test_a_trial_without_its_own_voice_in_the_gallery_never_counts_as_a_match():
    rng = np.random.default_rng(2)
    clips = people(6, 2, spread=0.3)
    trials = draw_trials(known(clips[::2]), known(clips), NAMING, (1, 3), rng)
    assert not trials.match[~trials.present].any()
    assert trials.match[trials.present].mean() > 0.9
    alone = error_rates(trials, trials.probabilities(NAMING), -1.0, [0.0, 1.0])
    assert (alone[0].far, alone[0].frr) == (1.0, pytest.approx(1 - trials.match[trials.present].mean()))
    assert (alone[1].far, alone[1].frr) == (0.0, 1.0)


def test_the_equal_error_rate_lies_where_misses_and_false_alarms_meet():
    error, threshold = equal_error_rate(np.array([0.4, 0.6, 0.7, 0.8]), np.array([0.1, 0.2, 0.3, 0.5]))
    assert error == pytest.approx(0.25)
    assert 0.4 < threshold <= 0.6


def test_own_clips_give_a_calibration_that_was_measured_on_people_it_had_not_heard():
    found = recalibrate(people(8, 4, spread=0.9), NAMING)
    assert (found.num_people, found.num_clips) == (8, 32)
    assert found.ece <= 0.1
    assert [rate.threshold for rate in found.rates] == sorted(rate.threshold for rate in found.rates)
    assert found.rates[0].far >= found.rates[-1].far
    assert found.rates[0].frr <= found.rates[-1].frr


def test_too_few_people_or_clips_are_refused_with_what_is_needed():
    with pytest.raises(InvalidRequest, match="3 people with two usable clips or more; 4 are needed"):
        recalibrate(people(3, 9, spread=0.3), NAMING)
    with pytest.raises(InvalidRequest, match="8 usable clips; 12 are needed"):
        recalibrate(people(4, 2, spread=0.3), NAMING)


def test_voices_that_overlap_are_refused_and_the_doubtful_clips_named():
    clips = people(6, 4, spread=0.3)
    # Two folders hold each other's recordings: half of what each person is enrolled by is somebody else.
    swapped = [
        dataclasses.replace(clip, embedding=clips[(index + 4 * (index % 2)) % len(clips)].embedding)
        for index, clip in enumerate(clips)
    ]
    with pytest.raises(InvalidRequest, match=r"overlap: at the best threshold \d+ % .*person\d/\d\.wav"):
        recalibrate(swapped, NAMING)


def test_a_calibration_goes_through_its_file_and_names_nobody(tmp_path):
    found = recalibrate(people(6, 4, spread=0.5), NAMING)
    file = tmp_path / "own.toml"
    file.write_text(calibration_text(found, bundle()))
    assert with_calibration(bundle(), file).naming == found.naming
    assert "person" not in file.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ge2e-resemblyzer@", "another@"), "made with embeddings of another@"),
        (("bias = ", "bios = "), "missing or unknown parameters: bias, bios"),
        (("net_speech_samples_min = 24000", "net_speech_samples_min = 1.5"), "no number of samples"),
        (("stay_cosine = ", "stay_cosine = nan # "), "no number"),
        (("[naming]", "[naming"), "is no calibration"),
    ],
)
def test_a_calibration_file_that_does_not_fit_is_refused(tmp_path, change, message):
    text = calibration_text(recalibrate(people(6, 4, spread=0.5), NAMING), bundle())
    file = tmp_path / "own.toml"
    file.write_text(text.replace(*change))
    with pytest.raises(InvalidRequest, match=message):
        with_calibration(bundle(), file)


def test_a_calibration_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(NotFound, match="speakerd calibrate DIR"):
        with_calibration(bundle(), tmp_path / "gone.toml")


@pytest.fixture(scope="module")
def heard_voices(audio: Path) -> tuple[list[KnownVoice], list[KnownVoice]]:
    """Enrolments of members, who were in no fit, and of guests; and members heard on other days, in many conditions."""
    rng = np.random.default_rng(4)
    enrolled, heard = [], []
    for folder in sorted((audio / "librispeech" / "members").iterdir()):
        clips = sorted(folder.glob("*.flac"))
        first = np.concatenate([soundfile.read(clip, dtype="float32")[0] for clip in clips[:2]])[: 10 * 16_000]
        enrolled.append(_voice(folder.name, first))
        for number, clip in enumerate(clips[2:7]):
            sound = soundfile.read(clip, dtype="float32")[0][: 8 * 16_000]
            heard.append(_voice(folder.name, in_condition(sound, (3 * number + 1) % 14, rng)))
    for folder in sorted((audio / "librispeech" / "guests").iterdir())[:24]:
        enrolled.append(
            _voice(folder.name, soundfile.read(next(folder.glob("*.flac")), dtype="float32")[0][: 5 * 16_000])
        )
    return enrolled, [voice for voice in heard if voice.net_speech_samples >= NAMING.net_speech_samples_min]


def _voice(person: str, sound: np.ndarray) -> KnownVoice:
    sample = engine().analyze_voice(sound)
    return KnownVoice(person, sample.embedding, sample.net_speech_samples)


def test_probabilities_are_what_they_say_on_voices_that_the_fit_has_not_heard(heard_voices):
    enrolled, heard = heard_voices
    trials = draw_trials(enrolled, heard, NAMING, (1, 3, 5, 12, 29), np.random.default_rng(5))
    probabilities = trials.probabilities(NAMING)
    assert expected_calibration_error(probabilities, trials.match) <= 0.05
    rates = error_rates(trials, probabilities, NAMING.margin_min, [NAMING.probability_min])[0]
    assert rates.far <= 0.14  # half of the clips are of telephones and of rooms with noise
    assert rates.wrong <= 0.02
    assert rates.frr <= 0.25


def test_real_clips_of_people_give_a_calibration(heard_voices):
    enrolled, heard = heard_voices
    clips = [
        HeardClip(voice.person, f"{voice.person}/{n}", voice.embedding, voice.net_speech_samples)
        for n, voice in enumerate([*enrolled, *heard])
    ]
    found = recalibrate(clips, NAMING)
    assert found.num_people == 29
    assert found.ece <= 0.08
    assert found.equal_error <= 0.1

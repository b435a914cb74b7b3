"""What `preflight` measures, on real speech and on made sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import BadAudio
from runtime.media import SourceFormat, decode, preflight

SOURCE = SourceFormat("wav", "pcm_s16le", 16_000, 1)


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype("f4")


def bursts(seconds: float = 10.0, on: float = 0.5, level: float = 0.1) -> np.ndarray:
    """Half-second bursts of noise, `on` of the time."""
    gate = (np.arange(round(16_000 * seconds)) / 8_000 % 1) < on
    return noise(seconds, level) * gate.astype("f4")


def test_silence_is_refused_with_what_to_check() -> None:
    for samples in (np.zeros(32_000, dtype="f4"), noise(2.0, 0.0001)):
        with pytest.raises(BadAudio, match=r"no sound above -60 dBFS in 2\.0 s: .* check the microphone"):
            preflight(samples, SOURCE)
    with pytest.raises(BadAudio, match="no sound"):
        preflight(np.zeros(0, dtype="f4"), SOURCE)


def test_too_short_a_recording_is_refused_for_enrolment_alone() -> None:
    with pytest.raises(BadAudio, match=r"0\.90 s long: a voice is enrolled from at least 1 s"):
        preflight(noise(0.9, 0.1), SOURCE, for_enrolment=True)
    assert preflight(noise(0.9, 0.1), SOURCE).duration_ms == 900
    assert preflight(noise(0.01, 0.1), SOURCE).duration_ms == 10


def test_peak_activity_and_format_are_what_went_in() -> None:
    samples = bursts(on=0.4) + noise(10.0, 0.0005, seed=1)
    samples[123] = 0.5
    measured = preflight(samples, SourceFormat("ogg", "opus", 48_000, 2))
    assert measured.peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert measured.voice_activity_ratio == pytest.approx(0.4, abs=0.05)
    assert (measured.duration_ms, measured.sample_rate_hz, measured.channels) == (10_000, 48_000, 2)
    assert measured.warnings == ()


@pytest.mark.parametrize("snr_db", [0, 5, 10, 15, 20])
@pytest.mark.parametrize("utterance", [0, 3, 6])
def test_the_ratio_of_speech_to_noise_is_right_within_four_decibels(audio: Path, snr_db: int, utterance: int) -> None:
    # These recordings are clean: their own noise lies 30 dB and more below the speech.
    folder = min((audio / "librispeech" / "members").iterdir())
    speech = decode(sorted(folder.glob("*.*"))[utterance]).samples
    powers = speech[: len(speech) // 320 * 320].reshape(-1, 320).var(axis=1)
    level = np.mean(powers[powers > np.quantile(powers, 0.95) / 1_000])
    noisy = speech + noise(len(speech) / 16_000, float(np.sqrt(level / 10 ** (snr_db / 10))), seed=utterance)
    assert preflight(noisy, SOURCE).snr_db == pytest.approx(snr_db, abs=4)


def test_real_speech_passes_without_a_warning(audio: Path) -> None:
    for folder in sorted((audio / "librispeech" / "members").iterdir()):
        recording = decode(max(folder.glob("*.*"), key=lambda path: path.stat().st_size))
        measured = preflight(recording.samples, recording.source, for_enrolment=True)
        assert measured.warnings == ()
        assert 0.4 < measured.voice_activity_ratio < 0.95
        assert measured.snr_db > 10


def test_steady_noise_is_no_speech() -> None:
    measured = preflight(noise(5.0, 0.1), SOURCE)
    assert measured.voice_activity_ratio < 0.05
    assert any("only 0% of the recording" in warning for warning in measured.warnings)


def test_the_direct_current_of_a_cheap_sound_card_hides_no_pauses() -> None:
    assert preflight(bursts() + np.float32(0.2), SOURCE).voice_activity_ratio == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("samples", "rate", "warning"),
    [
        (np.clip(bursts(level=1.0), -1, 1), 16_000, "of the samples are clipped"),
        (bursts(level=0.002), 16_000, "raise the recording level"),
        (bursts(level=0.1) + noise(10.0, 0.05, seed=1), 16_000, "record in a quieter place"),
        (bursts(on=0.1), 16_000, "of the recording has sound like speech"),
        (bursts(), 8_000, "better from 16000 up"),
        (bursts(seconds=3.0), 16_000, "3.0 s long"),
    ],
)
def test_what_spoils_a_voice_is_warned_of(samples: np.ndarray, rate: int, warning: str) -> None:
    measured = preflight(samples.astype("f4"), SourceFormat("wav", "x", rate, 1), for_enrolment=True)
    assert len(measured.warnings) >= 1
    assert any(warning in said for said in measured.warnings)

"""What `preflight` measures, on real speech and on made sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controlplane.speaker_checks import SpeakerLimits
from runtime.errors import BadAudio
from runtime.media import PreflightFailed, PreflightLimits, SourceFormat, decode, measure, preflight

SOURCE = SourceFormat("wav", "pcm_s16le", 16_000, 1)


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype("f4")


def bursts(seconds: float = 10.0, on: float = 0.5, level: float = 0.1) -> np.ndarray:
    """Half-second bursts of noise, `on` of the time, in a quiet room."""
    gate = (np.arange(round(16_000 * seconds)) / 8_000 % 1) < on
    return noise(seconds, level) * gate.astype("f4") + noise(seconds, 0.002 * level, seed=9)


def noisy(speech: np.ndarray, snr_db: float, seed: int, kind: str = "white") -> np.ndarray:
    """A mixture whose speech has `snr_db` more power than the noise put over it, both over the whole recording."""
    over = noise(len(speech) / 16_000, 1.0, seed)[: len(speech)].astype("f8")
    if kind != "white":
        shape = np.maximum(np.fft.rfftfreq(len(over), 1 / 16_000), 80.0)
        gain = shape**-0.5 if kind == "pink" else 1 / (1 + (shape / 500) ** 2)
        over = np.fft.irfft(np.fft.rfft(over) * gain, len(over))
    over *= np.sqrt(np.mean(speech.astype("f8") ** 2) / 10 ** (snr_db / 10)) / over.std()
    return (speech + over).astype("f4")


def members(audio: Path, count: int) -> list[np.ndarray]:
    """The longest recordings of each of the members."""
    return [
        decode(path).samples
        for folder in sorted((audio / "librispeech" / "members").iterdir())
        for path in sorted(folder.glob("*.*"), key=lambda path: -path.stat().st_size)[:count]
    ]


def test_silence_is_refused_with_what_to_check() -> None:
    for samples in (np.zeros(32_000, dtype="f4"), noise(2.0, 0.0001)):
        with pytest.raises(BadAudio, match=r"no sound above -60 dBFS in 2\.0 s: .* check the microphone"):
            measure(samples, SOURCE)
    with pytest.raises(BadAudio, match="no sound"):
        preflight(np.zeros(0, dtype="f4"), SOURCE)


def test_too_short_a_recording_is_refused_with_the_threshold_that_it_tripped() -> None:
    with pytest.raises(PreflightFailed, match=r"0\.90 s long: a voice is enrolled from at least 1 s") as refused:
        preflight(bursts(seconds=0.9), SOURCE)
    (reason,) = [r for r in refused.value.preflight.fail_reasons if r.code == "duration_below_minimum"]
    assert (reason.measured, reason.threshold) == (0.9, 1.0)
    assert measure(noise(0.01, 0.1), SOURCE).duration_ms == 10


def test_peak_activity_and_format_are_what_went_in() -> None:
    samples = bursts(on=0.4) + noise(10.0, 0.0005, seed=1)
    samples[123] = 0.5
    measured = preflight(samples, SourceFormat("ogg", "opus", 48_000, 2))
    assert measured.peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert measured.voice_activity_ratio == pytest.approx(0.4, abs=0.05)
    assert (measured.duration_ms, measured.sample_rate_hz, measured.channels) == (10_000, 48_000, 2)
    assert measured.warnings == ()


@pytest.mark.parametrize("kind", ["white", "pink", "rumble"])
def test_the_ratio_of_speech_to_noise_is_right_within_three_decibels(audio: Path, kind: str) -> None:
    recordings = members(audio, 2)
    # A recording's own noise is noise too. Where it is known to lie far below, what is put over it is all there is.
    own = [measure(speech, SOURCE).snr_db for speech in recordings]
    clean = [speech for speech, snr_db in zip(recordings, own, strict=True) if snr_db >= 38]
    assert len(clean) >= 4
    for snr_db in (0, 5, 10, 15, 20, 25, 30):
        for seed, speech in enumerate(clean):
            assert measure(noisy(speech, snr_db, seed, kind), SOURCE).snr_db == pytest.approx(snr_db, abs=3), seed


def test_a_recording_that_is_noisy_already_is_never_called_cleaner_than_what_is_put_over_it(audio: Path) -> None:
    for seed, speech in enumerate(members(audio, 2)):
        for snr_db in (0, 10, 20):
            assert measure(noisy(speech, snr_db, seed), SOURCE).snr_db < snr_db + 3


def test_pauses_of_digital_silence_hide_no_noise(audio: Path) -> None:
    speech = noisy(members(audio, 1)[0], 5.0, 0)
    cut = np.concatenate([speech, np.zeros(len(speech), dtype="f4")])
    assert measure(cut, SOURCE).snr_db == pytest.approx(5, abs=3)


def test_clean_members_pass_without_a_warning(audio: Path) -> None:
    for speech in members(audio, 1):
        measured = preflight(speech, SOURCE)
        assert measured.warnings == ()
        assert 0.4 < measured.voice_activity_ratio < 0.95
        assert measured.snr_db > 10


def spoiled(speech: np.ndarray, how: str) -> tuple[np.ndarray, int]:
    """A recording spoiled in one way, and the rate that it says it had."""
    ten = speech[:160_000]
    if how.startswith("noise"):
        return noisy(ten, float(how.split()[1]), 0), 16_000
    if how == "clipping":
        return np.clip(ten * 0.9 / np.quantile(np.abs(ten), 0.97), -1, 1).astype("f4"), 16_000
    if how == "clipped and turned down":
        level = np.quantile(np.abs(ten), 0.97)
        return (np.clip(ten, -level, level) * 0.3).astype("f4"), 16_000
    if how == "90 % silence":
        return np.concatenate([ten, noise(9 * len(ten) / 16_000, 1e-4, seed=2)])[: 10 * 160_000][: 119 * 16_000], 16_000
    if how == "8 kHz":
        return ten, 8_000
    if how == "2 s":
        return speech[8_000:40_000], 16_000
    return np.tile(speech, 8)[: 60 * 16_000], 16_000


@pytest.mark.parametrize(
    ("how", "fails", "code"),
    [
        ("noise -5", True, "snr_below_threshold"),
        ("noise 0", True, "snr_below_threshold"),
        ("noise 6", False, "snr_below_recommended"),
        ("noise 20", False, ""),
        ("noise 30", False, ""),
        ("clipping", True, "peak_dbfs_above_threshold"),
        ("clipped and turned down", True, "peak_dbfs_above_threshold"),
        ("90 % silence", True, "low_voice_activity_ratio"),
        ("8 kHz", False, "sample_rate_below_recommended"),
        ("2 s", False, "duration_below_recommended"),
        ("60 s", False, "duration_above_recommended"),
    ],
)
def test_what_spoils_a_recording_is_named_and_the_rest_of_it_is_not(
    audio: Path, how: str, fails: bool, code: str
) -> None:
    for speech in members(audio, 1):
        samples, rate = spoiled(speech, how)
        try:
            measured = preflight(samples, SourceFormat("wav", "pcm_s16le", rate, 1))
        except PreflightFailed as refused:
            measured = refused.preflight
        failed, warned = [f.code for f in measured.fail_reasons], [f.code for f in measured.warnings]
        if fails:
            assert code in failed
        else:
            assert failed == []
            assert warned == ([code] if code else [])


def test_every_limit_can_be_set_and_an_impossible_set_is_refused() -> None:
    strict = PreflightLimits(duration_s_fail_below=5.0, duration_s_warn_above=20.0, duration_s_fail_above=30.0)
    with pytest.raises(PreflightFailed, match="at most 30 s"):
        preflight(bursts(seconds=31.0), SOURCE, strict)
    with pytest.raises(PreflightFailed, match="at least 5 s"):
        preflight(bursts(seconds=4.0), SOURCE, strict)
    with pytest.raises(ValueError, match="has to be worse"):
        PreflightLimits(snr_db_fail_below=20.0)
    with pytest.raises(ValueError, match="Extra inputs"):
        PreflightLimits.model_validate({"snr_fail": 3})


def test_steady_noise_is_no_speech() -> None:
    with pytest.raises(PreflightFailed, match="no speech was found: the sound is steady noise or hum"):
        preflight(noise(5.0, 0.1), SOURCE)


def test_the_direct_current_of_a_cheap_sound_card_hides_no_pauses() -> None:
    assert measure(bursts() + np.float32(0.2), SOURCE).voice_activity_ratio == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("samples", "rate", "warning"),
    [
        (bursts(level=0.002), 16_000, "raise the recording level"),
        (bursts(level=0.1) + noise(10.0, 0.04, seed=1), 16_000, "record in a quieter place"),
        (bursts(on=0.2), 16_000, "of the recording has sound like speech"),
        (bursts(), 8_000, "better from 16000 up"),
        (bursts(seconds=3.0), 16_000, "3.0 s long"),
    ],
)
def test_what_spoils_a_voice_is_warned_of(samples: np.ndarray, rate: int, warning: str) -> None:
    measured = preflight(samples.astype("f4"), SourceFormat("wav", "x", rate, 1))
    assert len(measured.warnings) >= 1
    assert any(warning in said.text for said in measured.warnings)


def test_the_page_on_enrolment_gives_every_limit_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "enrolment.md").read_text()
    for kind in (PreflightLimits, SpeakerLimits):
        for name, known in kind.model_fields.items():
            assert f"| `{name}` | {known.default:g} | " in page, name

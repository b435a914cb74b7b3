"""What a recording looks like as a signal, before anything is stored and before a model hears it.

In: float32 mono samples at 16 kHz and what the file was. Out: a SignalPreflight, or an error that says what to mend.
Nothing is learnt here: activity is energy above the recording's own floor. Music counts as activity; a model tells the
difference later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from runtime.errors import BadAudio
from runtime.media.noise import speech_and_noise
from runtime.media.report import FloatArray, SourceFormat
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples

FRAME_SAMPLES = SAMPLE_RATE_HZ // 50  # 20 ms
SILENCE_DBFS = -60.0
# A frame is active when it stands this far above the floor. White noise of 20 ms varies by 0.4 dB, a quiet room by 2.
ACTIVE_ABOVE_FLOOR_DB = 4.0
# ... and no further than this below the loud frames, so that hum in a silent booth is no speech.
ACTIVE_BELOW_LOUD_DB = 40.0
FLOOR_SHARE = 0.10
# The quietest tenth of the frames of a steady noise has about this much less power than the noise.
FLOOR_BIAS = 1.25
# Activity less than this apart belongs to one stretch of speech.
STRETCH_FRAMES = 15
# Speech is measured over the whole recording, pauses too, as mixtures are made; but a recording that is mostly pause
# is not noisy for that, so pauses count up to half of it.
PAUSES_COUNTED = 0.5
# Below this power (-100 dBFS) lies the rounding of 16-bit samples: no noise can be told from it.
POWER_MIN = 1e-10
SNR_DB_MAX = 60.0
CLIPPED_LEVEL = 0.999
# Nothing but a frame here and there stands out: this is no speech with pauses.
HUM_BELOW = 0.02
# Sound that was clipped and then turned down stays flat at its peak: so many samples in a row are no accident.
FLAT_SAMPLES = 3
FLAT_PEAK_MIN = 0.01


class PreflightLimits(BaseModel):
    """What a recording for enrolment has to be. Times are seconds, levels decibels; `fail` refuses, `warn` tells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    duration_s_fail_below: float = Field(default=1.0, ge=0.0, description="Shorter recordings are refused.")
    duration_s_warn_below: float = Field(
        default=5.0, ge=0.0, description="Shorter ones serve, longer ones serve better."
    )
    duration_s_warn_above: float = Field(default=45.0, gt=0.0, description="From here on more of it adds nothing.")
    duration_s_fail_above: float = Field(default=120.0, gt=0.0, description="Longer recordings are refused.")
    snr_db_fail_below: float = Field(default=3.0, description="Noise nearly as loud as the speech: refused.")
    snr_db_warn_below: float = Field(default=10.0, description="Noise that makes the voice harder to tell.")
    activity_fail_below: float = Field(
        default=0.15, ge=0.0, le=1.0, description="Share of frames with sound like speech."
    )
    activity_warn_below: float = Field(default=0.3, ge=0.0, le=1.0, description="Mostly pauses.")
    clipped_fail_above: float = Field(
        default=0.01, ge=0.0, le=1.0, description="Share of samples cut off at their peak."
    )
    clipped_warn_above: float = Field(default=0.001, ge=0.0, le=1.0, description="The same, told.")
    peak_dbfs_warn_below: float = Field(default=-30.0, description="Recordings whose loudest sample is lower are weak.")
    sample_rate_hz_warn_below: int = Field(default=16_000, ge=0, description="Telephone sound tells voices less well.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.duration_s_fail_below <= self.duration_s_warn_below <= self.duration_s_fail_above:
            raise ValueError("duration_s_fail_below <= duration_s_warn_below <= duration_s_fail_above has to hold")
        if self.snr_db_fail_below > self.snr_db_warn_below or self.activity_fail_below > self.activity_warn_below:
            raise ValueError("what is refused has to be worse than what is warned of")
        return self


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that spoils a recording: `measured` against the `threshold` that it tripped, in the field's own unit.

    text: what to mend, in plain words.
    """

    code: str
    measured: float
    threshold: float
    text: str


@dataclass(frozen=True, slots=True)
class SignalPreflight:
    """What the signal looks like. The fields are those of speakerd.v1.Preflight.

    `peak_dbfs` is the highest sample below full scale; `voice_activity_ratio` the share of 20 ms frames with the energy
    of speech, in [0, 1]; `snr_db` an estimate in [0, 60]; `clipped_ratio` the share of samples cut off at their peak.
    """

    duration_ms: int
    sample_rate_hz: int
    channels: int
    peak_dbfs: float
    voice_activity_ratio: float
    snr_db: float
    clipped_ratio: float
    warnings: tuple[Finding, ...] = ()
    fail_reasons: tuple[Finding, ...] = ()


class PreflightFailed(BadAudio):
    """A recording that cannot be enrolled from. preflight: all that was measured, with the reasons."""

    def __init__(self, preflight: SignalPreflight) -> None:
        super().__init__("; ".join(reason.text for reason in preflight.fail_reasons))
        self.preflight = preflight


class Silent(BadAudio):
    """A recording without a sound."""


def measure(samples: FloatArray, source: SourceFormat) -> SignalPreflight:
    """Measure a recording, float32 (N,). Raises Silent, which is BadAudio, when nothing is louder than -60 dBFS."""
    duration_s = seconds_from_samples(len(samples))
    peak = float(np.max(np.abs(samples), initial=0.0))
    peak_dbfs = 20 * float(np.log10(max(peak, POWER_MIN)))
    if peak_dbfs <= SILENCE_DBFS:
        raise Silent(
            f"no sound above {SILENCE_DBFS:g} dBFS in {duration_s:.1f} s: the recording is silent; "
            "check the microphone and its level, and record again"
        )
    activity, stretches = _activity(samples)
    return SignalPreflight(
        duration_ms=round(1000 * duration_s),
        sample_rate_hz=source.sample_rate_hz,
        channels=source.channels,
        peak_dbfs=round(peak_dbfs, 2),
        voice_activity_ratio=round(activity, 4),
        snr_db=round(_snr_db(samples, stretches), 1),
        clipped_ratio=_clipped_ratio(samples, peak),
    )


def preflight(samples: FloatArray, source: SourceFormat, limits: PreflightLimits | None = None) -> SignalPreflight:
    """Measure a recording for enrolment, float32 (N,), and judge it.

    Raises PreflightFailed, which carries what was measured, when it is past one of the limits or silent.
    """
    limits = limits or PreflightLimits()
    try:
        measured = judged(measure(samples, source), limits)
    except Silent as error:
        raise PreflightFailed(_of_silence(samples, source, limits, str(error))) from None
    if measured.fail_reasons:
        raise PreflightFailed(measured)
    return measured


def _of_silence(samples: FloatArray, source: SourceFormat, limits: PreflightLimits, text: str) -> SignalPreflight:
    """What is to say of a recording in which there is nothing to measure: how long it is, and that it is silent."""
    peak = float(np.max(np.abs(samples), initial=0.0))
    nothing = SignalPreflight(
        duration_ms=round(1000 * seconds_from_samples(len(samples))),
        sample_rate_hz=source.sample_rate_hz,
        channels=source.channels,
        peak_dbfs=round(20 * float(np.log10(max(peak, POWER_MIN))), 2),
        voice_activity_ratio=0.0,
        snr_db=0.0,
        clipped_ratio=0.0,
    )
    lasting = [one for one in judged(nothing, limits).fail_reasons if one.code.startswith("duration_")]
    silence = Finding("low_voice_activity_ratio", 0.0, limits.activity_fail_below, text)
    return replace(nothing, fail_reasons=(*lasting, silence))


def judged(measured: SignalPreflight, limits: PreflightLimits) -> SignalPreflight:
    """The same measurements, with what is wrong with them."""
    found = [finding for finding in _findings(measured, limits) if finding is not None]
    return SignalPreflight(
        duration_ms=measured.duration_ms,
        sample_rate_hz=measured.sample_rate_hz,
        channels=measured.channels,
        peak_dbfs=measured.peak_dbfs,
        voice_activity_ratio=measured.voice_activity_ratio,
        snr_db=measured.snr_db,
        clipped_ratio=measured.clipped_ratio,
        warnings=tuple(finding for fails, finding in found if not fails),
        fail_reasons=tuple(finding for fails, finding in found if fails),
    )


def _findings(measured: SignalPreflight, limits: PreflightLimits) -> list[tuple[bool, Finding] | None]:
    """What is wrong, each with whether it is reason to refuse."""
    duration_s = measured.duration_ms / 1000
    return [
        _below(
            ("duration_below_minimum", "duration_below_recommended"),
            duration_s,
            (limits.duration_s_fail_below, limits.duration_s_warn_below),
            (
                f"the recording is {duration_s:.2f} s long: a voice is enrolled from at least "
                f"{limits.duration_s_fail_below:g} s, better {limits.duration_s_warn_below:g} s or more, of one person "
                "speaking",
                f"the recording is {duration_s:.1f} s long: {limits.duration_s_warn_below:g} s or more serve better",
            ),
        ),
        _above(
            ("duration_above_maximum", "duration_above_recommended"),
            duration_s,
            (limits.duration_s_fail_above, limits.duration_s_warn_above),
            (
                f"the recording is {duration_s:.1f} s long: at most {limits.duration_s_fail_above:g} s are taken; "
                "cut it down to the person speaking",
                f"the recording is {duration_s:.1f} s long: more than {limits.duration_s_warn_above:g} s add nothing",
            ),
        ),
        _above(
            ("peak_dbfs_above_threshold", "clipped"),
            measured.clipped_ratio,
            (limits.clipped_fail_above, limits.clipped_warn_above),
            (f"{measured.clipped_ratio:.1%} of the samples are clipped: lower the recording level",) * 2,
        ),
        _below(
            ("", "peak_dbfs_below_recommended"),
            measured.peak_dbfs,
            (-np.inf, limits.peak_dbfs_warn_below),
            ("", f"the loudest sample is {measured.peak_dbfs:.0f} dBFS: raise the recording level"),
        ),
        _below(
            ("low_voice_activity_ratio", "voice_activity_ratio_below_recommended"),
            measured.voice_activity_ratio,
            (limits.activity_fail_below, limits.activity_warn_below),
            (
                "no speech was found: the sound is steady noise or hum; record the person speaking"
                if measured.voice_activity_ratio < HUM_BELOW
                else f"only {measured.voice_activity_ratio:.0%} of the recording has sound like speech: cut the pauses "
                "out, or record the person speaking",
                f"only {measured.voice_activity_ratio:.0%} of the recording has sound like speech",
            ),
        ),
        _below(
            ("snr_below_threshold", "snr_below_recommended"),
            measured.snr_db,
            (limits.snr_db_fail_below, limits.snr_db_warn_below),
            (f"speech stands only about {measured.snr_db:.0f} dB above the noise: record in a quieter place",) * 2,
        ),
        _below(
            ("", "sample_rate_below_recommended"),
            measured.sample_rate_hz,
            (-np.inf, limits.sample_rate_hz_warn_below),
            (
                "",
                f"the recording has {measured.sample_rate_hz} samples a second: voices are told apart better from "
                f"{limits.sample_rate_hz_warn_below} up",
            ),
        ),
    ]


def _below(
    codes: tuple[str, str], measured: float, limits: tuple[float, float], texts: tuple[str, str]
) -> tuple[bool, Finding] | None:
    for fails, code, limit, text in zip((True, False), codes, limits, texts, strict=True):
        if measured < limit:
            return fails, Finding(code, float(measured), float(limit), text)
    return None


def _above(
    codes: tuple[str, str], measured: float, limits: tuple[float, float], texts: tuple[str, str]
) -> tuple[bool, Finding] | None:
    for fails, code, limit, text in zip((True, False), codes, limits, texts, strict=True):
        if measured > limit:
            return fails, Finding(code, float(measured), float(limit), text)
    return None


def _activity(samples: FloatArray) -> tuple[float, float]:
    """The share of frames that stand above the recording's floor, and the share of stretches of such frames."""
    powers = _frame_powers(samples)
    ordered = np.sort(powers)
    floor = max(FLOOR_BIAS * float(np.mean(ordered[: max(1, int(FLOOR_SHARE * len(ordered)))])), POWER_MIN)
    loud = float(np.quantile(ordered, 0.95))
    threshold = max(
        floor * 10 ** (ACTIVE_ABOVE_FLOOR_DB / 10),
        loud * 10 ** (-ACTIVE_BELOW_LOUD_DB / 10),
        10 ** (SILENCE_DBFS / 10),
    )
    active = powers > threshold
    stretches = np.convolve(active, np.ones(STRETCH_FRAMES), mode="same") > 0.5
    return float(np.mean(active)), float(np.mean(stretches))


def _snr_db(samples: FloatArray, stretches: float) -> float:
    """Power of the speech over power of the noise, decibels in [0, 60]."""
    speech, noise, heard = speech_and_noise(samples)
    spoken = min(1.0, stretches / max(heard, 0.01))
    speech /= min(1.0, max(spoken, 0.01) / PAUSES_COUNTED)
    return min(max(10 * float(np.log10(max(speech, POWER_MIN) / max(noise, POWER_MIN))), 0.0), SNR_DB_MAX)


def _frame_powers(samples: FloatArray) -> npt.NDArray[np.float64]:
    """Mean square of each 20 ms, float64 (F,); a recording shorter than that is one frame."""
    whole = len(samples) - len(samples) % FRAME_SAMPLES
    frames = samples[:whole].reshape(-1, FRAME_SAMPLES) if whole else samples.reshape(1, -1)
    # Direct current is no sound, and would hide the pauses.
    powers: npt.NDArray[np.float64] = np.var(frames, axis=1, dtype=np.float64)
    return powers


def _clipped_ratio(samples: FloatArray, peak: float) -> float:
    """The share of samples at full scale, or flat at the recording's own peak, above or below."""
    full = np.abs(samples) >= CLIPPED_LEVEL
    if peak >= FLAT_PEAK_MIN:
        for side in (samples, -samples):
            at_peak = (side >= CLIPPED_LEVEL * float(np.max(side))).astype(np.int8)
            # A run of FLAT_SAMPLES, then all samples that such a run covers.
            runs = np.convolve(at_peak, np.ones(FLAT_SAMPLES, np.int8), mode="valid") == FLAT_SAMPLES
            full |= np.convolve(runs, np.ones(FLAT_SAMPLES, np.int8), mode="full") > 0
    return float(np.mean(full))

"""What a recording looks like as a signal, before anything is stored and before a model hears it.

In: float32 mono samples at 16 kHz and what the file was. Out: a SignalPreflight, or an error that says what to mend.
Nothing is learnt here: activity is energy above the recording's own floor, and the floor is what the quietest tenth of
its frames hold. Music counts as activity; a model tells the difference later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.errors import BadAudio
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
# Below this power (-100 dBFS) lies the rounding of 16-bit samples: no noise can be told from it.
POWER_MIN = 1e-10
SNR_DB_MAX = 60.0

ENROLMENT_MIN_S = 1.0
ENROLMENT_GOOD_S = 5.0
CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 0.001
NOISY_SNR_DB = 10.0
QUIET_PEAK_DBFS = -30.0
PAUSES_RATIO = 0.30
TELEPHONE_RATE_HZ = 16_000


@dataclass(frozen=True, slots=True)
class SignalPreflight:
    """What the signal looks like. The fields are those of speakerd.v1.Preflight.

    `peak_dbfs` is the highest sample below full scale; `voice_activity_ratio` the share of 20 ms frames with the energy
    of speech, in [0, 1]; `snr_db` an estimate in [0, 60]; `clipped_ratio` the share of samples at full scale.
    """

    duration_ms: int
    sample_rate_hz: int
    channels: int
    peak_dbfs: float
    voice_activity_ratio: float
    snr_db: float
    clipped_ratio: float
    warnings: tuple[str, ...]


def preflight(samples: FloatArray, source: SourceFormat, *, for_enrolment: bool = False) -> SignalPreflight:
    """Measures a recording, float32 (N,).

    Raises BadAudio when nothing in it is louder than -60 dBFS; and, `for_enrolment`, when it is shorter than a second.
    """
    duration_s = seconds_from_samples(len(samples))
    peak = float(np.max(np.abs(samples), initial=0.0))
    peak_dbfs = 20 * float(np.log10(max(peak, POWER_MIN)))
    if peak_dbfs <= SILENCE_DBFS:
        raise BadAudio(
            f"no sound above {SILENCE_DBFS:g} dBFS in {duration_s:.1f} s: the recording is silent; "
            "check the microphone and its level, and record again"
        )
    if for_enrolment and duration_s < ENROLMENT_MIN_S:
        raise BadAudio(
            f"the recording is {duration_s:.2f} s long: a voice is enrolled from at least {ENROLMENT_MIN_S:g} s, "
            f"better {ENROLMENT_GOOD_S:g} s or more, of one person speaking"
        )
    activity, snr_db = _activity_and_snr(samples)
    clipped = float(np.mean(np.abs(samples) >= CLIPPED_LEVEL))
    measured = SignalPreflight(
        duration_ms=round(1000 * duration_s),
        sample_rate_hz=source.sample_rate_hz,
        channels=source.channels,
        peak_dbfs=round(peak_dbfs, 2),
        voice_activity_ratio=round(activity, 4),
        snr_db=round(snr_db, 1),
        clipped_ratio=clipped,
        warnings=(),
    )
    return _warned(measured, for_enrolment=for_enrolment)


def _activity_and_snr(samples: FloatArray) -> tuple[float, float]:
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
    if not active.any():
        return 0.0, 0.0
    # Under loud noise only the peaks of speech stand out, and their power alone would flatter the recording. Its power
    # above the floor is therefore counted everywhere, and spread over the stretches that hold speech, soft parts too.
    speech = max(float(np.mean(powers)) - floor, 0.0)
    stretches = float(np.mean(np.convolve(active, np.ones(STRETCH_FRAMES), mode="same") > 0.5))
    snr_db = 10 * float(np.log10(max(speech / floor / stretches, POWER_MIN)))
    return float(np.mean(active)), min(max(snr_db, 0.0), SNR_DB_MAX)


def _frame_powers(samples: FloatArray) -> npt.NDArray[np.float64]:
    """Mean square of each 20 ms, float64 (F,); a recording shorter than that is one frame."""
    whole = len(samples) - len(samples) % FRAME_SAMPLES
    frames = samples[:whole].reshape(-1, FRAME_SAMPLES) if whole else samples.reshape(1, -1)
    # Direct current is no sound, and would hide the pauses.
    powers: npt.NDArray[np.float64] = np.var(frames, axis=1, dtype=np.float64)
    return powers


def _warned(measured: SignalPreflight, *, for_enrolment: bool) -> SignalPreflight:
    warnings = []
    if measured.clipped_ratio > CLIPPED_SHARE:
        warnings.append(f"{measured.clipped_ratio:.1%} of the samples are clipped: lower the recording level")
    if measured.peak_dbfs < QUIET_PEAK_DBFS:
        warnings.append(f"the loudest sample is {measured.peak_dbfs:.0f} dBFS: raise the recording level")
    if measured.snr_db < NOISY_SNR_DB:
        warnings.append(f"speech stands only about {measured.snr_db:.0f} dB above the noise: record in a quieter place")
    if measured.voice_activity_ratio < PAUSES_RATIO:
        warnings.append(f"only {measured.voice_activity_ratio:.0%} of the recording has sound like speech")
    if measured.sample_rate_hz < TELEPHONE_RATE_HZ:
        warnings.append(
            f"the recording has {measured.sample_rate_hz} samples a second: voices are told apart better from 16000 up"
        )
    if for_enrolment and measured.duration_ms < 1000 * ENROLMENT_GOOD_S:
        warnings.append(
            f"the recording is {measured.duration_ms / 1000:.1f} s long: {ENROLMENT_GOOD_S:g} s or more serve better"
        )
    return replace(measured, warnings=tuple(warnings))

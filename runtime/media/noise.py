"""How much noise lies under the speech of a recording: minimum statistics, band by band.

In: float32 mono samples at 16 kHz. Out: mean squares of speech and noise. Speech leaves gaps in time and frequency,
between words and between harmonics; steady noise does not. So the power in each band at its quietest moments is the
noise's, but for a bias that only depends on how it is measured, and is measured once on white noise. Source of the
idea: R. Martin, "Noise power spectral density estimation based on optimal smoothing and minimum statistics", IEEE TSAP
9(5), 2001.

Within 3 dB from 0 to 30 dB on recordings that are themselves cleaner than that. Noise that comes and goes as speech
does (babble, music) is counted as speech.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from runtime.media.report import FloatArray
from runtime.units import SAMPLE_RATE_HZ

Powers = npt.NDArray[np.float64]

WINDOW_SAMPLES = 512  # 32 ms
HOP_SAMPLES = 256
SMOOTHED_FRAMES = 5  # 96 ms: shorter than a pause between words
QUIET_SHARE = 0.02
# Bins of 31 Hz: narrow enough to see between harmonics, then wider. What is below 60 Hz nobody hears as noise.
_EDGES = np.unique(np.round(np.concatenate([np.linspace(2, 32, 11), np.geomspace(34, 257, 14)])).astype(int))
# Frames below this power (-120 dBFS, far below the rounding of 16-bit samples) are digital silence, where something was
# cut: they say nothing of the noise.
EMPTY_POWER = 1e-12
FRAMES_AT_ONCE = 4_096


def speech_and_noise(samples: FloatArray) -> tuple[float, float, float]:
    """Mean squares of the speech and of the steady noise in (N,) samples, and the share of frames that they stand on.

    Frames of digital silence are left out of all of it.
    """
    powers = _band_powers(samples)
    heard = powers.sum(axis=1) > EMPTY_POWER
    if not heard.any():
        return 0.0, 0.0, 0.0
    powers = powers[heard]
    mean = powers.mean(axis=0)
    noise = float(np.minimum(np.quantile(_smoothed(powers), QUIET_SHARE, axis=0) * _bias(), mean).sum())
    return float(mean.sum()) - noise, noise, float(np.mean(heard))


def _band_powers(samples: FloatArray) -> Powers:
    """Power of each frame in each band, float64 (F, bands); over the bands it sums up to the mean square."""
    if len(samples) < WINDOW_SAMPLES:
        samples = np.pad(samples, (0, WINDOW_SAMPLES - len(samples)))
    window = np.hanning(WINDOW_SAMPLES)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW_SAMPLES)[::HOP_SAMPLES]
    found = []
    for at in range(0, len(frames), FRAMES_AT_ONCE):
        piece = frames[at : at + FRAMES_AT_ONCE]
        spectra = np.abs(np.fft.rfft((piece - piece.mean(axis=1, keepdims=True)) * window, axis=1)) ** 2
        found.append(np.add.reduceat(spectra[:, : _EDGES[-1]], _EDGES[:-1], axis=1))
    powers: Powers = np.concatenate(found) * (2 / (WINDOW_SAMPLES * float(np.sum(window**2))))
    return powers


def _smoothed(powers: Powers) -> Powers:
    """Running means over SMOOTHED_FRAMES frames, or over all of them where there are fewer."""
    width = min(SMOOTHED_FRAMES, len(powers))
    sums = np.cumsum(np.vstack([np.zeros((1, powers.shape[1])), powers]), axis=0)
    running: Powers = (sums[width:] - sums[:-width]) / width
    return running


@functools.cache
def _bias() -> Powers:
    """By how much the mean of white noise exceeds its quietest moments, in each band."""
    white = np.random.default_rng(0).standard_normal(120 * SAMPLE_RATE_HZ).astype(np.float32)
    powers = _band_powers(white)
    bias: Powers = powers.mean(axis=0) / np.quantile(_smoothed(powers), QUIET_SHARE, axis=0)
    return bias

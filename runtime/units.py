"""The only conversions between seconds, milliseconds and samples.

Positions inside the system are integer samples at SAMPLE_RATE_HZ, and ranges are half-open. Seconds exist in
configuration and at the edge; milliseconds exist on the wire. Whoever needs to cross between them does it here, so that
rounding is done in one way.
"""

from __future__ import annotations

SAMPLE_RATE_HZ = 16_000
SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000


def samples_from_seconds(seconds: float) -> int:
    """The sample nearest to a time in seconds."""
    return round(seconds * SAMPLE_RATE_HZ)


def seconds_from_samples(samples: int) -> float:
    """The time of a sample, in seconds."""
    return samples / SAMPLE_RATE_HZ


def samples_from_ms(milliseconds: int) -> int:
    """The first sample of a millisecond."""
    return milliseconds * SAMPLES_PER_MS


def ms_from_samples(samples: int) -> int:
    """The millisecond nearest to a sample; halves go up, so that touching ranges still touch."""
    return (samples * 2 + SAMPLES_PER_MS) // (2 * SAMPLES_PER_MS)

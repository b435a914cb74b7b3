"""Whether what a soak took stayed flat: slopes of memory, descriptors, threads and keys, and what they come to.

In: samples over time. Out: a verdict for each series, with its slope an hour. What always holds: nothing is judged by
its first and last value, which any moment can move: the slope is the median of the slopes between all pairs of samples;
a series is judged past its warm-up alone, and one too short to tell is said to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOUR_S = 3600.0
WARM_UP_SHARE = 0.25
WARM_UP_MAX_S = 600.0
KEPT_S = 1_000.0
"""Where a stream was placed is kept in Redis for a quarter of an hour: until then there are ever more of them."""
JUDGED_MIN_S = 900.0
"""A life of which less is left after its warm-up is judged with the daemon's other lives alone."""
SAMPLES_MIN = 8


@dataclass(frozen=True, slots=True)
class Bound:
    """What may be added an hour, and what a series may be off by chance, whatever its length."""

    per_hour: float
    slack: float
    unit: str


BOUNDS = {
    "rss": Bound(10.0, 4.0, "MiB"),
    "fds": Bound(4.0, 8.0, ""),
    "threads": Bound(2.0, 3.0, ""),
    "children": Bound(1.0, 1.0, ""),
    "redis keys": Bound(10.0, 25.0, ""),
    "redis memory": Bound(2.0, 0.5, "MiB"),
}


@dataclass(frozen=True, slots=True)
class Series:
    """A quantity over time, seconds; of one life of a process, or over all of it."""

    what: str
    of: str
    times_s: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a series went. per_hour: its slope. grown: what the slope comes to over the judged time. flat: or None."""

    what: str
    of: str
    judged_s: float
    per_hour: float
    grown: float
    most: float
    flat: bool | None

    def __str__(self) -> str:
        unit = BOUNDS[self.what].unit
        if self.flat is None:
            return f"{self.of} {self.what}: too short to tell"
        return (
            f"{self.of} {self.what}: {self.per_hour:+.2f} {unit}/h over {self.judged_s / 60:.0f} min, at most "
            f"{self.most:.1f} {unit}: {'flat' if self.flat else 'GROWS'}"
        )


def judge(series: Series, *, slack_times: float = 1.0, judged_min_s: float = 0.0) -> Verdict:
    """Whether a series is flat past its warm-up.

    slack_times: for runs too short for allocators to settle. judged_min_s: shorter ones are not judged.
    """
    bound = BOUNDS[series.what]
    times, values = np.asarray(series.times_s, float), np.asarray(series.values, float)
    if len(times) < 2:
        return Verdict(series.what, series.of, 0.0, 0.0, 0.0, float(values.max(initial=0.0)), None)
    lasted_s = times[-1] - times[0]
    warm_s = min(WARM_UP_MAX_S, WARM_UP_SHARE * lasted_s)
    if series.what.startswith("redis"):
        warm_s = min(KEPT_S, lasted_s / 2)
    judged = times >= times[0] + warm_s
    times, values = times[judged], values[judged]
    if len(times) < SAMPLES_MIN or times[-1] - times[0] < judged_min_s:
        return Verdict(series.what, series.of, 0.0, 0.0, 0.0, float(values.max(initial=0.0)), None)
    per_hour = slope(times, values) * HOUR_S
    judged_s = float(times[-1] - times[0])
    grown = per_hour * judged_s / HOUR_S
    allowed = bound.per_hour * judged_s / HOUR_S + bound.slack * slack_times
    return Verdict(series.what, series.of, judged_s, per_hour, grown, float(values.max()), grown <= allowed)


def slope(times_s: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen); of many points, of 400 of them."""
    times, found = np.asarray(times_s, float), np.asarray(values, float)
    if len(times) > 400:
        kept = np.linspace(0, len(times) - 1, 400).astype(int)
        times, found = times[kept], found[kept]
    first, second = np.triu_indices(len(times), 1)
    apart = times[second] - times[first]
    return float(np.median((found[second] - found[first])[apart > 0] / apart[apart > 0]))

"""How a daemon declares what it measures: names by Prometheus' conventions, base units, labels of bounded values.

In: names, texts, labels. Out: metrics on a registry, and a description of each for the reference. What always holds:
every name begins with `speakerd_` and the daemon's part of it; whatever a label's values can be is said where it is
declared, and each of them is there from the start, at 0, so that a query finds a series before anything has happened.
A label with no values declared is open, and bounded by the code that sets it: versions, routes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# When each series began is of no use to us, and would double their number.
disable_created_metrics()  # type: ignore[no-untyped-call]

Labels = Mapping[str, Sequence[str]]
T = TypeVar("T", Counter, Gauge, Histogram)

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5)
"""Seconds in which a live stream's sound is heard."""


@dataclass(frozen=True, slots=True)
class Description:
    """One metric as the reference tells of it. name: as it is exposed, `_total` of counters included."""

    name: str
    kind: str
    text: str
    labels: Labels
    buckets: tuple[float, ...] = ()


class MetricSet:
    """The metrics of one part of a daemon, on a registry. part: what follows `speakerd_` in each name."""

    def __init__(self, registry: CollectorRegistry, part: str) -> None:
        self.registry = registry
        self.described: list[Description] = []
        self._prefix = f"speakerd_{part}_"

    def __repr__(self) -> str:
        return f"MetricSet({self._prefix}*, {len(self.described)} metrics)"

    def counter(self, name: str, text: str, **labels: Sequence[str]) -> Counter:
        """What only grows. name: ends in `_total`."""
        assert name.endswith("_total"), name
        full = self._describe(name, "counter", text, labels)
        return _begun(Counter(full, text, list(labels), registry=self.registry), labels)

    def gauge(self, name: str, text: str, **labels: Sequence[str]) -> Gauge:
        """What goes up and down."""
        full = self._describe(name, "gauge", text, labels)
        return _begun(Gauge(full, text, list(labels), registry=self.registry), labels)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = LATENCY_BUCKETS, **labels: Sequence[str]
    ) -> Histogram:
        """How what is measured is spread."""
        full = self._describe(name, "histogram", text, labels, buckets)
        return _begun(Histogram(full, text, list(labels), buckets=buckets, registry=self.registry), labels)

    def _describe(
        self, name: str, kind: str, text: str, labels: Mapping[str, Sequence[str]], buckets: tuple[float, ...] = ()
    ) -> str:
        full = self._prefix + name
        self.described.append(Description(full, kind, text, dict(labels), buckets))
        return full


def _begun(metric: T, labels: Mapping[str, Sequence[str]]) -> T:
    """The same metric, with every series that it can have."""
    if labels and all(labels.values()):
        for values in itertools.product(*labels.values()):
            metric.labels(*values)
    return metric

"""Watches the event loop of a daemon, and what any daemon shows of itself: lateness, certificate, version.

In: a registry. Out: metrics. What always holds: measuring never ends what is measured; what it reads it reads on the
event loop, so that nothing it looks at changes under it, and a scrape reads numbers alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from runtime.clock import Clock
from runtime.logs import get_logger
from runtime.metric_set import MetricSet
from runtime.tls import Tls

TICK_S = 0.25
TICKS_A_LOOK = 4
LAG_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


class LoopWatch:
    """A task of a daemon. part: as in its metrics' names. look: sets gauges, once a second, on the event loop."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        part: str,
        version: str,
        clock: Clock,
        tls: Tls | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        metrics = declare(registry, part)
        self._lag = metrics.lag_seconds
        self._expiry = metrics.expiry_seconds
        self.connections_cut = metrics.connections_cut
        metrics.build.labels(version).set(1)
        self._clock = clock
        self._tls = tls
        self._look = look
        self._is_failing = False
        self._measure()

    def __repr__(self) -> str:
        return f"LoopWatch(failing={self._is_failing})"

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            for _ in range(TICKS_A_LOOK):
                asked_s = self._clock.monotonic_s()
                await asyncio.sleep(TICK_S)
                self._lag.observe(max(0.0, self._clock.monotonic_s() - asked_s - TICK_S))
            self._measure()

    def _measure(self) -> None:
        try:
            self._expiry.set(0.0 if self._tls is None else self._tls.expires_at_s)
            self._look()
        except Exception as error:  # noqa: BLE001 - a number that cannot be had must not end a daemon
            if not self._is_failing:
                get_logger().error("metrics.not_measured", error_type=type(error).__name__, exc_info=error)
            self._is_failing = True
        else:
            self._is_failing = False


class DaemonMetrics:
    """What every daemon shows of itself."""

    def __init__(self, metrics: MetricSet) -> None:
        self.lag_seconds = metrics.histogram(
            "event_loop_lag_seconds",
            "How late the event loop came to what was due; four samples a second.",
            LAG_BUCKETS,
        )
        self.expiry_seconds = metrics.gauge(
            "certificate_expiry_timestamp_seconds", "When the daemon's certificate expires, Unix time; 0 without TLS."
        )
        self.connections_cut = metrics.counter(
            "connections_cut_total", "Connections that were closed, for there were too many from one address or in all."
        )
        self.build = metrics.gauge("build_info", "Always 1; the label says which version runs.", version=())
        self.described = metrics.described


def declare(registry: CollectorRegistry, part: str) -> DaemonMetrics:
    """Declare them."""
    return DaemonMetrics(MetricSet(registry, part))

"""What a node shows of how it stands: read off its parts once a second, on the event loop.

In: the parts. Out: gauges set. What always holds: a scrape finds numbers, and never looks into a part itself.
"""

from __future__ import annotations

from collections.abc import Callable

from node.engine import Engine
from node.load import LoadGauge
from node.metrics import STATES, NodeMetrics
from node.standing import Standing


class NodeGauges:
    """Sets gauges when called. head: the fleet log's, as far as the node has heard; 0 on a standalone node."""

    def __init__(
        self,
        metrics: NodeMetrics,
        *,
        engine: Engine,
        standing: Standing,
        load: LoadGauge,
        head: Callable[[], int] = lambda: 0,
    ) -> None:
        self._metrics = metrics
        self._engine = engine
        self._standing = standing
        self._load = load
        self.head = head

    def __repr__(self) -> str:
        return f"NodeGauges({self._standing!r})"

    def __call__(self) -> None:
        """Look."""
        metrics, lease, load = self._metrics, self._standing.lease, self._load.now()
        metrics.windows_due.set(load.queued_windows)
        metrics.voices_warm.set(load.voices)
        metrics.memory_free.set(self._engine.free_bytes())
        metrics.memory_total.set(self._engine.total_bytes())
        now = self._standing.state.name.lower()
        for state in STATES:
            metrics.state.labels(state).set(state == now)
        if lease is not None:
            metrics.lease_remaining_seconds.set(lease.remaining_s())
            metrics.applied_revision.set(lease.cursor)
            metrics.cursor_lag.set(max(0, self.head() - lease.cursor))
            metrics.incarnation.set(lease.incarnation)

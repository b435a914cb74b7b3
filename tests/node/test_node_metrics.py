"""Gauges that a node reads off its parts once a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from node.engine import engine_loader
from node.gauges import NodeGauges
from node.load import Load
from node.metrics import NodeMetrics
from node.standing import Standing
from runtime.clock import SteppedClock
from runtime.lease import Lease, Renewal


def test_a_node_shows_what_waits_how_far_behind_it_is_and_what_it_is() -> None:
    clock, registry = SteppedClock(), CollectorRegistry()
    lease = Lease(clock)
    lease.renewed(clock.lease_now_s(), Renewal(7, 9.0, 5, resync=False))
    lease.applied(7, 3)
    load = SimpleNamespace(now=lambda: Load(1, 4, 0, 2, 6, 11, 0.0))
    gauges = NodeGauges(
        NodeMetrics(registry),
        engine=engine_loader("builtin", "null")(),
        standing=Standing(lease),
        load=cast(Any, load),
        head=lambda: 5,
    )
    gauges()

    def of(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"speakerd_node_{name}", labels)

    assert (of("windows_due"), of("voices_warm")) == (11, 6)
    assert (of("cursor_lag_revisions"), of("applied_revision"), of("incarnation")) == (2, 3, 7)
    assert of("lease_remaining_seconds") == 9
    assert (of("state", state="joining"), of("state", state="serving")) == (1, 0)
    assert 0 < (of("device_memory_free_bytes") or 0) <= (of("device_memory_total_bytes") or 0)
    lease.reconciled(7)
    clock.step(10)
    gauges()
    assert (of("state", state="joining"), of("state", state="fenced"), of("lease_remaining_seconds")) == (0, 1, 0)

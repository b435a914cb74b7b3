"""What every daemon shows of itself, and that to show it keeps nothing waiting."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.certificates import Authority
from runtime.clock import SystemClock
from runtime.errors import InvalidRequest, Unavailable
from runtime.health import Health
from runtime.loop_watch import TICK_S, LoopWatch
from runtime.metric_set import MetricSet
from runtime.metrics import listening_at, serve_metrics
from runtime.tls import NODE, Tls, TlsFiles


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


async def test_a_loop_that_is_kept_busy_is_seen_to_be_late() -> None:
    registry = CollectorRegistry()
    watching = asyncio.create_task(LoopWatch(registry, part="node", version="1", clock=SystemClock()).run())
    await asyncio.sleep(0)
    time.sleep(TICK_S + 0.2)
    await asyncio.sleep(0.01)
    watching.cancel()
    assert (registry.get_sample_value("speakerd_node_event_loop_lag_seconds_sum") or 0) >= 0.2
    assert registry.get_sample_value("speakerd_node_build_info", {"version": "1"}) == 1


def test_a_certificate_is_shown_with_the_time_at_which_it_expires(tmp_path: Path) -> None:
    authority = Authority.open_or_make(tmp_path, "fleet.test")
    cert, key = authority.issue_files(NODE, "n1", [], timedelta(days=1))
    registry = CollectorRegistry()
    tls = Tls(TlsFiles(cert, key, tmp_path / "ca.crt"))
    LoopWatch(registry, part="cp", version="1", clock=SystemClock(), tls=tls)
    left_s = (registry.get_sample_value("speakerd_cp_certificate_expiry_timestamp_seconds") or 0) - time.time()
    assert 86_400 - 600 < left_s <= 86_400
    plain = CollectorRegistry()
    LoopWatch(plain, part="cp", version="1", clock=SystemClock())
    assert plain.get_sample_value("speakerd_cp_certificate_expiry_timestamp_seconds") == 0


async def test_what_cannot_be_measured_ends_nothing() -> None:
    asked = asyncio.Event()

    def look() -> None:
        asked.set()
        raise OSError("no such number")

    watching = asyncio.create_task(
        LoopWatch(CollectorRegistry(), part="node", version="1", clock=SystemClock(), look=look).run()
    )
    asked.clear()
    await asyncio.wait_for(asked.wait(), 30)
    assert not watching.done()
    watching.cancel()


class WhereItRuns(Collector):
    def __init__(self) -> None:
        self.threads: list[int] = []

    def collect(self) -> Iterator[Metric]:
        self.threads.append(threading.get_ident())
        yield GaugeMetricFamily("asked", "Asked.", 1)


async def test_metrics_are_rendered_beside_the_event_loop_and_come_while_it_stands_still() -> None:
    registry, where = CollectorRegistry(), WhereItRuns()
    registry.register(where)
    before = len(where.threads)
    with serve_metrics(registry, host="127.0.0.1", port=0, health=Health()) as port:
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(page(port)))
        asking.start()
        # Not awaited: the loop stands still until they have come.
        await asyncio.sleep(0)
        asking.join(30)
    assert "asked 1.0" in found[0]
    assert where.threads[before:] and threading.get_ident() not in where.threads[before:]


@pytest.mark.parametrize("address", ["9464", ":9464", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_refused_with_what_to_write(address: str) -> None:
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        listening_at(address)


async def test_a_port_that_is_taken_is_named() -> None:
    with (
        serve_metrics(CollectorRegistry(), host="127.0.0.1", port=0, health=Health()) as port,
        pytest.raises(Unavailable, match=f"127.0.0.1:{port}"),
        serve_metrics(CollectorRegistry(), host="127.0.0.1", port=port, health=Health()),
    ):
        pass


def test_a_label_has_each_of_its_values_from_the_start() -> None:
    registry = CollectorRegistry()
    made = MetricSet(registry, "node")
    made.counter("things_total", "Things.", kind=("a", "b"), end=("x", "y"))
    assert registry.get_sample_value("speakerd_node_things_total", {"kind": "b", "end": "x"}) == 0
    with pytest.raises(AssertionError):
        made.counter("things", "Without its end.")

"""Metrics: one registry a daemon, served as Prometheus text on /metrics from a thread of its own.

Each daemon declares its metrics in one place, as a frozen class over `registry()`. The event loop never renders them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server


def registry() -> CollectorRegistry:
    """A registry with the process's own metrics in it."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


@contextmanager
def serve_metrics(metrics: CollectorRegistry, *, host: str, port: int) -> Iterator[int]:
    """Serve http://host:port/metrics while the context lasts. Port 0 takes a free one. Yields the port."""
    server, thread = start_http_server(port, addr=host, registry=metrics)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5.0)

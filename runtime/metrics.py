"""Metrics and health over plain HTTP: one registry a daemon, served as Prometheus text from a thread of its own.

Each daemon declares its metrics in one place, as a frozen class over `registry()`. The event loop never renders them.
Beside /metrics stand /health/live and /health/ready, for probes: they need no certificate, and whoever reaches them
learns nothing but the two words.
"""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app

LIVE_BOUND_S = 2.0
"""An event loop that has not turned for so long is not alive."""


def registry() -> CollectorRegistry:
    """A registry with the process's own metrics in it."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


@contextmanager
def serve_metrics(
    metrics: CollectorRegistry, *, host: str, port: int, is_ready: Callable[[], bool] = lambda: True
) -> Iterator[int]:
    """Serve http://host:port/metrics, /health/live and /health/ready while the context lasts.

    Entered on the event loop, whose turning is what "live" says. Port 0 takes a free one. Yields the port. is_ready:
    asked on the thread of each probe.
    """
    application = _Application(metrics, asyncio.get_running_loop(), is_ready)
    server = make_server(host, port, application, _Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5.0)


class _Application:
    """The three pages."""

    def __init__(
        self, metrics: CollectorRegistry, loop: asyncio.AbstractEventLoop, is_ready: Callable[[], bool]
    ) -> None:
        self._metrics: Callable[[dict[str, Any], Any], Iterable[bytes]] = make_wsgi_app(metrics)
        self._loop = loop
        self._is_ready = is_ready

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/health/live":
                return _answer(start_response, "live", holds=self._turns())
            case "/health/ready":
                return _answer(start_response, "ready", holds=self._is_ready())
            case _:
                return self._metrics(environ, start_response)

    def _turns(self) -> bool:
        """Whether the event loop still turns."""
        asked = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop)
        try:
            asked.result(LIVE_BOUND_S)
        except TimeoutError:
            asked.cancel()
            return False
        return True


def _answer(start_response: Any, word: str, *, holds: bool) -> Iterable[bytes]:
    start_response("200 OK" if holds else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
    return [(f"{word}\n" if holds else f"not {word}\n").encode()]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request: a slow scrape keeps no probe waiting."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""

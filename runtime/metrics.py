"""Metrics and health over plain HTTP: one registry a daemon, served as Prometheus text from a thread of its own.

Each daemon declares its metrics in one place, as a frozen class over `registry()`. The event loop never renders them.
Beside /metrics stand /health/live, /health/started and /health/ready, for probes: they need no certificate, and whoever
reaches them learns nothing but the three words.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app

from runtime.errors import InvalidRequest, Unavailable
from runtime.health import Health


def registry() -> CollectorRegistry:
    """A registry with the process's own metrics in it."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


def listening_at(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT". Raises InvalidRequest.

    Any address will do, with TLS or without: what is told there are numbers of the whole daemon, and nobody's.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidRequest(f"metrics address {address!r}: write HOST:PORT, for example 127.0.0.1:9101")
    return host.strip("[]"), int(port)


@contextmanager
def serve_metrics(metrics: CollectorRegistry, *, host: str, port: int, health: Health) -> Iterator[int]:
    """Serve http://host:port/metrics and /health/live|started|ready while the context lasts.

    Port 0 takes a free one. Yields the port. health: asked on the thread of each probe.
    """
    application = _Application(metrics, health)
    try:
        server = make_server(host, port, application, _Server6 if ":" in host else _Server, handler_class=_Quiet)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port} for metrics: {error.strerror}") from None
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5.0)


class _Application:
    """The pages."""

    def __init__(self, metrics: CollectorRegistry, health: Health) -> None:
        self._metrics: Callable[[dict[str, Any], Any], Iterable[bytes]] = make_wsgi_app(metrics)
        self._health = health

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/health/live":
                return _answer(start_response, "live", holds=self._health.is_alive())
            case "/health/started":
                return _answer(start_response, "started", holds=self._health.is_started())
            case "/health/ready":
                return _answer(start_response, "ready", holds=self._health.is_ready())
            case _:
                return self._metrics(environ, start_response)


def _answer(start_response: Any, word: str, *, holds: bool) -> Iterable[bytes]:
    start_response("200 OK" if holds else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
    return [(f"{word}\n" if holds else f"not {word}\n").encode()]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request: a slow scrape keeps no probe waiting."""

    daemon_threads = True


class _Server6(_Server):
    """The same on an address of IPv6."""

    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""

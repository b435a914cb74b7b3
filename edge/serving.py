"""uvicorn as a part of the daemon: it listens, drains and stops when told to, and leaves signals alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from edge.late_websocket import LateWebSocketProtocol
from edge.patient_http import KEEP_ALIVE_S, BoundedRequests, PatientHttpProtocol
from runtime.errors import InvalidRequest, Unavailable
from runtime.grpc_server import is_loopback
from runtime.lifecycle import Tasks

CONCURRENCY_MAX = 2_000
BACKLOG = 512
START_BOUND_S = 10.0
FRAME_BYTES_MAX = 256 << 10
PING_S = 10.0


class HttpServer:
    """A listening application; a part of the daemon."""

    def __init__(self, app: FastAPI, address: str, *, insecure: bool) -> None:
        self._app = app
        self._address = address
        self._insecure = insecure
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._port: int | None = None

    def __repr__(self) -> str:
        return f"HttpServer({self._address!r})"

    @property
    def url(self) -> str:
        """http://HOST:PORT, once started."""
        assert self._port is not None, "asked before it has started"
        return f"http://{self._address.rpartition(':')[0]}:{self._port}"

    async def start(self, tasks: Tasks) -> None:
        """Listen. Raises InvalidRequest for a bad address, Unavailable when the port is taken."""
        self._socket = _listening(self._address, insecure=self._insecure)
        self._port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            # uvicorn's own limit counts connections that say nothing among the requests.
            BoundedRequests(self._app, CONCURRENCY_MAX),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            http=PatientHttpProtocol,
            ws=LateWebSocketProtocol,
            ws_max_size=FRAME_BYTES_MAX,
            ws_ping_interval=PING_S,
            # Pongs lie behind the sound that a client was quicker to send than a node to hear: their coming late says
            # nothing. Who does not read, or says nothing, is cut by edge.live_socket.
            ws_ping_timeout=None,
            ws_per_message_deflate=False,
            backlog=BACKLOG,
        )
        self._server = _Server(config)
        self._serving = tasks.spawn("http.serve", self._server.serve(sockets=[self._socket]))
        await asyncio.wait_for(self._server.listening.wait(), START_BOUND_S)

    async def drain(self, deadline_s: float) -> None:
        """Close the listener and idle connections; return when the requests that run have ended."""
        if self._server is None or self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(deadline_s))
        self._server.should_exit = True
        await asyncio.wait({self._serving}, timeout=deadline_s)

    async def stop(self) -> None:
        """Cut what is left."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            await asyncio.wait({self._serving}, timeout=START_BOUND_S)
        if self._socket is not None:
            self._socket.close()


class _Server(uvicorn.Server):
    """Says when it listens, and takes no signals: the daemon's lifecycle has them."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()


def _listening(address: str, *, insecure: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidRequest(f"address {address!r}: write HOST:PORT, for example 127.0.0.1:0")
    if not insecure and not is_loopback(host):
        raise InvalidRequest(f"{address!r} is not loopback and there is no TLS: bind 127.0.0.1 or say --insecure")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(socket.socket(family, kind, protocol))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
            stack.pop_all()
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {error.strerror}") from None
    return made

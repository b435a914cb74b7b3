"""Times every request by route, method and status, and counts WebSockets; requests to no route share one label."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane.metrics import Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class TimingMiddleware:
    """Plain ASGI, so that streamed bodies pass through untouched."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        match scope["type"]:
            case "http":
                await self._request(scope, receive, send)
            case "websocket":
                await self._websocket(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        with self._metrics.http_active.track_inprogress():
            try:
                await self._app(scope, receive, watch)
            finally:
                method = scope["method"] if scope["method"] in METHODS else "other"
                took_s = time.monotonic() - began_s
                self._metrics.http_seconds.labels(_route_of(scope), method, str(status)).observe(took_s)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._metrics.websockets_active.track_inprogress():
            try:
                await self._app(scope, receive, send)
            finally:
                self._metrics.websockets.labels(_route_of(scope)).inc()


def _route_of(scope: Scope) -> str:
    """The path as the route declares it: paths as they came have no bound."""
    return str(getattr(scope.get("route"), "path", "none"))

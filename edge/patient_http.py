"""HTTP connections that say nothing, or begin a request and do not end it, are closed.

In: uvicorn's protocol, which closes a connection that is idle between two requests, and waits for ever for the first
one and for the rest of a head. Out: the same, with a bound on both. What always holds: a connection whose request is
being answered, or that has become a WebSocket, is left to those who answer it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

KEEP_ALIVE_S = 15
HEAD_S = 10.0
"""How long a request's head may take."""


class PatientHttpProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._until_s = self.loop.time() + HEAD_S
        self._timer: asyncio.TimerHandle = self.loop.call_later(HEAD_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request may begin while the connection is kept."""
        self._until_s = self.loop.time() + KEEP_ALIVE_S + HEAD_S
        super().on_response_complete()

    def _look(self) -> None:
        transport: Any = self.transport
        if transport.is_closing() or transport.get_protocol() is not self:
            return
        is_waiting = self.cycle is None or self.cycle.response_complete
        left_s = self._until_s - self.loop.time()
        if is_waiting and left_s <= 0:
            transport.close()
            return
        self._timer = self.loop.call_later(max(left_s, HEAD_S / 2) if is_waiting else HEAD_S, self._look)


class BoundedRequests:
    """An application that refuses requests beyond so many at once. WebSockets have bounds of their own."""

    def __init__(self, app: ASGIApp, requests_max: int) -> None:
        self._app = app
        self._requests_max = requests_max
        self._running = 0

    def __repr__(self) -> str:
        return f"BoundedRequests({self._running} of {self._requests_max})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._running >= self._requests_max:
            refusal = JSONResponse({"message": "too many requests at once; try again"}, 503, {"retry-after": "1"})
            await refusal(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1

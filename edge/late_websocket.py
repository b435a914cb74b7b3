"""uvicorn's WebSocket, whose texts may be made at the last moment, and whose readers cannot make it hold on to them.

In: ASGI messages; of `websocket.send`, "text" may be a function. Out: frames. What always holds: such a function is
called when the transport takes the text, and nothing is awaited in between, so that a name that may not be said any
more is not; next to nothing waits in this process's own buffers; a connection can be cut off with what waits for it.
An application finds all this as the extension `speakerd.late` of its scope.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LATE = "speakerd.late"
BUFFER_BYTES = 256 << 10
"""The kernel's, each way: minutes of sound may lie there otherwise, and words that were said long ago."""


class LateWebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over, with short buffers."""
        super().connection_made(transport)
        taken = cast(asyncio.Transport, transport)
        taken.set_write_buffer_limits(high=0)
        peer = taken.get_extra_info("socket")
        if peer is not None:
            for kind in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                peer.setsockopt(socket.SOL_SOCKET, kind, BUFFER_BYTES)

    async def run_asgi(self) -> None:
        """Run the application, and tell it what can be done here."""
        cast(dict[str, Any], self.scope["extensions"])[LATE] = {"abort": self.transport.abort}
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        """Send, making the text of it once there is room for it. A text that has become None is not sent."""
        make = message.get("text")
        if callable(make):
            await self.writable.wait()
            text = make()
            if text is None:
                return
            message = {**message, "text": text}
        await super().send(message)

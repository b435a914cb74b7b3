"""A WebSocket that carries a live stream: frames in, frames out, and an end for those who do not keep up.

In: a WebSocket that was asked for, and a stream of the control plane's relay. Out: the dialect's frames. What always
holds: whoever does not read for STALL_S, or says nothing for IDLE_S, is cut, with what waits for it; sound is read from
the socket as fast as the stream takes it and no faster; both directions end together, whatever ends one of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeAlias

from starlette.websockets import WebSocket, WebSocketDisconnect

from controlplane.live_relay import RelayedStream, RelayEvent
from edge.late_websocket import LATE
from runtime.errors import SpeakerdError, TimedOut
from runtime.logs import get_logger

STALL_S = 5.0
IDLE_S = 60.0

NORMAL = 1000
GOING_AWAY = 1001
UNSUPPORTED = 1003
BAD_DATA = 1007
POLICY = 1008
TOO_BIG = 1009
FAULT = 1011
TRY_LATER = 1013

LateText: TypeAlias = Callable[[], str | None]
"""Makes a frame's text when it is about to leave; None: there is nothing to say any more."""


class Gone(Exception):
    """The other end has left, or was cut."""


class LiveSocket:
    """An accepted WebSocket."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._idle_s = IDLE_S
        self._stall_s = STALL_S
        self._is_open = True

    def __repr__(self) -> str:
        return f"LiveSocket(open={self._is_open})"

    async def receive(self) -> bytes | str:
        """The next frame. Raises Gone, or TimedOut when nothing comes."""
        try:
            async with asyncio.timeout(self._idle_s):
                message = await self._websocket.receive()
        except TimeoutError:
            raise TimedOut(f"nothing came for {self._idle_s:g} s") from None
        if message["type"] != "websocket.receive":
            self._is_open = False
            raise Gone
        sound, text = message.get("bytes"), message.get("text")
        return sound if sound is not None else text or ""

    async def say(self, text: LateText) -> None:
        """Send a frame, made as it leaves. Raises Gone when the other end does not read."""
        has_late = LATE in self._websocket.scope.get("extensions", {})
        made: Any = text if has_late else text()
        if made is None:
            return
        try:
            async with asyncio.timeout(self._stall_s):
                await self._websocket.send({"type": "websocket.send", "text": made})
        except TimeoutError:
            self._cut()
            raise Gone from None
        except (WebSocketDisconnect, RuntimeError, OSError):
            self._is_open = False
            raise Gone from None

    async def close(self, code: int, reason: str = "") -> None:
        """Close, if it is open still."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            async with asyncio.timeout(self._stall_s):
                await self._websocket.close(code, reason)
        except TimeoutError:
            self._cut()
        except (WebSocketDisconnect, RuntimeError, OSError):
            return

    def _cut(self) -> None:
        self._is_open = False
        late = self._websocket.scope.get("extensions", {}).get(LATE)
        if late is not None:
            late["abort"]()


def kind_of(frame: str) -> object:
    """The "type" of a text frame; None where it says none."""
    try:
        said = json.loads(frame)
    except (ValueError, RecursionError):
        return None
    return said.get("type") if isinstance(said, dict) else None


Feed: TypeAlias = Callable[[], AsyncIterator[bytes]]
"""Sound out of the socket's frames, to its end."""
Tell: TypeAlias = Callable[[RelayEvent], Iterable[LateText]]
"""What a stream's event is to a client."""


async def carry(socket: LiveSocket, stream: RelayedStream, *, feed: Feed, tell: Tell) -> None:
    """Carry a stream to its end. Raises what went wrong with it or with the client's frames, or Gone."""

    async def send() -> None:
        async for sound in feed():
            await stream.send(sound)
        await stream.finish()

    async def receive() -> None:
        async for event in stream.events():
            for text in tell(event):
                await socket.say(text)

    async def until_gone() -> None:
        # The client has said that no more sound comes; that it leaves is still to be noticed.
        while True:
            await socket.receive()

    sending = asyncio.create_task(send(), name="live.send")
    receiving = asyncio.create_task(receive(), name="live.receive")
    tasks = {sending, receiving}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and not receiving.done() and sending.exception() is None:
            watching = asyncio.create_task(until_gone(), name="live.watch")
            tasks.add(watching)
            await asyncio.wait((receiving, watching), return_when=asyncio.FIRST_COMPLETED)
        _raise_first(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What ended it: an error of ours before the other end's leaving, which may follow from it."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += [first_error(error)] if isinstance(error, BaseExceptionGroup) else [error]
    return next((error for error in leaves if isinstance(error, SpeakerdError)), leaves[0])


def _raise_first(tasks: set[asyncio.Task[None]]) -> None:
    """What ended it: an error of ours before the other end's leaving, which may follow from it."""
    errors = [error for task in tasks if task.done() and (error := task.exception()) is not None]
    for error in errors:
        if isinstance(error, SpeakerdError):
            raise error
    if errors:
        raise errors[0]


def fault(error: Exception) -> None:
    """Write a fault of ours down. Its text may hold anything, so the client does not get it."""
    get_logger().error("websocket.failed", error_type=type(error).__name__, exc_info=error)

"""What a stream has to tell, on its way from who decides it to who writes it: bounded in number and in bytes.

In: results, each with about the bytes that it takes. Out: the same, in order, or word that a moment has come. What
always holds: who puts waits while the queue is full, however large its parts are, but one part always fits; one
reader, one writer, and no timer but for the moments.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

RESULTS_MAX = 64
RESULT_BYTES_MAX = 1 << 20


class Results(Generic[T]):
    """A queue of one producer and one consumer. count_max, bytes_max: past them `put` waits."""

    def __init__(self, count_max: int = RESULTS_MAX, bytes_max: int = RESULT_BYTES_MAX) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[T, int]] = deque()
        self.num_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Results({len(self._items)}, {self.num_bytes} bytes)"

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: T, num_bytes: int) -> None:
        """Append, once there is room."""
        while self._items and (len(self._items) >= self._count_max or self.num_bytes + num_bytes > self._bytes_max):
            self._room = self._loop.create_future()
            await self._room
        self._items.append((item, num_bytes))
        self.num_bytes += num_bytes
        _wake(self._news)

    async def next(self, moment_s: float) -> T | None:
        """The oldest; None when the loop's clock passes `moment_s` first."""
        while not self._items:
            if self._loop.time() >= moment_s:
                return None
            self._news = self._loop.create_future()
            if self._timer is None:
                self._timer = self._loop.call_at(moment_s, self._on_moment)
            await self._news
        item, num_bytes = self._items.popleft()
        self.num_bytes -= num_bytes
        _wake(self._room)
        return item

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_moment(self) -> None:
        self._timer = None
        _wake(self._news)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)

"""Sound cut into stretches for a transcriber, where it is quietest, so that no word is cut if that can be helped.

In: blocks of samples, to an end. Out: stretches with their place in the stream. What always holds: every sample is in
one stretch; only a few stretches wait, and whoever puts more in waits; a stretch is no longer than it was asked to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np

from runtime.pcm import FloatArray
from runtime.units import SAMPLE_RATE_HZ

WAITING_MAX = 4
LOOK_BACK = 3
"""It is cut within the last third."""
FRAME = SAMPLE_RATE_HZ // 50


class Stretches:
    """One stream's. longest_ms: of a stretch."""

    def __init__(self, longest_ms: int) -> None:
        self._longest = longest_ms * SAMPLE_RATE_HZ // 1000
        self._blocks: list[FloatArray] = []
        self._held = 0
        self._start = 0
        self._queue: asyncio.Queue[tuple[int, FloatArray] | None] = asyncio.Queue(WAITING_MAX)

    def __repr__(self) -> str:
        return f"Stretches({self._start} samples given out, {self._held} held)"

    async def put(self, block: FloatArray) -> None:
        """Add (N,) samples. Waits while enough stretches wait."""
        self._blocks.append(block)
        self._held += len(block)
        while self._held >= self._longest:
            sound = np.concatenate(self._blocks)
            cut = _quietest(sound[: self._longest])
            await self._give(sound[:cut])
            self._blocks, self._held = [sound[cut:]], len(sound) - cut

    async def end(self) -> None:
        """No more sound comes."""
        if self._held:
            await self._give(np.concatenate(self._blocks))
        await self._queue.put(None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, FloatArray]]:
        """Where each stretch begins (milliseconds), and its samples."""
        while (found := await self._queue.get()) is not None:
            yield found

    async def _give(self, sound: FloatArray) -> None:
        await self._queue.put((self._start * 1000 // SAMPLE_RATE_HZ, sound))
        self._start += len(sound)


def _quietest(sound: FloatArray) -> int:
    """Where to cut: the middle of the quietest 20 ms of the last third."""
    first = len(sound) - len(sound) // LOOK_BACK
    tail = sound[first:]
    frames = tail[: len(tail) - len(tail) % FRAME].reshape(-1, FRAME)
    if not len(frames):
        return len(sound)
    quiet = int(np.argmin(np.square(frames, dtype=np.float64).sum(axis=1)))
    return first + quiet * FRAME + FRAME // 2

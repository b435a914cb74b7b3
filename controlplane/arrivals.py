"""Messages of a caller as they arrive, each within a bound: one who stops half-way must not keep a place for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from runtime.errors import TimedOut

T = TypeVar("T")

IDLE_S = 30.0


async def arriving(requests: AsyncIterator[T]) -> AsyncIterator[T]:
    """Each message, as soon as it is there. Raises TimedOut when none comes for IDLE_S; our own work is not counted."""
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                message = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TimedOut(f"nothing came for {IDLE_S:g} s: send the chunks one after the other") from None
        yield message

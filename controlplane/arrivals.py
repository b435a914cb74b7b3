"""Messages of a caller as they arrive, each within a bound: one who stops half-way must not keep a place for ever.

Nor must one who sends next to nothing, again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from google.protobuf.message import Message

from runtime.errors import TimedOut

T = TypeVar("T", bound=Message)

IDLE_S = 30.0
BYTES_MIN = 1_024
"""A caller whom we have waited IDLE_S for has sent so much, or is let go."""


async def arriving(requests: AsyncIterator[T]) -> AsyncIterator[T]:
    """Each message, as soon as it is there. Raises TimedOut when none comes for IDLE_S; our own work is not counted."""
    waited_s, came_bytes = 0.0, 0
    now_s = asyncio.get_running_loop().time
    while True:
        began_s = now_s()
        try:
            async with asyncio.timeout(IDLE_S):
                message = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TimedOut(f"nothing came for {IDLE_S:g} s: send the chunks one after the other") from None
        waited_s, came_bytes = waited_s + now_s() - began_s, came_bytes + message.ByteSize()
        if came_bytes >= BYTES_MIN:
            waited_s, came_bytes = 0.0, 0
        elif waited_s > IDLE_S:
            raise TimedOut(f"less than {BYTES_MIN} bytes came in {IDLE_S:g} s: send the chunks one after the other")
        yield message

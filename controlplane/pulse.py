"""Wakes whoever waits for something to have changed, without a queue and without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Pulse:
    """Take `next()` before looking; wait on it after: a beat in between is not missed."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def __repr__(self) -> str:
        return "Pulse()"

    def next(self) -> asyncio.Event:
        """The event that the next beat sets."""
        return self._next

    def beat(self) -> None:
        """Wake all who wait."""
        self._next.set()
        self._next = asyncio.Event()


async def wait_for_any(events: Sequence[asyncio.Event], seconds: float) -> None:
    """Wait for the first of several events, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def wait_s(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long. Whether it came."""
    try:
        # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return False
    return True

"""Waiting for a beat: who is told to stop stops, even if the beat comes in the same moment."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.pulse import Pulse, wait_s


@pytest.mark.parametrize("turns", range(5))
async def test_a_cancellation_that_comes_with_the_beat_is_not_lost(turns: int) -> None:
    pulse = Pulse()

    async def work() -> None:
        while True:
            await wait_s(pulse.next(), 5.0)

    worker = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    pulse.beat()
    for _ in range(turns):
        await asyncio.sleep(0)
    worker.cancel()
    done, _ = await asyncio.wait({worker}, timeout=1.0)
    assert done, "it goes on"


async def test_a_beat_is_told_and_its_absence_too() -> None:
    pulse = Pulse()
    event = pulse.next()
    assert not await wait_s(event, 0.0)
    pulse.beat()
    assert await wait_s(event, 0.0)

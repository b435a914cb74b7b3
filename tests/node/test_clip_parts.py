"""Clips are heard in parts, between which live streams have the device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from dataclasses import replace

import pytest

from models.analysis import FloatArray
from models.seams import VoiceSample
from node.device_thread import DeviceThread
from node.engine import engine_loader
from node.enrolment import ClipAnalysis, SentClip
from node.null_engine import NullDevice
from tests.node.conftest import ADA, pcm, tones

CLIP = SentClip(pcm(tones(4, *ADA)), 1, 16_000, 1)
PARTS = 3


class PartedDevice(NullDevice):
    """Hears a clip in three parts, and waits at the end of the first until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.began, self.may_go_on = threading.Event(), threading.Event()

    def voice_parts(self, samples: FloatArray) -> Generator[None, None, VoiceSample]:
        try:
            for _ in range(PARTS):
                self.said.append("part")
                self.began.set()
                assert self.may_go_on.wait(60)
                yield
            return self.analyze_voice(samples)
        finally:
            self.said.append("forgotten")


@pytest.fixture
async def parted() -> AsyncIterator[tuple[PartedDevice, DeviceThread, ClipAnalysis]]:
    device = PartedDevice()
    thread = DeviceThread(lambda: replace(engine_loader("null@1", "null")(), device=device), calls_max=64)
    await thread.start()
    try:
        yield device, thread, ClipAnalysis(thread)
    finally:
        device.may_go_on.set()
        await thread.stop()


async def test_a_clip_lets_live_windows_in_between_its_parts(
    parted: tuple[PartedDevice, DeviceThread, ClipAnalysis],
) -> None:
    device, thread, clips = parted
    hearing = asyncio.create_task(clips.hear(CLIP))
    assert await asyncio.to_thread(device.began.wait, 60)
    live = asyncio.ensure_future(thread.submit(lambda engine: device.said.append("live")))
    device.may_go_on.set()
    heard = await hearing
    await live
    assert device.said == ["part", "live", "part", "part", "forgotten"]
    assert heard.sample.num_speakers == 1 and heard.duration_samples == 64_000


async def test_a_clip_whose_caller_has_gone_is_forgotten_before_the_next_is_heard(
    parted: tuple[PartedDevice, DeviceThread, ClipAnalysis],
) -> None:
    device, _, clips = parted
    hearing = asyncio.create_task(clips.hear(CLIP))
    assert await asyncio.to_thread(device.began.wait, 60)
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    device.may_go_on.set()
    await clips.hear(CLIP)
    assert device.said == ["part", "forgotten", "part", "part", "part", "forgotten"]

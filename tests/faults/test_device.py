"""F15: a device that is out of memory, or gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.analysis import WindowAnalysis
from models.seams import DueWindow
from node.batcher import DeviceFull
from runtime.errors import Overloaded
from speakerd.client import Client
from speakerd.v1 import people_pb2
from tests.faults.altered import start_altered
from tests.faults.figures import Figures
from tests.faults.processes import Daemon, Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.ready_voices import enrol, held
from tests.faults.streaming import Told, stream
from tests.faults.test_continuity import wav
from tests.node.test_batcher import GRID, Bench, bench, collect, sound

ADA = voice(0)


class Memory:
    """A device that has memory for so many windows at once."""

    def __init__(self, made: Bench, windows: int) -> None:
        self.windows = windows
        self.tried: list[int] = []
        self._analyze = made.device.analyze
        made.device.analyze = self.analyze  # type: ignore[method-assign]

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        if windows[0].slot >= 0:
            self.tried.append(len(windows))
        if len(windows) > self.windows:
            raise MemoryError("CUDA out of memory")
        return self._analyze(windows)


@pytest.mark.fault("F15", "P8", "P14")
async def test_a_batch_for_which_there_is_no_memory_is_halved_and_no_stream_notices(figures: Figures) -> None:
    async with bench() as made:
        made.device.gate.clear()
        sources = [await made.source(index) for index in range(8)]
        memory = Memory(made, 3)
        for source in sources:
            await source.push(sound(3))
        made.device.gate.set()
        for source in sources:
            source.end()
        heard = [await collect(source) for source in sources]
        assert [len(analyses) for analyses in heard] == [3] * 8
        starts = [analysis.start_samples for analysis in heard[0]]
        assert starts == [end * GRID.hop_samples - GRID.window_samples for end in (1, 2, 3)]
        assert made.metrics.batches_halved._value.get() >= 1
        assert made.metrics.device_faults._value.get() == 0
        # Once it is known, what does not fit is not tried again for a while.
        assert max(memory.tried[-3:]) <= 3
        figures.record("windows at once after the device ran out of memory", max(memory.tried[-3:]), unit="")
        assert not made.batcher.is_saturated()


@pytest.mark.fault("F15", "P8")
async def test_a_device_without_memory_for_one_window_refuses_it_and_goes_on_when_there_is_some() -> None:
    async with bench() as made:
        memory = Memory(made, 0)
        source = await made.source(0)
        await source.push(sound(1))
        with pytest.raises(DeviceFull, match="out of memory") as refused:
            await source.take()
        assert refused.value.retry_after_s
        # The node takes nobody else for now; nothing ended.
        assert made.batcher.is_saturated() and not made.thread.lost.done() and not made.running.done()
        made.batcher.close(source.slot)
        memory.windows = 32
        again = await made.source(1)
        await again.push(sound(1))
        again.end()
        assert len(await collect(again)) == 1
        # Any other call that finds none is refused alike.
        with pytest.raises(Overloaded, match="out of memory"):
            await made.thread.call(_short)
        assert not made.thread.lost.done()


def _short(_engine: object) -> None:
    raise MemoryError("CUDA out of memory")


@pytest.mark.fault("F15", "P6")
async def test_a_device_that_fails_on_a_call_is_asked_whether_it_still_answers() -> None:
    async with bench() as made:
        with pytest.raises(RuntimeError, match="this call"):
            await made.thread.call(_broken)
        await made.thread.call(lambda engine: None)
        assert not made.thread.lost.done()
        made.device.fails = lambda windows: True
        # No stream and no file is there: an enrolment alone finds out that the device is gone.
        with pytest.raises(RuntimeError, match="this call"):
            await made.thread.call(_broken)
        await asyncio.wait_for(asyncio.shield(made.thread.lost), 20)


def _broken(_engine: object) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered, in this call")


async def faulty_node(daemons: Processes, plane: Daemon, data: Path, orders: Path) -> Daemon:
    arguments = node_arguments("faulty", plane.grpc, data)
    return await start_altered(
        daemons, "faulty", *arguments, module="tests.faults.faulty_node", env={"SPEAKERD_TEST_DEVICE": str(orders)}
    )


@pytest.mark.deep
@pytest.mark.fault("F15", "P5", "P8")
async def test_out_of_memory_refuses_streams_and_clips_for_as_long_as_it_lasts_and_ends_nothing(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    data, orders = tmp_path / "data", tmp_path / "orders"
    plane = await daemons.start("plane", *plane_arguments(data))
    node = await faulty_node(daemons, plane, data, orders)
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        await enrol(client, "Ada", 0)
        sound = pcm(tones(6, *ADA))
        calm = await stream(client, sound, pace=0)
        orders.write_text("memory 1")
        # One window at a time is enough for all of them.
        told = await asyncio.gather(*(stream(client, sound, pace=0) for _ in range(4)))
        assert [one.whole() for one in told] == [calm.whole()] * 4
        assert not any(one.resumed for one in told)
        orders.write_text("memory 0")
        async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as other:
            # Durable, and heard as soon as there is a device for it.
            bob = (await other.enroll("Bob", [wav(tones(4, *voice(1)))])).voice
            assert bob.state == people_pb2.Voice.STATE_PENDING
            running = asyncio.create_task(stream(client, sound, pace=0))
            await until(lambda: "device.out_of_memory" in node.log.read_text(), 60)
            orders.write_text("")
            relieved_s = time.monotonic()
            # The client of users places the stream again by itself, and nothing is lost.
            assert (await running).whole() == calm.whole()
            figures.record("memory again: a stream is heard to its end after", time.monotonic() - relieved_s)
            await held(other, bob.voice_id)
            figures.record("memory again: a clip that waited is enrolled after", time.monotonic() - relieved_s)
            figures.record("turns lost or changed", 0, "")
        assert node.process.returncode is None


@pytest.mark.fault("F15", "P6", "P9")
async def test_a_device_that_is_lost_ends_its_node_which_hands_its_streams_over(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    data, orders = tmp_path / "data", tmp_path / "orders"
    plane = await daemons.start("plane", *plane_arguments(data))
    faulty = await faulty_node(daemons, plane, data, orders)
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        await enrol(client, "Ada", 0)
        sound = pcm(np.concatenate([tones(6, *ADA), tones(6, *voice(2))] * 25))
        told, done = [Told() for _ in range(3)], asyncio.Event()
        running = [asyncio.create_task(stream(client, sound, told=one, until=done)) for one in told]
        await until(lambda: all(one.turns for one in told), 60)
        await daemons.start("other", *node_arguments("other", plane.grpc, data))
        loop = asyncio.get_running_loop()
        orders.write_text("lost")
        lost_s = loop.time()
        # Not by a signal and not 0: whoever supervises it starts it again.
        assert await faulty.ended(120) == 1
        figures.record("lost device to the end of its process", loop.time() - lost_s)
        await until(lambda: all(one.resumed for one in told), 60)
        figures.record("lost device to the last stream going on elsewhere", loop.time() - lost_s)
        done.set()
        await asyncio.gather(*running)
        for one in told:
            one.require_in_order()
            assert one.nodes == ["faulty", "other"]
            calm = await stream(client, sound[: one.sent], pace=0)
            assert one.whole() == calm.whole()
        figures.record("final turns lost", 0, "")
        assert "device.lost" in faulty.log.read_text()

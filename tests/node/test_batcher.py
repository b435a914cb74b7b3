"""The batcher and the device's thread, over devices that fail, hang back and are lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.analysis import FloatArray, WindowAnalysis
from models.online import OnlineParams
from models.seams import DueWindow, SlotKind
from node.batcher import FIRST_WINDOWS, WINDOWS_A_BATCH, Batcher, DeviceFault
from node.device_thread import DeviceLost, DeviceThread
from node.engine import PROBE_SLOT, Engine
from node.metrics import NodeMetrics
from node.null_engine import CLUSTERING, GRID, NAMING, NullDevice, NullGallery, collector
from node.slots import Slot
from node.source import BACKLOG_SAMPLES_MAX, RESULTS_MAX, Source
from runtime.clock import SystemClock
from runtime.errors import Overloaded, Unavailable
from tests.node.conftest import ADA, tones


class WatchedDevice(NullDevice):
    """Notes what it is asked, waits for `gate`, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[DueWindow]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.fails: Callable[[Sequence[DueWindow]], bool] = lambda windows: False
        self.is_full: Callable[[Sequence[DueWindow]], bool] = lambda windows: False

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        self.threads.add(threading.get_ident())
        self.gate.wait(10)
        if self.fails(windows):
            raise RuntimeError("device fault")
        if self.is_full(windows):
            raise MemoryError
        if windows[0].slot != PROBE_SLOT:
            self.batches.append(list(windows))
        return super().analyze(windows)


class Bench:
    """A batcher over a watched device."""

    def __init__(self, device: WatchedDevice, thread: DeviceThread, batcher: Batcher, metrics: NodeMetrics) -> None:
        self.device = device
        self.thread = thread
        self.batcher = batcher
        self.metrics = metrics
        self.running = asyncio.create_task(batcher.run())

    async def source(self, index: int, *, kind: SlotKind = SlotKind.LIVE) -> Source:
        return await self.batcher.open(Slot(index, 1), kind=kind, first_end=GRID.hop_samples)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    device, metrics = WatchedDevice(), NodeMetrics(CollectorRegistry())
    engine = Engine(
        device, NullGallery(64), "null", "null@1", "null", OnlineParams(evidence=CLUSTERING), NAMING, collector
    )
    thread = DeviceThread(lambda: engine, calls_max=64)
    await thread.start()
    made = Bench(device, thread, Batcher(thread, GRID, metrics, SystemClock()), metrics)
    try:
        yield made
    finally:
        device.gate.set()
        made.running.cancel()
        await asyncio.gather(made.running, return_exceptions=True)
        await thread.stop()


async def collect(source: Source) -> list[WindowAnalysis]:
    found: list[WindowAnalysis] = []
    while analyses := await source.take():
        found += analyses
    return found


def sound(hops: float) -> FloatArray:
    return tones(hops * GRID.hop_samples / 16_000, *ADA)


async def test_every_window_comes_back_once_and_in_order_and_the_tail_is_filled_up() -> None:
    async with bench() as b:
        source = await b.source(0)
        for _ in range(5):
            await source.push(sound(1.5))
        source.end()
        starts = [analysis.start_samples for analysis in await collect(source)]
        assert starts == [end * GRID.hop_samples - GRID.window_samples for end in range(1, 9)]


async def test_one_thread_touches_the_device_and_windows_of_all_streams_share_batches() -> None:
    async with bench() as b:
        b.device.gate.clear()
        sources = [await b.source(index) for index in range(3)]
        for source in sources:
            await source.push(sound(2))
        await asyncio.sleep(0.05)
        b.device.gate.set()
        for source in sources:
            source.end()
            assert len(await collect(source)) == 2
        assert len(b.device.threads) == 1
        assert any(len({window.slot for window in batch}) == 3 for batch in b.device.batches)


async def test_live_windows_that_become_due_right_after_a_batch_share_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.batcher.GATHER_S", 1.0)
    async with bench() as b:
        sources = [await b.source(index) for index in range(3)]
        for source in sources:
            await source.push(sound(1))
            if source is sources[0]:
                assert len(await source.take()) == 1  # at once: nothing came before it
            await asyncio.sleep(0.01)
        assert len(await sources[1].take()) == len(await sources[2].take()) == 1
        assert [len(batch) for batch in b.device.batches] == [1, 2]


async def test_a_recording_does_not_wait_for_others_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.batcher.GATHER_S", 60.0)
    async with bench() as b:
        file = await b.source(0, kind=SlotKind.FILE)
        await file.push(sound(30))
        file.end()
        assert len(await asyncio.wait_for(collect(file), 60)) == 30
        assert len(b.device.batches) > 1


async def test_the_first_batch_is_small_however_many_windows_wait_since_nobody_knows_what_it_takes() -> None:
    async with bench() as b:
        sources = [await b.source(index) for index in range(2 * FIRST_WINDOWS)]
        for source in sources:
            source._append(sound(2))  # all at once, before the batcher has its turn
            source.end()
        for source in sources:
            assert len(await collect(source)) == 2
        sizes = [len(batch) for batch in b.device.batches]
        assert sizes[0] == FIRST_WINDOWS < max(sizes[1:])


async def test_files_wait_while_live_windows_are_due() -> None:
    async with bench() as b:
        b.device.gate.clear()
        file = await b.source(9, kind=SlotKind.FILE)
        streams = [await b.source(index) for index in range(WINDOWS_A_BATCH // 4)]
        first = await b.source(8)
        await first.push(sound(1))  # occupies the device while the others become due
        await asyncio.sleep(0.05)
        await file.push(sound(4))
        for source in streams:
            await source.push(sound(4))
        b.device.gate.set()
        file.end()
        await collect(file)
        order = [{window.slot for window in batch} for batch in b.device.batches]
        assert order[0] == {8} and 9 not in order[1] and 9 in order[-1]


async def test_a_fault_costs_only_the_stream_that_causes_it() -> None:
    async with bench() as b:
        b.device.gate.clear()
        good, bad = await b.source(0), await b.source(1)
        b.device.fails = lambda windows: any(window.slot == 1 for window in windows)
        await good.push(sound(3))
        await bad.push(sound(3))
        b.device.gate.set()
        good.end(), bad.end()
        assert len(await collect(good)) == 3
        with pytest.raises(DeviceFault, match="resume"):
            await collect(bad)
        with pytest.raises(DeviceFault):
            await bad.push(sound(1))
        assert not b.running.done()
        assert b.metrics.device_faults._value.get() == 1


async def test_a_lost_device_ends_the_batcher_loudly() -> None:
    async with bench() as b:
        source = await b.source(0)
        b.device.fails = lambda windows: True
        await source.push(sound(1))
        with pytest.raises(DeviceLost):
            await asyncio.wait_for(b.running, 5)
        with pytest.raises(Unavailable):
            b.thread.submit(lambda engine: None)


async def test_a_device_without_memory_for_the_probe_after_a_fault_is_not_lost() -> None:
    async with bench() as b:
        bad, good = await b.source(0), await b.source(1)
        b.device.fails = lambda windows: windows[0].slot == 0
        b.device.is_full = lambda windows: windows[0].slot == PROBE_SLOT
        await bad.push(sound(1))
        with pytest.raises(DeviceFault):
            await collect(bad)
        await good.push(sound(2))
        good.end()
        assert len(await asyncio.wait_for(collect(good), 30)) == 2
        assert not b.running.done()


async def test_a_crowd_of_waiting_calls_does_not_end_the_batcher() -> None:
    async with bench() as b:
        source = await b.source(0)
        began, over = threading.Event(), threading.Event()
        b.thread.submit(lambda engine: (began.set(), over.wait(60)))
        await asyncio.to_thread(began.wait, 30)
        with pytest.raises(Overloaded):
            while True:
                b.thread.submit(lambda engine: None)
        await source.push(sound(1))  # its batch finds all places taken
        await asyncio.sleep(0.05)
        over.set()
        source.end()
        assert len(await asyncio.wait_for(collect(source), 30)) == 1
        assert not b.running.done()


async def test_who_pushes_faster_than_the_device_takes_waits_with_a_bounded_backlog() -> None:
    async with bench() as b:
        b.device.gate.clear()
        source = await b.source(0)
        pushed = 0

        async def push_on() -> None:
            nonlocal pushed
            while True:
                await source.push(sound(1))
                pushed += GRID.hop_samples

        pushing = asyncio.create_task(push_on())
        await asyncio.sleep(0.2)
        assert pushed <= BACKLOG_SAMPLES_MAX + 2 * GRID.hop_samples + GRID.window_samples
        b.device.gate.set()
        async with asyncio.timeout(5):
            while len(b.device.batches) < 3:
                await source.take()
        assert pushed > BACKLOG_SAMPLES_MAX
        pushing.cancel()


async def test_a_source_whose_results_are_not_collected_gets_no_further_windows() -> None:
    async with bench() as b:
        source = await b.source(0)
        for _ in range(30):
            await source.push(sound(1))
        await asyncio.sleep(0.2)
        assert sum(map(len, b.device.batches)) == RESULTS_MAX
        source.end()
        assert len(await collect(source)) == 30


async def test_results_of_a_slot_that_was_closed_are_dropped_and_counted() -> None:
    async with bench() as b:
        b.device.gate.clear()
        old = await b.source(0)
        await old.push(sound(2))
        await asyncio.sleep(0.05)
        b.batcher.close(old.slot)
        opening = asyncio.create_task(b.batcher.open(Slot(0, 2), first_end=GRID.hop_samples))
        await asyncio.sleep(0.05)
        b.device.gate.set()
        new = await opening
        await new.push(np.zeros(GRID.hop_samples, np.float32))
        new.end()
        found = await collect(new)
        assert len(found) == 1 and not found[0].activity.any()  # nothing of the tenancy before is heard
        assert b.metrics.late_results._value.get() == 2


async def test_a_call_whose_caller_went_away_costs_no_device_time() -> None:
    async with bench() as b:
        b.device.gate.clear()
        source = await b.source(0)
        await source.push(sound(1))
        await asyncio.sleep(0.05)
        ran: list[str] = []
        gone = asyncio.create_task(b.thread.call(lambda engine: ran.append("gone")))
        stays = asyncio.create_task(b.thread.call(lambda engine: ran.append("stays")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        b.device.gate.set()
        await stays
        assert ran == ["stays"]


async def test_the_queue_of_calls_is_bounded() -> None:
    async with bench() as b:
        b.device.gate.clear()
        source = await b.source(0)
        await source.push(sound(1))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded):
            for _ in range(65):
                b.thread.submit(lambda engine: None)
        b.device.gate.set()

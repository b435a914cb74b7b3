"""The one batcher: when the device is free it takes the windows that are due, live ones first, files fill what is left.

In: samples, pushed into a Source by each stream and file. Out: the analyses of its windows, in order. What always
holds: one batch is on the device at a time and there are no timers; a source's sound waits in a bounded backlog, and
who pushes more than that waits; a source whose results are not collected gets no further windows; results of a slot
that was closed are dropped. A batch that fails is tried again slot by slot, so that a fault costs only the streams
that cause it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from models.analysis import FrameGrid, WindowAnalysis
from models.seams import AnalysisDevice, DueWindow, SlotKind
from node.device_thread import DeviceLost, DeviceThread
from node.engine import Engine, probe
from node.metrics import NodeMetrics
from node.slots import Slot
from node.source import WINDOWS_A_SLOT, SlotWork, Source
from runtime.clock import Clock
from runtime.errors import SpeakerdError
from runtime.logs import get_logger
from runtime.units import ms_from_samples, seconds_from_samples

WINDOWS_A_BATCH = 32
LATENESS_KEPT = 4096
LATENESS_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Due:
    """What a source could have analysed now."""

    slot: Slot
    live: bool
    num_windows: int


def take_batch(due: Sequence[Due], *, windows_max: int, windows_a_slot_max: int) -> dict[Slot, int]:
    """Choose a batch: how many windows of which slots.

    due: in the order in which they should be served. Live slots are served in turns, one window each, until nothing of
    theirs is due or the batch is full; then files, in the same way.
    """
    taken: dict[Slot, int] = {}
    room = windows_max
    for live in (True, False):
        waiting = {entry.slot: min(entry.num_windows, windows_a_slot_max) for entry in due if entry.live is live}
        while waiting and room:
            for slot in list(waiting):
                if not waiting[slot]:
                    del waiting[slot]
                elif room:
                    waiting[slot] -= 1
                    taken[slot] = taken.get(slot, 0) + 1
                    room -= 1
    return taken


class DeviceFault(SpeakerdError):
    """The device failed on a window of this stream; the node goes on."""


class Batcher:
    """All sources of a node, and the loop that feeds the device from them."""

    def __init__(self, device: DeviceThread, grid: FrameGrid, metrics: NodeMetrics, clock: Clock) -> None:
        self._device = device
        self._grid = grid
        self._metrics = metrics
        self._clock = clock
        self._sources: dict[Slot, Source] = {}
        self._wake = asyncio.Event()
        self._lateness: deque[tuple[float, float]] = deque(maxlen=LATENESS_KEPT)  # (when, seconds)

    def __repr__(self) -> str:
        return f"Batcher({len(self._sources)} sources, {self.num_queued} windows due)"

    @property
    def num_queued(self) -> int:
        """Windows waiting for the device."""
        return sum(source.num_due for source in self._sources.values())

    def lateness_p99_s(self) -> float:
        """99th percentile over the last minute of how long live windows waited until they were analysed."""
        horizon = self._clock.monotonic_s() - LATENESS_WINDOW_S
        recent = sorted(seconds for when, seconds in self._lateness if when >= horizon)
        return recent[int(0.99 * (len(recent) - 1))] if recent else 0.0

    async def open(
        self, slot: Slot, *, kind: SlotKind = SlotKind.LIVE, first_end: int | None = None, heard: int = 0
    ) -> Source:
        """A source on a slot that the caller holds.

        first_end: where its first window ends, a window from the start if it is not said. heard: sound up to here
        needs no window of its own, for it is there as the context of others.
        """

        def opened(engine: Engine) -> FrameGrid:
            grid = engine.device.grid_of(kind)
            engine.device.open(slot.index, grid.window_samples + WINDOWS_A_SLOT * grid.hop_samples, kind)
            return grid

        grid = await self._device.call(opened)
        source = Source(
            slot,
            live=kind is SlotKind.LIVE,
            grid=grid,
            first_end=grid.window_samples if first_end is None else first_end,
            heard=heard,
            wake=self._wake,
        )
        self._sources[slot] = source
        return source

    def close(self, slot: Slot) -> None:
        """Forget a source and its sound; results that still come are dropped."""
        self._sources.pop(slot, None)
        try:
            forgotten = self._device.submit(lambda engine: engine.device.open(slot.index, self._grid.window_samples))
        except SpeakerdError:
            return  # the device is going away, and the sound with it
        # Nobody waits for it; a device that fails at this will fail at the next batch, where it is seen to.
        forgotten.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def run(self) -> None:
        """Form a batch whenever the device is free and a window is due. Ends with DeviceLost."""
        while True:
            now_s = self._clock.monotonic_s()
            for source in self._sources.values():
                if source.due_since_s is None and source.num_due:
                    source.due_since_s = now_s
            waiting = sorted(
                (source for source in self._sources.values() if source.num_due),
                key=lambda source: source.due_since_s or now_s,
            )
            taken = take_batch(
                [Due(source.slot, source.live, source.num_due) for source in waiting],
                windows_max=WINDOWS_A_BATCH,
                windows_a_slot_max=WINDOWS_A_SLOT,
            )
            if not taken:
                self._wake.clear()
                await self._first(self._wake)
                continue
            await self._analyse(taken)

    async def _first(self, wake: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(wake.wait())
        try:
            await asyncio.wait((waiting, self._device.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        self._raise_lost()

    def _raise_lost(self) -> None:
        if self._device.lost.done():
            raise self._device.lost.result()

    async def _analyse(self, taken: dict[Slot, int]) -> None:
        works = {slot: self._sources[slot].begin(count) for slot, count in taken.items()}
        num_windows = sum(taken.values())
        began_s = self._clock.monotonic_s()
        outcomes = await self._device.call(lambda engine: _analyze_works(engine, list(works.values())))
        ended_s = self._clock.monotonic_s()
        self._metrics.batch_size.observe(num_windows)
        self._metrics.infer_seconds.observe(ended_s - began_s)
        failed = False
        for slot, outcome in zip(works, outcomes, strict=True):
            source = self._sources.get(slot)
            if isinstance(outcome, DeviceFault):
                failed = True
                self._metrics.device_faults.inc()
            if source is None:
                self._metrics.late_results.inc(taken[slot])
                continue
            if source.live and source.due_since_s is not None:
                self._metrics.queue_wait_seconds.observe(began_s - source.due_since_s)
                self._lateness.append((ended_s, ended_s - source.due_since_s))
            source.due_since_s = None
            source.complete(outcome)
            self._metrics.audio_seconds.inc(seconds_from_samples(taken[slot] * source.grid.hop_samples))
        if failed:
            await self._check_device()

    async def _check_device(self) -> None:
        """After a fault: does the device still answer at all? If not, the daemon ends."""
        try:
            await self._device.call(lambda engine: probe(engine.device))
        except Exception as error:  # noqa: BLE001 - whatever a dead device raises, the conclusion is the same
            get_logger().error("device.lost", error_type=type(error).__name__)
            self._device.declare_lost(DeviceLost("the device failed on silence after failing on a stream"))
            self._raise_lost()


def _analyze_works(engine: Engine, works: Sequence[SlotWork]) -> list[list[WindowAnalysis] | SpeakerdError]:
    """On the device's thread: write, analyse all windows in one batch; slot by slot if that fails."""
    device = engine.device
    outcomes: dict[int, list[WindowAnalysis] | SpeakerdError] = {}
    good: list[SlotWork] = []
    for work in works:
        try:
            device.write(work.slot, work.samples)
            good.append(work)
        except Exception as error:  # noqa: BLE001 - handed to the stream that it happened to
            outcomes[work.slot] = _fault(error, work)
    try:
        outcomes |= _analyze(device, good)
    except Exception as error:  # noqa: BLE001 - told apart slot by slot below
        get_logger().warning("device.batch_failed", error_type=type(error).__name__, slots=len(good))
        for work in good:
            try:
                outcomes |= _analyze(device, [work])
            except Exception as again:  # noqa: BLE001 - handed to the stream that it happened to
                outcomes[work.slot] = _fault(again, work)
    return [outcomes[work.slot] for work in works]


def _analyze(device: AnalysisDevice, works: Sequence[SlotWork]) -> dict[int, list[WindowAnalysis] | SpeakerdError]:
    windows = [DueWindow(work.slot, end) for work in works for end in work.ends]
    analyses = iter(device.analyze(windows)) if windows else iter(())
    return {work.slot: [next(analyses) for _ in work.ends] for work in works}


def _fault(error: Exception, work: SlotWork) -> DeviceFault:
    get_logger().error("device.fault", slot=work.slot, error_type=type(error).__name__, exc_info=error)
    return DeviceFault(
        f"the device failed on the audio up to {ms_from_samples(work.ends[-1])} ms: place the stream again and resume"
    )

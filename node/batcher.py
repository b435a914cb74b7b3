"""The one batcher: when the device is free it takes the windows that are due, live ones first, files fill what is left.

In: samples, pushed into a Source by each stream and file. Out: the analyses of its windows, in order. What always
holds: one batch is on the device at a time, and one of live windows begins GATHER_S after the last at the earliest,
which is the only timer; a batch is as large as the device gets through in BATCH_S, and while there are live streams
files get FILL_S of it at most; who waits longest is served first, a window at a time; a live stream that the device is
late with jumps to its newest window, and what it leaves out is counted; results of a slot that was closed are dropped.
A batch for which there is no memory is halved until there is, and so are those after it for a while; one that fails
otherwise is tried again slot by slot, so that a fault costs only the streams that cause it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from models.analysis import FrameGrid, WindowAnalysis
from models.seams import DueWindow, SlotKind
from node.device_thread import OUT_OF_MEMORY, DeviceLost, DeviceThread
from node.engine import Engine, probe
from node.metrics import NodeMetrics
from node.slots import Slot
from node.source import WINDOWS_A_SLOT, SlotWork, Source
from runtime.clock import Clock
from runtime.errors import Overloaded, SpeakerdError, Unavailable
from runtime.logs import get_logger
from runtime.units import ms_from_samples, seconds_from_samples

WINDOWS_A_BATCH = 32
"""The largest batch where the engine does not say otherwise."""
BATCH_S = 0.1
"""Aimed at for a batch: what becomes due meanwhile waits so long, and larger batches bring little more."""
GATHER_S = 0.004
"""From the beginning of a batch of live windows to that of the next, at least. A device that is done sooner would take
them one by one, and a batch, with two changes of threads, costs as much as several windows."""
FIRST_WINDOWS = 8
"""Of the first batch, of which nobody knows what it takes: a whole one of a large model on a slow processor looks as if
the device stood still."""
FILL_S = 0.05
"""Of a batch beside live streams, for windows that can wait: those of files, and of recordings sent as streams."""
LATE_S = 2.0
"""A live window that has waited for so long is left out where there is a newer one of its stream."""
LATENESS_KEPT = 4096
LATENESS_WINDOW_S = 60.0
SATURATED_WINDOW_S = 10.0
SATURATED_WINDOWS_MIN = 8
GROWS_AGAIN_S = 30.0
"""How long after the device ran out of memory a batch may be twice as large again."""
COST_WEIGHT = 0.2  # of the newest batch in what a window is expected to take


@dataclass(frozen=True, slots=True)
class Due:
    """What a source could have analysed now. live: it cannot wait."""

    slot: Slot
    live: bool
    num_windows: int


def take_batch(
    due: Sequence[Due], *, windows_max: int, windows_a_slot_max: int, fill_max: int | None = None
) -> dict[Slot, int]:
    """Choose a batch: how many windows of which slots.

    due: in the order in which they should be served. Live slots are served in turns, one window each, until nothing of
    theirs is due or the batch is full; then the others, in the same way, fill_max windows at most.
    """
    taken: dict[Slot, int] = {}
    room = windows_max
    for live in (True, False):
        waiting = {entry.slot: min(entry.num_windows, windows_a_slot_max) for entry in due if entry.live is live}
        if not live and fill_max is not None:
            room = min(room, fill_max)
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


class DeviceFull(Unavailable):
    """There is no memory even for a single window of this stream, which goes on elsewhere; so does the node, here."""


class Batcher:
    """All sources of a node, and the loop that feeds the device from them.

    windows_max: the largest batch that the device takes. late_s: None for never leaving a window out.
    """

    def __init__(
        self,
        device: DeviceThread,
        grid: FrameGrid,
        metrics: NodeMetrics,
        clock: Clock,
        *,
        windows_max: int = WINDOWS_A_BATCH,
        late_s: float | None = LATE_S,
    ) -> None:
        self._device = device
        self._grid = grid
        self._metrics = metrics
        self._clock = clock
        self._windows_max = windows_max
        self._late_s = late_s
        self._sources: dict[Slot, Source] = {}
        self._due: dict[Source, None] = {}  # in the order in which their windows became due
        self._wake = asyncio.Event()
        self._fits = windows_max  # as many as there was memory for
        self._short_s = -math.inf  # when there was last not enough
        self._full_s = -math.inf  # when there was last none for a single window
        self._window_s = 0.0  # what a window takes, by the last batches
        self._lateness: deque[tuple[float, float]] = deque(maxlen=LATENESS_KEPT)  # (when, seconds)

    def __repr__(self) -> str:
        return f"Batcher({len(self._sources)} sources, {self.num_queued} windows due)"

    @property
    def num_queued(self) -> int:
        """Windows waiting for the device."""
        return sum(source.num_due for source in self._due)

    def lateness_p99_s(self) -> float:
        """99th percentile over the last minute of how long live windows waited until they were analysed."""
        horizon = self._clock.monotonic_s() - LATENESS_WINDOW_S
        recent = sorted(seconds for when, seconds in self._lateness if when >= horizon)
        return recent[int(0.99 * (len(recent) - 1))] if recent else 0.0

    def is_saturated(self) -> bool:
        """Whether live windows wait for longer than a step: the device gets less done than is asked of it.

        Half of the last seconds' windows have to, so that one stall of the machine is not taken for it; those that wait
        now are among them, or a device that stands still would be taken for one that is idle. A device that had no
        memory for a single window in that time is as full as one can be.
        """
        now_s = self._clock.monotonic_s()
        horizon = now_s - SATURATED_WINDOW_S
        if self._full_s >= horizon:
            return True
        recent: list[float] = []
        for when, seconds in reversed(self._lateness):
            if when < horizon:
                break
            recent.append(seconds)
        bound_s = seconds_from_samples(self._grid.hop_samples)
        waiting = sum(
            source.num_due for source in self._due if source.is_at_pace and now_s - source.oldest_due_s() > bound_s
        )
        late = sum(seconds > bound_s for seconds in recent) + waiting
        return len(recent) + waiting >= SATURATED_WINDOWS_MIN and 2 * late > len(recent) + waiting

    async def open(
        self,
        slot: Slot,
        *,
        kind: SlotKind = SlotKind.LIVE,
        first_end: int | None = None,
        heard: int = 0,
        is_resumed: bool = False,
    ) -> Source:
        """A source on a slot that the caller holds.

        first_end: where its first window ends, a window from the start if it is not said. heard: sound up to here
        needs no window of its own, for it is there as the context of others. is_resumed: it goes on from elsewhere.
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
            clock=self._clock,
            on_due=self._note_due,
            is_resumed=is_resumed,
        )
        self._sources[slot] = source
        return source

    def close(self, slot: Slot) -> None:
        """Forget a source and its sound; results that still come are dropped."""
        source = self._sources.pop(slot, None)
        if source is not None:
            self._due.pop(source, None)
        try:
            forgotten = self._device.submit(lambda engine: engine.device.open(slot.index, self._grid.window_samples))
        except SpeakerdError:
            return  # the device is going away, and the sound with it
        # Nobody waits for it; a device that fails at this will fail at the next batch, where it is seen to.
        forgotten.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def run(self) -> None:
        """Form a batch whenever the device is free and a window is due. Ends with DeviceLost."""
        self._device.lost.add_done_callback(lambda _: self._wake.set())
        while True:
            # What the loop has in hand already may make windows due: they come along.
            await asyncio.sleep(0)
            if taken := self._next_batch():
                began_s = self._clock.monotonic_s()
                is_paced = all(self._sources[slot].is_at_pace for slot in taken)
                await self._analyse(taken)
                if is_paced and (left_s := began_s + GATHER_S - self._clock.monotonic_s()) > 0:
                    await asyncio.sleep(left_s)
                continue
            self._wake.clear()
            self._raise_lost()
            await self._wake.wait()

    def _note_due(self, source: Source) -> None:
        if source.slot in self._sources:
            self._due.setdefault(source)
            self._wake.set()

    def _next_batch(self) -> dict[Slot, int]:
        """How many windows of which slots are analysed next."""
        if self._late_s is not None:
            for source in self._due:
                if skipped := source.skip_late(self._late_s):
                    self._metrics.windows_skipped.inc(skipped)
        is_live = any(source.is_paced for source in self._sources.values())
        due = [Due(source.slot, source.is_paced, source.num_due) for source in self._due]
        return take_batch(
            due,
            windows_max=self._affordable(BATCH_S),
            windows_a_slot_max=WINDOWS_A_SLOT,
            fill_max=self._affordable(FILL_S) if is_live else None,
        )

    def _affordable(self, seconds: float) -> int:
        """How many windows the device gets through in so long, and has memory for; one at least."""
        now_s = self._clock.monotonic_s()
        if self._fits < self._windows_max and now_s - self._short_s > GROWS_AGAIN_S:
            self._fits, self._short_s = min(self._windows_max, 2 * self._fits), now_s
        return min(self._fits, max(1, int(seconds / self._window_s)) if self._window_s else FIRST_WINDOWS)

    def _note_memory(self, analysed: Analysed, now_s: float) -> None:
        if analysed.fits is not None:
            self._fits, self._short_s = max(1, analysed.fits), now_s
            self._metrics.batches_halved.inc()
        if any(isinstance(outcome, DeviceFull) for outcome in analysed.outcomes):
            self._full_s = now_s

    def _raise_lost(self) -> None:
        if self._device.lost.done():
            raise self._device.lost.result()

    async def _analyse(self, taken: dict[Slot, int]) -> None:
        works: dict[Slot, SlotWork] = {}
        due_since_s: dict[Slot, float] = {}
        for slot, count in taken.items():
            source = self._sources[slot]
            if source.is_at_pace:
                due_since_s[slot] = source.oldest_due_s()
            works[slot] = source.begin(count)
            # Whoever is left with more to do waits behind all others; `complete` puts them there.
            del self._due[source]
        num_windows = sum(taken.values())
        began_s = self._clock.monotonic_s()
        # However many calls wait: streams that come and go again would otherwise end the daemon by their number.
        analysed = await self._device.call(lambda engine: _analyze_works(engine, list(works.values())), must_run=True)
        ended_s = self._clock.monotonic_s()
        cost_s = (ended_s - began_s) / num_windows
        self._window_s = self._window_s + COST_WEIGHT * (cost_s - self._window_s) if self._window_s else cost_s
        self._metrics.batch_size.observe(num_windows)
        self._metrics.analyse_seconds.observe(ended_s - began_s)
        self._note_memory(analysed, ended_s)
        heard_s = {True: 0.0, False: 0.0}  # by whether it is live
        num_analysed = 0
        failed = False
        for slot, outcome in zip(works, analysed.outcomes, strict=True):
            source_now = self._sources.get(slot)
            if isinstance(outcome, SpeakerdError):
                failed = failed or isinstance(outcome, DeviceFault)
                self._metrics.device_faults.inc()
                self._metrics.windows_failed.inc(taken[slot])
            else:
                num_analysed += taken[slot]
            if source_now is None:
                self._metrics.late_results.inc(taken[slot])
                continue
            if slot in due_since_s:
                self._metrics.queue_seconds.observe(max(0.0, began_s - due_since_s[slot]))
                self._metrics.live_window_seconds.observe(ended_s - due_since_s[slot])
                self._lateness.append((ended_s, ended_s - due_since_s[slot]))
            source_now.complete(outcome)
            heard_s[source_now.live] += seconds_from_samples(taken[slot] * source_now.grid.hop_samples)
        # A batch at a time, since locks and lookups a window add up.
        self._metrics.windows_analysed.inc(num_analysed)
        self._metrics.live_seconds.inc(heard_s[True])
        self._metrics.file_seconds.inc(heard_s[False])
        if any(heard_s.values()):
            self._metrics.real_time_factor.observe((ended_s - began_s) / sum(heard_s.values()))
        if failed:
            await self._check_device()

    async def _check_device(self) -> None:
        """After a fault: does the device still answer at all? If not, the daemon ends."""
        try:
            await self._device.call(lambda engine: probe(engine.device), must_run=True)
        except Overloaded:
            return  # it answers, and has no memory at this moment
        except Exception as error:  # noqa: BLE001 - whatever a dead device raises, the conclusion is the same
            get_logger().error("device.lost", error_type=type(error).__name__)
            self._device.declare_lost(DeviceLost("the device failed on silence after failing on a stream"))
            self._raise_lost()


@dataclass(frozen=True, slots=True)
class Analysed:
    """What came of a batch, slot by slot. fits: how many windows there was memory for, where there was not for all."""

    outcomes: list[list[WindowAnalysis] | SpeakerdError]
    fits: int | None


def _analyze_works(engine: Engine, works: Sequence[SlotWork]) -> Analysed:
    """On the device's thread: write, analyse all windows in one batch; slot by slot if that fails."""
    device = engine.device
    outcomes: dict[int, list[WindowAnalysis] | SpeakerdError] = {}
    good: list[SlotWork] = []
    parts = _Parts(engine)
    for work in works:
        try:
            device.write(work.slot, work.samples)
            good.append(work)
        except Exception as error:  # noqa: BLE001 - handed to the stream that it happened to
            outcomes[work.slot] = _fault(engine, error, work)
    failed = False
    try:
        outcomes |= parts.analyze(good)
    except Exception as error:  # noqa: BLE001 - told apart slot by slot below
        get_logger().warning("device.batch_failed", error_type=type(error).__name__, slots=len(good))
        failed = True
    for work in good if failed else ():
        try:
            outcomes |= parts.analyze([work])
        except Exception as again:  # noqa: BLE001 - handed to the stream that it happened to
            outcomes[work.slot] = _fault(engine, again, work)
    return Analysed([outcomes[work.slot] for work in works], parts.fits)


class _Parts:
    """Analyses batches whole where there is memory for them, and else in halves, down to single windows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.fits: int | None = None

    def analyze(self, works: Sequence[SlotWork]) -> dict[int, list[WindowAnalysis] | SpeakerdError]:
        """The analyses of each slot. Raises what the device raises, for want of memory too if it is a single window."""
        windows = [DueWindow(work.slot, end) for work in works for end in work.ends]
        size = len(windows) if self.fits is None else self.fits
        found: list[WindowAnalysis] = []
        while len(found) < len(windows):
            part = windows[len(found) : len(found) + size]
            heard = self._try(part, is_last=len(part) == 1)
            if heard is None:
                size = self.fits = len(part) // 2
                get_logger().warning("device.batch_halved", windows=len(part))
                continue
            found += heard
        analyses = iter(found)
        return {work.slot: [next(analyses) for _ in work.ends] for work in works}

    def _try(self, windows: Sequence[DueWindow], *, is_last: bool) -> list[WindowAnalysis] | None:
        """None where there is not memory enough. Once it is returned, the error's traceback holds nothing any more."""
        try:
            return self._engine.device.analyze(windows)
        except Exception as error:
            if is_last or not self._engine.is_out_of_memory(error):
                raise
        return None


def _fault(engine: Engine, error: Exception, work: SlotWork) -> SpeakerdError:
    if engine.is_out_of_memory(error):
        get_logger().error("device.out_of_memory", slot=work.slot)
        return DeviceFull(f"{OUT_OF_MEMORY} (place the stream again and resume)", retry_after_s=1.0)
    get_logger().error("device.fault", slot=work.slot, error_type=type(error).__name__, exc_info=error)
    return DeviceFault(
        f"the device failed on the audio up to {ms_from_samples(work.ends[-1])} ms: place the stream again and resume"
    )

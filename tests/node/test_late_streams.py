"""What happens when the device is late: windows are left out and counted, labels kept, and nobody else is admitted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from models.analysis import WindowAnalysis
from models.online import OnlineParams
from models.seams import DueWindow
from node import events
from node.access import Caller
from node.batcher import SATURATED_WINDOW_S, SATURATED_WINDOWS_MIN, Batcher
from node.engine import PROBE_SLOT, Engine
from node.load import LoadGauge
from node.metrics import NodeMetrics
from node.null_engine import CLUSTERING, GRID, NAMING, NullDevice, NullGallery, collector
from node.slots import Slot, SlotTable
from node.source import Source
from node.streams import LiveStreams
from node.voice_store import VoiceStore
from runtime.clock import SteppedClock
from runtime.errors import Overloaded
from tests.node.conftest import ADA, BOB, pcm, tones
from tests.node.live_desk import LATE_S, live_streams
from tests.node.test_session_bounds import REQUEST, ScriptedPeer

HOP_S = 0.5


class GatedDevice(NullDevice):
    """Analyses while its gate is open, and notes the ends of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.ends: list[tuple[int, int]] = []

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        assert self.gate.wait(60)
        self.ends += [(window.slot, window.end_samples) for window in windows if window.slot != PROBE_SLOT]
        return super().analyze(windows)


@dataclass(frozen=True, slots=True)
class Desk:
    """A node's live streams over a gated device, on a clock that stands."""

    device: GatedDevice
    batcher: Batcher
    streams: LiveStreams
    slots: SlotTable
    store: VoiceStore
    metrics: NodeMetrics
    clock: SteppedClock


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    device, clock = GatedDevice(), SteppedClock()
    engine = Engine(
        device, NullGallery(64), "null", "null@1", "null", OnlineParams(evidence=CLUSTERING), NAMING, collector
    )
    async with live_streams(engine, clock) as made:
        try:
            yield Desk(device, made.batcher, made.streams, made.slots, made.store, made.metrics, clock)
        finally:
            device.gate.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def speak(made: Desk, peer: ScriptedPeer, hops: int, *frequencies: float) -> None:
    """So much of a voice, a hop at a time, each when it was spoken."""
    data = pcm(tones(hops * HOP_S, *frequencies))
    for at in range(hops):
        made.clock.step(HOP_S)
        ends = len(made.device.ends)
        peer.messages.put_nowait(data[at * 16_000 : (at + 1) * 16_000])
        await until(peer.messages.empty)
        if made.device.gate.is_set():
            await until(lambda ends=ends: len(made.device.ends) > ends)  # type: ignore[misc]
        else:
            # Nothing shows that the last message was taken in but that the loop has gone round.
            for _ in range(10):
                await asyncio.sleep(0)


async def test_a_late_stream_jumps_to_its_newest_window_counts_what_it_left_out_and_keeps_its_labels() -> None:
    async with desk() as made:
        peer = ScriptedPeer(REQUEST)
        serving = asyncio.create_task(made.streams.serve(peer, Caller()))
        await speak(made, peer, 12, *ADA)
        await speak(made, peer, 12, *BOB)
        made.device.gate.clear()
        await speak(made, peer, 12, *ADA)
        made.device.gate.set()
        await until(lambda: made.device.ends[-1][1] == 36 * GRID.hop_samples)
        await speak(made, peer, 8, *BOB)
        await until(lambda: any(told.skipped_windows for told in peer.of(events.Progress)))  # type: ignore[attr-defined]
        peer.messages.put_nowait(events.Finish())
        await serving
        skipped = 44 - len(made.device.ends)
        assert skipped == 10  # of twelve: one was on the device when it hung, the newest was analysed
        (closed,) = peer.of(events.Closed)
        assert isinstance(closed, events.Closed) and closed.skipped_windows == skipped
        assert {told.skipped_windows for told in peer.of(events.Progress)} <= {0, skipped}  # type: ignore[attr-defined]
        assert made.metrics.windows_skipped._value.get() == skipped
        final = [piece for turns in peer.of(events.Turns) for piece in turns.pieces if piece.final]  # type: ignore[attr-defined]
        assert [piece.sequence for piece in final] == list(range(1, len(final) + 1))
        speech = dict.fromkeys((0, 1), 0)
        for piece in final:
            is_ada = piece.start_samples // (6 * 16_000) % 2 == 0
            assert piece.speaker == (0 if is_ada else 1), piece
            speech[piece.speaker] += piece.end_samples - piece.start_samples
        # Both speak for about 85 % of the time, and nearly all of it is there: a window covers what was left out.
        assert speech[0] > 0.75 * 12 * 16_000 and speech[1] > 0.75 * 10 * 16_000


async def test_a_stream_that_is_late_delays_no_other() -> None:
    async with desk() as made:
        late, other = ScriptedPeer(REQUEST), ScriptedPeer(REQUEST)
        serving = [asyncio.create_task(made.streams.serve(peer, Caller())) for peer in (late, other)]
        await until(lambda: made.slots.num_taken == 2 and bool(late.told and other.told))
        made.device.gate.clear()
        await speak(made, late, 12, *ADA)
        other.messages.put_nowait(pcm(tones(HOP_S, *BOB)))
        await until(other.messages.empty)
        for _ in range(10):
            await asyncio.sleep(0)
        made.device.gate.set()
        await until(lambda: len(made.device.ends) == 3)
        slots = [slot for slot, _ in made.device.ends]
        assert sorted(slots[1:]) == sorted(set(slots)), "after the window that hung, one of each"
        for peer in (late, other):
            peer.messages.put_nowait(events.Finish())
        await asyncio.gather(*serving)


def source(clock: SteppedClock, *, is_resumed: bool = False) -> Source:
    return Source(
        Slot(0, 1),
        live=True,
        grid=GRID,
        first_end=GRID.hop_samples,
        heard=0,
        clock=clock,
        on_due=lambda _: None,
        is_resumed=is_resumed,
    )


async def push(made: Source, clock: SteppedClock, hops: int, pace_s: float) -> None:
    for _ in range(hops):
        clock.step(pace_s)
        await made.push(tones(HOP_S, *ADA))


async def test_a_recording_sent_as_a_stream_loses_nothing_however_late_the_device() -> None:
    clock = SteppedClock()
    made = source(clock)
    await push(made, clock, 30, pace_s=0.1)
    assert not made.is_paced, "five times as fast as speech"
    clock.step(60)
    assert made.skip_late(LATE_S) == 0


async def test_what_a_stream_sends_again_as_it_goes_on_elsewhere_is_not_late() -> None:
    clock = SteppedClock()
    made = source(clock, is_resumed=True)
    await push(made, clock, 12, pace_s=0.0)
    assert made.is_paced, "and yet it goes before files"
    clock.step(60)
    assert made.skip_late(LATE_S) == 0


async def test_a_stream_whose_client_was_held_up_for_a_moment_is_not_late() -> None:
    clock = SteppedClock()
    made = source(clock)
    await push(made, clock, 8, pace_s=HOP_S)
    made.begin(8), made.complete([])
    clock.step(3.0)
    await push(made, clock, 6, pace_s=0.0)
    clock.step(LATE_S + 0.1)
    assert made.skip_late(LATE_S) == 0


async def test_only_windows_that_have_waited_long_enough_are_left_out() -> None:
    clock = SteppedClock()
    made = source(clock)
    await push(made, clock, 4, pace_s=HOP_S)
    assert made.skip_late(LATE_S) == 0  # the oldest has waited for 1.5 s
    await push(made, clock, 2, pace_s=HOP_S)
    assert made.skip_late(LATE_S) == 5 == made.num_skipped
    assert made.num_due == 1
    work = made.begin(1)
    assert work.ends == [6 * GRID.hop_samples] and len(work.samples) == 6 * GRID.hop_samples  # sound is all there


async def test_a_node_whose_device_stands_still_admits_nobody_however_long_it_does() -> None:
    async with desk() as made:
        peer = ScriptedPeer(REQUEST)
        serving = asyncio.create_task(made.streams.serve(peer, Caller()))
        load = LoadGauge(made.slots, SlotTable(1, what="file"), made.store, made.batcher)
        await speak(made, peer, 12, *ADA)
        made.device.gate.clear()
        await speak(made, peer, 3, *ADA)
        assert load.now().streams_max == 4, "a moment's stall is none"
        await speak(made, peer, 13, *ADA)
        for _ in range(3):
            made.clock.step(SATURATED_WINDOW_S)  # nothing has come back for longer than is looked back upon
            assert load.now().streams_max == 1
            with pytest.raises(Overloaded):
                await made.streams.serve(ScriptedPeer(REQUEST), Caller())
        made.device.gate.set()
        peer.messages.put_nowait(events.Finish())
        await serving


async def test_a_node_whose_device_is_behind_admits_nobody_until_it_has_caught_up() -> None:
    async with desk() as made:
        peer = ScriptedPeer(REQUEST)
        serving = asyncio.create_task(made.streams.serve(peer, Caller()))
        load = LoadGauge(made.slots, SlotTable(1, what="file"), made.store, made.batcher)
        await speak(made, peer, 1, *ADA)
        assert load.now().streams_max == 4
        for _ in range(SATURATED_WINDOWS_MIN):
            made.device.gate.clear()
            told = len(peer.of(events.Turns))
            await speak(made, peer, 1, *ADA)
            made.clock.step(HOP_S + 0.1)
            made.device.gate.set()
            await until(lambda told=told: len(peer.of(events.Turns)) > told)  # type: ignore[misc]
        with pytest.raises(Overloaded) as refused:
            await made.streams.serve(ScriptedPeer(REQUEST), Caller())
        assert refused.value.retry_after_s and made.slots.num_taken == 1
        assert load.now().streams_max == 1, "routing places nothing more here"
        made.clock.step(20)
        second = ScriptedPeer(REQUEST, pcm(tones(1, *BOB)), events.Finish())
        await made.streams.serve(second, Caller())
        assert second.of(events.Closed)
        peer.messages.put_nowait(events.Finish())
        await serving

"""Recordings on a node: what a client who goes away costs, how far they say they are, what a long result looks like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.online import OnlineParams
from node import events, files, wire
from node.batcher import Batcher
from node.decoders import Decoders
from node.device_thread import DeviceThread
from node.engine import Engine
from node.files import FileRuns
from node.metrics import NodeMetrics
from node.null_engine import CLUSTERING, GRID, NAMING, NullGallery, collector
from node.slots import SlotTable
from node.source import RESULTS_MAX, WINDOWS_A_SLOT
from node.standing import Standing
from node.voice_store import VoiceStore
from runtime.clock import SystemClock
from speakerd.v1 import common_pb2, node_pb2
from tests.node.conftest import ADA, BOB, tones
from tests.node.test_batcher import WatchedDevice

F32 = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_F32LE, sample_rate_hz=16_000, channels=1)


class Client:
    """The other end of a recording: sends as long as there is any, and notes what it is told."""

    def __init__(self, sound: np.ndarray, *, fast: bool = False) -> None:
        mode = node_pb2.FileOpen.MODE_FAST if fast else node_pb2.FileOpen.MODE_EXACT
        self._messages: list[events.FileRequest | bytes] = [
            wire.file_request(node_pb2.FileOpen(format=F32, mode=mode, duration_ms=len(sound) // 16), "null@1")
        ]
        self._messages += [sound[at : at + 16_000].astype("<f4").tobytes() for at in range(0, len(sound), 16_000)]
        self.told: list[events.FileProgress | events.FileResult] = []

    async def receive(self) -> events.FileRequest | bytes | None:
        return self._messages.pop(0) if self._messages else None

    async def send(self, event: events.FileProgress | events.FileResult) -> None:
        self.told.append(event)

    @property
    def result(self) -> events.FileResult:
        found = self.told[-1]
        assert isinstance(found, events.FileResult)
        return found


class Desk:
    """FileRuns over a watched null device."""

    def __init__(self, runs: FileRuns, device: WatchedDevice, slots: SlotTable) -> None:
        self.runs = runs
        self.device = device
        self.slots = slots

    @property
    def num_windows(self) -> int:
        return sum(len(batch) for batch in self.device.batches)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    device = WatchedDevice()
    engine = Engine(
        device, NullGallery(64), "null", "null@1", "null", OnlineParams(evidence=CLUSTERING), NAMING, collector
    )
    thread, clock, metrics = DeviceThread(lambda: engine, calls_max=64), SystemClock(), NodeMetrics(CollectorRegistry())
    await thread.start()
    batcher, slots = Batcher(thread, GRID, metrics, clock), SlotTable(2, what="file")
    running = asyncio.create_task(batcher.run())
    runs = FileRuns(
        engine=engine,
        batcher=batcher,
        store=VoiceStore(thread, embedding_dim=64),
        standing=Standing(None),
        slots=slots,
        decoders=Decoders(1, 1),
        metrics=metrics,
        clock=clock,
    )
    yield Desk(runs, device, slots)
    device.gate.set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await thread.stop()


def talk() -> np.ndarray:
    return np.concatenate([tones(15, *ADA), np.zeros(16_000, np.float32), tones(15, *BOB)])


async def test_a_cancelled_recording_costs_no_more_device_time(desk: Desk) -> None:
    client = Client(np.tile(talk(), 20))
    serving = asyncio.create_task(desk.runs.serve(client))
    while desk.num_windows < 20:
        await asyncio.sleep(0.005)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    seen = desk.num_windows
    await asyncio.sleep(0.2)
    assert seen < 20 * 62 - RESULTS_MAX
    assert desk.num_windows <= seen + WINDOWS_A_SLOT  # one batch may have been under way
    assert desk.slots.num_taken == 0


async def test_a_recording_tells_how_far_it_is_while_it_waits_for_the_device(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PROGRESS_S", 0.02)
    desk.device.gate.clear()
    client = Client(talk())
    serving = asyncio.create_task(desk.runs.serve(client))
    while len(client.told) < 3:
        await asyncio.sleep(0.005)
    assert client.told == [events.FileProgress(0, len(talk()))] * len(client.told)
    desk.device.gate.set()
    await serving
    assert len(client.result.speakers) == 2
    done = [event.processed_samples for event in client.told if isinstance(event, events.FileProgress)]
    assert done == sorted(done)


async def test_both_modes_of_the_null_engine_hear_the_same(desk: Desk) -> None:
    exact, fast = Client(talk()), Client(talk(), fast=True)
    await desk.runs.serve(exact)
    await desk.runs.serve(fast)
    assert exact.result.turns == fast.result.turns
    assert exact.result.duration_samples == len(talk())


async def test_a_recording_shorter_than_a_window_is_one_window_that_ends_with_it(desk: Desk) -> None:
    client = Client(tones(2.2, *ADA))
    await desk.runs.serve(client)
    assert [window.end_samples for batch in desk.device.batches for window in batch] == [40_000]
    assert client.result.turns[0].start_samples == 0
    assert len(client.result.speakers) == 1


def test_a_long_result_comes_in_messages_that_any_client_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "RESULT_TURNS_MAX", 10)
    pieces = tuple(events.TurnPiece(at * 16_000, (at + 1) * 16_000, at % 3, None, True, at + 1) for at in range(25))
    speakers = tuple(events.SpeakerSummary(index, None, 16_000, 16_000, None) for index in range(3))
    result = events.FileResult(pieces, pieces[:12], speakers, 25 * 16_000, ("a warning",))
    messages = [message.result for message in wire.file_responses(result)]
    sizes = [(len(m.turns), len(m.exclusive_turns), len(m.speakers)) for m in messages]
    assert sizes == [(10, 10, 3), (10, 2, 0), (5, 0, 0)]
    whole = node_pb2.FileResult()
    for message in messages:
        whole.MergeFrom(message)
    assert [turn.sequence for turn in whole.turns] == list(range(1, 26))
    assert (whole.duration_ms, list(whole.warnings)) == (25_000, ["a warning"])

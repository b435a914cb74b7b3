"""A live session's bounds on time and order, with a peer that is silent, slow or rude."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import node.intake
import node.session
import node.streams
from models.online import Merge, Move, OnlineParams
from models.online_clustering import SessionClustering
from models.online_history import SpokenHistory
from models.speaker_memory import IntArray, SpeakerMemory
from node import events
from node.access import Access, Caller
from node.batcher import Batcher
from node.checkpoint import CheckpointSeal
from node.decoders import Decoders
from node.device_thread import DeviceThread
from node.engine import Engine
from node.enrolment import CONTAINER
from node.intake import Intake
from node.metrics import NodeMetrics
from node.naming import SessionNaming
from node.null_engine import CLUSTERING, GRID, NAMING, NullDevice, NullGallery, collector
from node.slots import SlotTable
from node.source import RESULTS_MAX
from node.standing import Standing
from node.streams import LiveStreams
from node.voice_store import VoiceStore
from runtime.clock import SteppedClock, SystemClock
from runtime.errors import InvalidRequest, Overloaded, SpeakerdError, TimedOut, TooLarge, UnsupportedMedia
from runtime.lease import Lease, Renewal
from tests.node.conftest import ADA, BOB, pcm, tones

REQUEST = events.StreamRequest(
    stream_id="s",
    tenant_id="",
    ticket="",
    sound=events.SoundFormat(0, 0, 0),
    latency_samples=32_000,
    exclusive=False,
    voice_ids=frozenset(),
    num_speakers_max=20,
    checkpoint=b"",
    provisional=True,
)


class ScriptedPeer:
    """Says what it was given, then nothing; takes what it is told, unless it is deaf."""

    def __init__(self, *messages: object, is_deaf: bool = False) -> None:
        self.messages: asyncio.Queue[object] = asyncio.Queue()
        for message in messages:
            self.messages.put_nowait(message)
        self.told: list[events.Event] = []
        self._is_deaf = is_deaf
        self.listens = asyncio.Event()
        self.listens.set()

    async def receive(self) -> object:
        return await self.messages.get()

    async def send(self, event: events.Event) -> None:
        if self._is_deaf and not isinstance(event, events.Opened):
            await asyncio.Event().wait()
        await self.listens.wait()
        self.told.append(event)

    def of(self, kind: type) -> list[events.Event]:
        return [event for event in self.told if isinstance(event, kind)]


class Desk:
    """LiveStreams over the null engine, and what a test may turn."""

    def __init__(self, streams: LiveStreams, store: VoiceStore, lease: Lease | None, slots: SlotTable) -> None:
        self.streams = streams
        self.store = store
        self.lease = lease
        self.slots = slots


async def desk(lease: Lease | None) -> AsyncIterator[Desk]:
    engine = Engine(
        NullDevice(), NullGallery(64), "null", "null@1", "null", OnlineParams(evidence=CLUSTERING), NAMING, collector
    )
    thread, clock, metrics = DeviceThread(lambda: engine, calls_max=64), SystemClock(), NodeMetrics(CollectorRegistry())
    await thread.start()
    batcher, slots, standing = Batcher(thread, GRID, metrics, clock), SlotTable(2, what="stream"), Standing(lease)
    running = asyncio.create_task(batcher.run())
    store = VoiceStore(thread, embedding_dim=64)
    with ThreadPoolExecutor(1) as steps:
        streams = LiveStreams(
            node_id="n",
            engine=engine,
            batcher=batcher,
            store=store,
            standing=standing,
            access=Access(node_id="n", fleet_key=None, clock=clock),
            seal=CheckpointSeal(model="null@1", clock=clock),
            slots=slots,
            decoders=Decoders(1, 1),
            steps=steps,
            metrics=metrics,
            clock=clock,
        )
        yield Desk(streams, store, lease, slots)
        assert slots.num_taken == 0, "a slot was not given back"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await thread.stop()


@pytest.fixture
async def alone() -> AsyncIterator[Desk]:
    async for made in desk(None):
        yield made


@pytest.fixture
async def in_fleet() -> AsyncIterator[Desk]:
    clock = SteppedClock()
    lease = Lease(clock)
    lease.renewed(clock.lease_now_s(), Renewal(1, 9.0, 0, resync=False))
    lease.reconciled(1)
    async for made in desk(lease):
        yield made


async def enroll_ada(desk: Desk) -> None:
    voice = NullDevice().analyze_voice(tones(4, *ADA))
    await desk.store.put("default", "ada", 1, label="Ada", embedding=voice.embedding, net_speech_samples=64_000)


async def refused(desk: Desk, peer: ScriptedPeer) -> SpeakerdError:
    with pytest.raises(SpeakerdError) as error:
        await asyncio.wait_for(desk.streams.serve(peer, Caller()), 10)  # type: ignore[arg-type]
    return error.value


async def test_a_caller_who_says_nothing_is_let_go(alone: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.streams, "OPEN_BOUND_S", 0.05)
    assert isinstance(await refused(alone, ScriptedPeer()), TimedOut)


async def test_a_stream_without_audio_for_too_long_is_ended(alone: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.intake, "IDLE_S", 0.1)
    error = await refused(alone, ScriptedPeer(REQUEST, pcm(tones(1, *ADA))))
    assert isinstance(error, TimedOut) and "no audio" in str(error)


@pytest.mark.parametrize("piece", [b"", b"\0"])
async def test_a_stream_of_next_to_nothing_does_not_keep_its_slot(
    alone: Desk, monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    monkeypatch.setattr(node.intake, "IDLE_S", 1.0)
    peer = ScriptedPeer(REQUEST, pcm(tones(1, *ADA)))

    async def trickle() -> None:
        while True:
            peer.messages.put_nowait(piece)
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    try:
        error = await refused(alone, peer)
    finally:
        trickling.cancel()
    assert isinstance(error, TimedOut) and "less than 0.5 s of audio in 1 s" in str(error)
    assert alone.streams.num_running == 0


async def test_who_speaks_at_the_end_of_a_long_pause_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    passed_s = [0.0]
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + sum(passed_s))

    class Sender:
        async def receive(self) -> bytes:
            passed_s.append(pauses_s.pop(0))
            return bytes(3_200)  # 100 ms

    intake = Intake(Sender(), None, REQUEST.sound, piece_samples=8_000)  # type: ignore[arg-type]
    intake._patience = contextlib.nullcontext()  # type: ignore[assignment]  # its bound is another test's
    long_s = node.intake.IDLE_S - 0.1
    pauses_s = [long_s, *[0.1] * 20]
    while pauses_s:
        assert await intake._message()
    pauses_s = [long_s, *[11.0] * 4]
    with pytest.raises(TimedOut, match="less than"):
        while pauses_s:
            await intake._message()


async def test_time_that_the_node_takes_itself_does_not_count_against_who_sends(
    alone: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.intake, "IDLE_S", 0.5)
    push = node.source.Source.push

    async def slowly(source: node.source.Source, samples: np.ndarray) -> None:
        await asyncio.sleep(0.15)
        await push(source, samples)

    monkeypatch.setattr(node.source.Source, "push", slowly)
    sound = pcm(tones(4, *ADA))
    pieces = [sound[at : at + 8_000] for at in range(0, len(sound), 8_000)]  # 0.25 s each
    peer = ScriptedPeer(REQUEST, *pieces, events.Finish())
    await asyncio.wait_for(alone.streams.serve(peer, Caller()), 20)  # type: ignore[arg-type]
    assert peer.of(events.Closed)


async def test_a_client_that_does_not_read_is_cut_and_frees_its_slot(
    alone: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.session, "WRITE_BOUND_S", 0.1)
    peer = ScriptedPeer(REQUEST, *[pcm(tones(1, *ADA))] * 10, is_deaf=True)
    error = await refused(alone, peer)
    assert isinstance(error, TimedOut) and "not read" in str(error)


async def test_opening_twice_and_oversized_messages_are_refused(alone: Desk) -> None:
    assert isinstance(await refused(alone, ScriptedPeer(REQUEST, REQUEST)), InvalidRequest)
    assert isinstance(await refused(alone, ScriptedPeer(REQUEST, bytes((1 << 20) + 2))), TooLarge)


async def test_only_so_many_containers_are_decoded_at_once_and_samples_are_taken_beside_them(alone: Desk) -> None:
    container = replace(REQUEST, sound=events.SoundFormat(CONTAINER, 0, 0))
    first = ScriptedPeer(container)
    serving = asyncio.create_task(alone.streams.serve(first, None))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while not first.told:
            await asyncio.sleep(0.01)
    error = await refused(alone, ScriptedPeer(container))
    assert isinstance(error, Overloaded) and error.retry_after_s
    await alone.streams.serve(ScriptedPeer(REQUEST, pcm(tones(2, *ADA)), events.Finish()), Caller())  # type: ignore[arg-type]
    first.messages.put_nowait(b"no sound at all")
    first.messages.put_nowait(events.Finish())
    with pytest.raises(SpeakerdError):
        await serving
    assert isinstance(await refused(alone, ScriptedPeer(container, b"nor this", events.Finish())), UnsupportedMedia)


async def test_a_running_stream_tells_that_it_lives_even_when_no_audio_comes(
    alone: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.session, "TICK_S", 0.05)
    peer = ScriptedPeer(REQUEST)
    serving = asyncio.create_task(alone.streams.serve(peer, Caller()))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while len(peer.of(events.Progress)) < 3:
            await asyncio.sleep(0.01)
    peer.messages.put_nowait(pcm(tones(1, *ADA)))
    peer.messages.put_nowait(events.Finish())
    await serving
    assert isinstance(peer.told[-1], events.Closed)


async def test_where_turns_are_told_progress_is_rarer(alone: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.session, "TICK_S", 0.1)
    peer = ScriptedPeer(REQUEST)
    serving = asyncio.create_task(alone.streams.serve(peer, Caller()))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        while len(peer.of(events.Turns)) < 60:
            peer.messages.put_nowait(pcm(tones(0.5, *ADA)))
            await asyncio.sleep(0.02)  # a dozen ticks in all
    assert 1 <= len(peer.of(events.Progress)) < 8
    peer.messages.put_nowait(events.Finish())
    await serving


async def test_turns_are_followed_by_progress_within_a_tick(alone: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.session, "TICK_S", 0.6)
    peer = ScriptedPeer(REQUEST)
    serving = asyncio.create_task(alone.streams.serve(peer, Caller()))  # type: ignore[arg-type]

    async def told(kind: type, number: int) -> float:
        async with asyncio.timeout(10):
            while len(peer.of(kind)) < number:
                await asyncio.sleep(0.005)
        return asyncio.get_running_loop().time()

    await told(events.Progress, 1)
    peer.messages.put_nowait(pcm(tones(1, *ADA)))  # right after it
    began_s = await told(events.Turns, 1)
    assert 0.3 < await told(events.Progress, 2) - began_s < 0.9
    peer.messages.put_nowait(events.Finish())
    await serving


async def test_a_call_in_which_nobody_speaks_tells_that_it_lives_while_its_sound_flows(
    alone: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.session, "TICK_S", 0.1)
    sound = replace(REQUEST.sound, channels=2, parties_apart=True)
    peer = ScriptedPeer(replace(REQUEST, sound=sound, provisional=False))
    serving = asyncio.create_task(alone.streams.serve(peer, Caller()))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        for _ in range(60):
            peer.messages.put_nowait(bytes(32_000))
            await asyncio.sleep(0.02)  # a dozen ticks in all
    assert len(peer.of(events.Progress)) >= 6
    peer.messages.put_nowait(events.Finish())
    await serving


async def test_a_checkpoint_follows_upon_every_name_that_was_not_said_before(
    alone: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after it, a node that goes on would take whoever bore it, erased by then, for a stranger."""
    monkeypatch.setattr(node.session, "CHECKPOINT_S", 3600.0)
    await enroll_ada(alone)
    peer = ScriptedPeer(REQUEST, pcm(np.concatenate([tones(6, *BOB), tones(6, *ADA)])), events.Finish())
    await alone.streams.serve(peer, Caller())  # type: ignore[arg-type]
    is_named = [isinstance(told, events.Turns) and any(piece.name for piece in told.pieces) for told in peer.told]
    at = [number for number, told in enumerate(peer.told) if isinstance(told, events.Checkpoint)]
    assert len(at) == 1 and is_named.index(True) < at[0]
    assert sum(isinstance(told, events.Turns) for told in peer.told[is_named.index(True) : at[0]]) <= RESULTS_MAX


async def test_a_cancelled_stream_gives_its_slot_back(alone: Desk) -> None:
    peer = ScriptedPeer(REQUEST, pcm(tones(1, *ADA)))
    serving = asyncio.create_task(alone.streams.serve(peer, Caller()))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while not peer.told:
            await asyncio.sleep(0.01)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert alone.slots.num_taken == 0


async def test_a_result_that_waits_to_be_written_loses_its_name_when_the_voice_is_evicted(alone: Desk) -> None:
    await enroll_ada(alone)
    peer = ScriptedPeer(REQUEST)
    serving = asyncio.create_task(alone.streams.serve(peer, Caller()))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while not peer.told:
            await asyncio.sleep(0.01)
    peer.listens.clear()
    peer.messages.put_nowait(pcm(tones(4, *ADA)))
    peer.messages.put_nowait(events.Finish())
    await asyncio.sleep(0.5)  # everything is decided, named Ada, and waits for the peer
    await alone.store.evict("default", "ada", 1)
    written = len(peer.told)
    peer.listens.set()
    await serving
    said = [event for event in peer.told[written + 1 :] if isinstance(event, events.Turns)]
    assert said and all(piece.name is None for turns in said for piece in turns.pieces)
    closed = peer.told[-1]
    assert isinstance(closed, events.Closed) and closed.speakers[0].name is None


async def test_a_stream_goes_on_without_names_when_the_lease_lapses_and_is_told_so(
    in_fleet: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.session, "TICK_S", 0.05)
    await enroll_ada(in_fleet)
    peer = ScriptedPeer(REQUEST, pcm(tones(6, *ADA)))
    serving = asyncio.create_task(in_fleet.streams.serve(peer, Caller()))  # type: ignore[arg-type]

    def names() -> set[str]:
        return {piece.name.label for said in peer.of(events.Turns) for piece in said.pieces if piece.name}  # type: ignore[attr-defined]

    async with asyncio.timeout(30):
        while not names():
            await asyncio.sleep(0.01)
        clock = in_fleet.lease._clock  # type: ignore[union-attr]
        assert isinstance(clock, SteppedClock)
        clock.step(9.0)
        while not peer.of(events.Degraded):
            await asyncio.sleep(0.01)
    peer.messages.put_nowait(pcm(tones(6, *ADA)))
    peer.messages.put_nowait(events.Finish())
    await serving
    # What counts is what was told after it was told so; some of that may have come at once.
    first_after = next(at for at, event in enumerate(peer.told) if isinstance(event, events.Degraded)) + 1
    del peer.told[:first_after]
    assert names() == set()
    assert [change.name for change in peer.of(events.Relabel)] == [None]  # type: ignore[attr-defined]
    closed = peer.told[-1]
    assert isinstance(closed, events.Closed) and [(s.name, s.match) for s in closed.speakers] == [(None, None)]


async def test_voices_that_come_while_a_step_is_worked_on_are_compared_with_what_was_heard(
    alone: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enroll_ada(alone)
    were_there = cycle([False, True])  # before a step, and after it
    monkeypatch.setattr(SessionNaming, "has_candidates", property(lambda _: next(were_there)))
    peer = ScriptedPeer(REQUEST, pcm(tones(8, *ADA)), events.Finish())
    await asyncio.wait_for(alone.streams.serve(peer, Caller()), 30)  # type: ignore[arg-type]
    said = [piece for turns in peer.of(events.Turns) for piece in turns.pieces if piece.start_samples > 64_000]  # type: ignore[attr-defined]
    assert said and {piece.name.label if piece.name else None for piece in said} == {"Ada"}
    assert all(change.name for change in peer.of(events.Relabel))  # type: ignore[attr-defined]


async def test_what_was_moved_to_another_counts_for_him_in_the_summary(
    alone: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_moved: list[Move] = []

    def move_once(history: SpokenHistory, memory: SpeakerMemory, before: np.ndarray) -> list[Move]:
        mine = np.flatnonzero(history.pieces[:, 0] == 0)
        if not has_moved and len(mine) and (history.pieces[:, 0] == 1).any():
            has_moved.extend(history._moved(0, mine[:4], np.ones(len(mine[:4]), np.int64)))
            return has_moved
        return []

    recluster = SessionClustering.recluster

    def as_if_mended(clustering: SessionClustering, *heard: Any) -> tuple[list[Merge], IntArray]:
        merges, before = recluster(clustering, *heard)
        return merges, before.copy()

    monkeypatch.setattr(SessionClustering, "recluster", as_if_mended)
    monkeypatch.setattr(SpokenHistory, "moves", move_once)
    sound = pcm(np.concatenate([tones(6, *ADA), tones(12, *BOB)]))
    peer = ScriptedPeer(REQUEST, *(sound[at : at + 32_000] for at in range(0, len(sound), 32_000)), events.Finish())
    await asyncio.wait_for(alone.streams.serve(peer, Caller()), 60)  # type: ignore[arg-type]
    shown: list[tuple[int, events.TurnPiece]] = []
    for event in peer.told:
        if isinstance(event, events.Turns):
            shown += [(piece.speaker, piece) for piece in event.pieces if piece.final]
        elif isinstance(event, events.Relabel):
            shown = [
                (event.shown_as if p.speaker == event.speaker and p.end_samples > event.since_samples else number, p)
                for number, p in shown
            ]
    spoken: dict[int, int] = {}
    for number, piece in shown:
        spoken[number] = spoken.get(number, 0) + piece.end_samples - piece.start_samples
    (closed,) = peer.of(events.Closed)
    assert isinstance(closed, events.Closed) and has_moved
    assert {one.speaker: one.speech_samples for one in closed.speakers} == spoken

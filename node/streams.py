"""Admission of live streams: who may open one, whether there is a slot, and how all of them end when the node stops.

In: a peer. Out: a served stream, or a refusal. What always holds: a stream holds a slot from its opening to its end,
whatever ends it; a full node refuses at once; while the node drains nothing new is admitted.
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from models.online import OnlineDiarization
from node import events
from node.access import Access, Caller
from node.batcher import Batcher
from node.checkpoint import CheckpointSeal, StreamState
from node.decoders import Decoders
from node.engine import Engine
from node.metrics import NodeMetrics
from node.naming import Name, Scope, SessionNaming
from node.parties import serve_parties
from node.session import LiveSession, Peer
from node.slots import RETRY_AFTER_S, Slot, SlotTable
from node.standing import Standing
from node.steps import Steps
from node.voice_store import VoiceStore
from runtime.clock import Clock
from runtime.errors import InvalidRequest, Overloaded, SpeakerdError, TimedOut
from runtime.logs import get_logger
from runtime.units import ms_from_samples

OPEN_BOUND_S = 5.0
HAND_OVER_BOUND_S = 5.0


class LiveStreams:
    """All live streams of a node."""

    def __init__(
        self,
        *,
        node_id: str,
        engine: Engine,
        batcher: Batcher,
        store: VoiceStore,
        standing: Standing,
        access: Access,
        seal: CheckpointSeal,
        slots: SlotTable,
        decoders: Decoders,
        steps: Executor,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._engine = engine
        self._batcher = batcher
        self._store = store
        self._standing = standing
        self._access = access
        self._seal = seal
        self._slots = slots
        self._decoders = decoders
        self._steps = Steps(steps, metrics.step_seconds.observe)
        self._metrics = metrics
        self._clock = clock
        self._sessions: set[LiveSession] = set()
        self._changed = asyncio.Event()
        metrics.streams_limit.set(slots.count)

    def __repr__(self) -> str:
        return f"LiveStreams({len(self._sessions)} running, {self._slots!r})"

    @property
    def num_running(self) -> int:
        """Streams that hold a slot."""
        return self._slots.num_taken

    async def serve(self, peer: Peer, caller: Caller) -> None:
        """Serve one stream from its opening to its end, or a call, whose channels are streams of their own."""
        try:
            request = await self._admit(peer, caller)
        except SpeakerdError as error:
            self._metrics.rejected.labels(error.cause.value).inc()
            raise
        if request.sound.parties_apart:
            may_say = partial(self._may_say, Scope(request.tenant_id, request.voice_ids, request.audiences))
            await serve_parties(request, peer, self._serve, may_say=may_say)
        else:
            await self._serve(request, peer)

    def _may_say(self, scope: Scope, name: Name) -> bool:
        held = self._store.find_for(scope.heard, name.voice_id) if self._standing.allows() else None
        return held is not None and held.label == name.label

    async def _serve(self, request: events.StreamRequest, peer: Peer) -> None:
        try:
            self._standing.require_serving()
            self._require_timely()
            slot = self._slots.take(request.tenant_id)
        except SpeakerdError as error:
            self._metrics.rejected.labels(error.cause.value).inc()
            raise
        self._metrics.streams_active.inc()
        end = "closed"
        try:
            with self._decoders.place(request.sound, is_live=True):
                session = await self._open(request, peer, slot)
                self._sessions.add(session)
                try:
                    if self._standing.draining:
                        session.announce_drain(self._clock.wall_s())
                    await session.run()
                finally:
                    self._sessions.discard(session)
        except SpeakerdError as error:
            end = error.cause.value
            raise
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        except BaseException:
            end = "internal"
            raise
        finally:
            self._slots.release(slot)
            self._batcher.close(slot)
            self._metrics.streams_active.dec()
            self._metrics.stream_end.labels(end).inc()
            self._changed.set()
            get_logger().info("stream.ended", stream_id=request.stream_id, tenant_id=request.tenant_id, reason=end)

    def announce_drain(self, deadline_s: float) -> int:
        """Tell every stream that the node stops by a Unix time; how many there are."""
        for session in self._sessions:
            session.announce_drain(deadline_s)
        return len(self._sessions)

    async def drained(self, deadline_s: float) -> None:
        """Wait up to deadline_s seconds for the streams to end, then hand over those that have not, losing nothing."""
        if await self._ended_within(deadline_s):
            return
        for session in list(self._sessions):
            session.hand_over()
        if not await self._ended_within(HAND_OVER_BOUND_S):
            get_logger().warning("streams.not_handed_over", streams=len(self._sessions))

    async def _ended_within(self, bound_s: float) -> bool:
        try:
            async with asyncio.timeout(bound_s):
                while self._slots.num_taken:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _require_timely(self) -> None:
        """Raises Overloaded while the device is behind: one more stream would slow down those that are admitted."""
        if self._batcher.is_saturated():
            raise Overloaded(
                f"this node is behind with the streams that it has: try again in {RETRY_AFTER_S:g} s, or go to another",
                retry_after_s=RETRY_AFTER_S,
            )

    async def _admit(self, peer: Peer, caller: Caller) -> events.StreamRequest:
        try:
            async with asyncio.timeout(OPEN_BOUND_S):
                request = await peer.receive()
        except TimeoutError:
            raise TimedOut(f"nothing came for {OPEN_BOUND_S:g} s: send `open` first") from None
        if not isinstance(request, events.StreamRequest):
            raise InvalidRequest("the first message of a stream has to be `open`")
        identity = self._access.admit_stream(caller, request.ticket, request.tenant_id)
        stream_id = identity.stream_id or request.stream_id or secrets.token_hex(8)
        return replace(
            request, tenant_id=identity.tenant_id, stream_id=stream_id, ticket="", audiences=identity.audiences
        )

    async def _open(self, request: events.StreamRequest, peer: Peer, slot: Slot) -> LiveSession:
        grid = self._engine.device.grid
        naming = SessionNaming(
            self._store,
            self._standing,
            self._engine.naming,
            Scope(request.tenant_id, request.voice_ids, request.audiences),
        )
        resumed, online = None, None
        if request.checkpoint:
            data = self._seal.unseal(request.checkpoint, tenant_id=request.tenant_id, stream_id=request.stream_id)
            resumed, snapshot = StreamState.from_bytes(data)
            online = OnlineDiarization.restore(snapshot, grid, self._engine.online)
            naming.load(resumed.naming)
        online = online or OnlineDiarization(
            grid,
            self._engine.online,
            latency_samples=request.latency_samples,
            exclusive=request.exclusive,
            num_speakers_max=request.num_speakers_max,
        )
        # On resumption the sound begins before the last window analysed, and is analysed from one hop after it on.
        heard = resumed.analysed_samples - resumed.resume_samples(grid) if resumed else 0
        source = await self._batcher.open(
            slot, first_end=heard + grid.hop_samples, heard=heard, is_resumed=resumed is not None
        )
        self._metrics.streams_opened.labels("new" if resumed is None else "resumed").inc()
        get_logger().info(
            "stream.opened",
            stream_id=request.stream_id,
            tenant_id=request.tenant_id,
            latency_ms=ms_from_samples(request.latency_samples),
            resumed=resumed is not None,
        )
        return LiveSession(
            request,
            peer,
            source,
            online,
            naming,
            node_id=self._node_id,
            grid=grid,
            resumed=resumed,
            guard=self._standing,
            seal=self._seal,
            steps=self._steps,
            metrics=self._metrics,
            clock=self._clock,
        )

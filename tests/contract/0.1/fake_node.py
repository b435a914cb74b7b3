"""A node for tests: the real contract over real gRPC, a real lease client, and no engine.

What it "hears" is a hash of the sound, so that the same clip gives the same embedding and another clip another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from grpc import aio

from runtime.errors import SpeakerdError, Stale, Unauthenticated
from runtime.grpc_server import bearer, new_server, open_channel
from runtime.voice_digest import VoiceDigest
from speakerd.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc, node_pb2, node_pb2_grpc

DIM = 16


def embedding_of(data: bytes) -> bytes:
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()


class FakeNode(node_pb2_grpc.NodeServicer):
    def __init__(self, node_id: str, grpc_address: str, fleet_key: str, *, model: str = "fake@1") -> None:
        self.node_id = node_id
        self.model = model
        self.process_id = secrets.token_hex(8)
        self.metadata = (("authorization", f"Bearer {fleet_key}"),)
        self.fleet_key = fleet_key
        self.voices: dict[tuple[str, str], tuple[int, str, bytes]] = {}
        self.cursor = 0
        self.incarnation = 0
        self.lease_ms = 0
        self.epoch = ""
        self.state: Any = node_pb2.NODE_STATE_JOINING
        self.streams = 0
        self.streams_max = 4
        self.num_speakers = 1
        self.net_speech_ms = 5_000
        self.same_probability = 0.93  # of a clip being of the person of a voiceprint that it is compared with
        self.syncs = 0
        self.enrolments = 0
        self.digest_flaw = b""
        self.resyncs = 0
        self.frozen = asyncio.Event()
        self.frozen.set()  # set: it runs
        self.refusals: list[grpc.StatusCode] = []
        self.files: list[bytes] = []
        self.result: node_pb2.FileResult | None = None  # None: one speaker, whom nobody knows
        self.openings: list[node_pb2.FileOpen] = []
        self.file_refusals: list[SpeakerdError] = []  # one a file, before it is heard
        self.files_max = 0  # 0: it does not say
        self.files_open = 0
        self.files_cut = 0  # files that were cancelled while they were heard
        self.answers = asyncio.Event()
        self.answers.set()  # set: a file's result is given as soon as it is heard
        self._address = grpc_address
        self._sync_lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, renew: bool = True) -> FakeNode:
        self.server = new_server()
        node_pb2_grpc.add_NodeServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        self.channel = open_channel(self._address)
        self.fleet = fleet_pb2_grpc.FleetStub(self.channel)
        if renew:
            self._tasks = [asyncio.create_task(self._renewing()), asyncio.create_task(self._beating())]
        return self

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.stop(0)
        await self.channel.close()

    def freeze(self) -> None:
        self.frozen.clear()

    def thaw(self) -> None:
        self.frozen.set()

    async def renew_once(self) -> fleet_pb2.RenewResponse:
        digest = VoiceDigest()
        for (tenant_id, voice_id), (generation, _, _) in self.voices.items():
            digest.add(tenant_id, voice_id, generation)
        answer = await self.fleet.Renew(
            fleet_pb2.RenewRequest(
                node_id=self.node_id,
                incarnation=self.incarnation,
                cursor=self.cursor,
                num_voices=len(self.voices),
                voices_digest=bytes(
                    a ^ b for a, b in zip(digest.value(), self.digest_flaw.ljust(32, b"\0"), strict=True)
                ),
                address=self.address,
                model=self.model,
                state=self.state,
                process_id=self.process_id,
                fleet_epoch=self.epoch,
            ),
            metadata=self.metadata,
            timeout=20,
        )
        self.incarnation = answer.incarnation
        self.epoch = answer.fleet_epoch
        self.lease_ms = answer.lease_ms
        return answer

    async def sync(self) -> None:
        async with self._sync_lock:
            self.syncs += 1
            request = fleet_pb2.SyncRequest(
                node_id=self.node_id, incarnation=self.incarnation, cursor=self.cursor, model=self.model
            )
            async for step in self.fleet.Sync(request, metadata=self.metadata):
                if step.HasField("snapshot_begin"):
                    self.voices.clear()
                elif step.HasField("snapshot_end"):
                    self.cursor = step.snapshot_end.revision
                elif step.HasField("page"):
                    self._hold(step.page)
                else:
                    in_snapshot = step.entries.entries and step.entries.entries[0].revision <= self.cursor
                    for entry in step.entries.entries:
                        self._apply(entry)
                        if not in_snapshot:
                            self.cursor = max(self.cursor, entry.revision)

    def _hold(self, page: fleet_pb2.SnapshotPage) -> None:
        names = fleet_pb2.SnapshotNames.FromString(zlib.decompress(page.names))
        rows = np.frombuffer(page.embeddings, "<f4").reshape(len(page.generations), -1)
        for at, voice_id in enumerate(names.voice_ids):
            key = (names.tenant_ids[names.tenants[at]], voice_id)
            self.voices[key] = (page.generations[at], names.labels[at], rows[at].tobytes())

    async def beat_once(self) -> None:
        await self.fleet.Heartbeat(
            fleet_pb2.HeartbeatRequest(
                node_id=self.node_id,
                incarnation=self.incarnation,
                state=self.state,
                load=node_pb2.NodeLoad(
                    streams=self.streams,
                    streams_max=self.streams_max,
                    files=self.files_open,
                    files_max=self.files_max,
                ),
                address=self.address,
                model=self.model,
                cursor=self.cursor,
            ),
            metadata=self.metadata,
            timeout=20,
        )

    def _apply(self, entry: fleet_pb2.LogEntry) -> None:
        key = (entry.voice.tenant_id, entry.voice.voice_id)
        if entry.HasField("evict"):
            self.voices.pop(key, None)
        elif entry.enroll.HasField("voiceprint"):
            self.voices[key] = (entry.voice.generation, entry.enroll.label, entry.enroll.voiceprint.embedding)

    async def _renewing(self) -> None:
        delay_s = 0.0
        while True:
            await asyncio.sleep(delay_s)
            await self.frozen.wait()
            try:
                answer = await self.renew_once()
                delay_s = answer.renew_ms / 1000
                if answer.resync:
                    self.resyncs += 1
                    self.cursor = 0
                if self.cursor < answer.head or self.cursor == 0:
                    await self.sync()
                    delay_s = 0.0 if self.state != node_pb2.NODE_STATE_SERVING else delay_s
                self.state = node_pb2.NODE_STATE_SERVING
            except aio.AioRpcError as error:
                self.refusals.append(error.code())
                delay_s = 0.1
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self.voices.clear()
                    self.incarnation = self.cursor = 0
                    self.state = node_pb2.NODE_STATE_JOINING

    async def _beating(self) -> None:
        while True:
            await self.frozen.wait()
            if self.incarnation:
                with contextlib.suppress(aio.AioRpcError):
                    await self.beat_once()
            await asyncio.sleep(0.1)

    async def _enter(self, context: Any) -> None:
        if bearer(context) != self.fleet_key:
            raise Unauthenticated("not the fleet key")
        await self.frozen.wait()

    async def _advance(self, position: node_pb2.LogPosition) -> bool:
        """Whether the command is to be applied here; syncs when something is missing before it."""
        if position.incarnation != self.incarnation:
            raise Stale("another incarnation")
        if position.revision > self.cursor + 1:
            await self.sync()
        return position.revision == self.cursor + 1

    async def Enroll(self, request: node_pb2.EnrollRequest, context: Any) -> node_pb2.EnrollResponse:
        await self._enter(context)
        self.enrolments += 1
        key = (request.voice.tenant_id, request.voice.voice_id)
        if await self._advance(request.position):
            self.voices[key] = (request.voice.generation, request.label, request.voiceprint.embedding)
            self.cursor = request.position.revision
        elif request.position.as_of >= self.cursor:
            self.voices[key] = (request.voice.generation, request.label, request.voiceprint.embedding)
        return node_pb2.EnrollResponse(
            generation=request.voice.generation, cursor=self.cursor, incarnation=self.incarnation
        )

    async def Evict(self, request: node_pb2.EvictRequest, context: Any) -> node_pb2.EvictResponse:
        await self._enter(context)
        held = (request.voice.tenant_id, request.voice.voice_id) in self.voices
        if await self._advance(request.position):
            self.voices.pop((request.voice.tenant_id, request.voice.voice_id), None)
            self.cursor = request.position.revision
        return node_pb2.EvictResponse(was_held=held, cursor=self.cursor, incarnation=self.incarnation)

    async def Analyze(self, request: node_pb2.AnalyzeRequest, context: Any) -> node_pb2.AnalyzeResponse:
        await self._enter(context)
        assert request.clip.format.encoding == common_pb2.ENCODING_PCM_F32LE
        return node_pb2.AnalyzeResponse(
            analysis=node_pb2.VoiceAnalysis(
                duration_ms=len(request.clip.data) // 64,
                net_speech_ms=self.net_speech_ms,
                num_speakers=self.num_speakers,
                cohesion=0.9,
            ),
            voiceprint=common_pb2.Voiceprint(
                model=self.model, embedding=embedding_of(request.clip.data), net_speech_ms=self.net_speech_ms
            ),
            consent=node_pb2.ConsentAnalysis(
                analysis=node_pb2.VoiceAnalysis(net_speech_ms=self.net_speech_ms, num_speakers=1),
                probability=self.same_probability,
            )
            if request.HasField("consent")
            else None,
            against_probabilities=[self.same_probability for _ in request.against],
        )

    async def Describe(self, request: node_pb2.DescribeRequest, context: Any) -> node_pb2.DescribeResponse:
        await self._enter(context)
        return node_pb2.DescribeResponse(node_id=self.node_id, incarnation=self.incarnation, state=self.state)

    async def DiarizeFile(
        self, request_iterator: AsyncIterator[node_pb2.DiarizeFileRequest], context: Any
    ) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        await self._enter(context)
        if self.file_refusals:
            raise self.file_refusals.pop(0)
        data = bytearray()
        opening = None
        self.files_open += 1
        try:
            async for request in request_iterator:
                if request.HasField("open"):
                    opening = request.open
                else:
                    data += request.audio
                    yield node_pb2.DiarizeFileResponse(progress=node_pb2.FileProgress(processed_ms=len(data) // 64))
            assert opening is not None
            self.openings.append(opening)
            self.files.append(bytes(data))
            await self.answers.wait()
        except asyncio.CancelledError:
            self.files_cut += 1
            raise
        finally:
            self.files_open -= 1
        if self.result is not None:
            yield node_pb2.DiarizeFileResponse(result=self.result)
            return
        speaker = common_pb2.Speaker(speaker="spk_0", label=f"of {opening.tenant_id}")
        yield node_pb2.DiarizeFileResponse(result=node_pb2.FileResult(duration_ms=len(data) // 64, speakers=[speaker]))

    async def Diarize(self, request_iterator: Any, context: Any) -> Any:
        raise AssertionError("the control plane opens no streams")

    async def Inventory(self, request: Any, context: Any) -> AsyncIterator[node_pb2.InventoryResponse]:
        await self._enter(context)
        held = [
            common_pb2.VoiceRef(tenant_id=tenant_id, voice_id=voice_id, generation=generation)
            for (tenant_id, voice_id), (generation, *_) in self.voices.items()
        ]
        yield node_pb2.InventoryResponse(voices=held, cursor=self.cursor, incarnation=self.incarnation)

    async def Drain(self, request: Any, context: Any) -> Any:
        raise AssertionError("not asked for by these tests")

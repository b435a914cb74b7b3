"""Calls to the control plane: renewals, heartbeats, and the fleet's log. Translates, and decides nothing.

In: dataclasses. Out: dataclasses. What always holds: every call has a deadline; whatever fails comes out as Stale,
Unauthenticated, Conflict or Unavailable.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc import aio

from node import wire
from node.fleet_log import Enrolment, Entry, Eviction, SnapshotBegin, SnapshotEnd, SnapshotVoices, Step
from node.load import Load
from runtime.errors import Conflict, InvalidRequest, SpeakerdError, Stale, Unauthenticated, Unavailable
from runtime.grpc_server import open_channel
from runtime.lease import Renewal
from runtime.logs import get_logger
from runtime.membership import Report
from runtime.tls import CONTROL_PLANE, Tls, dns_name
from runtime.units import samples_from_ms
from speakerd.v1 import fleet_pb2, fleet_pb2_grpc

RENEW_BOUND_S = 2.0
HEARTBEAT_BOUND_S = 1.0
SYNC_BOUND_S = 120.0
NET_SPEECH_UNKNOWN_MS = 10_000


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is to the fleet. process_id: random, drawn when the process starts.

    address: where the control plane reaches it. stream_address: where clients do.
    """

    node_id: str
    process_id: str
    address: str
    stream_address: str
    model: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a renewal was answered with: the lease, when to renew next, whose stream tickets are good, what seals."""

    renewal: Renewal
    renew_s: float
    ticket_keys: tuple[bytes, ...]
    checkpoint_keys: tuple[bytes, ...]


class ControlPlane:
    """The control plane, over one channel. fleet_key: None where certificates say who we are."""

    def __init__(self, address: str, *, fleet_key: str | None, identity: Identity, tls: Tls | None = None) -> None:
        self._address = address
        self._identity = identity
        self._tls = tls
        self._metadata = (("authorization", f"Bearer {fleet_key}"),) if fleet_key else ()
        self._left: set[asyncio.Task[None]] = set()
        self._dial()

    def __repr__(self) -> str:
        return f"ControlPlane({self._address})"

    async def close(self) -> None:
        """Close the channel."""
        for task in self._left:
            task.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)
        await self._channel.close()

    def _dial(self) -> None:
        name = dns_name(self._tls.name.domain, CONTROL_PLANE) if self._tls else ""
        self._version = self._tls.version if self._tls else 0
        self._channel = open_channel(self._address, self._tls, name=name)
        self._stub = fleet_pb2_grpc.FleetStub(self._channel)

    def _dial_again_with_new_files(self) -> None:
        if self._tls is None or self._tls.version == self._version:
            return
        # What runs over the old channel, as the reading of the log, may end there.
        leaving = asyncio.create_task(self._channel.close(SYNC_BOUND_S), name="channel-close")
        self._left.add(leaving)
        leaving.add_done_callback(self._left.discard)
        self._dial()

    async def renew(self, report: Report) -> Answer:
        """Take or prolong the lease."""
        self._dial_again_with_new_files()
        request = fleet_pb2.RenewRequest(
            node_id=self._identity.node_id,
            process_id=self._identity.process_id,
            address=self._identity.address,
            model=self._identity.model,
            incarnation=report.incarnation,
            cursor=report.cursor,
            num_voices=report.num_voices,
            voices_digest=report.voices_digest,
            state=wire.node_state(report.state),
            fleet_epoch=report.epoch,
        )
        try:
            answer = await self._stub.Renew(request, timeout=RENEW_BOUND_S, metadata=self._metadata)
        except aio.AioRpcError as error:
            raise _translated(error) from None
        return Answer(
            Renewal(answer.incarnation, answer.lease_ms / 1000, answer.head, answer.resync, answer.fleet_epoch),
            answer.renew_ms / 1000,
            tuple(answer.ticket_keys),
            tuple(answer.checkpoint_keys),
        )

    async def heartbeat(self, report: Report, load: Load) -> int:
        """Say how loaded this node is; the head of the log."""
        request = fleet_pb2.HeartbeatRequest(
            node_id=self._identity.node_id,
            incarnation=report.incarnation,
            state=wire.node_state(report.state),
            load=wire.node_load(load),
            address=self._identity.stream_address,
            model=self._identity.model,
            cursor=report.cursor,
            zone=self._identity.zone,
            tenants=[
                fleet_pb2.TenantStreams(tenant_id=tenant_id, streams=streams)
                for tenant_id, streams in load.tenants.items()
            ],
        )
        try:
            answer = await self._stub.Heartbeat(request, timeout=HEARTBEAT_BOUND_S, metadata=self._metadata)
        except aio.AioRpcError as error:
            raise _translated(error) from None
        return int(answer.head)

    async def read(self, incarnation: int, cursor: int) -> AsyncIterator[Step]:
        """The log after a cursor, to its head."""
        request = fleet_pb2.SyncRequest(
            node_id=self._identity.node_id, incarnation=incarnation, cursor=cursor, model=self._identity.model
        )
        call = self._stub.Sync(request, timeout=SYNC_BOUND_S, metadata=self._metadata)
        try:
            async for message in call:
                match message.WhichOneof("message"):
                    case "snapshot_begin":
                        yield SnapshotBegin()
                    case "page":
                        # Thousands of voices take longer to read than the event loop may stand still.
                        yield await asyncio.to_thread(unpack, message.page, self._identity.model)
                    case "snapshot_end":
                        yield SnapshotEnd(message.snapshot_end.revision)
                    case "entries":
                        for entry in message.entries.entries:
                            yield self._entry(entry)
        except aio.AioRpcError as error:
            raise _translated(error) from None
        finally:
            call.cancel()

    def _entry(self, entry: fleet_pb2.LogEntry) -> Entry:
        voice = entry.voice
        tenant_id = voice.tenant_id or "default"
        if entry.WhichOneof("change") == "evict":
            return Entry(entry.revision, Eviction(tenant_id, voice.voice_id, voice.generation, entry.evict.audit_id))
        embedding, net_speech_ms = None, 0
        if entry.enroll.HasField("voiceprint"):
            voiceprint = entry.enroll.voiceprint
            net_speech_ms = voiceprint.net_speech_ms or NET_SPEECH_UNKNOWN_MS
            try:
                embedding = wire.embedding(voiceprint, self._identity.model)
            except InvalidRequest:
                # As if it were absent: this node cannot hold it, and the others must not wait for it.
                get_logger().error("log.voiceprint_refused", voice_id=voice.voice_id)
        label = entry.enroll.label or voice.voice_id
        change = Enrolment(
            tenant_id,
            voice.voice_id,
            voice.generation,
            label,
            embedding,
            samples_from_ms(net_speech_ms),
            audience=entry.enroll.audience,
        )
        return Entry(entry.revision, change)


def unpack(page: fleet_pb2.SnapshotPage, model: str) -> SnapshotVoices:
    """A page's columns as voices, with embeddings if they are of this model. Raises Unavailable for a broken one."""
    names = fleet_pb2.SnapshotNames()
    number = len(page.generations)
    try:
        names.ParseFromString(zlib.decompress(page.names))
        embeddings = np.frombuffer(page.embeddings, "<f4").reshape(number, -1).astype(np.float32)  # (V, D)
        columns = zip(
            [names.tenant_ids[index] for index in names.tenants],
            names.voice_ids,
            page.generations,
            names.labels,
            embeddings if page.model == model else [None] * number,
            page.net_speech_ms,
            [names.audiences[index] for index in names.for_audiences] or [""] * number,
            strict=True,
        )
        return SnapshotVoices(
            tuple(
                Enrolment(
                    tenant_id,
                    voice_id,
                    generation,
                    label or voice_id,
                    embedding,
                    samples_from_ms(speech_ms),
                    audience=audience,
                )
                for tenant_id, voice_id, generation, label, embedding, speech_ms, audience in columns
            )
        )
    except (ValueError, IndexError, zlib.error, DecodeError):
        raise Unavailable("a page of the snapshot cannot be read") from None


def _translated(error: aio.AioRpcError) -> SpeakerdError:
    match error.code():
        case grpc.StatusCode.FAILED_PRECONDITION:
            return Stale("the control plane has fenced this incarnation")
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return Unauthenticated("the control plane refuses this node's fleet key or certificate")
        case grpc.StatusCode.ALREADY_EXISTS:
            return Conflict("another process holds this node id: give every node its own --node-id")
        case code:
            return Unavailable(f"the control plane does not answer ({code.name})")

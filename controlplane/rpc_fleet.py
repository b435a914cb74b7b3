"""speakerd.v1.Fleet on the wire: what nodes ask."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc import aio

from controlplane.daily_keys import CheckpointKeys, TicketSigner
from controlplane.doors import NodeDoor
from controlplane.fan_out import FanOut
from controlplane.fleet import Fleet, SnapshotBegins, SnapshotEnds, SnapshotPage
from controlplane.fleet_log import Change
from controlplane.holdings import Holding
from controlplane.leases import NodeReport
from controlplane.node_view import NodeView
from controlplane.registry import Registry
from speakerd.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc, node_pb2

_STATES = {
    node_pb2.NODE_STATE_UNSPECIFIED: "joining",
    node_pb2.NODE_STATE_JOINING: "joining",
    node_pb2.NODE_STATE_SERVING: "serving",
    node_pb2.NODE_STATE_DRAINING: "draining",
    node_pb2.NODE_STATE_FENCED: "fenced",
}

COMPRESSION = 1
"""Fast: names and ids shrink to a fifth; embeddings, which are most of a page, hardly would."""

Context = aio.ServicerContext[Any, Any]


class FleetServicer(fleet_pb2_grpc.FleetServicer):
    """The wire side of leases and the log. tickets, checkpoints: whose keys nodes are handed."""

    def __init__(
        self,
        door: NodeDoor,
        fleet: Fleet,
        fan_out: FanOut,
        registry: Registry,
        *,
        tickets: TicketSigner,
        checkpoints: CheckpointKeys,
    ) -> None:
        self._door = door
        self._fleet = fleet
        self._fan_out = fan_out
        self._registry = registry
        self._tickets = tickets
        self._checkpoints = checkpoints

    async def Renew(self, request: fleet_pb2.RenewRequest, context: Context) -> fleet_pb2.RenewResponse:  # noqa: N802
        """Take or prolong a lease."""
        self._door.require(context, request.node_id)
        renewal = await self._fleet.renew(
            NodeReport(
                node_id=request.node_id,
                process_id=request.process_id,
                incarnation=request.incarnation,
                cursor=request.cursor,
                num_voices=request.num_voices,
                voices_digest=request.voices_digest,
                address=self._door.named(request.node_id, request.address),
                model=request.model,
                state=_STATES.get(request.state, "joining"),
                epoch=request.fleet_epoch,
            )
        )
        if request.state == node_pb2.NODE_STATE_FENCED:
            # It has let go of everything by itself, and is neither a candidate nor stale.
            await self._registry.forget(request.node_id, request.incarnation)
        else:
            self._registry.talks(request.node_id)
        return fleet_pb2.RenewResponse(
            incarnation=renewal.incarnation,
            lease_ms=round(renewal.lease_s * 1000),
            renew_ms=round(renewal.renew_s * 1000),
            head=renewal.head,
            resync=renewal.resync,
            ticket_keys=self._tickets.public_keys(),
            checkpoint_keys=self._checkpoints.current(),
            fleet_epoch=renewal.epoch,
        )

    async def Heartbeat(self, request: fleet_pb2.HeartbeatRequest, context: Context) -> fleet_pb2.HeartbeatResponse:  # noqa: N802
        """Take a node's load."""
        self._door.require(context, request.node_id)
        load = request.load
        await self._registry.heartbeat(
            NodeView(
                node_id=request.node_id,
                incarnation=request.incarnation,
                address=self._door.named(request.node_id, request.address),
                model=request.model,
                state=_STATES.get(request.state, "joining"),
                cursor=request.cursor,
                streams=load.streams,
                streams_max=load.streams_max,
                zone=request.zone,
                files=load.files,
                files_max=load.files_max,
                lag_ms=load.lag_p99_ms,
                voices=load.voices,
                queued=load.queued_windows,
                tenants={one.tenant_id: one.streams for one in request.tenants},
            )
        )
        return fleet_pb2.HeartbeatResponse(head=self._fan_out.head())

    async def Sync(self, request: fleet_pb2.SyncRequest, context: Context) -> AsyncIterator[fleet_pb2.SyncResponse]:  # noqa: N802
        """Stream what a node should hold."""
        self._door.require(context, request.node_id)
        async for step in self._fleet.sync(request.incarnation, request.cursor, request.model):
            match step:
                case SnapshotBegins(revision):
                    yield fleet_pb2.SyncResponse(snapshot_begin=fleet_pb2.SnapshotBegin(revision=revision))
                case SnapshotPage(model, holdings):
                    # Packed beside the event loop, which must not stand still for thousands of voices.
                    page = await asyncio.to_thread(pack, model, holdings)
                    yield fleet_pb2.SyncResponse(page=page)
                case SnapshotEnds(revision):
                    yield fleet_pb2.SyncResponse(snapshot_end=fleet_pb2.SnapshotEnd(revision=revision))
                case holdings:
                    entries = fleet_pb2.LogEntries(entries=[_entry(holding) for holding in holdings])
                    yield fleet_pb2.SyncResponse(entries=entries)


def pack(model: str, holdings: Sequence[Holding]) -> fleet_pb2.SnapshotPage:
    """Voices of a snapshot, all with a voiceprint of the model, in columns."""
    tenants: dict[str, int] = {}
    audiences: dict[str, int] = {}
    prints = [holding.voiceprint for holding in holdings]
    names = fleet_pb2.SnapshotNames(
        voice_ids=[holding.voice.voice_id for holding in holdings],
        labels=[holding.label or "" for holding in holdings],
        tenants=[tenants.setdefault(holding.voice.tenant_id, len(tenants)) for holding in holdings],
        for_audiences=[audiences.setdefault(holding.audience, len(audiences)) for holding in holdings],
        tenant_ids=list(tenants),
        audiences=list(audiences),
    )
    return fleet_pb2.SnapshotPage(
        model=model,
        embeddings=b"".join(made.embedding for made in prints if made is not None),
        generations=[holding.generation for holding in holdings],
        net_speech_ms=[made.net_speech_ms if made is not None else 0 for made in prints],
        names=zlib.compress(names.SerializeToString(), COMPRESSION),
    )


def _entry(holding: Holding) -> fleet_pb2.LogEntry:
    voice = common_pb2.VoiceRef(
        tenant_id=holding.voice.tenant_id, voice_id=holding.voice.voice_id, generation=holding.generation
    )
    if holding.change is Change.EVICT:
        return fleet_pb2.LogEntry(
            revision=holding.revision, voice=voice, evict=fleet_pb2.LogEvict(audit_id=holding.audit_id)
        )
    made = holding.voiceprint
    voiceprint = (
        None
        if made is None
        else common_pb2.Voiceprint(model=made.model, embedding=made.embedding, net_speech_ms=made.net_speech_ms)
    )
    enroll = fleet_pb2.LogEnroll(label=holding.label or "", voiceprint=voiceprint, audience=holding.audience)
    return fleet_pb2.LogEntry(revision=holding.revision, voice=voice, enroll=enroll)

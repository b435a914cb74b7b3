"""speakerd.v1.Streams on the wire."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from controlplane.fan_out import FanOut
from controlplane.node_view import Health, NodeView
from controlplane.placement import Placing
from controlplane.recent_callers import RecentCallers
from controlplane.registry import Registry
from controlplane.registry_schema import SLOTS_MAX
from controlplane.scopes import PLATFORM, STREAMS_OPEN
from runtime.errors import InvalidRequest
from runtime.grpc_server import bearer
from runtime.tls import split_address
from speakerd.v1 import node_pb2, streams_pb2, streams_pb2_grpc

IDS_MAX = 1_000
# It goes into logs, so that it must not be a place to write a name or anything else.
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
AGE_S_MAX = 86_400.0
_STATES = {
    "joining": node_pb2.NODE_STATE_JOINING,
    "serving": node_pb2.NODE_STATE_SERVING,
    "draining": node_pb2.NODE_STATE_DRAINING,
    "fenced": node_pb2.NODE_STATE_FENCED,
}
_HEALTHS = {
    Health.HEALTHY: streams_pb2.NodeStatus.HEALTH_HEALTHY,
    Health.WARNING: streams_pb2.NodeStatus.HEALTH_WARNING,
    Health.STALE: streams_pb2.NodeStatus.HEALTH_STALE,
}


class StreamsServicer(streams_pb2_grpc.StreamsServicer):
    """The wire side of placement."""

    def __init__(self, callers: RecentCallers, placing: Placing, fan_out: FanOut, registry: Registry) -> None:
        self._callers = callers
        self._placing = placing
        self._fan_out = fan_out
        self._registry = registry

    async def PlaceStream(  # noqa: N802
        self, request: streams_pb2.PlaceStreamRequest, context: aio.ServicerContext[Any, Any]
    ) -> streams_pb2.PlaceStreamResponse:
        """Pick a node and sign a ticket."""
        principal = await self._callers.principal(bearer(context), STREAMS_OPEN)
        if request.stream_id and not _ID.fullmatch(request.stream_id):
            raise InvalidRequest("stream_id: write 1 to 64 characters out of A-Z a-z 0-9 _ . : -")
        if request.zone and not _ID.fullmatch(request.zone):
            raise InvalidRequest("zone: write 1 to 64 characters out of A-Z a-z 0-9 _ . : -")
        if len(request.voice_ids) > IDS_MAX or len(request.avoid_node_ids) > IDS_MAX:
            raise InvalidRequest(f"voice_ids, avoid_node_ids: at most {IDS_MAX} each; empty voice_ids means all")
        if request.slots > SLOTS_MAX:
            raise InvalidRequest(f"slots: at most {SLOTS_MAX}, one a channel; 0 means one")
        placed = await self._placing.place(
            principal,
            stream_id=request.stream_id,
            voice_ids=list(request.voice_ids),
            avoid=frozenset(request.avoid_node_ids),
            zone=request.zone,
            slots=max(1, request.slots),
        )
        tls_name, address = split_address(placed.address)
        return streams_pb2.PlaceStreamResponse(
            stream_id=placed.stream_id,
            node_id=placed.node_id,
            address=address,
            tls_name=tls_name,
            ticket=placed.ticket,
            expires_at=Timestamp(seconds=placed.expires_at_s),
            warm=placed.warm,
        )

    async def ListNodes(  # noqa: N802
        self, request: streams_pb2.ListNodesRequest, context: aio.ServicerContext[Any, Any]
    ) -> streams_pb2.ListNodesResponse:
        """The fleet as placement sees it."""
        await self._callers.principal(bearer(context), PLATFORM)
        nodes = await self._registry.known()
        return streams_pb2.ListNodesResponse(
            nodes=[_status(node) for node in sorted(nodes, key=lambda node: node.node_id)],
            head=self._fan_out.head(),
            redis_up=self._registry.is_up,
        )


def _status(node: NodeView) -> streams_pb2.NodeStatus:
    return streams_pb2.NodeStatus(
        node_id=node.node_id,
        incarnation=node.incarnation,
        address=split_address(node.address)[1],
        model=node.model,
        zone=node.zone,
        state=_STATES.get(node.state, node_pb2.NODE_STATE_UNSPECIFIED),
        health=_HEALTHS[node.health],
        age_ms=round(min(node.age_s, AGE_S_MAX) * 1000),
        load=node_pb2.NodeLoad(
            streams=node.streams,
            streams_max=node.streams_max,
            files=node.files,
            files_max=node.files_max,
            lag_p99_ms=node.lag_ms,
            voices=node.voices,
            queued_windows=node.queued,
        ),
        reserved=node.reserved,
        faults=node.faults,
        cursor=node.cursor,
        doubted=node.doubted,
    )

"""speakerd.v1.Streams on the wire."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from controlplane.identity import STREAMS_OPEN, Identity
from controlplane.placement import Placing
from runtime.errors import InvalidRequest
from runtime.grpc_server import bearer
from speakerd.v1 import streams_pb2, streams_pb2_grpc

ID_CHARS_MAX = 64
IDS_MAX = 1_000


class StreamsServicer(streams_pb2_grpc.StreamsServicer):
    """The wire side of placement."""

    def __init__(self, identity: Identity, placing: Placing) -> None:
        self._identity = identity
        self._placing = placing

    async def PlaceStream(  # noqa: N802
        self, request: streams_pb2.PlaceStreamRequest, context: aio.ServicerContext[Any, Any]
    ) -> streams_pb2.PlaceStreamResponse:
        """Pick a node and sign a ticket."""
        principal = await self._identity.principal(bearer(context), STREAMS_OPEN)
        if len(request.stream_id) > ID_CHARS_MAX:
            raise InvalidRequest(f"stream_id: at most {ID_CHARS_MAX} characters")
        if len(request.voice_ids) > IDS_MAX or len(request.avoid_node_ids) > IDS_MAX:
            raise InvalidRequest(f"voice_ids, avoid_node_ids: at most {IDS_MAX} each; empty voice_ids means all")
        placed = await self._placing.place(
            principal.tenant_id,
            stream_id=request.stream_id,
            voice_ids=list(request.voice_ids),
            avoid=frozenset(request.avoid_node_ids),
        )
        return streams_pb2.PlaceStreamResponse(
            stream_id=placed.stream_id,
            node_id=placed.node_id,
            address=placed.address,
            ticket=placed.ticket,
            expires_at=Timestamp(seconds=placed.expires_at_s),
            warm=placed.warm,
        )

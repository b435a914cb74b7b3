"""speakerd.v1.Streams on the wire."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from controlplane.identity import Identity
from controlplane.placement import Placing
from controlplane.scopes import STREAMS_OPEN
from runtime.errors import InvalidRequest
from runtime.grpc_server import bearer
from speakerd.v1 import streams_pb2, streams_pb2_grpc

IDS_MAX = 1_000
# It goes into logs, so that it must not be a place to write a name or anything else.
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


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
        if request.stream_id and not _ID.fullmatch(request.stream_id):
            raise InvalidRequest("stream_id: write 1 to 64 characters out of A-Z a-z 0-9 _ . : -")
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

"""Where a node listens: a port for its fleet, and, where the two are to be apart, one for the streams of the public.

In: settings. Out: servers that run, and the addresses to be told. What always holds: with TLS, the fleet's port asks
every client for a certificate, and the streams' port asks none and offers nothing but Diarize and health; without a
port of their own, streams come to the fleet's.
"""

from __future__ import annotations

import grpc
from grpc import aio

from node.config import NodeSettings
from node.rpc_node import NodeService, PublicStreams
from runtime.grpc_server import MIB, GrpcHealth, StartGate, bind, new_server
from runtime.health import Health
from runtime.tls import Tls
from speakerd.v1 import node_pb2, node_pb2_grpc

SERVICE = node_pb2.DESCRIPTOR.services_by_name["Node"].full_name
STREAM_MESSAGE_BYTES_MAX = 6 * MIB
"""A stream's largest message is its opening with a checkpoint."""


class Ports:
    """The servers of one node. tls: None for plain text."""

    def __init__(self, settings: NodeSettings, tls: Tls | None) -> None:
        """Bind. Raises InvalidRequest or Unavailable for an address that cannot be listened on."""
        self._gate = StartGate()
        self._fleet = new_server([self._gate])
        # A standalone node has no fleet that could show certificates: its one port is for everybody.
        port = bind(self._fleet, settings.listen, insecure=settings.insecure, tls=tls, is_public=settings.standalone)
        self.bound = f"{_host(settings.listen)}:{port}"
        self.address = settings.advertise or self.bound
        self._streams: aio.Server | None = None
        self.streams_bound, self.stream_address = "", self.address
        if settings.stream_listen is not None:
            self._streams = new_server([self._gate], message_bytes_max=STREAM_MESSAGE_BYTES_MAX)
            port = bind(self._streams, settings.stream_listen, insecure=settings.insecure, tls=tls, is_public=True)
            self.streams_bound = f"{_host(settings.stream_listen)}:{port}"
            self.stream_address = settings.advertise_streams or self.streams_bound

    def __repr__(self) -> str:
        return f"Ports(fleet {self.bound}, streams {self.streams_bound or 'there too'})"

    async def open(self, health: Health) -> GrpcHealth:
        """Listen, and answer for health alone."""
        told = GrpcHealth(health, [SERVICE])
        told.serve_on(self._fleet, with_reflection=True)
        await self._fleet.start()
        if self._streams is not None:
            told.serve_on(self._streams)
            await self._streams.start()
        return told

    def serve(self, service: NodeService) -> None:
        """Begin to serve."""
        node_pb2_grpc.add_NodeServicer_to_server(service, self._fleet)
        if self._streams is not None:
            # By its one method, so that gRPC itself knows nothing of the others here.
            diarize = grpc.stream_stream_rpc_method_handler(
                PublicStreams(service).Diarize,
                request_deserializer=node_pb2.DiarizeRequest.FromString,
                response_serializer=node_pb2.DiarizeResponse.SerializeToString,
            )
            self._streams.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(SERVICE, {"Diarize": diarize}),)
            )
        self._gate.open()

    async def stop(self, grace_s: float) -> None:
        """Close both."""
        for server in (self._streams, self._fleet):
            if server is not None:
                await server.stop(grace_s)


def _host(address: str) -> str:
    return address.rpartition(":")[0]

"""As much of a control plane of release 0.1 as a node needs: leases, an empty log, and commands.

KEY. Prints its address; once a node serves, enrols a voice with it, reads its inventory, evicts the voice, and prints
what it found as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import sys
from typing import Any

import grpc

from speakerd.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc, node_pb2, node_pb2_grpc

LEASE_MS, RENEW_MS = 60_000, 500


class Fleet(fleet_pb2_grpc.FleetServicer):
    def __init__(self) -> None:
        self.serving: asyncio.Future[fleet_pb2.RenewRequest] = asyncio.get_running_loop().create_future()
        self.beats = 0
        self.head = 0

    async def Renew(self, request: fleet_pb2.RenewRequest, context: Any) -> fleet_pb2.RenewResponse:
        if request.state == node_pb2.NODE_STATE_SERVING and not self.serving.done():
            self.serving.set_result(request)
        return fleet_pb2.RenewResponse(
            incarnation=1, lease_ms=LEASE_MS, renew_ms=RENEW_MS, head=self.head, fleet_epoch="epoch",
            ticket_keys=[bytes(32)], checkpoint_keys=[hashlib.sha256(b"seal").digest()],
        )  # fmt: skip

    async def Heartbeat(self, request: fleet_pb2.HeartbeatRequest, context: Any) -> fleet_pb2.HeartbeatResponse:
        self.beats += 1
        return fleet_pb2.HeartbeatResponse(head=self.head)

    async def Sync(self, request: fleet_pb2.SyncRequest, context: Any) -> Any:
        if request.cursor == 0:
            yield fleet_pb2.SyncResponse(snapshot_begin=fleet_pb2.SnapshotBegin(revision=self.head))
            yield fleet_pb2.SyncResponse(snapshot_end=fleet_pb2.SnapshotEnd(revision=self.head))


async def main(key: str) -> None:
    server, fleet = grpc.aio.server(), Fleet()
    fleet_pb2_grpc.add_FleetServicer_to_server(fleet, server)
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    joined = await asyncio.wait_for(fleet.serving, 90)
    shown = (("authorization", f"Bearer {key}"),)
    voice = common_pb2.VoiceRef(tenant_id="default", voice_id="v1", generation=1)
    async with grpc.aio.insecure_channel(joined.address) as channel:
        node = node_pb2_grpc.NodeStub(channel)
        about = await node.Describe(node_pb2.DescribeRequest(), metadata=shown)
        vector = [1.0] + [0.0] * (about.embedding_dim - 1)
        voiceprint = common_pb2.Voiceprint(
            model=about.model, embedding=struct.pack(f"<{len(vector)}f", *vector), net_speech_ms=9_000
        )
        fleet.head = 1
        enrolled = await node.Enroll(
            node_pb2.EnrollRequest(
                voice=voice, label="Ada", voiceprint=voiceprint,
                position=node_pb2.LogPosition(incarnation=1, revision=1, as_of=1),
            ),
            metadata=shown,
        )  # fmt: skip
        held = [
            [ref.voice_id for ref in part.voices]
            async for part in node.Inventory(node_pb2.InventoryRequest(), metadata=shown)
        ]
        fleet.head = 2
        evicted = await node.Evict(
            node_pb2.EvictRequest(voice=voice, position=node_pb2.LogPosition(incarnation=1, revision=2)), metadata=shown
        )
    while not fleet.beats:
        await asyncio.sleep(0.05)
    print(
        json.dumps(
            {
                "state": node_pb2.NodeState.Name(about.state),
                "generation": enrolled.generation,
                "held": held,
                "was_held": evicted.was_held,
                "cursor": evicted.cursor,
            }
        ),
        flush=True,
    )
    await server.stop(0)


asyncio.run(main(sys.argv[1]))

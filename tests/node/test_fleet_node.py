"""A node process in a fleet, under a control plane that the test plays over real gRPC."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio

from node.null_engine import NullDevice
from runtime.clock import SystemClock
from runtime.errors import Stale
from runtime.grpc_server import bearer, new_server, open_channel
from runtime.tickets import Ticket, sign_ticket
from runtime.voice_digest import VoiceDigest
from speakerd.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc, node_pb2
from tests.every_method import refusals
from tests.node.conftest import ADA, BOB, Heard, RunningNode, pcm, requests, rest, running_node, tones

FLEET_KEY = secrets.token_hex(16)
METADATA = (("authorization", f"Bearer {FLEET_KEY}"),)
TICKET_KEY = Ed25519PrivateKey.generate()


def voiceprint(frequencies: tuple[float, ...]) -> common_pb2.Voiceprint:
    heard = NullDevice().analyze_voice(tones(4, *frequencies))
    return common_pb2.Voiceprint(model="null@1", embedding=heard.embedding.astype("<f4").tobytes(), net_speech_ms=4000)


class PlayedControlPlane(fleet_pb2_grpc.FleetServicer):
    """A log in memory, and switches for what a test wants to go wrong."""

    def __init__(self, *, lease_ms: int) -> None:
        self.log: list[fleet_pb2.LogEntry] = []
        self.incarnation = 0
        self.renewals: list[fleet_pb2.RenewRequest] = []
        self.syncs: list[fleet_pb2.SyncRequest] = []
        self.heartbeats = 0
        self.tenants: dict[str, int] = {}
        self.lease_ms = lease_ms
        self.is_away = False
        self.renewed = asyncio.Event()

    def enroll(self, voice_id: str, frequencies: tuple[float, ...], generation: int = 1) -> fleet_pb2.LogEntry:
        enrolled = fleet_pb2.LogEnroll(label=voice_id.title(), voiceprint=voiceprint(frequencies))
        return self._append(fleet_pb2.LogEntry(voice=self._voice(voice_id, generation), enroll=enrolled))

    def evict(self, voice_id: str, generation: int) -> fleet_pb2.LogEntry:
        return self._append(fleet_pb2.LogEntry(voice=self._voice(voice_id, generation), evict=fleet_pb2.LogEvict()))

    async def Renew(self, request: fleet_pb2.RenewRequest, context: aio.ServicerContext) -> fleet_pb2.RenewResponse:
        assert bearer(context) == FLEET_KEY
        if self.is_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.renewals.append(request)
        if request.incarnation == 0:
            self.incarnation += 1
        elif request.incarnation != self.incarnation:
            raise Stale("fenced")
        self.renewed.set()
        return fleet_pb2.RenewResponse(
            incarnation=self.incarnation,
            lease_ms=self.lease_ms,
            renew_ms=200,
            head=len(self.log),
            ticket_keys=[TICKET_KEY.public_key().public_bytes_raw()],
        )

    async def Heartbeat(
        self, request: fleet_pb2.HeartbeatRequest, context: aio.ServicerContext
    ) -> fleet_pb2.HeartbeatResponse:
        self.heartbeats += 1
        self.tenants = {one.tenant_id: one.streams for one in request.tenants}
        return fleet_pb2.HeartbeatResponse(head=len(self.log))

    async def Sync(
        self, request: fleet_pb2.SyncRequest, context: aio.ServicerContext
    ) -> AsyncIterator[fleet_pb2.SyncResponse]:
        if self.is_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.syncs.append(request)
        cursor = request.cursor
        if cursor == 0:
            yield fleet_pb2.SyncResponse(snapshot_begin=fleet_pb2.SnapshotBegin(revision=len(self.log)))
            held = {entry.voice.voice_id: entry for entry in self.log}
            alive = [entry for entry in held.values() if entry.HasField("enroll")]
            yield fleet_pb2.SyncResponse(entries=fleet_pb2.LogEntries(entries=alive))
            cursor = len(self.log)
            yield fleet_pb2.SyncResponse(snapshot_end=fleet_pb2.SnapshotEnd(revision=cursor))
        yield fleet_pb2.SyncResponse(entries=fleet_pb2.LogEntries(entries=self.log[cursor:]))

    def position(self, entry: fleet_pb2.LogEntry) -> node_pb2.LogPosition:
        return node_pb2.LogPosition(incarnation=self.incarnation, revision=entry.revision)

    def _voice(self, voice_id: str, generation: int) -> common_pb2.VoiceRef:
        return common_pb2.VoiceRef(tenant_id="acme", voice_id=voice_id, generation=generation)

    def _append(self, entry: fleet_pb2.LogEntry) -> fleet_pb2.LogEntry:
        entry.revision = len(self.log) + 1
        self.log.append(entry)
        return entry


class Fleet:
    """A node and the control plane that it belongs to."""

    def __init__(self, node: RunningNode, plane: PlayedControlPlane) -> None:
        self.node = node
        self.plane = plane

    def ticket(self, *, node_id: str = "n1", expires_s: float = 60.0) -> str:
        expires_at_s = int(SystemClock().wall_s() + expires_s)
        return sign_ticket(
            Ticket("acme", "s1", node_id, expires_at_s, secrets.token_hex(8), self.plane.incarnation), TICKET_KEY
        )

    async def push(self, entry: fleet_pb2.LogEntry) -> node_pb2.EnrollResponse | node_pb2.EvictResponse:
        position = self.plane.position(entry)
        if entry.HasField("evict"):
            return await self.node.stub.Evict(
                node_pb2.EvictRequest(voice=entry.voice, position=position), metadata=METADATA
            )
        request = node_pb2.EnrollRequest(
            voice=entry.voice, label=entry.enroll.label, voiceprint=entry.enroll.voiceprint, position=position
        )
        return await self.node.stub.Enroll(request, metadata=METADATA)

    async def describe(self) -> node_pb2.DescribeResponse:
        return await self.node.stub.Describe(node_pb2.DescribeRequest(), metadata=METADATA)

    async def until(self, state: node_pb2.NodeState.ValueType, *, voices: int | None = None) -> None:
        async with asyncio.timeout(15):
            while True:
                seen = await self.describe()
                if seen.state == state and voices in (None, seen.load.voices):
                    return
                await asyncio.sleep(0.05)


@pytest.fixture
async def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    plane, server = PlayedControlPlane(lease_ms=getattr(request, "param", 9_000)), new_server()
    fleet_pb2_grpc.add_FleetServicer_to_server(plane, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    plane.enroll("ada", ADA)
    (tmp_path / "fleet.key").write_text(FLEET_KEY)
    flags = ("--controlplane", f"127.0.0.1:{port}", "--fleet-key-file", str(tmp_path / "fleet.key"), "--node-id", "n1")
    try:
        async with running_node(*flags, "--device", "null", "--drain-s", "1", log=tmp_path / "node.log") as node:
            yield Fleet(node, plane)
    finally:
        await server.stop(None)


async def test_a_node_joins_with_a_snapshot_keeps_its_lease_and_leaves_in_words(fleet: Fleet) -> None:
    plane = fleet.plane
    described = await fleet.describe()
    assert not described.standalone and described.incarnation == 1 and described.load.voices == 1
    assert 0 < described.lease_ms <= 9_000
    assert plane.renewals[0].incarnation == 0 and plane.renewals[-1].state == node_pb2.NODE_STATE_SERVING
    expected = VoiceDigest()
    expected.add("acme", "ada", 1)
    assert (plane.renewals[-1].cursor, plane.renewals[-1].num_voices) == (1, 1)
    assert plane.renewals[-1].voices_digest == expected.value()
    assert plane.heartbeats >= 1

    assert await fleet.node.terminate() == 0
    last = plane.renewals[-1]
    assert (last.state, last.num_voices, last.voices_digest) == (node_pb2.NODE_STATE_FENCED, 0, bytes(32))


async def test_commands_are_applied_in_the_order_of_the_log_whatever_order_they_come_in(fleet: Fleet) -> None:
    plane = fleet.plane
    bob, eve, gone = plane.enroll("bob", BOB), plane.enroll("eve", (700.0, 2600.0)), plane.evict("ada", 2)

    late = await fleet.push(gone)
    assert late.cursor == 4 and late.incarnation == 1
    assert plane.syncs[-1].cursor == 1
    assert (await fleet.push(bob)).cursor == 4
    assert (await fleet.push(eve)).cursor == 4
    following = plane.evict("bob", 2)
    syncs = len(plane.syncs)
    assert (await fleet.push(following)).cursor == 5 and len(plane.syncs) == syncs
    listed = [
        voice.voice_id
        async for chunk in fleet.node.stub.Inventory(node_pb2.InventoryRequest(), metadata=METADATA)
        for voice in chunk.voices
    ]
    assert listed == ["eve"]


async def test_what_was_never_pushed_is_read_from_the_log(fleet: Fleet) -> None:
    fleet.plane.enroll("bob", BOB)
    await fleet.until(node_pb2.NODE_STATE_SERVING, voices=2)


async def test_a_command_for_another_incarnation_or_without_position_is_refused(fleet: Fleet) -> None:
    entry = fleet.plane.enroll("bob", BOB)
    stale = node_pb2.LogPosition(incarnation=99, revision=entry.revision)
    for position, status in ((stale, grpc.StatusCode.FAILED_PRECONDITION), (None, grpc.StatusCode.INVALID_ARGUMENT)):
        with pytest.raises(aio.AioRpcError) as refused:
            request = node_pb2.EvictRequest(voice=entry.voice, position=position)
            await fleet.node.stub.Evict(request, metadata=METADATA)
        assert refused.value.code() is status


async def test_without_the_fleets_key_nothing_is_answered_and_a_ticket_is_good_once(fleet: Fleet) -> None:
    service = node_pb2.DESCRIPTOR.services_by_name["Node"]
    async with open_channel(fleet.node.address) as channel:
        for token in (None, "wrong", f"{FLEET_KEY}x", FLEET_KEY[:-1], "", fleet.ticket()):
            metadata = () if token is None else (("authorization", f"Bearer {token}"),)
            answered = await refusals(channel, service, metadata)
            # An empty message does not open a stream, so that nobody is asked for a ticket yet: that is below.
            assert answered.pop("Diarize") is grpc.StatusCode.INVALID_ARGUMENT
            assert set(answered.values()) == {grpc.StatusCode.UNAUTHENTICATED}, (token, answered)
        with pytest.raises(aio.AioRpcError) as refused:
            async for _ in fleet.node.stub.Diarize(
                requests(b"", pace_s=10.0), metadata=(("authorization", "Bearer wrong"),)
            ):
                pass
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    ticket = fleet.ticket()
    heard = await fleet.node.diarize(tones(4, *ADA), ticket=ticket, tenant_id="another")
    assert heard.opened is not None and heard.opened.stream_id == "s1"
    assert "ada" in heard.names  # the ticket says whose stream it is
    for bad in (ticket, fleet.ticket(node_id="n2"), fleet.ticket(expires_s=-1), "forged", ""):
        with pytest.raises(aio.AioRpcError) as refused:
            async for _ in fleet.node.stub.Diarize(requests(b"", pace_s=10.0, ticket=bad)):
                pass
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, bad


async def test_a_node_tells_whose_streams_it_carries(fleet: Fleet) -> None:
    await fleet.until(node_pb2.NODE_STATE_SERVING, voices=1)
    call = fleet.node.stub.Diarize()
    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(ticket=fleet.ticket())))
    assert (await call.read()).HasField("opened")

    async def until_told(tenants: dict[str, int]) -> None:
        async with asyncio.timeout(15):
            while fleet.plane.tenants != tenants:
                await asyncio.sleep(0.05)

    await until_told({"acme": 1})
    call.cancel()
    await until_told({})


@pytest.mark.parametrize("fleet", [2_500], indirect=True)
async def test_a_node_that_loses_its_lease_forgets_everybody_and_returns_under_a_new_incarnation(fleet: Fleet) -> None:
    plane, heard = fleet.plane, Heard()
    call = fleet.node.stub.Diarize()
    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(ticket=fleet.ticket())))
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(6, *ADA))))
    while "ada" not in heard.names:
        heard.take(await call.read())

    plane.is_away = True
    await fleet.until(node_pb2.NODE_STATE_FENCED, voices=0)
    after = Heard()
    while not after.degraded:
        after.take(await call.read())
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(4, *ADA))))
    while not after.turns or after.turns[-1].end_ms < 7_000:
        after.take(await call.read())
    assert {turn.label for turn in after.turns if turn.start_ms > 6_000} == {"spk_0"}

    plane.evict("ada", 2)
    plane.enroll("bob", BOB)
    plane.is_away = False
    await fleet.until(node_pb2.NODE_STATE_SERVING, voices=1)
    assert plane.incarnation == 2
    assert plane.renewals[-1].cursor == 3
    again = Heard()
    await call.write(node_pb2.DiarizeRequest(audio=pcm(np.concatenate([tones(4, *ADA), tones(6, *BOB)]))))
    await call.write(node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish()))
    async for response in rest(call):
        again.take(response)
    assert [change.active for change in again.degraded] == [False]
    assert again.closed is not None
    assert [(s.speaker, s.label) for s in again.closed.speakers] == [("spk_0", "spk_0"), ("spk_1", "Bob")]

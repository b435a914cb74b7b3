"""A fleet whose daemons know each other by certificates: real processes, and callers who are not who they say."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import timedelta

import grpc
import pytest
from grpc import aio

from runtime.certificates import Authority
from runtime.grpc_server import open_channel
from runtime.tls import CONTROL_PLANE, EDGE, NODE, Tls, TlsFiles
from speakerd.client import Client, SpeakerdError, StreamOptions, TlsTrust
from speakerd.v1 import fleet_pb2, fleet_pb2_grpc, node_pb2, node_pb2_grpc, people_pb2, streams_pb2, streams_pb2_grpc
from tests.every_method import refusals
from tests.faults.figures import Figures
from tests.faults.processes import Daemon, Processes, plane_arguments, tones, until, voice
from tests.faults.streaming import Told, stream
from tests.faults.test_continuity import conversation, wav

DAY = timedelta(days=1)
DOMAIN = "fleet.test"


def identity(authority: Authority, role: str, peer_id: str) -> Tls:
    cert, key = authority.issue_files(role, peer_id, ["127.0.0.1"], DAY)
    return Tls(TlsFiles(cert, key, authority.folder / "ca.crt"))


def tls_flags(authority: Authority, role: str, peer_id: str) -> list[str]:
    files = authority.folder / f"{role}-{peer_id}"
    return ["--tls-cert", f"{files}.crt", "--tls-key", f"{files}.key", "--tls-ca", str(authority.folder / "ca.crt")]


class TlsFleet:
    """Two null nodes and a control plane, and no shared secret."""

    def __init__(self, daemons: Processes) -> None:
        self.daemons = daemons
        self.data = daemons.folder / "data"
        self.authority = Authority.open_or_make(daemons.folder / "certs", DOMAIN)
        self.trust = TlsTrust.from_file(self.authority.folder / "ca.crt")
        self.nodes: dict[str, Daemon] = {}

    async def start(self) -> None:
        self.authority.issue_files(CONTROL_PLANE, "cp", ["127.0.0.1"], DAY)
        flags = tls_flags(self.authority, CONTROL_PLANE, "cp")
        self.plane = await self.daemons.start("plane", *plane_arguments(self.data, "127.0.0.1:0", *flags))
        await asyncio.gather(self.add("n1"), self.add("n2"))

    def node_flags(self, node_id: str) -> list[str]:
        return [
            "node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--node-id", node_id, "--device", "null",
            "--controlplane", self.plane.ready["fleet"],
        ]  # fmt: skip

    async def add(self, node_id: str) -> None:
        self.authority.issue_files(NODE, node_id, [], DAY)
        flags = tls_flags(self.authority, NODE, node_id)
        self.nodes[node_id] = await self.daemons.start(node_id, *self.node_flags(node_id), *flags)

    @property
    def key(self) -> str:
        return (self.data / "admin.key").read_text().strip()

    def client(self) -> Client:
        return Client(self.plane.grpc, self.key, tls=self.trust)


@pytest.mark.fault("F26", "P6")
async def test_a_fleet_of_certificates_serves_streams_hands_them_over_and_takes_new_files(
    daemons: Processes, figures: Figures
) -> None:
    fleet = TlsFleet(daemons)
    await fleet.start()
    options = StreamOptions(latency_ms=1_000)
    async with fleet.client() as client:
        assert (await client.enroll("Person 0", [wav(tones(4, *voice(0)))])).voice.state == people_pb2.Voice.STATE_READY
        done, told = asyncio.Event(), [Told() for _ in range(4)]
        sounds = [conversation(3 * index, 60) for index in range(len(told))]
        async with asyncio.TaskGroup() as tasks:
            for sound, one in zip(sounds, told, strict=True):
                tasks.create_task(stream(client, sound, options, told=one, until=done))
            await asyncio.sleep(1.5)
            # New certificates for everybody, while streams run: what is said from here on is said with those.
            before = {path.name: path.read_bytes() for path in fleet.authority.folder.glob("*.crt")}
            fleet.authority.issue_files(CONTROL_PLANE, "cp", ["127.0.0.1"], DAY)
            for node_id in fleet.nodes:
                fleet.authority.issue_files(NODE, node_id, [], DAY)
            assert all((fleet.authority.folder / name).read_bytes() != before[name] for name in before if "-" in name)
            reloaded, issued_s = [fleet.plane, *fleet.nodes.values()], time.monotonic()
            await until(lambda: all("tls.reloaded" in daemon.log.read_text() for daemon in reloaded))
            figures.record("new certificates are taken by all after", time.monotonic() - issued_s)
            # A push over channels of the new files, and a stream that moves to a node over them.
            answer = await client.enroll("Person 1", [wav(tones(4, *voice(1)))])
            assert set(answer.enrolled_on) == {"n1", "n2"}
            leaving = told[0].nodes[0]
            fleet.nodes[leaving].send(signal.SIGTERM)
            assert await fleet.nodes[leaving].ended() == 0
            await asyncio.sleep(1.5)
            done.set()
        for one in told:
            one.require_in_order()
            assert not one.degraded
            assert len(one.resumed) == (one.nodes[0] == leaving)
    assert "Person 0" in {turn.label for one in told for turn in one.turns}
    figures.record("turns lost or doubled", 0, "")


async def denied(call: aio.UnaryUnaryCall) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as refused:
        await call
    return refused.value.code()


async def test_nobody_speaks_for_a_node_or_a_control_plane_whose_certificate_he_has_not(daemons: Processes) -> None:
    fleet = TlsFleet(daemons)
    await fleet.start()
    plane, edge = identity(fleet.authority, CONTROL_PLANE, "cp2"), identity(fleet.authority, EDGE, "e1")
    neighbour = identity(fleet.authority, NODE, "n3")
    own_files = [fleet.authority.folder / name for name in ("node-n3.crt", "node-n3.key", "ca.crt")]
    stolen = Authority.open_or_make(daemons.folder / "other", DOMAIN)
    stranger = identity(stolen, CONTROL_PLANE, "cp")

    # At the control plane: a node renews, beats and syncs for itself alone.
    name = f"controlplane.{DOMAIN}"
    async with open_channel(fleet.plane.ready["fleet"], neighbour, name=name) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        for node_id, status in (("n1", grpc.StatusCode.PERMISSION_DENIED), ("n3", None)):
            renewal = fleet_pb2.RenewRequest(node_id=node_id, process_id="p", address="127.0.0.1:1", model="null@1")
            if status is None:
                assert (await stub.Renew(renewal)).incarnation
            else:
                assert await denied(stub.Renew(renewal)) is status
                assert await denied(stub.Heartbeat(fleet_pb2.HeartbeatRequest(node_id=node_id))) is status
                synced = stub.Sync(fleet_pb2.SyncRequest(node_id=node_id, incarnation=1))
                with pytest.raises(aio.AioRpcError) as refused:
                    async for _ in synced:
                        pass
                assert refused.value.code() is status
    fleet_key = ((fleet.data / "fleet.key").read_text().strip(),)
    bearer = (("authorization", f"Bearer {fleet_key[0]}"),)
    async with open_channel(fleet.plane.ready["fleet"], edge, name=name) as channel:
        answered = await refusals(channel, fleet_pb2.DESCRIPTOR.services_by_name["Fleet"], bearer)
        assert set(answered.values()) == {grpc.StatusCode.PERMISSION_DENIED}
    # On the port of those who hold API keys, there is no such service.
    async with aio.secure_channel(fleet.plane.grpc, grpc.ssl_channel_credentials(fleet.trust.authority)) as channel:
        answered = await refusals(channel, fleet_pb2.DESCRIPTOR.services_by_name["Fleet"], bearer)
        assert set(answered.values()) == {grpc.StatusCode.UNIMPLEMENTED}

    # At a node's own port: control planes alone, and an edge may bring streams.
    service = node_pb2.DESCRIPTOR.services_by_name["Node"]
    address = fleet.nodes["n1"].grpc
    for caller in (neighbour, edge):
        async with open_channel(address, caller, name=f"n1.node.{DOMAIN}") as channel:
            answered = await refusals(channel, service, bearer)
            assert answered.pop("Diarize") is grpc.StatusCode.INVALID_ARGUMENT  # nothing was opened yet
            assert set(answered.values()) == {grpc.StatusCode.PERMISSION_DENIED}, answered
    async with open_channel(address, plane, name=f"n1.node.{DOMAIN}") as channel:
        described = await node_pb2_grpc.NodeStub(channel).Describe(node_pb2.DescribeRequest())
        assert described.node_id == "n1"
    for caller, expected in ((stranger, "n1"), (plane, "n2")):
        async with open_channel(address, caller, name=f"{expected}.node.{DOMAIN}") as channel:
            call = node_pb2_grpc.NodeStub(channel).Describe(node_pb2.DescribeRequest(), timeout=5)
            assert await denied(call) is grpc.StatusCode.UNAVAILABLE

    # At the port of streams: Diarize with a ticket, health, and nothing else.
    streams = fleet.nodes["n1"].ready["streams"]
    trust = grpc.ssl_channel_credentials(fleet.trust.authority)
    named = (("grpc.ssl_target_name_override", f"n1.node.{DOMAIN}"),)
    async with aio.secure_channel(streams, trust, options=named) as channel:
        answered = await refusals(channel, service, bearer)
        assert answered.pop("Diarize") is grpc.StatusCode.INVALID_ARGUMENT
        assert set(answered.values()) == {grpc.StatusCode.UNIMPLEMENTED}
        call = node_pb2_grpc.NodeStub(channel).Diarize(metadata=bearer)
        await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(tenant_id="default")))
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

    # A ticket is taken there and not at the fleet's port, once, and not after the node has started anew.
    async with aio.secure_channel(fleet.plane.grpc, trust) as channel:
        place = streams_pb2_grpc.StreamsStub(channel).PlaceStream
        key = (("authorization", f"Bearer {fleet.key}"),)
        placed = await place(streams_pb2.PlaceStreamRequest(), metadata=key)
    there = fleet.nodes[placed.node_id]
    assert (placed.address, placed.tls_name) == (there.ready["streams"], f"{placed.node_id}.node.{DOMAIN}")
    named = (("grpc.ssl_target_name_override", placed.tls_name),)
    opening = node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(ticket=placed.ticket))
    async with open_channel(there.grpc, plane, name=placed.tls_name) as channel:
        call = node_pb2_grpc.NodeStub(channel).Diarize()
        await call.write(opening)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    async with aio.secure_channel(placed.address, trust, options=named) as channel:
        first = node_pb2_grpc.NodeStub(channel).Diarize()
        await first.write(opening)
        assert (await first.read()).HasField("opened")
        again = node_pb2_grpc.NodeStub(channel).Diarize()
        await again.write(opening)
        assert await again.code() is grpc.StatusCode.UNAUTHENTICATED
        first.cancel()
    await there.kill()
    await fleet.add(placed.node_id)
    async with aio.secure_channel(fleet.nodes[placed.node_id].ready["streams"], trust, options=named) as channel:
        replayed = node_pb2_grpc.NodeStub(channel).Diarize()
        await replayed.write(opening)
        assert await replayed.code() is grpc.StatusCode.FAILED_PRECONDITION

    # Plain text against TLS, and a client who trusts somebody else.
    for trusting in (None, TlsTrust.from_file(stolen.folder / "ca.crt")):
        async with Client(fleet.plane.grpc, fleet.key, tls=trusting) as client:
            with pytest.raises(SpeakerdError) as failed:
                await client.voices()
            assert failed.value.cause == "unavailable"
    # A node that shows another's certificate does not start.
    flags = ["--tls-cert", str(own_files[0]), "--tls-key", str(own_files[1]), "--tls-ca", str(own_files[2])]
    with pytest.raises(AssertionError, match="node/n3, and this is node/n1"):
        await daemons.start("impostor", *fleet.node_flags("n1"), *flags)

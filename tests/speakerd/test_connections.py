"""Streams of one client share connections: how many there are, when they close, and who is put on which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from grpc import aio

import speakerd.connections
import speakerd.live_stream
from runtime.errors import BadAudio, Unavailable
from runtime.grpc_server import new_server
from speakerd.channel import TlsTrust
from speakerd.client import Client, LiveStream, NodeClient, Resumed, SpeakerdError, StreamOptions
from speakerd.connections import STREAMS_A_CONNECTION, Connections
from speakerd.stream_leg import Place, StreamLeg, open_leg
from speakerd.v1 import node_pb2, node_pb2_grpc, streams_pb2, streams_pb2_grpc
from tests.node.conftest import ADA, pcm, running_node, tones

SIXTY = 60
CONNECTIONS = -(-SIXTY // STREAMS_A_CONNECTION)
MESSAGE = node_pb2.DiarizeResponse(checkpoint=node_pb2.Checkpoint(data=bytes(256_000)))
SOUND = node_pb2.DiarizeRequest(audio=bytes(256_000))
MANY = 100
"""Of such messages: more than any window of a stream or a connection lets through unread."""

Behaviour = Callable[[Any, str], Awaitable[None]]


async def hears(context: Any, _: str) -> None:
    while (message := await context.read()) is not aio.EOF:
        if message.WhichOneof("message") == "finish":
            await context.write(node_pb2.DiarizeResponse(closed=node_pb2.StreamClosed()))
            return


class Nodes(node_pb2_grpc.NodeServicer, streams_pb2_grpc.StreamsServicer):
    """Placement, and nodes that do as they are told and note which connection each stream came over."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = hears
        self.is_mute = False
        self.refusals: list[Exception] = []
        self.peers: list[str] = []
        self.addresses: list[str] = []
        self.servers: list[aio.Server] = []

    async def add(self) -> None:
        server = new_server()
        node_pb2_grpc.add_NodeServicer_to_server(self, server)
        streams_pb2_grpc.add_StreamsServicer_to_server(self, server)
        self.addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        self.servers.append(server)
        await server.start()

    async def PlaceStream(self, request: Any, context: Any) -> streams_pb2.PlaceStreamResponse:
        (node_id, *_) = [f"n{number}" for number in range(2) if f"n{number}" not in request.avoid_node_ids] or ["n1"]
        address = self.addresses[int(node_id[1]) + 1]
        return streams_pb2.PlaceStreamResponse(stream_id="s", node_id=node_id, address=address, ticket="t")

    async def Diarize(self, request_iterator: Any, context: Any) -> None:
        opening = (await context.read()).open
        self.peers.append(context.peer())
        if self.is_mute:
            await asyncio.sleep(60)
        if self.refusals:
            raise self.refusals.pop(0)
        await context.write(node_pb2.DiarizeResponse(opened=node_pb2.StreamOpened(stream_id="s")))
        await self.behaviour(context, opening.stream_id)


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[Nodes]:
    made = Nodes()
    for _ in range(count):
        await made.add()
    try:
        yield made
    finally:
        for server in made.servers:
            await server.stop(None)


@pytest.fixture
async def one() -> AsyncIterator[Nodes]:
    async with nodes(1) as made:
        yield made


async def leg(made: Nodes, connections: Connections, stream_id: str = "s") -> StreamLeg:
    return await open_leg(Place(made.addresses[0], stream_id=stream_id), StreamOptions(), connections)


async def ends_well(live: LiveStream) -> None:
    await live.send(pcm(tones(1.0, *ADA)))
    await live.finish()
    async with asyncio.timeout(10):
        told = [type(event).__name__ async for event in live]
    assert told[-1] == "StreamClosed"


async def close_all(streams: list[LiveStream]) -> None:
    # What holds a call holds its connection, so that nothing of them is kept.
    while streams:
        await streams.pop().close()


async def test_sixty_streams_take_a_few_connections_and_the_last_one_out_closes(tmp_path: Path) -> None:
    async with running_node(
        "--standalone", "--device", "null", "--streams-max", "100", log=tmp_path / "node.log"
    ) as node:
        process, port = psutil.Process(node.process.pid), int(node.address.rpartition(":")[2])

        def accepted() -> int:
            return sum(
                one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in process.net_connections()
            )

        async def until_accepted(number: int) -> None:
            async with asyncio.timeout(10):
                while accepted() != number:
                    await asyncio.sleep(0.1)

        async with NodeClient(node.address) as client:
            streams = await asyncio.gather(*(client.open_stream() for _ in range(SIXTY)))
            assert (accepted(), len(client._connections)) == (CONNECTIONS, CONNECTIONS)
            spare = [streams.pop()]
            await close_all(streams)
            await until_accepted(1)
            await ends_well(spare[0])
            await close_all(spare)
            await until_accepted(0)
            assert len(client._connections) == 0
            async with await client.open_stream():
                assert accepted() == 1


async def test_streams_share_only_what_goes_to_the_same_place_with_the_same_trust() -> None:
    connections = Connections()
    one, other = TlsTrust(b"authority"), TlsTrust(b"another authority")
    asked = [("a:1", None, ""), ("a:2", None, ""), ("a:1", one, ""), ("a:1", other, ""), ("a:1", one, "n1")]
    held = [connections.take(address, tls, tls_name=name) for address, tls, name in asked * 2]
    assert [hold.channel for hold in held[:5]] == [hold.channel for hold in held[5:]]
    assert len({id(hold.channel) for hold in held}) == len(connections) == 5
    again = connections.take("a:1", TlsTrust(b"authority"))
    assert again.channel is held[2].channel
    await connections.close()
    assert len(connections) == 0


async def test_a_hold_is_let_go_of_once_and_a_retired_connection_is_not_used_again() -> None:
    connections = Connections()
    first, second = connections.take("a:1"), connections.take("a:1")
    for _ in range(3):
        await first.release()
    assert len(connections) == 1 and connections.take("a:1").channel is second.channel
    second.retire()
    third = connections.take("a:1")
    assert third.channel is not second.channel and len(connections) == 2
    await second.release()
    assert connections.take("a:1").channel is third.channel


@pytest.mark.parametrize("is_line", [False, True])
async def test_what_is_suspect_takes_no_new_streams_anywhere_near_and_what_is_made_after_it_does(is_line: bool) -> None:
    connections = Connections()
    held = [connections.take("a:1") for _ in range(STREAMS_A_CONNECTION + 1)]
    elsewhere = connections.take("b:1")
    held[0].retire(is_line=is_line)
    anew = connections.take("a:1")
    assert anew.channel not in (held[0].channel, held[-1].channel)
    assert (connections.take("b:1").channel is elsewhere.channel) is not is_line
    held[-1].retire(is_line=is_line)  # its turn comes later, by the same loss
    assert connections.take("a:1").channel is anew.channel
    await connections.close()


async def test_an_old_connection_takes_no_new_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections()
    first = connections.take("a:1")
    monkeypatch.setattr(speakerd.connections, "SHARED_FOR_S", 0.0)
    assert connections.take("a:1").channel is not first.channel


async def test_who_finds_its_node_silent_goes_on_over_another_connection_and_others_stay(
    one: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speakerd.live_stream, "WATCHDOG_S", 0.3)
    await one.add()
    one.addresses.append(one.addresses[1])  # n1 is where n0 is
    async with Client(one.addresses[0], "sk_test") as client:
        async with await client.open_stream() as bystander, await client.open_stream() as live:
            await live.send(bytes(3200))
            async with asyncio.timeout(10):
                assert isinstance(await anext(aiter(live)), Resumed)
            assert one.peers[0] == one.peers[1] != one.peers[2] and not bystander.resumptions
            async with await client.open_stream():
                assert one.peers[3] == one.peers[2]
            await ends_well(bystander)
        assert len(client._connections) == 0


async def test_a_stream_that_is_opened_again_leaves_its_connection(one: Nodes) -> None:
    await one.add()
    async with Client(one.addresses[0], "sk_test") as client, await client.open_stream() as live:
        await live.send(bytes(3200))
        assert live.reopen() == 0
        async with asyncio.timeout(10):
            assert isinstance(await anext(aiter(live)), Resumed)
        async with asyncio.timeout(10):
            while len(client._connections) > 1:
                await asyncio.sleep(0.01)
        assert one.peers[0] != one.peers[1]


async def test_a_closing_that_is_cancelled_lets_go_of_its_connection_all_the_same(one: Nodes) -> None:
    await one.add()
    async with Client(one.addresses[0], "sk_test") as client:
        live = await client.open_stream()
        one.is_mute = True
        assert live.reopen() == 0
        async with asyncio.timeout(10):
            while len(one.peers) < 2:
                await asyncio.sleep(0.01)
        closing = asyncio.create_task(live.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await asyncio.sleep(0)
        assert len(client._connections) == 0


@pytest.mark.parametrize(("refusal", "is_shared"), [(Unavailable("draining"), False), (BadAudio("0 Hz"), True)])
async def test_a_connection_over_which_none_could_be_opened_is_not_tried_again(
    one: Nodes, refusal: Exception, is_shared: bool
) -> None:
    connections = Connections()
    staying = await leg(one, connections)
    one.refusals = [refusal]
    with pytest.raises(SpeakerdError):
        await leg(one, connections)
    other = await leg(one, connections)
    assert one.peers[0] == one.peers[1] and (one.peers[2] == one.peers[0]) is is_shared
    await staying.close()
    await other.close()
    assert len(connections) == 0


@pytest.mark.parametrize("is_timeout", [True, False])
async def test_an_opening_that_is_given_up_lets_go_of_its_connection(one: Nodes, is_timeout: bool) -> None:
    connections = Connections()
    beside = await leg(one, connections)
    one.is_mute = True
    place, bound_s = Place(one.addresses[0]), 0.2 if is_timeout else 60.0
    opening = asyncio.create_task(open_leg(place, StreamOptions(), connections, bound_s=bound_s))
    async with asyncio.timeout(10):
        while len(one.peers) < 2:
            await asyncio.sleep(0.01)
    if not is_timeout:
        opening.cancel()
    with pytest.raises(SpeakerdError if is_timeout else asyncio.CancelledError):
        await opening
    one.is_mute = False
    after = await leg(one, connections)
    # Who was merely cancelled says nothing about the connection.
    assert one.peers[0] == one.peers[1] and (one.peers[2] == one.peers[0]) is not is_timeout
    await after.close()
    await beside.close()
    assert len(connections) == 0


async def test_all_streams_of_a_node_that_is_killed_go_on_elsewhere() -> None:
    async with nodes(3) as made, Client(made.addresses[0], "sk_test") as client:
        streams = await asyncio.gather(*(client.open_stream() for _ in range(SIXTY)))
        assert len(set(made.peers)) == len(client._connections) == CONNECTIONS
        resuming = [asyncio.ensure_future(anext(aiter(live))) for live in streams]
        await asyncio.sleep(0)
        await made.servers[1].stop(None)
        async with asyncio.timeout(20):
            told = await asyncio.gather(*resuming)
        assert [type(event) for event in told] == [Resumed] * SIXTY and {event.node_id for event in told} == {"n1"}
        await asyncio.sleep(0.1)
        assert len(set(made.peers[SIXTY:])) == len(client._connections) == CONNECTIONS
        await close_all(streams)
        assert len(client._connections) == 0


async def test_who_reads_nothing_holds_up_nobody_on_the_same_connection(one: Nodes) -> None:
    written = {"brisk": 0, "mute": 0}

    async def floods(context: Any, stream_id: str) -> None:
        for _ in range(MANY):
            await context.write(MESSAGE)
            written[stream_id] += 1

    one.behaviour = floods
    connections = Connections()
    mute = await leg(one, connections, "mute")
    await asyncio.sleep(0.5)
    brisk = await leg(one, connections, "brisk")
    async with asyncio.timeout(20):
        for _ in range(MANY):
            await brisk.reading()
            assert brisk.take() is not None
    assert written["brisk"] == MANY > 2 * written["mute"] and one.peers[0] == one.peers[1]
    await mute.close()
    await brisk.close()


async def test_a_stream_that_is_not_heard_holds_up_nobody_on_the_same_connection(one: Nodes) -> None:
    heard, sent = asyncio.Event(), {"brisk": 0, "deaf": 0}

    async def listens(context: Any, stream_id: str) -> None:
        if stream_id == "deaf":
            await asyncio.sleep(60)
        for _ in range(MANY):
            await context.read()
        heard.set()

    async def send(to: StreamLeg, name: str) -> None:
        for _ in range(MANY):
            await to.write(SOUND)
            sent[name] += 1

    one.behaviour = listens
    connections = Connections()
    deaf = await leg(one, connections, "deaf")
    waiting = asyncio.create_task(send(deaf, "deaf"))
    await asyncio.sleep(0.5)
    brisk = await leg(one, connections, "brisk")
    async with asyncio.timeout(20):
        await send(brisk, "brisk")
        await heard.wait()
    assert sent["brisk"] == MANY > 2 * sent["deaf"] and one.peers[0] == one.peers[1]
    await deaf.close()
    with pytest.raises(SpeakerdError, match="closed"):
        await waiting
    await brisk.close()

"""Where a stream goes."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import grpc
import pytest
from grpc import aio
from redis.asyncio import Redis

from controlplane.app import ControlPlane
from controlplane.placement import Wanted, ranked
from controlplane.registry import NodeView
from runtime.tickets import verify_ticket
from speakerd.v1 import node_pb2, streams_pb2
from tests.controlplane.conftest import Client, World, until
from tests.faults.figures import Figures

ANY = Wanted(0, None)


def node(node_id: str, streams: int = 0, **fields: object) -> NodeView:
    values: dict[str, object] = {
        "node_id": node_id,
        "incarnation": 1,
        "address": "a:1",
        "model": "m",
        "state": "serving",
        "cursor": 5,
        "streams": streams,
        "streams_max": 4,
        **fields,
    }
    return NodeView(**values)  # type: ignore[arg-type]


def order(*nodes: NodeView, wanted: Wanted = ANY, avoid: tuple[str, ...] = ()) -> list[str]:
    return [view.node_id for view in ranked(nodes, wanted, avoid)]


def test_the_least_loaded_node_is_best_and_reservations_count() -> None:
    assert order(node("a", 2), node("b", 1), node("c", 0, reserved=3)) == ["b", "a", "c"]
    assert order(node("a", 2, streams_max=4), node("b", 3, streams_max=100)) == ["b", "a"]


def test_nodes_that_do_not_serve_are_no_candidates() -> None:
    assert order(node("a", state="draining"), node("b", state="joining"), node("c", 3)) == ["c"]


def test_a_warm_node_goes_before_a_cold_one_with_less_load() -> None:
    behind, other_model, warm = node("a", cursor=4), node("b", model="x"), node("c", 3)
    assert order(behind, other_model, warm, wanted=Wanted(5, frozenset({"m"})))[0] == "c"


def test_a_full_node_and_one_that_just_failed_come_last() -> None:
    assert order(node("full", 4), node("cold", 3, cursor=0), wanted=Wanted(5, None)) == ["cold", "full"]
    assert order(node("failed"), node("b", 3), avoid=("failed",)) == ["b", "failed"]


async def place(client: Client, **fields: object) -> streams_pb2.PlaceStreamResponse:
    request = streams_pb2.PlaceStreamRequest(**fields)  # type: ignore[arg-type]
    return await client.streams.PlaceStream(request, metadata=client.metadata, timeout=30)


async def test_a_placed_stream_gets_a_ticket_that_its_node_can_verify(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    fake = await world.node(plane)
    keys = (await fake.renew_once()).ticket_keys
    await until(lambda: _count(plane, 1))
    placed = await place(client, stream_id="mine")
    assert (placed.node_id, placed.address, placed.stream_id) == ("node-1", fake.address, "mine")
    ticket = verify_ticket(placed.ticket, keys, node_id="node-1", now_s=time.time())
    assert (ticket.tenant_id, ticket.stream_id) == ("default", "mine")
    assert placed.warm


async def test_placements_never_outnumber_slots_however_many_ask_at_once(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    for name in ("node-1", "node-2"):
        await world.node(plane, name)
    await until(lambda: _count(plane, 2))
    answers = await asyncio.gather(*(place(client) for _ in range(30)), return_exceptions=True)
    placed = [answer for answer in answers if isinstance(answer, streams_pb2.PlaceStreamResponse)]
    refused = [answer for answer in answers if isinstance(answer, aio.AioRpcError)]
    assert sorted(answer.node_id for answer in placed) == ["node-1"] * 4 + ["node-2"] * 4
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) == 22


async def test_a_node_that_just_failed_a_stream_gets_it_again_only_when_there_is_no_other(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    for node_id, streams in (("failed", 0), ("other", 2)):
        (await world.node(plane, node_id)).streams = streams
    await until(lambda: _loads(plane, {"failed": 0, "other": 2}))

    async def goes_to(stream_id: str, avoid: str) -> str:
        return (await place(client, stream_id=stream_id, avoid_node_ids=[avoid])).node_id

    # Two have room elsewhere, whatever is less loaded, and wherever they were before.
    assert [await goes_to(f"s{number}", "failed") for number in range(2)] == ["other", "other"]
    assert await goes_to("s0", "failed") == "other"
    assert await goes_to("s2", "failed") == "failed"
    assert await goes_to("s1", "other") == "failed"


async def _loads(plane: ControlPlane, expected: dict[str, int]) -> bool:
    return {node.node_id: node.streams for node in await plane.core.registry.known(fresh=True)} == expected


async def test_a_reservation_ends_when_the_node_counts_the_stream_itself(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    fake = await world.node(plane)
    await until(lambda: _count(plane, 1))
    for opened in range(1, 5):
        await place(client)
        fake.streams = opened
        await fake.beat_once()
    with pytest.raises(aio.AioRpcError) as refused:
        await place(client)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_without_a_node_placement_is_unavailable(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    with pytest.raises(aio.AioRpcError) as refused:
        await place(client)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "no node is serving" in str(refused.value.details())


async def test_placement_asks_only_for_voices_of_the_tenant(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)
    with pytest.raises(aio.AioRpcError) as refused:
        await place(client, voice_ids=["v_of_another"])
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_emptied_redis_costs_no_placement(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)
    await until(lambda: _count(plane, 1))
    assert plane._redis is not None
    redis = Redis.from_url(plane._redis.url)
    await redis.flushall()
    assert (await place(client)).node_id == "node-1"
    assert await redis.exists("speakerd:2:node:node-1")
    await redis.aclose()


async def test_a_killed_redis_comes_back_and_placement_goes_on_meanwhile(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)
    await until(lambda: _count(plane, 1))
    assert plane._redis is not None
    pid = plane._redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert (await place(client)).node_id == "node-1"
    await until(lambda: plane._redis is not None and plane._redis.pid not in (None, pid))
    await until(lambda: plane.metrics.redis_up._value.get() == 1)
    assert (await place(client)).node_id == "node-1"


@pytest.mark.fault("F6", "P4")
async def test_a_frozen_redis_slows_placement_but_does_not_stop_it(world: World, figures: Figures) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    fake = await world.node(plane)
    await until(lambda: _count(plane, 1))
    assert plane._redis is not None
    assert plane._redis.pid is not None
    pid = plane._redis.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        answers = await asyncio.gather(*(place(client) for _ in range(6)), return_exceptions=True)
        figures.record("six asked at once are all answered in", time.monotonic() - began_s)
        assert time.monotonic() - began_s < 15
        placed = [answer for answer in answers if isinstance(answer, streams_pb2.PlaceStreamResponse)]
        assert len(placed) == fake.streams_max
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_draining_node_gets_no_streams(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    fake = await world.node(plane)
    await until(lambda: _count(plane, 1))
    fake.state = node_pb2.NODE_STATE_DRAINING
    await fake.beat_once()
    with pytest.raises(aio.AioRpcError) as refused:
        await place(client)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def _count(plane: object, number: int) -> bool:
    return sum(view.is_candidate for view in await plane.core.registry.nodes()) == number  # type: ignore[attr-defined]

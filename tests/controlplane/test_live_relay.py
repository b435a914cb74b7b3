"""Streams that the control plane carries: whom they name, under which lease, and how many there may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from controlplane.app import ControlPlane
from controlplane.live_relay import RelayedStream, Resumed, StreamOptions
from controlplane.policy import Principal
from controlplane.quotas import Quotas
from controlplane.scopes import PLATFORM
from runtime.errors import InvalidRequest, NotFound, Overloaded, TooLarge, Unavailable
from speakerd.v1 import common_pb2, node_pb2, people_pb2
from tests.controlplane.conftest import WAIT_MS, World, until
from tests.controlplane.talking_node import PIECE, TalkingNode

ERASED = people_pb2.Erasure.STATE_ERASED
CALLER = Principal("default", "k", frozenset({PLATFORM}))


@dataclass
class Heard:
    """What a stream said, and may be asked while it runs."""

    stream: RelayedStream
    labels: list[str] = field(default_factory=list)
    resumed: list[Resumed] = field(default_factory=list)
    degraded: list[bool] = field(default_factory=list)
    closed: node_pb2.StreamClosed | None = None
    talking: bool = True

    async def read(self) -> None:
        async for event in self.stream.events():
            if isinstance(event, node_pb2.Turns):
                self.labels += [turn.label for turn in event.turns]
            elif isinstance(event, Resumed):
                self.resumed.append(event)
            elif isinstance(event, node_pb2.Degraded):
                self.degraded.append(event.active)
            elif isinstance(event, node_pb2.StreamClosed):
                self.closed = event

    async def talk(self) -> None:
        while self.talking:
            await self.stream.send(PIECE)
            await asyncio.sleep(0.01)
        await self.stream.finish()

    async def hears(self, *labels: str) -> None:
        """Wait until every label comes again."""
        at = len(self.labels)
        await until(lambda: set(labels) <= set(self.labels[at:]))


@asynccontextmanager
async def listening(plane: ControlPlane, options: StreamOptions | None = None) -> AsyncIterator[Heard]:
    async with await plane.core.live_relay.open(CALLER, options or StreamOptions()) as stream:
        heard = Heard(stream)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(heard.read())
            tasks.create_task(heard.talk())
            yield heard
            heard.talking = False


async def talking(world: World, plane: ControlPlane, node_id: str = "node-1") -> TalkingNode:
    """A node that streams are placed on."""
    node = await world.node(plane, node_id, kind=TalkingNode)

    async def is_known() -> bool:
        return any(one.node_id == node_id and one.is_candidate for one in await plane.core.registry.known(fresh=True))

    await until(is_known)
    return node


async def test_a_name_leaves_until_its_erasure_and_never_after_it(world: World) -> None:
    plane = await world.plane()
    node, client = await talking(world, plane), await world.client(plane)
    ids = [(await client.enrol(label, seed=n)).voice.voice_id for n, label in enumerate(("Alice", "Bob"))]
    node.names = [("Alice", ids[0]), ("Bob", ids[1])]
    async with listening(plane) as heard:
        await heard.hears("Alice", "Bob")
        assert heard.stream.may_name(ids[0])
        # The node goes on to name her, as one does that was frozen between its check and its answer.
        erasure = await client.erase(ids[0], wait_ms=WAIT_MS)
        assert erasure.state == ERASED
        at = len(heard.labels)
        assert not heard.stream.may_name(ids[0]) and heard.stream.may_name(ids[1])
        await heard.hears("spk_0", "Bob")
        assert "Alice" not in heard.labels[at:]
    assert heard.closed is not None
    assert [(one.label, one.voice_id) for one in heard.closed.speakers] == [("spk_0", ""), ("Bob", ids[1])]
    assert heard.degraded == [] and heard.resumed == []


async def test_who_was_erased_before_the_stream_began_is_named_by_no_node_that_woke_too_late(world: World) -> None:
    plane = await world.plane()
    node, client = await talking(world, plane), await world.client(plane)
    erased, kept = [(await client.enrol(label, seed=n)).voice.voice_id for n, label in enumerate(("Alice", "Bob"))]
    assert (await client.erase(erased, wait_ms=WAIT_MS)).state == ERASED
    node.names = [("Alice", erased), ("Bob", kept)]
    async with listening(plane) as heard:
        await heard.hears("spk_0", "Bob")
        assert "Alice" not in heard.labels


async def test_without_the_lease_nobody_is_named_and_with_another_those_who_live(world: World) -> None:
    plane = await world.plane()
    node, client = await talking(world, plane), await world.client(plane)
    ids = [(await client.enrol(label, seed=n)).voice.voice_id for n, label in enumerate(("Alice", "Bob"))]
    node.names = [("Alice", ids[0]), ("Bob", ids[1])]
    guard = plane.core.guard
    async with listening(plane) as heard:
        await heard.hears("Alice", "Bob")
        guard._lease.fence()
        at = len(heard.labels)
        # The names are back over a connection of after the new lease, and over none of before it.
        await heard.hears("Alice", "Bob")
        since = heard.labels[at:]
        assert "spk_0" in since[: since.index("Alice")]
        assert heard.degraded == [True, False] and len(heard.resumed) == 1
        assert len(node.opened) == 2 and node.opened[1].checkpoint
        assert node.opened[0].stream_id == node.opened[1].stream_id
    assert heard.closed is not None


async def test_a_node_that_dies_under_a_stream_is_left_for_another(world: World) -> None:
    plane = await world.plane()
    nodes = [await talking(world, plane, f"node-{number}") for number in range(2)]
    for node in nodes:
        node.names = [("", "")]
    async with listening(plane) as heard:
        await until(lambda: len(heard.labels) > 5)
        (carrying,) = [node for node in nodes if node.opened]
        await carrying.stop()
        at = len(heard.labels)
        await until(lambda: len(heard.labels) > at + 5 and heard.resumed)
        assert heard.resumed[0].node_id != carrying.node_id


async def test_a_process_and_a_tenant_carry_so_many_and_refuse_the_rest(world: World) -> None:
    plane = await world.plane(relay_streams_max=2)
    node = await talking(world, plane)
    node.names, node.streams_max = [("", "")], 10
    relay = plane.core.live_relay
    async with await relay.open(CALLER, StreamOptions()), await relay.open(CALLER, StreamOptions()):
        with pytest.raises(Overloaded, match="too many live streams"):
            await relay.open(CALLER, StreamOptions())
        with pytest.raises(Overloaded, match="too many live streams"):
            async with relay.taken(CALLER):
                pass
    # The fake node says nothing of who has gone: what was placed on it is held for a while.
    node.streams = 2
    await node.beat_once()
    node.streams = 0
    await node.beat_once()
    await plane.core.people.administration.set_quotas(CALLER, "default", Quotas(streams_max=1))
    async with await relay.open(CALLER, StreamOptions()):
        with pytest.raises(Overloaded, match="quota of 1"):
            await relay.open(CALLER, StreamOptions())
    async with await relay.open(CALLER, StreamOptions()):
        pass
    async with relay.taken(CALLER):
        with pytest.raises(Overloaded, match="quota of 1"):
            await relay.open(CALLER, StreamOptions())
    assert plane.metrics.relay_streams._value.get() == 0 and repr(relay) == "LiveRelay(0 running)"


async def test_what_cannot_be_relayed_is_refused_in_words(world: World) -> None:
    plane = await world.plane()
    relay = plane.core.live_relay
    with pytest.raises(Unavailable, match="no node is serving"):
        await relay.open(CALLER, StreamOptions())
    node = await talking(world, plane)
    node.names = [("", "")]
    with pytest.raises(NotFound):
        await relay.open(CALLER, StreamOptions(voice_ids=("v_never",)))
    with pytest.raises(InvalidRequest, match="PCM"):
        await relay.open(CALLER, StreamOptions(encoding=common_pb2.ENCODING_CONTAINER))
    async with await relay.open(CALLER, StreamOptions(encoding=common_pb2.ENCODING_PCM_F32LE)) as stream:
        for wrong, error in ((b"\0" * 6, InvalidRequest), (b"\0" * (2 << 20), TooLarge)):
            with pytest.raises(error):
                await stream.send(wrong)
    assert repr(relay) == "LiveRelay(0 running)"

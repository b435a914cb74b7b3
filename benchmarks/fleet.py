"""A whole fleet at work: real nodes (null engine), control planes, PostgreSQL and Redis, on this machine alone.

    python benchmarks/fleet.py [--nodes 8] [--planes 2] [--enrolments 1000] [--rate 100] [--seconds 20]

Measures how long an enrolment takes to be answered and to be held by all nodes, how long PlaceStream takes under a
steady rate, and what FLUSHALL of Redis under load costs. Prints one JSON object. What has to hold is asserted: nodes
never load torch, every enrolment answered is held by every node, no erased voice is, and no stream fails.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from grpc import aio
from redis.asyncio import Redis

from benchmarks.fleet_processes import Daemon, Fleet, loaded_libraries, running_fleet
from controlplane.registry_schema import NODES, PREFIX
from runtime.grpc_server import open_channel
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc, people_pb2, people_pb2_grpc, streams_pb2, streams_pb2_grpc

RATE_HZ = 16_000
WITHIN_S = 30.0


@dataclass(slots=True)
class Plane:
    """A caller of one control plane."""

    people: people_pb2_grpc.PeopleStub
    streams: streams_pb2_grpc.StreamsStub
    metadata: tuple[tuple[str, str], ...]

    async def enrol(self, number: int) -> people_pb2.EnrollVoiceResponse:
        """Enrol a person whose voice is a chord of its own."""
        sound = chord(3.0, number)

        async def requests() -> AsyncIterator[people_pb2.EnrollVoiceRequest]:
            consent = people_pb2.Consent(full_name=f"Person {number}", purpose="benchmark", text="I agree")
            yield people_pb2.EnrollVoiceRequest(spec=people_pb2.VoiceSpec(label=f"P{number}", consent=consent))
            form = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_S16LE)
            yield people_pb2.EnrollVoiceRequest(chunk=people_pb2.ClipChunk(format=form, data=sound))

        return await self.people.EnrollVoice(requests(), metadata=self.metadata, timeout=60)

    async def erase(self, voice_id: str) -> people_pb2.Erasure:
        """Erase a voice, and wait for the proof."""
        request = people_pb2.EraseVoiceRequest(voice_id=voice_id, wait_ms=20_000)
        return await self.people.EraseVoice(request, metadata=self.metadata, timeout=30)

    async def place(self, stream_id: str = "") -> streams_pb2.PlaceStreamResponse:
        """Place a stream."""
        request = streams_pb2.PlaceStreamRequest(stream_id=stream_id)
        return await self.streams.PlaceStream(request, metadata=self.metadata, timeout=10)


@dataclass(slots=True)
class NodeCaller:
    """A caller of one node, with the fleet's key."""

    node_id: str
    stub: node_pb2_grpc.NodeStub
    metadata: tuple[tuple[str, str], ...]

    async def voices(self) -> set[str]:
        """The ids of the voices that it holds."""
        held: set[str] = set()
        async for page in self.stub.Inventory(node_pb2.InventoryRequest(), metadata=self.metadata, timeout=30):
            held |= {voice.voice_id for voice in page.voices}
        return held


@dataclass(slots=True)
class Callers:
    """Callers of everything."""

    planes: list[Plane]
    nodes: list[NodeCaller]
    turn: itertools.cycle[Plane] = field(init=False)

    def __post_init__(self) -> None:
        self.turn = itertools.cycle(self.planes)

    async def until_held(self, voice_id: str) -> None:
        """Wait until every node holds a voice."""

        async def held(node: NodeCaller) -> None:
            while voice_id not in await node.voices():
                await asyncio.sleep(0.005)

        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(held(node) for node in self.nodes))

    async def until_all_hold(self, wanted: set[str]) -> None:
        """Wait until every node holds just these voices."""
        async with asyncio.timeout(WITHIN_S):
            while not all([await node.voices() == wanted for node in self.nodes]):
                await asyncio.sleep(0.1)


def chord(seconds: float, number: int) -> bytes:
    """A voice to the null engine, another one for each number, as 16-bit samples with pauses."""
    generator = np.random.default_rng(number)
    at = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    bands = generator.choice(np.arange(1, 60), 6, replace=False)
    weights = generator.uniform(0.4, 1.0, 6)
    mixed = sum(
        weight * np.sin(2 * np.pi * (125.0 * band + 62.5) * at + generator.uniform(0, 6))
        for band, weight in zip(bands, weights, strict=True)
    )
    # Pauses, and a little noise in them, as a recording of somebody speaking has.
    sound = 0.05 * np.asarray(mixed) * (at % 1.0 < 0.7) + 2e-4 * generator.standard_normal(len(at))
    return (sound * 32767).astype("<i2").tobytes()


async def callers(fleet: Fleet, stack: AsyncExitStack) -> Callers:
    """Open channels to everything."""
    key = (("authorization", f"Bearer {fleet.token}"),)
    fleet_key = (("authorization", f"Bearer {fleet.fleet_key}"),)

    async def channel(daemon: Daemon) -> aio.Channel:
        return await stack.enter_async_context(open_channel(daemon.grpc))

    planes = []
    for plane in fleet.planes:
        opened = await channel(plane)
        planes.append(Plane(people_pb2_grpc.PeopleStub(opened), streams_pb2_grpc.StreamsStub(opened), key))
    nodes = []
    for daemon in fleet.nodes:
        stub = node_pb2_grpc.NodeStub(await channel(daemon))
        said = await stub.Describe(node_pb2.DescribeRequest(), metadata=fleet_key)
        nodes.append(NodeCaller(said.node_id, stub, fleet_key))
    return Callers(planes, nodes)


async def measure_enrolments(
    to: Callers, count: int, *, at_once: int, sampled: int
) -> tuple[dict[str, object], set[str]]:
    """Enrol many, some at a time; of the last ones, one by one, when all nodes hold them is asked of the nodes."""
    answered: list[float] = []
    on_all_when_answered = 0
    enrolled: set[str] = set()
    numbers = iter(range(count - sampled))

    async def worker() -> None:
        nonlocal on_all_when_answered
        for number in numbers:
            began_s = time.perf_counter()
            answer = await next(to.turn).enrol(number)
            answered.append(time.perf_counter() - began_s)
            enrolled.add(answer.voice.voice_id)
            on_all_when_answered += len(answer.enrolled_on) == len(to.nodes)

    began_s = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    took_s = time.perf_counter() - began_s
    alone: list[float] = []
    fan_out: list[float] = []
    for number in range(count - sampled, count):
        began_s = time.perf_counter()
        answer = await next(to.turn).enrol(number)
        answered_s = time.perf_counter()
        await to.until_held(answer.voice.voice_id)
        alone.append(answered_s - began_s)
        fan_out.append(time.perf_counter() - answered_s)
        enrolled.add(answer.voice.voice_id)
    await to.until_all_hold(enrolled)
    found = {
        "enrolments": len(enrolled),
        "at_once": at_once,
        "enrolments_per_s": round((count - sampled) / took_s, 1) if took_s else 0.0,
        "answered_ms": spread_ms(answered),
        "on_all_nodes_when_answered": round(on_all_when_answered / max(1, len(answered)), 3),
        "alone_answered_ms": spread_ms(alone),
        "alone_answered_to_held_by_all_ms": spread_ms(fan_out),
    }
    return found, enrolled


async def measure_placements(to: Callers, *, rate: float, seconds: float) -> dict[str, object]:
    """Place streams at a steady rate, whatever the answers take, at the control planes in turn."""
    took: list[float] = []
    late: list[float] = []
    failed: list[str] = []

    async def one(due_s: float, plane: Plane) -> None:
        began_s = time.perf_counter()
        late.append(began_s - due_s)
        try:
            placed = await plane.place()
        except aio.AioRpcError as error:
            failed.append(error.code().name)
            return
        took.append(time.perf_counter() - began_s)
        used[placed.node_id] = used.get(placed.node_id, 0) + 1

    used: dict[str, int] = {}
    start_s = time.perf_counter() + 0.1
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(rate * seconds)):
            due_s = start_s + number / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            tasks.create_task(one(due_s, next(to.turn)))
    return {
        "rate_per_s": rate,
        "placements": len(took),
        "failed": sorted(set(failed)),
        "ms": spread_ms(took),
        "asked_late_ms_p99": round(1000 * quantile(late, 0.99), 2),
        "by_node": [used.get(node.node_id, 0) for node in to.nodes],
    }


async def measure_flushes(
    to: Callers, fleet: Fleet, enrolled: set[str], *, flushes: int, streams: int
) -> dict[str, object]:
    """Empty Redis again and again while streams run, people are enrolled and erased, and streams are placed."""
    redis = Redis.from_url(fleet.redis_url)
    stopping = asyncio.Event()
    whole_again: list[float] = []
    wanted = set(enrolled)
    erased: list[float] = []
    place_failures: list[str] = []
    placements = 0

    async def enrolling() -> None:
        number = 1_000_000
        while not stopping.is_set():
            number += 1
            wanted.add((await next(to.turn).enrol(number)).voice.voice_id)

    async def erasing() -> None:
        for voice_id in sorted(enrolled):
            if stopping.is_set():
                return
            began_s = time.perf_counter()
            answer = await next(to.turn).erase(voice_id)
            assert answer.state == people_pb2.Erasure.STATE_ERASED, "an erasure without proof"
            erased.append(time.perf_counter() - began_s)
            wanted.discard(voice_id)
            await asyncio.sleep(0.1)

    async def placing() -> None:
        nonlocal placements
        while not stopping.is_set():
            try:
                await next(to.turn).place()
                placements += 1
            except aio.AioRpcError as error:
                place_failures.append(error.code().name)
            await asyncio.sleep(0.02)

    async def flushing() -> None:
        for _ in range(flushes):
            await asyncio.sleep(2.0)
            await redis.flushall()
            began_s = time.perf_counter()
            async with asyncio.timeout(WITHIN_S):
                while not await is_whole(redis, {node.node_id for node in to.nodes}):
                    await asyncio.sleep(0.01)
            whole_again.append(time.perf_counter() - began_s)
        await asyncio.sleep(2.0)
        stopping.set()

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(stream(to, number, stopping)) for number in range(streams)]
        for work in (enrolling, erasing, placing, flushing):
            tasks.create_task(work())
    await to.until_all_hold(wanted)
    await redis.aclose()
    return {
        "flushes": flushes,
        "registry_whole_again_ms": [round(1000 * took_s) for took_s in whole_again],
        "streams_to_their_end": len([task for task in running if task.result() > 0]),
        "placements": placements,
        "placements_refused": sorted(place_failures),
        "enrolled_meanwhile": len(wanted - enrolled),
        "erased_meanwhile": len(erased),
        "erased_ms": spread_ms(erased),
    }


async def is_whole(redis: Redis, node_ids: set[str]) -> bool:
    """Whether Redis knows every node again, with its load and how far it is."""
    known: Any = await redis.zrange(NODES, 0, -1)
    if {name.decode() for name in known} != node_ids:
        return False
    fields: list[Any] = [
        await redis.hmget(f"{PREFIX}node:{node_id}", "state", "cursor", "streams_max") for node_id in node_ids
    ]
    return all(state == b"serving" and int(cursor) > 0 and int(slots) > 0 for state, cursor, slots in fields)


async def stream(to: Callers, number: int, stopping: asyncio.Event) -> int:
    """A live stream in real time, from its placement to its end: its final turns. Raises when it fails."""
    placed = await next(to.turn).place(f"live-{number}-{secrets.token_hex(4)}")
    sound = chord(60.0, number)

    async def requests() -> AsyncIterator[node_pb2.DiarizeRequest]:
        yield node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(ticket=placed.ticket, stream_id=placed.stream_id))
        began_s = time.perf_counter()
        for at in range(0, len(sound), 6_400):
            if stopping.is_set():
                break
            yield node_pb2.DiarizeRequest(audio=sound[at : at + 6_400])
            await asyncio.sleep(max(0.0, began_s + (at + 6_400) / (2 * RATE_HZ) - time.perf_counter()))
        yield node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish())

    final = 0
    async with open_channel(placed.address) as channel:
        async for answer in node_pb2_grpc.NodeStub(channel).Diarize(requests()):
            if answer.HasField("closed"):
                final = answer.closed.num_final_turns
            assert not answer.HasField("degraded"), "a stream lost its names"
    return final


async def labels_of(placed: streams_pb2.PlaceStreamResponse, sound: bytes) -> set[str]:
    """The labels that a stream ends with, on the node where it was placed."""

    async def requests() -> AsyncIterator[node_pb2.DiarizeRequest]:
        yield node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(ticket=placed.ticket, stream_id=placed.stream_id))
        for at in range(0, len(sound), 32_000):
            yield node_pb2.DiarizeRequest(audio=sound[at : at + 32_000])
        yield node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish())

    async with open_channel(placed.address) as channel:
        call = node_pb2_grpc.NodeStub(channel).Diarize(requests(), timeout=60)
        return {
            speaker.label async for answer in call if answer.HasField("closed") for speaker in answer.closed.speakers
        }


def spread_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th, 99th percentile and worst, milliseconds."""
    if not seconds:
        return {}
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * quantile(seconds, share), 2) for name, share in named.items()}


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Everything, one after the other."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(running_fleet(planes=options.planes, nodes=options.nodes))
        to = await callers(fleet, stack)
        enrolments, enrolled = await measure_enrolments(
            to, options.enrolments, at_once=options.at_once, sampled=min(options.sampled, options.enrolments)
        )
        placements = await measure_placements(to, rate=options.rate, seconds=options.seconds)
        flushes = await measure_flushes(to, fleet, enrolled, flushes=options.flushes, streams=options.streams)
        for node in fleet.nodes:
            assert "torch" not in loaded_libraries(node), "a node with the null engine has loaded torch"
        return {
            "nodes": options.nodes,
            "control_planes": options.planes,
            "enrolments": enrolments,
            "placements": placements,
            "flushall_under_load": flushes,
        }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--planes", type=int, default=2)
    parser.add_argument("--enrolments", type=int, default=1_000)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--sampled", type=int, default=100, help="of them enrolled alone, to time the fan-out of one")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--flushes", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(parse())), indent=1))

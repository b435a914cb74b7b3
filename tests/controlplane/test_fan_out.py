"""How nodes come to know of an enrolment, with several control planes and without waiting for the slow."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from controlplane.app import ControlPlane
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import World, until
from tests.faults.figures import Figures


@pytest.fixture
async def shared_world(tmp_path: Path, postgresql_url: str) -> AsyncIterator[World]:
    """Where several control planes meet: over PostgreSQL, for SQLite belongs to one process."""
    async with AsyncExitStack() as stack:
        yield World(tmp_path / "data", stack, postgresql_url)


async def two_planes(world: World) -> tuple[ControlPlane, ControlPlane]:
    # A push that is given up under load and repeated would be counted twice.
    first = await world.plane(push_timeout_s=10.0)
    assert first._redis is not None
    return first, await world.plane(redis_url=first._redis.url, push_timeout_s=10.0)


async def test_each_control_plane_tells_the_nodes_that_talk_to_it_and_nobody_twice(shared_world: World) -> None:
    first, second = await two_planes(shared_world)
    near, far = await shared_world.node(first, "near"), await shared_world.node(second, "far")
    client = await shared_world.client(first)

    async def known() -> bool:
        return {view.node_id for view in await second.core.registry.nodes()} == {"near", "far"}

    await until(known)
    voices = set()
    for number in range(3):
        answer = await client.enrol(f"P{number}", seed=number)
        assert {"far", "near"} >= set(answer.enrolled_on) != set()
        assert answer.voice.state == people_pb2.Voice.STATE_READY
        voices.add(("default", answer.voice.voice_id))
    await until(lambda: near.voices.keys() == far.voices.keys() == voices)
    # Fewer, where one was slow and read the rest by itself; never more.
    assert 1 <= near.enrolments <= 3
    assert 1 <= far.enrolments <= 3


async def test_without_redis_the_nodes_of_other_control_planes_hear_of_it_all_the_same(shared_world: World) -> None:
    first, second = await two_planes(shared_world)
    await shared_world.node(first, "near")
    far = await shared_world.node(second, "far")
    assert first._redis is not None and first._redis.pid is not None
    os.kill(first._redis.pid, signal.SIGSTOP)
    try:
        answer = await (await shared_world.client(first)).enrol("Ada")
        assert "near" in answer.enrolled_on
        await until(lambda: ("default", answer.voice.voice_id) in far.voices)
    finally:
        os.kill(first._redis.pid, signal.SIGCONT)


@pytest.mark.fault("F5", "P5")
async def test_an_enrolment_waits_but_a_moment_for_a_node_that_is_frozen(world: World, figures: Figures) -> None:
    plane = await world.plane(node_lease_s=8.0, lease_s=9.0)
    client = await world.client(plane)
    await world.node(plane, "a")
    frozen = await world.node(plane, "b")
    await client.enrol("warm-up", seed=9)
    frozen.freeze()
    began_s = time.monotonic()
    answer = await client.enrol("Ada")
    figures.record("an enrolment beside a frozen node is answered in", time.monotonic() - began_s)
    assert list(answer.enrolled_on) == ["a"]
    assert answer.voice.state == people_pb2.Voice.STATE_READY
    frozen.thaw()
    thawed_s = time.monotonic()
    await until(lambda: ("default", answer.voice.voice_id) in frozen.voices)
    figures.record("thawed, it has the voice after", time.monotonic() - thawed_s)


async def test_a_node_that_fell_behind_reads_the_rest_in_one_go(world: World) -> None:
    plane = await world.plane(node_lease_s=18.0, lease_s=19.0)
    client = await world.client(plane)
    await world.node(plane, "a")
    behind = await world.node(plane, "b")
    behind.freeze()
    await asyncio.gather(*(client.enrol(f"P{number}", seed=number) for number in range(8)))
    pushed_before = behind.enrolments
    behind.thaw()
    await until(lambda: len(behind.voices) == 8)
    assert behind.enrolments - pushed_before <= 3

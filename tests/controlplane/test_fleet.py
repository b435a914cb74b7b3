"""Leases and the log: who may hold voices, and how nodes come to hold the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest
from grpc import aio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database, locked_head, open_database
from controlplane.leases import SqlTables
from runtime.clock import SystemClock
from runtime.errors import Unavailable
from speakerd.v1 import fleet_pb2, node_pb2, people_pb2
from tests.controlplane.conftest import HASTY, WAIT_MS, World, until


async def status_of(call: object) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as refused:
        await call  # type: ignore[misc]
    return refused.value.code()


async def test_the_first_renewal_gives_an_incarnation_and_later_ones_prolong_it(any_world: World) -> None:
    plane = await any_world.plane()
    node = await any_world.node(plane, renew=False)
    first = await node.renew_once()
    assert first.incarnation == 1
    assert (first.lease_ms, first.renew_ms) == (9_000, 200)
    assert len(first.ticket_keys[0]) == 32
    (before,), _ = await plane.core.fleet.holders()
    await node.renew_once()
    (after,), _ = await plane.core.fleet.holders()
    assert after.deadline_s > before.deadline_s
    assert after.incarnation == before.incarnation


@pytest.mark.fault("F5", "P3")
async def test_a_lapsed_incarnation_never_renews_again(any_world: World) -> None:
    plane = await any_world.plane(**HASTY)
    node = await any_world.node(plane, renew=False)
    await node.renew_once()

    async def is_fenced() -> bool:
        return (await plane.core.fleet.holders())[0] == []

    await until(is_fenced)
    assert await status_of(node.renew_once()) is grpc.StatusCode.FAILED_PRECONDITION
    node.incarnation = 0
    assert (await node.renew_once()).incarnation == 2


@pytest.mark.fault("F20", "P1")
async def test_a_second_process_under_a_living_nodes_id_is_refused(any_world: World) -> None:
    plane = await any_world.plane()
    first = await any_world.node(plane)
    second = await any_world.node(plane, renew=False)
    assert await status_of(second.renew_once()) is grpc.StatusCode.ALREADY_EXISTS
    await first.renew_once()
    second.incarnation = first.incarnation
    assert await status_of(second.renew_once()) is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.fault("F20", "P1")
async def test_a_frozen_nodes_id_is_not_given_away_while_its_lease_lasts(world: World) -> None:
    plane = await world.plane()
    first = await world.node(plane)
    first.freeze()
    second = await world.node(plane, renew=False)
    assert await status_of(second.renew_once()) is grpc.StatusCode.ALREADY_EXISTS


async def test_the_successor_of_a_killed_node_is_let_in_at_once_and_the_old_lease_still_waited_for(
    any_world: World,
) -> None:
    plane = await any_world.plane()
    first = await any_world.node(plane)
    await first.stop()
    second = await any_world.node(plane, renew=False)
    await second.renew_once()
    holders, _ = await plane.core.fleet.holders()
    assert [(lease.incarnation, lease.superseded) for lease in holders] == [(1, True), (2, False)]
    assert [lease.incarnation for lease in await plane.core.fleet.serving()] == []


async def test_a_node_that_says_it_has_wiped_itself_is_waited_for_no_more(any_world: World) -> None:
    plane = await any_world.plane()
    node = await any_world.node(plane, renew=False)
    await node.renew_once()
    node.state = node_pb2.NODE_STATE_FENCED
    assert (await node.renew_once()).lease_ms == 0
    holders, _ = await plane.core.fleet.holders()
    assert holders == []


async def test_only_the_fleet_key_opens_the_fleet_service(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane, renew=False)
    node.metadata = client.metadata
    assert await status_of(node.renew_once()) is grpc.StatusCode.UNAUTHENTICATED
    assert await status_of(node.beat_once()) is grpc.StatusCode.UNAUTHENTICATED
    assert await status_of(node.sync()) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_new_node_gets_a_snapshot_and_one_that_was_away_the_log_after_its_cursor(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    old = await any_world.node(plane)
    voices = [(await client.enrol(f"P{index}", seed=index)).voice.voice_id for index in range(3)]
    await client.erase(voices[0], wait_ms=WAIT_MS)
    old_cursor = old.cursor
    assert old_cursor == 4
    new = await any_world.node(plane, "node-2")
    assert new.cursor == old_cursor
    assert new.voices == old.voices
    assert sorted(voice_id for _, voice_id in new.voices) == sorted(voices[1:])
    # From a cursor in the middle: every revision comes, in order, also those that something newer has overtaken.
    request = fleet_pb2.SyncRequest(node_id="node-1", incarnation=old.incarnation, cursor=0, model="fake@1")
    steps = [step async for step in old.fleet.Sync(request, metadata=old.metadata)]
    assert [step.WhichOneof("message") for step in steps] == ["snapshot_begin", "page", "snapshot_end"]
    request.cursor = 1
    steps = [step async for step in old.fleet.Sync(request, metadata=old.metadata)]
    assert [entry.revision for step in steps for entry in step.entries.entries] == [2, 3, 4]
    assert steps[-1].entries.entries[-1].HasField("evict")


async def test_a_node_of_another_model_holds_nothing_of_voices_without_its_voiceprint(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    other = await world.node(plane, "node-2", model="other@1")
    # The worker makes the missing voiceprint from the kept recording, and then the node holds it.
    await until(lambda: ("default", voice_id) in other.voices)
    voice = await client.get(voice_id)
    assert voice.state == 2


async def test_a_node_that_holds_something_else_is_told_to_start_over(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    node.voices[("default", "v_stray")] = (1, "Stray", b"")
    await until(lambda: node.resyncs > 0)
    await until(lambda: list(node.voices) == [("default", voice_id)])
    settled = node.resyncs
    await asyncio.sleep(0.8)
    assert node.resyncs <= settled + 1


async def test_a_node_that_leaves_an_eviction_unapplied_is_not_prolonged(any_world: World) -> None:
    plane = await any_world.plane(node_lease_s=19.0, lease_s=20.0, hold_s=5.0)  # nobody renews here but the test
    client = await any_world.client(plane)
    node = await any_world.node(plane, renew=False)
    await node.renew_once()
    node.state = node_pb2.NODE_STATE_SERVING
    await node.renew_once()
    voice_id = (await client.enrol("Alice")).voice.voice_id
    node.freeze()
    await client.erase(voice_id)
    assert (await node.renew_once()).lease_ms == 19_000  # a moment is given
    await asyncio.sleep(5.0)
    assert (await node.renew_once()).lease_ms == 0
    node.thaw()
    await node.sync()
    assert (await node.renew_once()).lease_ms == 19_000


async def test_leases_of_an_earlier_run_are_waited_for_in_full(world: World) -> None:
    async with world.running() as plane:
        node = await world.node(plane, renew=False)
        await node.renew_once()
    plane = await world.plane()
    async with plane.core.database.write() as connection:
        # As if the machine had started anew in between, and its clock with it.
        await connection.execute(text("UPDATE node_leases SET deadline_lease_s = 1e12"))
    await plane.stop()
    again = await world.plane()
    (lease,), now_s = await again.core.fleet.holders()
    assert now_s < lease.deadline_s <= now_s + again.settings.lease_s


@pytest.mark.fault("F20", "P1")
async def test_a_request_to_join_that_arrives_late_does_not_end_the_wait_for_the_lease_given_since(
    any_world: World,
) -> None:
    plane = await any_world.plane()  # nobody renews here but the test
    client = await any_world.client(plane)
    node = await any_world.node(plane, renew=False)
    await node.renew_once()
    await node.sync()
    node.state = node_pb2.NODE_STATE_SERVING
    await node.renew_once()
    voice_id = (await client.enrol("Alice")).voice.voice_id
    node.freeze()
    assert (await client.erase(voice_id)).state == people_pb2.Erasure.STATE_ERASING
    # The node's first request, sent before it was given the incarnation that it relies on, and long under way.
    late = fleet_pb2.RenewRequest(
        node_id=node.node_id, process_id=node.process_id, address=node.address, model=node.model
    )
    await node.fleet.Renew(late, metadata=node.metadata)
    assert len(node.voices) == 1
    assert (await client.erase(voice_id, wait_ms=300)).state == people_pb2.Erasure.STATE_ERASING
    assert await status_of(node.renew_once()) is grpc.StatusCode.FAILED_PRECONDITION
    assert (await client.erase(voice_id, wait_ms=WAIT_MS)).state == people_pb2.Erasure.STATE_ERASED


async def test_a_node_that_is_ahead_of_a_log_that_was_cut_back_proves_nothing_and_starts_over(any_world: World) -> None:
    plane = await any_world.plane()  # nobody renews here but the test
    client = await any_world.client(plane)
    node = await any_world.node(plane, renew=False)
    await node.renew_once()
    await node.sync()
    node.state = node_pb2.NODE_STATE_SERVING
    await node.renew_once()
    voice_id = (await client.enrol("Alice")).voice.voice_id
    # As after a restored backup: the node has applied revisions that the log has not given out yet.
    node.cursor = 100
    assert (await client.erase(voice_id, wait_ms=300)).state == people_pb2.Erasure.STATE_ERASING
    assert len(node.voices) == 1
    assert await status_of(node.renew_once()) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_lease_is_not_fenced_while_a_renewal_of_it_is_under_way(any_world: World) -> None:
    plane = await any_world.plane(reconcile_s=60.0, **HASTY)
    fleet, tables = plane.core.fleet, SqlTables(plane.core.database)
    node = await any_world.node(plane, renew=False)
    await node.renew_once()
    await fleet.holders()  # from here on silence is counted

    async def fence_silent() -> list[int]:
        async with tables.write() as rows:
            return [lease.incarnation for lease in await rows.holders() if fleet.watch.is_silent(lease)]

    async with tables.write() as rows:
        lease = await rows.find(node.incarnation)
        assert lease is not None
        await asyncio.sleep(1.3)  # meanwhile the lease runs out
        assert fleet.watch.is_silent(lease)
        fencing = asyncio.create_task(fence_silent())
        await asyncio.sleep(0.3)
        assert not fencing.done()
        await rows.put(replace(lease, renewals=lease.renewals + 1))
    assert await fencing == []


async def test_a_databases_clock_that_is_set_fences_nobody_and_keeps_nobody(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    healthy, silent = await any_world.node(plane, "node-1"), await any_world.node(plane, "node-2")
    voice_id = (await client.enrol("Alice")).voice.voice_id
    right = type(plane.core.database).lease_now_s
    off_s = 0.0

    async def set_clock(database: Database, connection: AsyncConnection) -> float:
        return await right(database, connection) + off_s

    monkeypatch.setattr(Database, "lease_now_s", set_clock)
    off_s = 3600.0
    await asyncio.sleep(0.5)
    assert healthy.refusals == silent.refusals == []
    off_s = -3600.0
    silent.freeze()
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == people_pb2.Erasure.STATE_ERASED
    assert {(outcome.node_id, outcome.ok) for outcome in erasure.nodes} == {("node-1", True), ("node-2", False)}


@pytest.mark.fault("F6", "P10")
async def test_a_control_plane_that_freezes_within_a_transaction_holds_up_the_others_only_for_a_moment(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.database.engine.IDLE_IN_TRANSACTION_S", 4.0)
    frozen, other = [await open_database(postgresql_url, SystemClock(), lease_s=1.2) for _ in range(2)]
    try:
        with pytest.raises(Unavailable):
            async with frozen.write() as connection:
                await locked_head(connection)
                async with asyncio.timeout(60), other.write() as at_work:
                    await locked_head(at_work)
                await connection.execute(text("SELECT 1"))  # it thaws, and its transaction is gone
    finally:
        await frozen.close()
        await other.close()


async def test_channels_to_addresses_that_nobody_holds_are_let_go_past_their_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.nodes.CHANNELS_MAX", 2)
    plane = await world.plane()
    node = await world.node(plane)
    nodes = plane.core.nodes
    for port in range(1, 4):  # nodes that came back elsewhere
        nodes.stub(f"127.0.0.1:{port}")
    nodes.stub(node.address)
    await until(lambda: repr(nodes) == "Nodes(1 channels)")
    assert await nodes.incarnation_at(node.address) == node.incarnation

"""Desired against observed: what nodes hold otherwise than they should is found, counted by kind, and mended."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from sqlalchemy import func, select, update

from controlplane.app import ControlPlane
from controlplane.database.schema import data_keys, fleet_log
from controlplane.desired import Desired
from controlplane.drift import compare, compare_counts
from controlplane.holdings import Step, Told
from controlplane.keys import VoiceAddress
from runtime.errors import Unavailable
from runtime.voice_digest import VoiceDigest
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import WAIT_MS, Client, World, until
from tests.controlplane.fake_node import FakeNode

A, B, C = (VoiceAddress("t", name) for name in "abc")


def digest_of(*held: tuple[VoiceAddress, int]) -> bytes:
    digest = VoiceDigest()
    for voice, generation in held:
        digest.add(voice.tenant_id, voice.voice_id, generation)
    return digest.value()


def told(voice: VoiceAddress, generation: int = 0, *models: str) -> Told:
    return Told(voice, generation, models)


def test_what_a_node_should_hold_is_known_at_each_revision_that_was_followed() -> None:
    desired = Desired()
    desired.include([told(A, 1, "m"), told(B, 2, "m", "n")])
    desired.begin(10)
    assert desired.follow(Step(11, told(C), told(C, 1, "m")))
    assert desired.follow(Step(12, told(B, 2, "m", "n"), told(B, 3, "m")))  # enrolled anew, heard by one model so far
    assert desired.follow(Step(13, told(B, 3, "m"), told(B, 3, "m", "n")))
    assert desired.follow(Step(14, told(A, 1, "m"), told(A, 2)))  # evicted
    expected = {
        ("m", 10): ((A, 1), (B, 2)),
        ("m", 11): ((A, 1), (B, 2), (C, 1)),
        ("m", 13): ((A, 1), (B, 3), (C, 1)),
        ("m", 14): ((B, 3), (C, 1)),
        ("n", 11): ((B, 2),),
        ("n", 12): (),
        ("n", 14): ((B, 3),),
    }
    for (model, revision), held in expected.items():
        holds = desired.at(model, revision)
        assert holds is not None
        assert (holds.digest, holds.num_voices) == (digest_of(*held), len(held)), (model, revision)
    assert desired.at("m", 9) is None
    assert desired.at("m", 15) is None
    assert not desired.follow(Step(16, told(A), told(A)))  # one is missing before it


def test_what_differs_is_told_by_kind() -> None:
    found = compare({A: 1, B: 2}, {B: 1, C: 1})
    assert found.by_kind() == {"missing": 1, "extra": 1, "stale_generation": 1}
    assert not found.is_only_missing
    assert compare({A: 1}, {}).is_only_missing
    assert compare({A: 1}, {A: 1}).by_kind() == {"wrong_digest": 1}
    assert compare_counts(5, 3).by_kind() == {"missing": 2}
    assert compare_counts(3, 5).by_kind() == {"extra": 2}
    assert compare_counts(3, 3).by_kind() == {"wrong_digest": 1}


def drift(plane: ControlPlane, kind: str) -> float:
    return plane.metrics.reconcile_drift.labels(kind)._value.get()


async def is_warm(client: Client, voice_id: str) -> bool:
    warm = await client.people.GetWarm(people_pb2.GetWarmRequest(voice_id=voice_id), metadata=client.metadata)
    return list(warm.warm_node_ids) == ["node-1"] and not warm.outcomes


async def enrolled(world: World, number: int = 3) -> tuple[ControlPlane, Client, FakeNode, list[str]]:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane)
    voices = [(await client.enrol(f"P{index}", seed=index)).voice.voice_id for index in range(number)]
    await until(lambda: len(node.voices) == number)
    return plane, client, node, voices


async def test_a_voice_that_a_node_lost_is_sent_again_without_the_node_starting_over(any_world: World) -> None:
    plane, client, node, voices = await enrolled(any_world)
    lost = node.voices.pop(("default", voices[1]))

    async def is_doubted() -> bool:
        request = people_pb2.GetWarmRequest(voice_id=voices[0])
        warm = await client.people.GetWarm(request, metadata=client.metadata)
        return [outcome.error for outcome in warm.outcomes if "repaired" in outcome.error] != []

    await until(is_doubted)
    await until(lambda: node.voices.get(("default", voices[1])) == lost)
    assert (drift(plane, "missing"), drift(plane, "extra")) == (1, 0)
    assert node.resyncs == 0
    await until(lambda: is_warm(client, voices[1]))


async def test_a_voice_that_does_not_open_keeps_no_other_from_the_nodes(any_world: World) -> None:
    plane, client, node, voices = await enrolled(any_world)
    async with plane.core.database.write() as connection:
        damaged = update(data_keys).where(data_keys.c.voice_id == voices[2]).values(wrapped=bytes(60))
        await connection.execute(damaged)
    late = await any_world.node(plane, "node-2")  # reads a snapshot
    assert {voice_id for _, voice_id in late.voices} == set(voices[:2])
    await late.stop()
    # Pushed, and read from the log.
    await plane.core.library.warm(VoiceAddress("default", voices[0]), ("node-1",))
    other = (await client.enrol("Other", seed=9)).voice.voice_id
    await until(lambda: ("default", other) in node.voices)
    assert (await client.erase(voices[2], wait_ms=WAIT_MS)).state == people_pb2.Erasure.STATE_ERASED
    assert ("default", voices[2]) not in node.voices


async def test_a_node_to_which_nothing_could_be_sent_again_is_mended_otherwise(world: World) -> None:
    plane, client, node, voices = await enrolled(world)

    async def away(_voice: VoiceAddress, _node_ids: tuple[str, ...]) -> object:
        raise Unavailable("the database is away")

    plane.core.reconciler._resend = away
    lost = node.voices.pop(("default", voices[1]))
    await until(lambda: node.voices.get(("default", voices[1])) == lost)
    assert node.resyncs == 1
    await until(lambda: is_warm(client, voices[1]))


@pytest.mark.parametrize("kind", ["extra", "stale_generation"])
async def test_a_node_that_holds_what_it_should_not_reads_all_anew(any_world: World, kind: str) -> None:
    plane, client, node, voices = await enrolled(any_world)
    before = dict(node.voices)
    key = ("default", "v_stray" if kind == "extra" else voices[0])
    node.voices[key] = (7, "Stray", b"")
    await until(lambda: node.resyncs == 1)
    await until(lambda: node.voices == before)
    assert drift(plane, kind) == 1
    await until(lambda: is_warm(client, voices[1]))
    await asyncio.sleep(0.8)
    assert (node.resyncs, drift(plane, kind)) == (1, 1)


async def test_a_node_whose_digest_is_wrong_though_its_voices_are_right_is_mended_ever_more_rarely(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.reconciler.AGAIN_FIRST_S", 1.5)
    plane, _, node, _ = await enrolled(world)
    node.digest_flaw = b"\x01"
    await until(lambda: node.resyncs == 1)
    assert drift(plane, "wrong_digest") == 1
    await asyncio.sleep(1.0)
    assert node.resyncs == 1
    await until(lambda: node.resyncs == 2)


async def test_a_node_that_is_ahead_of_the_log_is_counted_and_starts_over(world: World) -> None:
    plane, _, node, _ = await enrolled(world)
    node.cursor = 100
    await until(lambda: grpc.StatusCode.FAILED_PRECONDITION in node.refusals)
    assert drift(plane, "ahead") == 1
    await until(lambda: len(node.voices) == 3 and node.cursor == 3)


async def test_enrolments_in_a_rush_are_no_drift(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    nodes = [await any_world.node(plane, f"node-{index}") for index in range(2)]
    other = await any_world.node(plane, "node-other", model="other@1")
    for start in range(0, 12, 6):
        await asyncio.gather(*(client.enrol(f"P{index}", seed=index) for index in range(start, start + 6)))
    await until(lambda: all(len(node.voices) == 12 for node in (*nodes, other)), 30)
    await asyncio.sleep(0.8)
    assert [node.resyncs for node in (*nodes, other)] == [0, 0, 0]


async def test_the_log_is_trimmed_below_what_all_have_applied_and_who_is_behind_gets_a_snapshot(
    any_world: World,
) -> None:
    plane = await any_world.plane(log_entries_kept=2)
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    late = await any_world.node(plane, "node-2")
    voices = [(await client.enrol(f"P{index}", seed=index)).voice.voice_id for index in range(5)]

    async def kept() -> int:
        async with plane.core.database.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(fleet_log))).scalar_one())

    async def is_trimmed() -> bool:
        return await kept() == 2

    await until(is_trimmed)
    late.cursor = 1
    late.voices.clear()
    await late.sync()
    assert late.voices == node.voices
    erasure = await client.erase(voices[0], wait_ms=WAIT_MS)
    assert erasure.state == people_pb2.Erasure.STATE_ERASED
    assert ("default", voices[0]) not in late.voices

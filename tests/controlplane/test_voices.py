"""Voices from enrolment to erasure, over each database, with nodes that speak the contract."""

from __future__ import annotations

import grpc
import pytest
from grpc import aio

from controlplane.identity import add_key, new_key
from runtime.clock import SystemClock
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import WAIT_MS, World, speech, until, wav
from tests.controlplane.fake_node import embedding_of

READY = people_pb2.Voice.STATE_READY
PENDING = people_pb2.Voice.STATE_PENDING


async def test_an_enrolled_voice_is_held_by_every_node_when_it_is_answered(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    nodes = [await any_world.node(plane, name) for name in ("node-1", "node-2")]
    answer = await client.enrol("Alice", data=wav(speech()), container=True)
    assert answer.voice.state == READY
    assert sorted(answer.enrolled_on) == ["node-1", "node-2"]
    assert answer.analysis.num_speakers == 1
    assert answer.preflight.sample_rate_hz == 16_000
    for node in nodes:
        ((generation, label, embedding),) = node.voices.values()
        assert (generation, label) == (1, "Alice")
        assert len(embedding) == len(embedding_of(b""))
    assert [voice.label for voice in (await client.list()).voices] == ["Alice"]


async def test_a_voice_enrolled_with_no_node_waits_and_becomes_ready_by_itself(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    answer = await client.enrol("Alice")
    assert answer.voice.state == PENDING
    assert "no node is online" in answer.note
    assert not answer.HasField("analysis")
    node = await any_world.node(plane)

    async def ready() -> bool:
        return (await client.get(answer.voice.voice_id)).state == READY

    await until(ready)
    assert [label for _, label, _ in node.voices.values()] == ["Alice"]


async def test_an_erased_voice_leaves_every_node_and_is_proven(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == people_pb2.Erasure.STATE_ERASED
    assert [(outcome.node_id, outcome.ok) for outcome in erasure.nodes] == [("node-1", True)]
    assert not erasure.residual_node_ids
    assert node.voices == {}
    voice = await client.get(voice_id)
    assert (voice.state, voice.label, voice.generation) == (people_pb2.Voice.STATE_ERASED, "", 2)
    assert not (await client.list()).voices
    again = await client.erase(voice_id)
    assert again.audit_id == erasure.audit_id
    with pytest.raises(aio.AioRpcError) as refused:
        await client.enrol("Alice", voice_id=voice_id)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_enrolling_anew_replaces_the_voice_in_place(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    first = await client.enrol("Alice", seed=1)
    (before,) = node.voices.values()
    second = await client.enrol("Alice B", seed=2, voice_id=first.voice.voice_id)
    assert second.voice.generation == 2
    assert second.voice.state == READY
    ((generation, label, embedding),) = node.voices.values()
    assert (generation, label) == (2, "Alice B")
    assert embedding != before[2]
    assert len(list((any_world.data / "blobs" / "samples").iterdir())) == 1


async def test_enrolling_anew_without_a_node_leaves_the_voice_as_it_is(world: World) -> None:
    async with world.running() as plane:
        client = await world.client(plane)
        await world.node(plane)
        voice_id = (await client.enrol("Alice")).voice.voice_id
    plane = await world.plane(node_lease_s=0.3, lease_s=0.4)
    client = await world.client(plane)

    async def nobody_serves() -> bool:
        return not await plane.core.fleet.serving()

    await until(nobody_serves)
    with pytest.raises(aio.AioRpcError) as refused:
        await client.enrol("Alice B", seed=2, voice_id=voice_id)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    voice = await client.get(voice_id)
    assert (voice.label, voice.generation, voice.state) == ("Alice", 1, READY)


async def test_a_repeated_request_gives_the_first_answer_and_a_changed_one_is_refused(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    first = await client.enrol("Alice", key="k1")
    again = await client.enrol("Alice", key="k1")
    assert again.voice.voice_id == first.voice.voice_id
    assert len((await client.list()).voices) == 1
    with pytest.raises(aio.AioRpcError) as refused:
        await client.enrol("Bob", key="k1")
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("label", ["", "  ", "spk_0", "SPEAKER_01", "speaker 1", "a\nb", "x" * 201])
async def test_a_label_that_would_mislead_is_refused(world: World, label: str) -> None:
    client = await world.client(await world.plane())
    with pytest.raises(aio.AioRpcError) as refused:
        await client.enrol(label)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "label" in (refused.value.details() or "")
    assert not (await client.list()).voices


async def test_lists_come_in_pages_and_by_label(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    for index in range(5):
        await client.enrol(f"P{index % 2}", seed=index)
    seen: list[str] = []
    token = ""
    while True:
        page = await client.list(page_size=2, page_token=token)
        assert len(page.voices) <= 2
        seen += [voice.voice_id for voice in page.voices]
        token = page.next_page_token
        if not token:
            break
    assert len(set(seen)) == len(seen) == 5
    assert [voice.label for voice in (await client.list(label="P1")).voices] == ["P1", "P1"]
    with pytest.raises(aio.AioRpcError) as refused:
        await client.list(page_size=201)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_warm_says_who_holds_a_voice_and_sends_it_again(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    metadata = client.metadata
    warm = await client.people.GetWarm(people_pb2.GetWarmRequest(voice_id=voice_id), metadata=metadata)
    assert (list(warm.warm_node_ids), list(warm.candidate_node_ids)) == (["node-1"], ["node-1"])
    request = people_pb2.WarmVoiceRequest(voice_id=voice_id, node_ids=["node-1", "node-9"])
    warm = await client.people.WarmVoice(request, metadata=metadata)
    assert [(outcome.node_id, outcome.ok) for outcome in warm.outcomes] == [("node-1", True), ("node-9", False)]
    await node.stop()

    async def stale() -> bool:
        warm = await client.people.GetWarm(people_pb2.GetWarmRequest(voice_id=voice_id), metadata=metadata)
        return list(warm.stale_node_ids) == ["node-1"] and not warm.warm_node_ids

    await until(stale)


async def test_a_key_reaches_no_further_than_its_scopes(world: World) -> None:
    plane = await world.plane()
    key = new_key()
    async with plane.core.database.write() as connection:
        await add_key(connection, key, "default", frozenset({"voices:read"}), SystemClock())
    reader = await world.client(plane, key)
    assert not (await reader.list()).voices
    with pytest.raises(aio.AioRpcError) as refused:
        await reader.enrol("Alice")
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    for token in ("sk_x_y", "", f"{key}x", key.replace("_", "-")):
        stranger = await world.client(plane, token or "none")
        with pytest.raises(aio.AioRpcError) as refused:
            await stranger.list()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

"""Voices from enrolment to erasure, over each database, with nodes that speak the contract."""

from __future__ import annotations

import grpc
import pytest
from grpc import aio

from speakerd.v1 import people_pb2
from tests.controlplane.conftest import World, speech, until, wav
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
    erasure = await client.erase(voice_id, wait_ms=5_000)
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

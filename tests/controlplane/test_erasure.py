"""Erasure: what is waited for, what is left, and what is gone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import aio
from sqlalchemy import text

from controlplane import audit, completion, erasure_work
from controlplane.completion import _waiting
from controlplane.database import engine
from controlplane.holdings import Print
from controlplane.identity import add_key, new_key
from controlplane.nodes import Analysis
from controlplane.scopes import ADMIN
from runtime.clock import SystemClock
from runtime.errors import NotFound, Unavailable
from speakerd.v1 import node_pb2, people_pb2, streams_pb2
from tests.controlplane.conftest import WAIT_MS, Client, World, speech, until, wav
from tests.controlplane.fake_node import embedding_of
from tests.faults.figures import Figures

ERASING = people_pb2.Erasure.STATE_ERASING
ERASED = people_pb2.Erasure.STATE_ERASED


@pytest.mark.fault("F3", "P2")
async def test_an_erasure_waits_for_a_silent_node_until_its_lease_has_run_out(
    any_world: World, figures: Figures
) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    healthy, silent = await any_world.node(plane, "node-1"), await any_world.node(plane, "node-2")
    voice_id = (await client.enrol("Alice")).voice.voice_id
    silent.freeze()
    began_s = time.monotonic()
    erasure = await client.erase(voice_id, wait_ms=300)
    assert erasure.state == ERASING
    assert healthy.voices == {}
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == ERASED
    assert time.monotonic() - began_s > plane.settings.node_lease_s - 1.0
    figures.record("proven after", time.monotonic() - began_s)
    assert {(outcome.node_id, outcome.ok) for outcome in erasure.nodes} == {("node-1", True), ("node-2", False)}
    assert list(erasure.residual_node_ids) == ["node-2"]
    # It comes back: fenced, it has to start over, and holds nothing of before.
    silent.thaw()
    await until(lambda: grpc.StatusCode.FAILED_PRECONDITION in silent.refusals)
    await until(lambda: silent.incarnation > 2 and silent.cursor == healthy.cursor)
    assert silent.voices == {}


async def test_a_node_that_joins_after_the_erasure_is_not_waited_for(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    silent = await world.node(plane, "node-1")
    voice_id = (await client.enrol("Alice")).voice.voice_id
    silent.freeze()
    await client.erase(voice_id)
    await asyncio.sleep(1.0)  # so that its lease outlasts the other one by more than a moment
    joining = await world.node(plane, "node-2", renew=False)
    await joining.renew_once()
    # It has a lease and has synced nothing, and still counts as clean: it held nothing when it joined.
    joining.freeze()
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert {(outcome.node_id, outcome.ok) for outcome in erasure.nodes} == {("node-1", False), ("node-2", True)}


@pytest.mark.fault("F3", "P1")
async def test_a_node_that_read_the_log_and_never_said_so_is_named_as_residual(
    any_world: World, figures: Figures
) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    gone = await any_world.node(plane, "node-0", renew=False)
    await gone.renew_once()
    gone.state = node_pb2.NODE_STATE_FENCED
    await gone.renew_once()  # it gives its lease back before the voice is enrolled
    await any_world.node(plane, "node-1")
    silent = await any_world.node(plane, "node-2", renew=False)
    await silent.renew_once()
    voice_id = (await client.enrol("Alice")).voice.voice_id
    await silent.sync()
    assert len(silent.voices) == 1
    silent.freeze()
    began_s = time.monotonic()
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == ERASED
    figures.record("proven after", time.monotonic() - began_s)
    assert list(erasure.residual_node_ids) == ["node-2"]


async def test_an_interrupted_erasure_goes_on_after_a_restart(any_world: World) -> None:
    async with any_world.running() as plane:
        client = await any_world.client(plane)
        node = await any_world.node(plane)
        voice_id = (await client.enrol("Alice")).voice.voice_id
        node.freeze()
        erasure = await client.erase(voice_id)
        assert erasure.state == ERASING
    plane = await any_world.plane()
    client = await any_world.client(plane)

    async def erased() -> bool:
        answer = await client.people.GetErasure(
            people_pb2.GetErasureRequest(audit_id=erasure.audit_id), metadata=client.metadata
        )
        return answer.state == ERASED

    await until(erased)
    node.thaw()
    assert list((any_world.data / "blobs").rglob("*")) == [any_world.data / "blobs" / "samples"]


async def test_another_tenants_voice_is_not_found_like_one_that_never_was(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    erased_id = (await client.enrol("Bob", seed=1)).voice.voice_id
    voice_id = (await client.enrol("Alice")).voice.voice_id
    erasure = await client.erase(erased_id, wait_ms=WAIT_MS)
    key = new_key()
    async with plane.core.database.write() as connection:
        await connection.execute(text("INSERT INTO tenants (tenant_id, created_at_s) VALUES ('other', 0)"))
        await add_key(connection, key, "other", frozenset({ADMIN}), SystemClock())
    other = await any_world.client(plane, key)

    async def refusal(client: Client, voice_id: str, audit_id: str) -> set[tuple[grpc.StatusCode, str | None]]:
        people = client.people
        calls = (
            people.GetVoice(people_pb2.GetVoiceRequest(voice_id=voice_id), metadata=client.metadata),
            people.GetWarm(people_pb2.GetWarmRequest(voice_id=voice_id), metadata=client.metadata),
            people.WarmVoice(people_pb2.WarmVoiceRequest(voice_id=voice_id), metadata=client.metadata),
            people.EraseVoice(people_pb2.EraseVoiceRequest(voice_id=voice_id), metadata=client.metadata),
            client.enrol("Mallory", voice_id=voice_id),
            people.GetErasure(people_pb2.GetErasureRequest(audit_id=audit_id), metadata=client.metadata),
        )
        seen = set()
        for call in calls:
            with pytest.raises(aio.AioRpcError) as refused:
                await call
            seen.add((refused.value.code(), refused.value.details()))
        return seen

    assert await refusal(other, voice_id, erasure.audit_id) == await refusal(other, "v_never", "e_never")
    assert not (await other.list()).voices
    assert len(node.voices) == 1
    assert (await client.get(voice_id)).label == "Alice"


async def test_what_no_id_can_be_is_refused_without_a_fault_of_ours(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    people, metadata = client.people, client.metadata
    for odd in ("v\0", "\0", "v" * 10_000, "v_\N{SNOWMAN}", "' OR 1=1 --"):
        calls = (
            client.get(odd),
            client.erase(odd),
            client.enrol("Alice", voice_id=odd),
            people.GetErasure(people_pb2.GetErasureRequest(audit_id=odd), metadata=metadata),
            client.streams.PlaceStream(streams_pb2.PlaceStreamRequest(voice_ids=[odd]), metadata=metadata),
            client.streams.PlaceStream(streams_pb2.PlaceStreamRequest(stream_id=odd), metadata=metadata),
        )
        for call in calls:
            with pytest.raises(aio.AioRpcError) as refused:
                await call
            assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), odd
        await client.list(page_token=odd.replace("\0", ""))


def everything_under(data: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file())


async def test_nothing_of_a_voice_lies_in_the_clear_and_nothing_at_all_after_its_erasure(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane)
    label = "Zaphod Canary Beeblebrox"
    sound = speech(7)
    file = wav(sound)
    voice_id = (await client.enrol(label, data=file, container=True, key="enrol-Trillian-1")).voice.voice_id
    await client.enrol("Somebody else", seed=8)
    ((_, _, embedding),) = [held for (_, held_id), held in node.voices.items() if held_id == voice_id]
    samples = np.frombuffer(file[44:], dtype="<i2")
    assert len(embedding) == len(embedding_of(b"")) > 32
    async with plane.core.database.read() as connection:
        wrapped = bytes(
            (
                await connection.execute(text(f"SELECT wrapped FROM data_keys WHERE voice_id = '{voice_id}'"))
            ).scalar_one()
        )
        ciphertexts = [
            bytes(row[0])
            for table, column in (
                ("voices", "label_ciphertext"),
                ("voiceprints", "ciphertext"),
            )
            for row in await connection.execute(text(f"SELECT {column} FROM {table} WHERE voice_id = '{voice_id}'"))
        ]
    secrets = [
        label.encode(),
        b"Alice Fullname",
        b"I agree",
        b"Trillian",
        embedding[:24],
        samples[30_000:30_064].tobytes(),
        file[:400],
    ]
    stored = everything_under(world.data)
    for secret in secrets:
        assert secret not in stored
    # What is there before, so that its absence afterwards says something.
    assert wrapped in stored
    assert all(ciphertext in stored for ciphertext in ciphertexts)
    num_blobs = len(list((world.data / "blobs" / "samples").iterdir()))
    assert num_blobs == 2

    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == ERASED
    await until(lambda: len(list((world.data / "blobs" / "samples").iterdir())) == 1)
    after = everything_under(world.data)
    for secret in [*secrets, wrapped, wrapped[12:44], *ciphertexts]:
        assert secret not in after
    answer = await client.people.GetErasure(
        people_pb2.GetErasureRequest(audit_id=erasure.audit_id), metadata=client.metadata
    )
    assert answer.blob_bytes_deleted > len(file)


async def test_the_audit_tells_of_enrolment_and_erasure_without_naming_anybody(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    async with plane.core.database.read() as connection:
        rows = (await connection.execute(text("SELECT body FROM audit ORDER BY sequence"))).scalars().all()
        verdict = await audit.verify(connection)
    assert [row.split('"action":"')[1].split('"')[0] for row in rows] == [
        "voice.enrolled",
        "erase.requested",
        "erase.completed",
    ]
    assert verdict.broken_at is None
    assert verdict.num_rows == 3
    assert erasure.audit_id in rows[1]
    assert erasure.audit_id in rows[2]
    # Neither in the clear nor as a hash that a list of names would tell.
    agreed = ["Alice Fullname", "test", "I agree"]
    plain = [json.dumps(agreed), "".join(agreed), agreed[0]]
    for row in rows:
        assert not any(hashlib.sha256(text.encode()).hexdigest() in row for text in plain)
        assert "Alice" not in row
        assert voice_id not in row


async def test_a_busy_fleet_erases_many_voices_at_once(world: World) -> None:
    plane = await world.plane(node_lease_s=38.0, lease_s=40.0)
    client = await world.client(plane)
    node = await world.node(plane)
    voices = [(await client.enrol(f"P{index}", seed=index)).voice.voice_id for index in range(8)]
    began_s = time.monotonic()
    erasures = await asyncio.gather(*(client.erase(voice_id, wait_ms=WAIT_MS) for voice_id in voices))
    assert time.monotonic() - began_s < 25  # nobody waits for a lease to end
    assert {erasure.state for erasure in erasures} == {ERASED}
    assert node.voices == {}


@pytest.mark.fault("F14", "P2")
async def test_recordings_that_cannot_be_deleted_hold_up_no_later_erasure(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure_work, "PAGE_ERASURES", 1)
    plane = await any_world.plane()
    client = await any_world.client(plane)

    async def away(_key: str) -> None:
        raise Unavailable("the recordings' store is away")

    plane.core.blobs.delete = away  # type: ignore[method-assign]
    for index in range(2):
        voice_id = (await client.enrol(f"P{index}", seed=index)).voice.voice_id
        erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
        assert (erasure.state, erasure.blobs_pending) == (ERASED, True)


async def test_whoever_waits_for_a_proof_learns_of_it_from_whichever_control_plane_has_it(
    postgresql_url: str, world: World
) -> None:
    world.database_url = postgresql_url
    one = await world.plane()
    assert one._redis is not None
    other = await world.plane(redis_url=one._redis.url)
    await world.node(one)
    there, here = await world.client(one), await world.client(other)
    voices = [(await there.enrol(f"P{index}", seed=index)).voice.voice_id for index in range(4)]
    # Its own worker stands still: the proof is the other's.
    for worker in other._workers:
        if worker.get_name() == "erasures.prove":
            worker.cancel()
    for voice_id in voices:
        began_s = time.monotonic()
        assert (await here.erase(voice_id, wait_ms=WAIT_MS)).state == ERASED
        assert time.monotonic() - began_s < WAIT_MS / 1000 - 5


async def test_a_reader_that_is_in_the_way_of_the_log_delays_its_end_and_does_not_prevent_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 50)
    plane = await world.plane()
    client = await world.client(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    async with plane.core.database.read() as connection:
        wrapped = bytes((await connection.execute(text("SELECT wrapped FROM data_keys"))).scalar_one())
        erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
        assert erasure.state == ERASED
        assert wrapped in everything_under(world.data)
    await until(lambda: wrapped not in everything_under(world.data))


async def test_a_voice_erased_while_it_waits_for_its_voiceprint_stops_nobody(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    completion = plane.core.completion
    async with plane.core.database.read() as connection:
        (waiting,) = await _waiting(connection, "fake@1")
    assert waiting.voice.voice_id == voice_id
    await client.erase(voice_id, wait_ms=WAIT_MS)
    with pytest.raises(NotFound):
        await completion._complete(waiting, "fake@1")


async def test_a_voice_that_cannot_be_completed_keeps_none_from_it(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "PAGE_VOICES", 1)
    monkeypatch.setattr(completion, "RETRY_S", 0.1)
    plane = await any_world.plane()
    client = await any_world.client(plane)
    await client.enrol("Alice")
    for blob in await plane.core.blobs.list():
        await plane.core.blobs.delete(blob.key)
    others = [(await client.enrol(f"P{index}", seed=index)).voice.voice_id for index in (1, 2)]
    await any_world.node(plane)

    async def are_ready() -> bool:
        return all([(await client.get(one)).state == people_pb2.Voice.STATE_READY for one in others])

    await until(are_ready)


async def test_a_voiceprint_that_another_control_plane_has_made_meanwhile_is_not_made_twice(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    await client.enrol("Alice")
    completion = plane.core.completion
    async with plane.core.database.read() as connection:
        (waiting,) = await _waiting(connection, "fake@1")
    heard = Analysis(Print("fake@1", embedding_of(b"Alice"), 4_000), 4_000, 4_000, 1, 0.9, ())
    assert await completion._place(waiting, heard)
    assert not await completion._place(waiting, heard)

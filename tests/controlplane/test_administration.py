"""Tenants, users and keys, as their administrators see them; quotas; the key that wraps all others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from sqlalchemy import select, update

from controlplane.config import ControlPlaneSettings
from controlplane.database.engine import locked_head
from controlplane.database.schema import api_keys, audit, data_keys, users, voices, wrapped_secrets
from controlplane.identity import token_of
from controlplane.kek import FileKek, GivenKek, kek_source
from controlplane.policy import Principal
from controlplane.scopes import PLATFORM, expand
from controlplane.strangers import seal_strangers
from controlplane.tenant_keys import TenantKeys
from runtime.clock import SteppedClock, SystemClock
from runtime.errors import Conflict, Denied, InvalidRequest, NotFound, Overloaded, Unauthenticated, Unavailable
from runtime.speaker_token import HeardSpeaker, SpeakerSeal
from speakerd.administration import Administration, timestamp
from speakerd.errors import SpeakerdError
from speakerd.v1 import admin_pb2, common_pb2, node_pb2, people_pb2
from tests.controlplane.conftest import World, speech, until
from tests.controlplane.fake_node import embedding_of
from tests.controlplane.people import Library, make_key, make_tenant

CONSENT = people_pb2.Consent(full_name="Ada Lovelace", purpose="meetings", text="I agree")


async def root_of(world: World) -> str:
    return (world.data / "admin.key").read_text().strip()


async def refused(awaiting: Any) -> str:
    with pytest.raises(SpeakerdError) as error:
        await awaiting
    return error.value.cause


async def test_a_tenant_its_users_and_keys_from_beginning_to_end(any_world: World) -> None:
    plane = await any_world.plane()
    library = Library(plane)
    async with Administration(plane.grpc_address, await root_of(any_world)) as root:
        made = await root.create_tenant("acme", admin_pb2.Quotas(voices_max=2))
        assert (made.tenant_id, made.quotas.voices_max, made.voices) == ("acme", 2, 0)
        assert await refused(root.create_tenant("acme")) == "conflict"
        assert await refused(root.create_tenant("a/b")) == "invalid"
        assert await refused(root.create_tenant("global")) == "conflict"
        first = await root.create_key(admin_pb2.CreateKeyRequest(tenant_id="acme", scopes=["admin"]))
    async with Administration(plane.grpc_address, first.secret) as admin:
        assert [tenant.tenant_id for tenant in await admin.tenants()] == ["acme"]
        await admin.create_user("u1")
        request = admin_pb2.CreateKeyRequest(user_id="u1", scopes=["voice.read", "voice.write"], purpose="app")
        user = await admin.create_key(request)
        for wrong in ({"scopes": ["platform:admin"]}, {"scopes": ["admin"], "tenant_id": "default"}):
            assert await refused(admin.create_key(admin_pb2.CreateKeyRequest(**wrong))) in ("denied", "not_found")
        assert await refused(admin.create_key(admin_pb2.CreateKeyRequest(scopes=["everything"]))) == "invalid"
        assert await refused(admin.create_key(admin_pb2.CreateKeyRequest(user_id="u9", scopes=["admin"]))) == (
            "not_found"
        )
        own = await library.enrol(user.secret, label="Mine", scope=people_pb2.VOICE_SCOPE_USER)
        assert own.voice.owner_user_id == "u1"
        await library.enrol(first.secret, label="Ours")
        with pytest.raises(Overloaded, match="2 voices"):
            await library.enrol(first.secret, label="Third")
        assert (await admin.tenants())[0].voices == 2
        audit_ids = await admin.delete_user("u1")
        assert len(audit_ids) == 1
        with pytest.raises(aio.AioRpcError) as stranger:
            await (await any_world.client(plane, user.secret)).list()
        assert stranger.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert [found.label for found in (await library.ListVoices(first.secret)).voices if found.label] == ["Ours"]
    async with Administration(plane.grpc_address, await root_of(any_world)) as root:
        assert await root.delete_tenant("acme")
        assert await refused(root.create_tenant("acme")) == "conflict"
        async with plane.core.database.read() as connection:
            names = {row.name for row in await connection.execute(select(wrapped_secrets.c.name))}
        assert "labels:acme" not in names
    async with Administration(plane.grpc_address, first.secret) as gone:
        assert await refused(gone.tenants()) == "unauthenticated"


async def test_a_rotated_key_goes_on_for_a_while_and_a_revoked_one_ends_at_once(world: World) -> None:
    plane = await world.plane()
    async with Administration(plane.grpc_address, await root_of(world)) as root:
        old = await root.create_key(admin_pb2.CreateKeyRequest(scopes=["voices:read"], purpose="p"))
        new = await root.rotate_key(old.key.key_id, overlap_s=3600)
        assert (list(new.key.scopes), new.key.purpose) == (["voices:read"], "p")
        for secret in (old.secret, new.secret):
            await (await world.client(plane, secret)).list()
        (kept,) = [key for key in await root.keys() if key.key_id == old.key.key_id]
        assert kept.replaced_by == new.key.key_id
        assert 3000 < kept.expires_at.seconds - time.time() < 3700
        assert await refused(root.rotate_key(old.key.key_id)) == "conflict"
        at_once = await root.rotate_key(new.key.key_id, overlap_s=0)
        await root.revoke_key(at_once.key.key_id)
        assert (await root.revoke_key(at_once.key.key_id)).HasField("revoked_at")
        for secret in (new.secret, at_once.secret):
            with pytest.raises(aio.AioRpcError) as refusal:
                await (await world.client(plane, secret)).list()
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        soon = admin_pb2.CreateKeyRequest(scopes=["voices:read"], expires_at=timestamp(time.time() - 1))
        assert await refused(root.create_key(soon)) == "invalid"
        assert await refused(root.revoke_key("nothing")) == "not_found"


async def test_use_of_keys_is_written_down_and_never_on_the_way_of_a_call(world: World) -> None:
    plane = await world.plane(chore_s=3600.0)
    key = await make_key(plane, "default", "voices:read")
    await Library(plane).ListVoices(key)
    query = select(api_keys.c.last_used_at_s).where(api_keys.c.key_id == key.split("_")[1])
    async with plane.core.database.read() as connection:
        assert (await connection.execute(query)).scalar_one() is None
    await plane.core.identity.note_use()
    async with plane.core.database.read() as connection:
        assert time.time() - (await connection.execute(query)).scalar_one() < 60


async def test_keys_secrets_are_nowhere_but_in_their_answer(world: World) -> None:
    plane = await world.plane()
    async with Administration(plane.grpc_address, await root_of(world)) as root:
        made = await root.create_key(admin_pb2.CreateKeyRequest(scopes=["admin"]))
        await root.rotate_key(made.key.key_id)
    secret = made.secret.split("_", 2)[2].encode()
    for path in world.data.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path


def test_a_token_comes_out_of_a_header_as_out_of_metadata() -> None:
    assert token_of("Bearer sk_a_b") == token_of("bearer  sk_a_b ") == "sk_a_b"
    assert token_of(None) is token_of("Basic x") is token_of("Bear") is None


async def test_storage_is_counted_against_its_quota(world: World) -> None:
    plane = await world.plane()
    library, root = Library(plane), await root_of(world)
    async with Administration(plane.grpc_address, root) as admin:
        await admin.set_quotas("default", admin_pb2.Quotas(storage_bytes_max=200_000))
    await library.enrol(root, label="A")
    with pytest.raises(Overloaded, match="200000 bytes"):
        await library.enrol(root, label="B", seed=1)
    assert len(list((world.data / "blobs" / "samples").iterdir())) == 1


async def test_all_that_is_held_on_a_person_is_handed_over_in_the_clear_and_audited(any_world: World) -> None:
    plane = await any_world.plane()
    await any_world.node(plane)
    library, root = Library(plane), await root_of(any_world)
    sound = (speech(3) * 32767).astype("<i2").tobytes()
    voice = (await library.enrol(root, label="Ada", sound=sound, consent=CONSENT, subject="emp-1")).voice
    archive = zipfile.ZipFile(io.BytesIO(await library.export(root, voice.voice_id)))
    assert archive.testzip() is None
    said = {name: json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")}
    assert said["voice.json"]["label"] == "Ada"
    assert said["consents.json"][0]["agreed"]["full_name"] == "Ada Lovelace"
    assert [event["kind"] for event in said["events.json"]] == ["consent_given"]
    assert archive.read("recordings/1-0-reference.s16le") == sound
    (made,) = said["voiceprints.json"]
    assert len(bytes.fromhex(made["float32_little_endian_hex"])) == len(embedding_of(b""))
    assert [row["action"] for row in said["audit.json"]] == ["voice.enrolled", "voice.exported"]
    user = await make_key(plane, "default", "voices:read", "voices:write")
    with pytest.raises(Denied, match="admin"):
        await library.export(user, voice.voice_id)
    await library.EraseVoice(root, voice_id=voice.voice_id)
    with pytest.raises(NotFound):
        await library.export(root, voice.voice_id)


async def test_a_call_that_names_very_many_nodes_is_refused(world: World) -> None:
    plane = await world.plane()
    library, root = Library(plane), await root_of(world)
    voice_id = (await library.enrol(root, label="Ada")).voice.voice_id
    assert len((await library.WarmVoice(root, voice_id=voice_id, node_ids=["n"])).outcomes) == 1
    with pytest.raises(InvalidRequest, match="node_ids"):
        await library.WarmVoice(root, voice_id=voice_id, node_ids=[f"n{number}" for number in range(1_001)])


async def test_an_export_that_is_under_way_ends_with_the_voice(world: World) -> None:
    plane = await world.plane()
    library, root = Library(plane), await root_of(world)
    voice_id = (await library.enrol(root, label="Ada")).voice.voice_id
    blobs, get, found = plane.core.blobs, plane.core.blobs.get, []

    async def delete(_key: str) -> None:
        raise Unavailable("the recordings' store is away")

    async def get_and_note(key: str) -> bytes | None:
        found.append(await get(key))
        return found[-1]

    blobs.delete, blobs.get = delete, get_and_note  # type: ignore[method-assign]
    samples_of = plane.core.people.export._samples

    async def samples_and_erase(voice: Any) -> Any:
        rows = await samples_of(voice)
        await library.EraseVoice(root, voice_id=voice_id)
        return rows

    plane.core.people.export._samples = samples_and_erase  # type: ignore[method-assign]
    with pytest.raises(NotFound):
        await library.export(root, voice_id)
    assert found == []


async def test_a_new_key_encryption_key_takes_over_while_everything_goes_on(world: World) -> None:
    async with world.running() as plane:
        library, root = Library(plane), await root_of(world)
        before = (world.data / "kek.key").read_text()
        ids = [(await library.enrol(root, label=f"P{index}", seed=index)).voice.voice_id for index in range(3)]
        subject = plane.core.people.usage._keys.subject("default", ids[0])
        async with Administration(plane.grpc_address, root) as admin:
            done = await admin.rotate_kek()
        assert done.old_key_dropped
        assert done.num_rewrapped >= 4
        after = (world.data / "kek.key").read_text()
        assert after != before and len(after.split()) == 1
        ids.append((await library.enrol(root, label="P3", seed=9)).voice.voice_id)
        async with plane.core.database.read() as connection:
            kept = {row.kek_id for row in await connection.execute(select(data_keys.c.kek_id))}
            kept |= {row.kek_id for row in await connection.execute(select(wrapped_secrets.c.kek_id))}
        assert kept == {done.kek_id}
    plane = await world.plane()
    library = Library(plane)
    assert {voice.label for voice in (await library.ListVoices(root)).voices} == {"P0", "P1", "P2", "P3"}
    # What the audit calls a voice outlives the key that it was made with.
    assert plane.core.people.usage._keys.subject("default", ids[0]) == subject


async def test_a_rotation_that_broke_off_is_finished_by_the_next_one(world: World) -> None:
    async with world.running() as plane:
        library, root = Library(plane), await root_of(world)
        for index in range(3):
            await library.enrol(root, label=f"P{index}", seed=index)
    # As if the process had died after the new key was written and before anything was wrapped by it.
    FileKek(world.data / "kek.key").add_new()
    plane = await world.plane()
    library = Library(plane)
    assert len((await library.ListVoices(root)).voices) == 3
    principal = Principal("default", "k", expand({PLATFORM}))
    done = await plane.core.people.rotation.rotate(principal)
    assert done.num_rewrapped >= 3
    assert len((world.data / "kek.key").read_text().split()) == 1
    assert len((await library.ListVoices(root)).voices) == 3


async def test_a_voice_whose_enrolment_a_rotation_overtakes_opens_after_it(world: World) -> None:
    plane = await world.plane()
    library, root = Library(plane), await root_of(world)
    blobs, put = plane.core.blobs, plane.core.blobs.put

    async def put_after_rotation(ciphertext: bytes) -> str:
        # The voice's key is made by now, and its row is not there yet: no rotation can find it.
        await plane.core.people.rotation.rotate(Principal("default", "k", expand({PLATFORM})))
        return await put(ciphertext)

    blobs.put = put_after_rotation  # type: ignore[method-assign]
    enrolled = await library.enrol(root, label="P0")
    assert (await library.GetVoice(root, voice_id=enrolled.voice.voice_id)).label == "P0"
    async with plane.core.database.read() as connection:
        (kept,) = (await connection.execute(select(data_keys.c.kek_id))).scalars().all()
    assert kept == plane.core.people.usage._keys.kek_id


async def test_a_tenants_key_that_was_never_committed_is_not_gone_on_with(any_world: World) -> None:
    plane = await any_world.plane()
    found = plane.core.tenant_keys
    with pytest.raises(InvalidRequest):
        async with plane.core.database.write() as connection:
            await locked_head(connection)
            await found.label_index(connection, "default", "Ada")
            await found.subject_index(connection, "default", "emp-1")
            raise InvalidRequest("a consent of the future, say")
    async with plane.core.database.write() as connection:
        await locked_head(connection)
        assert await found.find(connection, "default") is None
        index = await found.subject_index(connection, "default", "emp-1")
    # As another control plane, or this one after a restart, finds the person again.
    async with plane.core.database.write() as connection:
        await locked_head(connection)
        other = TenantKeys(plane.core.people.usage._keys, SystemClock())
        assert await other.subject_index(connection, "default", "emp-1") == index
        await other.forget(connection, "default")
    async with plane.core.database.read() as connection:
        assert await found.find(connection, "default") is None


@pytest.mark.parametrize("closing", ["tenant", "user"])
async def test_who_is_closed_while_their_recording_is_listened_to_leaves_no_voice_behind(
    any_world: World, closing: str
) -> None:
    plane = await any_world.plane()
    await make_tenant(plane, "acme", "u1")
    library, key = Library(plane), await make_key(plane, "acme", "voice.write", user_id="u1")
    root = Principal("default", "k", expand({PLATFORM}))
    people, put = plane.core.people, plane.core.blobs.put

    async def put_after_closing(ciphertext: bytes) -> str:
        if closing == "tenant":
            await people.administration.delete_tenant(root, "acme")
        else:
            await people.administration.delete_user(root, "acme", "u1")
        return await put(ciphertext)

    plane.core.blobs.put = put_after_closing  # type: ignore[method-assign]
    with pytest.raises(Unauthenticated, match="closed"):
        await library.enrol(key, label="Ada", scope=people_pb2.VOICE_SCOPE_USER)
    async with plane.core.database.read() as connection:
        for table in (voices, data_keys):
            assert (await connection.execute(select(table).where(table.c.tenant_id == "acme"))).all() == []
    assert await plane.core.blobs.list() == []


async def test_an_administrator_of_a_tenant_does_not_end_the_platforms_keys(world: World) -> None:
    plane = await world.plane()
    platform = (await root_of(world)).split("_")[1]
    key = await make_key(plane, "default", "admin")
    async with Administration(plane.grpc_address, key) as admin:
        assert await refused(admin.revoke_key(platform)) == "denied"
        assert await refused(admin.rotate_key(platform)) == "denied"
    async with Administration(plane.grpc_address, await root_of(world)) as root:
        assert (await root.revoke_key(key.split("_")[1])).HasField("revoked_at")


async def test_where_control_planes_share_a_database_the_new_key_is_handed_out_first(any_world: World) -> None:
    plane = await any_world.plane()
    if plane.core.database.is_sqlite:
        return  # which belongs to one control plane
    await Library(plane).enrol(await root_of(any_world), label="A")
    principal = Principal("default", "k", expand({PLATFORM}))
    with pytest.raises(Conflict, match="each of them"):
        await plane.core.people.rotation.rotate(principal)
    FileKek(any_world.data / "kek.key").add_new()
    done = await plane.core.people.rotation.rotate(principal)
    assert not done.old_key_dropped
    assert len((any_world.data / "kek.key").read_text().split()) == 2
    assert (await plane.core.people.rotation.rotate(principal)).num_rewrapped == 0
    with pytest.raises(Denied):
        await plane.core.people.rotation.rotate(Principal("default", "k", expand({"admin"})))


def test_keys_come_from_a_file_or_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
    assert GivenKek(f"{one},{two}").load() == (bytes([1]) * 32, bytes([2]) * 32)
    for bad in ("", "x", f"{one},short"):
        with pytest.raises(InvalidRequest, match="SPEAKERD_KEK"):
            GivenKek(bad).load()
    with pytest.raises(Conflict, match="SPEAKERD_KEK"):
        GivenKek(one).add_new()
    settings = ControlPlaneSettings(data=tmp_path, kek=one)
    assert isinstance(kek_source(settings), GivenKek)
    assert one not in repr(settings)
    assert len(kek_source(ControlPlaneSettings(data=tmp_path)).load()) == 1
    assert (tmp_path / "kek.key").stat().st_mode & 0o077 == 0
    with pytest.raises(InvalidRequest, match="kek_source"):
        kek_source(ControlPlaneSettings(data=tmp_path, kek_source="vault"))


async def test_a_speaker_who_was_heard_is_enrolled_with_consent_and_without_a_recording(any_world: World) -> None:
    plane = await any_world.plane()
    node = await any_world.node(plane)
    library, root = Library(plane), await root_of(any_world)
    seal = SpeakerSeal((any_world.data / "fleet.key").read_text().strip(), SystemClock())
    heard = HeardSpeaker(node.model, embedding_of(b"x"), 9_000)
    token = seal.seal(heard, tenant_id="default")
    spec = people_pb2.VoiceSpec(label="Ada", consent=CONSENT)
    with pytest.raises(InvalidRequest, match="full_name"):
        await library.PromoteSpeaker(root, token=token, spec=people_pb2.VoiceSpec(label="Ada"))
    answer = await library.PromoteSpeaker(root, token=token, spec=spec)
    assert "no recording is kept" in answer.note
    ((_, label, embedding),) = node.voices.values()
    assert (label, embedding) == ("Ada", heard.embedding)
    await make_tenant(plane, "other")
    other = await make_key(plane, "other", "admin")
    for wrong in (token, token[:-1] + b"x", b"", b"made up, and long enough to be one"):
        with pytest.raises(InvalidRequest, match="as it came"):
            await library.PromoteSpeaker(other, token=wrong, spec=spec)
    clock = SteppedClock(1_000.0)
    old = SpeakerSeal("fk", clock).seal(heard, tenant_id="t")
    clock.step(24 * 3600.0)
    with pytest.raises(InvalidRequest, match="expired"):
        SpeakerSeal("fk", clock).open(old, tenant_id="t")


def test_strangers_in_a_result_get_tokens_and_those_who_were_named_none() -> None:
    seal = SpeakerSeal("fk", SteppedClock(1_000.0))
    made = common_pb2.Voiceprint(model="m@1", embedding=embedding_of(b"x"), net_speech_ms=4_000)

    def result() -> node_pb2.FileResult:
        return node_pb2.FileResult(
            speakers=[
                common_pb2.Speaker(speaker="spk_0", voiceprint=made),
                common_pb2.Speaker(speaker="spk_1", voice_id="v_1", voiceprint=made),
                common_pb2.Speaker(speaker="spk_2"),
            ]
        )

    plain, asked = result(), result()
    seal_strangers(plain, seal, tenant_id="t", voiceprints_asked=False)
    seal_strangers(asked, seal, tenant_id="t", voiceprints_asked=True)
    assert [bool(speaker.token) for speaker in plain.speakers] == [True, False, False]
    assert not any(speaker.HasField("voiceprint") for speaker in plain.speakers)
    assert [speaker.HasField("voiceprint") for speaker in asked.speakers] == [True, True, False]
    assert made.embedding not in plain.speakers[0].token
    assert seal.open(plain.speakers[0].token, tenant_id="t").embedding == made.embedding


async def test_recordings_at_once_are_counted_against_their_quota(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.relay.FIRST_MESSAGE_S", 60.0)  # the first one waits for the second
    plane = await world.plane()
    root = await root_of(world)
    async with Administration(plane.grpc_address, root) as admin:
        await admin.set_quotas("default", admin_pb2.Quotas(jobs_max=1))
    caller = await plane.core.identity.principal(root, "jobs:write")
    waiting = asyncio.Event()

    async def requests() -> AsyncIterator[node_pb2.DiarizeFileRequest]:
        await waiting.wait()
        yield node_pb2.DiarizeFileRequest(open=node_pb2.FileOpen())

    first = asyncio.create_task(anext(plane.core.relay.diarize_file(caller, requests())))
    await until(lambda: plane.core.relay._places.num_taken == 1)
    with pytest.raises(Overloaded, match="quota of 1 recordings"):
        await anext(plane.core.relay.diarize_file(caller, requests()))
    waiting.set()
    with pytest.raises(Unavailable, match="no node"):
        await first


async def test_a_clip_that_is_added_keeps_the_ones_before(any_world: World) -> None:
    plane = await any_world.plane()
    await any_world.node(plane)
    library, root = Library(plane), await root_of(any_world)
    first = (await library.enrol(root, label="Ada", seed=1)).voice
    second = (await library.enrol(root, voice_id=first.voice_id, seed=2, add_clips=True)).voice
    assert (second.generation, second.label) == (2, "Ada")
    assert len(list((any_world.data / "blobs" / "samples").iterdir())) == 2
    anew = (await library.enrol(root, voice_id=first.voice_id, seed=3)).voice
    assert anew.generation == 3
    assert len(list((any_world.data / "blobs" / "samples").iterdir())) == 1


async def test_details_and_labels_change_and_are_listed_by(any_world: World) -> None:
    plane = await any_world.plane()
    node = await any_world.node(plane)
    library, root = Library(plane), await root_of(any_world)
    details = people_pb2.VoiceDetails(language="de", gender="female", description="calm", style_tags=["warm"])
    voice = (await library.enrol(root, label="Ada", details=details)).voice
    assert voice.details == details
    changed = await library.UpdateVoice(root, voice_id=voice.voice_id, label="Ada B.")
    assert (changed.label, changed.generation, changed.details) == ("Ada B.", 2, details)
    assert [label for _, label, _ in node.voices.values()] == ["Ada B."]
    assert len((await library.ListVoices(root, language="de", gender="female")).voices) == 1
    assert not (await library.ListVoices(root, language="fr")).voices
    assert not (await library.ListVoices(root, label="Ada")).voices
    assert len((await library.ListVoices(root, label="ada  b.")).voices) == 1
    async with plane.core.database.read() as connection:
        row = (await connection.execute(select(voices))).one()
    assert b"calm" not in bytes(row.details_ciphertext)


async def test_labels_of_before_the_index_are_found_after_a_start(any_world: World) -> None:
    async with any_world.running() as plane:
        root = await root_of(any_world)
        await Library(plane).enrol(root, label="Ada")
        async with plane.core.database.write() as connection:
            await connection.execute(update(voices).values(label_index=None))
        assert not (await Library(plane).ListVoices(root, label="Ada")).voices
    plane = await any_world.plane()
    assert len((await Library(plane).ListVoices(root, label="Ada")).voices) == 1


async def test_usage_records_are_the_tenants_and_outlive_the_voice(world: World) -> None:
    plane = await world.plane()
    await world.node(plane)
    library, root = Library(plane), await root_of(world)
    voice_id = (await library.enrol(root, label="Ada")).voice.voice_id
    await library.RecordUsage(root, voice_id=voice_id, unit="seconds", quantity=7)
    with pytest.raises(InvalidRequest, match="unit"):
        await library.RecordUsage(root, voice_id=voice_id, unit="smiles", quantity=7)
    # A thousand of these would add up to more than a database counts.
    with pytest.raises(InvalidRequest, match="quantity"):
        await library.RecordUsage(root, voice_id=voice_id, unit="seconds", quantity=1 << 53)
    await library.EraseVoice(root, voice_id=voice_id)
    page = await library.ListUsage(root, page_size=1)
    rest = await library.ListUsage(root, page_token=page.next_page_token)
    found = [*page.records, *rest.records]
    assert [(record.unit, record.quantity) for record in found] == [("seconds", 7), ("voiceprints", 1)]
    assert len({record.subject for record in found}) == 1
    await make_tenant(plane, "other")
    assert not (await library.ListUsage(await make_key(plane, "other", "admin"))).records


async def test_what_administrators_did_is_in_the_audit_and_names_nobody(world: World) -> None:
    plane = await world.plane()
    async with Administration(plane.grpc_address, await root_of(world)) as root:
        await root.create_tenant("acme")
        await root.create_user("u1", tenant_id="acme")
    async with plane.core.database.read() as connection:
        bodies = [json.loads(row.body) for row in await connection.execute(select(audit.c.body))]
        assert (await connection.execute(select(users.c.user_id))).scalar_one() == "u1"
    assert [body["action"] for body in bodies if body["action"].startswith(("tenant", "user"))] == [
        "tenant.created",
        "user.created",
    ]

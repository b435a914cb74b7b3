"""The audit: what its rows say, what breaks it, and how that is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from sqlalchemy import text

from controlplane import audit, audit_checkpoints, erasure_work
from controlplane.app import ControlPlane
from controlplane.audit_checkpoints import opened, signed
from controlplane.audit_verify import verify
from controlplane.identity import add_key, new_key
from runtime.clock import SystemClock
from runtime.errors import InvalidRequest, NotFound, Unavailable
from speakerd.v1 import audit_pb2, audit_pb2_grpc, people_pb2
from tests.controlplane.conftest import WAIT_MS, Client, World, until
from tests.controlplane.people import Library, make_key, make_tenant


async def drop_triggers(plane: ControlPlane, table: str = "audit") -> None:
    """What an owner of the database can do."""
    async with plane.core.database.write() as connection:
        if plane.core.database.is_sqlite:
            query = text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table")
            names = (await connection.execute(query, {"table": table})).scalars().all()
            for name in names:
                await connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            query = text("SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:table AS regclass) AND NOT tgisinternal")
            names = (await connection.execute(query, {"table": table})).scalars().all()
            for name in names:
                await connection.execute(text(f"DROP TRIGGER {name} ON {table}"))
    assert names


async def run(plane: ControlPlane, *statements: str) -> None:
    async with plane.core.database.write() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def verdict(client: Client, **fields: Any) -> audit_pb2.AuditVerdict:
    stub = audit_pb2_grpc.AuditStub(client.channel)
    return await stub.VerifyAudit(audit_pb2.VerifyAuditRequest(**fields), metadata=client.metadata, timeout=20)


async def rows_of(plane: ControlPlane) -> list[dict[str, Any]]:
    async with plane.core.database.read() as connection:
        rows = (await connection.execute(text("SELECT body FROM audit ORDER BY sequence"))).scalars().all()
    return [json.loads(row) for row in rows]


async def erased_one(world: World, plane: ControlPlane, client: Client) -> people_pb2.Erasure:
    """A voice enrolled and erased, its erasure signed."""
    voice_id = (await client.enrol("Alice")).voice.voice_id
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == people_pb2.Erasure.STATE_ERASED
    await until(lambda: list((world.data / "audit-checkpoints").glob("*.json")))
    return erasure


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit SET body = replace(body, 'voice.enrolled', 'voice.imagined') WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = 2",
        "UPDATE audit SET sequence = 9 WHERE sequence = 3",
        "INSERT INTO audit (sequence, body, previous_hash, hash)"
        " SELECT 7, body, previous_hash, hash FROM audit WHERE sequence = 1",
    ],
    ids=["changed", "deleted", "moved", "added"],
)
async def test_a_hand_in_the_audit_is_stopped_and_breaks_the_chain_where_it_is_not(
    any_world: World, tampering: str
) -> None:
    plane = await any_world.plane()
    async with plane.core.database.write() as connection:
        for index in range(3):
            await audit.append(connection, "voice.enrolled", at_s=float(index), facts={"tenant_id": "t"})
    with pytest.raises(Exception, match="only grow"):
        await run(plane, tampering)
    async with plane.core.database.read() as connection:
        assert (await audit.verify(connection)).broken_at is None
    # Whoever owns the database can take the triggers away; the chain tells.
    await drop_triggers(plane)
    await run(plane, tampering)
    async with plane.core.database.read() as connection:
        assert (await audit.verify(connection)).broken_at in (2, 3, 4)


async def test_it_is_green_after_enrolling_and_erasing_with_a_node_that_is_asked(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    await any_world.node(plane)
    await erased_one(any_world, plane, client)
    await client.enrol("Bob", seed=1)
    found = await verdict(client)
    assert list(found.problems) == []
    assert found.ok
    assert [(node.node_id, node.ok) for node in found.nodes] == [("node-1", True)]
    assert (found.num_erasures, found.num_checkpoints > 0, len(found.head)) == (1, True, 32)


HANDS = {
    "row 2 of the audit was changed": [
        "UPDATE audit SET body = replace(body, 'user_request', 'license_expired') WHERE sequence = 2"
    ],
    "its tail was removed": ["DELETE FROM audit WHERE sequence >= 2"],
    "rows 1 to 1 of the audit are missing": ["DELETE FROM audit WHERE sequence = 1"],
    "has come back": ["UPDATE voices SET state = 'ready', generation = 1"],
    "is called erasing": ["UPDATE erasures SET state = 'erasing'"],
    "its record is gone": ["DELETE FROM erasures"],
    "data key": [
        "INSERT INTO data_keys (tenant_id, voice_id, wrapped, created_at_s)"
        " SELECT tenant_id, voice_id, hash, 0 FROM voices, audit WHERE audit.sequence = 1"
    ],
    "voiceprint of a recording": [
        "INSERT INTO voiceprint_members (tenant_id, voice_id, model, generation, clip, net_speech_ms, left_out,"
        " ciphertext) SELECT tenant_id, voice_id, 'm', 1, 0, 1, (1 = 0), hash FROM voices, audit"
        " WHERE audit.sequence = 1"
    ],
    "erased without an erasure": ["UPDATE erasures SET voice_id = 'v_other'"],
}


async def test_it_is_red_after_a_hand_in_the_database(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    await erased_one(any_world, plane, client)
    assert (await verdict(client)).ok
    kept = [path.read_bytes() for path in (any_world.data / "audit-checkpoints").glob("*.json")]
    await drop_triggers(plane)

    class Undone(Exception):
        pass

    for says, statements in HANDS.items():
        with pytest.raises(Undone):
            async with plane.core.database.write() as connection:
                for statement in statements:
                    await connection.execute(text(statement))
                found = await verify(
                    connection,
                    checkpoints=kept,
                    journal=None,
                    trusted_keys=frozenset({plane.core.checkpoints.public_key}),
                    subject_of=None,
                )
                raise Undone
        assert any(says in problem for problem in found.problems), (says, found.problems)


async def test_a_daily_look_finds_a_hand_in_the_database_that_nobody_asked_about(world: World) -> None:
    plane = await world.plane(audit_verify_s=0.2)
    client = await world.client(plane)
    await erased_one(world, plane, client)
    told = plane.metrics.audit_verify_ok
    assert await plane.core.auditing.look() == 0 and told._value.get() == 1
    await drop_triggers(plane)
    await run(plane, "UPDATE audit SET body = replace(body, 'user_request', 'license_expired') WHERE sequence = 2")
    await until(lambda: told._value.get() == 0)


async def test_an_erasure_that_reaches_the_journal_while_it_is_checked_is_not_missed_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await erased_one(world, plane, client)
    journal = plane.core.auditing._journal
    now = journal.read
    readings = [[record for record in await now() if getattr(record, "audit_id", None) is None], await now()]

    async def reading() -> list[Any]:
        return readings.pop(0)

    monkeypatch.setattr(journal, "read", reading)
    assert await plane.core.auditing.look() == 0 and not readings


async def test_a_checkpoint_that_somebody_else_signed_vouches_for_nothing_and_is_told(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await erased_one(world, plane, client)
    foreign = Ed25519PrivateKey.generate()
    async with plane.core.database.read() as connection:
        head = (await connection.execute(text("SELECT sequence, hash FROM audit ORDER BY sequence DESC"))).first()
        assert head is not None
        found = await verify(
            connection,
            checkpoints=[signed(int(head.sequence), bytes(head.hash), epoch="e", at_s=1.0, key=foreign)],
            journal=None,
            trusted_keys=frozenset({plane.core.checkpoints.public_key}),
            subject_of=None,
        )
    assert found.num_checkpoints == 0
    assert any("not this deployment's" in problem for problem in found.problems), found.problems


async def test_it_is_red_when_the_triggers_are_gone(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    await client.enrol("Alice")
    assert (await verdict(client)).ok
    await drop_triggers(plane)
    assert any("trigger" in problem for problem in (await verdict(client)).problems)


async def test_a_history_that_was_rewritten_whole_is_told_by_its_checkpoints(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    await erased_one(any_world, plane, client)
    kept = [path.read_bytes() for path in (any_world.data / "audit-checkpoints").glob("*.json")]
    await drop_triggers(plane)
    async with plane.core.database.write() as connection:
        bodies = (await connection.execute(text("SELECT body FROM audit ORDER BY sequence"))).scalars().all()
        await connection.execute(text("DELETE FROM audit"))
        for body in bodies:
            said = json.loads(body.replace("user_request", "platform_decision"))
            action, at_s = said.pop("action"), said.pop("at_s")
            await audit.append(connection, action, at_s=at_s, facts=said)
        assert (await audit.verify(connection)).broken_at is None
    found = await verdict(client)
    assert any("the audit was rewritten" in problem for problem in found.problems)
    # With the checkpoints of the data folder gone too, those that somebody took away tell.
    for path in (any_world.data / "audit-checkpoints").glob("*.json"):
        path.unlink()
    assert not any("rewritten" in problem for problem in (await verdict(client)).problems)
    found = await verdict(client, checkpoints=kept)
    assert any("the audit was rewritten" in problem for problem in found.problems)


async def test_a_node_that_holds_what_was_erased_or_does_not_answer_turns_it_red(world: World) -> None:
    plane = await world.plane(lease_s=20.0, node_lease_s=18.0)
    client = await world.client(plane)
    node = await world.node(plane)
    erasure = await erased_one(world, plane, client)
    assert (await verdict(client)).ok
    node.voices["default", erasure.voice_id] = (1, "Alice", b"")
    found = await verdict(client)
    assert list(found.problems) == ["node node-1 holds 1 voices that were erased"]
    assert (await verdict(client, skip_inventory=True)).ok
    await node.server.stop(0)
    found = await verdict(client)
    assert any("node-1 could not be asked" in problem for problem in found.problems)


async def test_request_and_completion_say_who_why_where_and_what_became_of_it_node_by_node(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    await any_world.node(plane)
    silent = await any_world.node(plane, "node-2")
    voice_id = (await client.enrol("Alice")).voice.voice_id
    silent.freeze()
    erasure = await client.people.EraseVoice(
        people_pb2.EraseVoiceRequest(
            voice_id=voice_id,
            wait_ms=WAIT_MS,
            trigger="license_revoked",
            trigger_user="dpo@example.org",
            reason="Alice asked by letter",
            source="cli",
        ),
        metadata=client.metadata,
    )
    assert (erasure.trigger, erasure.trigger_user, erasure.source) == ("license_revoked", "dpo@example.org", "cli")
    rows = await rows_of(plane)
    requested, completed = (
        next(row for row in rows if row["action"] == f"erase.{what}") for what in ("requested", "completed")
    )
    for row in (requested, completed):
        assert row["audit_id"] == erasure.audit_id
        assert (row["trigger"], row["trigger_user"], row["source"]) == ("license_revoked", "dpo@example.org", "cli")
        assert row["key_id"] == client.token.split("_")[1]
        assert voice_id not in json.dumps(row)
    assert {"node-1", "node-2"} <= set(requested["replicas"])
    assert len(requested["reason_digest"]) == 64
    outcomes = {node["node_id"]: node["evicted"] for node in completed["nodes"]}
    assert (outcomes["node-1"], outcomes["node-2"]) == (True, False)
    assert completed["failures"] == completed["residual_node_ids"] == ["node-2"]
    assert completed["replicas_evicted"] == sum(outcomes.values())
    assert completed["blob_bytes_deleted"] == erasure.blob_bytes_deleted > 100_000
    assert "letter" not in json.dumps(rows)
    for wrong in ({"trigger": "boredom"}, {"source": "elsewhere"}, {"trigger_user": "Alice B"}, {"reason": "x" * 501}):
        with pytest.raises(aio.AioRpcError) as refused:
            await client.people.EraseVoice(
                people_pb2.EraseVoiceRequest(voice_id=voice_id, **wrong), metadata=client.metadata
            )
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert next(iter(wrong)) in str(refused.value.details())


async def test_a_residual_node_that_wakes_clears_itself_and_one_that_never_does_is_cleared_by_its_operator(
    world: World,
) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    stub = audit_pb2_grpc.AuditStub(client.channel)
    await world.node(plane)
    silent, gone = await world.node(plane, "node-2"), await world.node(plane, "node-3")
    voice_id = (await client.enrol("Alice")).voice.voice_id
    with pytest.raises(aio.AioRpcError) as refused:
        await stub.AssertDestroyed(audit_pb2.AssertDestroyedRequest(node_id="node-3"), metadata=client.metadata)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    silent.freeze()
    gone.freeze()
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert list(erasure.residual_node_ids) == ["node-2", "node-3"]
    found = await verdict(client)
    assert found.ok
    assert sum("may hold voices in memory" in note for note in found.notes) == 2
    silent.thaw()

    async def residual() -> list[str]:
        request = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
        return list((await client.people.GetErasure(request, metadata=client.metadata)).residual_node_ids)

    async def only_gone() -> bool:
        return await residual() == ["node-3"]

    await until(only_gone)
    answer = await stub.AssertDestroyed(
        audit_pb2.AssertDestroyedRequest(node_id="node-3", trigger_user="ops-7"), metadata=client.metadata
    )
    assert answer.num_erasures == 1
    assert await residual() == []
    rows = await rows_of(plane)
    cleared = [row["cleared_node_ids"] for row in rows if row["action"] == "erase.residual_cleared"]
    assert cleared == [["node-2"], ["node-3"]]
    (destroyed,) = [row for row in rows if row["action"] == "node.destroyed"]
    assert (destroyed["node_id"], destroyed["trigger_user"]) == ("node-3", "ops-7")
    with pytest.raises(aio.AioRpcError) as refused:
        await stub.AssertDestroyed(audit_pb2.AssertDestroyedRequest(node_id="never"), metadata=client.metadata)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_operators_word_on_a_node_does_not_end_an_erasure_whose_recordings_are_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    stub = audit_pb2_grpc.AuditStub(client.channel)
    await world.node(plane)
    gone = await world.node(plane, "node-2")
    voice_id = (await client.enrol("Alice")).voice.voice_id
    gone.freeze()
    monkeypatch.setattr(erasure_work, "BLOBS_AGAIN_S", 0.1)
    blobs, delete = plane.core.blobs, plane.core.blobs.delete
    assert len(await blobs.list()) == 1

    async def away(_key: str) -> None:
        raise Unavailable("the recordings' store is away")

    blobs.delete = away  # type: ignore[method-assign]
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert list(erasure.residual_node_ids) == ["node-2"]
    request = audit_pb2.AssertDestroyedRequest(node_id="node-2", trigger_user="ops-7")
    assert (await stub.AssertDestroyed(request, metadata=client.metadata)).num_erasures == 1
    blobs.delete = delete  # type: ignore[method-assign]

    async def is_done() -> bool:
        asked = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
        found = await client.people.GetErasure(asked, metadata=client.metadata)
        return not found.blobs_pending and not await blobs.list()

    await until(is_done)


async def test_erasures_are_listed_newest_first_and_only_the_tenants_own(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    stub = audit_pb2_grpc.AuditStub(client.channel)
    asked = []
    for index in range(3):
        voice_id = (await client.enrol(f"P{index}", seed=index)).voice.voice_id
        asked.append((await client.erase(voice_id)).audit_id)
    page = await stub.ListErasures(audit_pb2.ListErasuresRequest(page_size=2), metadata=client.metadata)
    rest = await stub.ListErasures(
        audit_pb2.ListErasuresRequest(page_size=2, page_token=page.next_page_token), metadata=client.metadata
    )
    assert [one.audit_id for one in (*page.erasures, *rest.erasures)] == asked[::-1]
    assert not rest.next_page_token
    key = new_key()
    async with plane.core.database.write() as connection:
        await connection.execute(text("INSERT INTO tenants (tenant_id, created_at_s) VALUES ('other', 0)"))
        await add_key(connection, key, "other", frozenset({"admin"}), SystemClock())
    other = await any_world.client(plane, key)
    theirs = await audit_pb2_grpc.AuditStub(other.channel).ListErasures(
        audit_pb2.ListErasuresRequest(), metadata=other.metadata
    )
    assert not theirs.erasures
    with pytest.raises(aio.AioRpcError) as refused:
        await verdict(other)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_erasure_of_a_users_voice_is_another_users_no_more_than_the_voice_was(any_world: World) -> None:
    plane = await any_world.plane()
    await make_tenant(plane, "acme", "u1", "u2")
    library = Library(plane)
    own, other = [await make_key(plane, "acme", "voice.write", user_id=user) for user in ("u1", "u2")]
    voice = (await library.enrol(own, label="Ada", scope=people_pb2.VOICE_SCOPE_USER)).voice
    audit_id = (await library.EraseVoice(own, voice_id=voice.voice_id)).audit_id
    for token in (own, await make_key(plane, "acme", "admin")):
        assert (await library.GetErasure(token, audit_id=audit_id)).voice_id == voice.voice_id
    for token in (other, await make_key(plane, "acme", "voices:read")):
        with pytest.raises(NotFound, match="no such erasure"):
            await library.GetErasure(token, audit_id=audit_id)


async def test_all_voices_of_a_tenant_are_erased_when_its_id_is_written_out(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    for index in range(4):
        await client.enrol(f"P{index}", seed=index)

    def erase_all(tenant_id: str) -> Any:
        request = people_pb2.EraseAllVoicesRequest(tenant_id=tenant_id, trigger="platform_decision")
        return client.people.EraseAllVoices(request, metadata=client.metadata, timeout=20)

    with pytest.raises(aio.AioRpcError) as refused:
        [one async for one in erase_all("defautl")]
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(node.voices) == 4
    erasures = [one async for one in erase_all("default")]
    assert len({one.audit_id for one in erasures}) == 4
    await until(lambda: node.voices == {})
    assert [one async for one in erase_all("default")] == []
    assert (await verdict(client)).ok


async def test_erasures_that_complete_together_share_a_checkpoint(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    voices = [(await client.enrol(f"P{index}", seed=index)).voice.voice_id for index in range(6)]
    folder = world.data / "audit-checkpoints"
    before = len(list(folder.glob("*.json")))
    await asyncio.gather(*(client.erase(voice_id, wait_ms=WAIT_MS) for voice_id in voices))
    rows = len(await rows_of(plane))
    await until(lambda: any(int(path.name[:12]) == rows for path in folder.glob("*.json")))
    assert len(list(folder.glob("*.json"))) - before <= 3


async def test_an_unsigned_tail_is_signed_as_the_daemon_ends_and_a_store_that_is_away_holds_up_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.running() as plane:
        client = await world.client(plane)
        await client.enrol("Alice")
    (name,) = [path.name for path in (world.data / "audit-checkpoints").glob("*.json")]
    assert name.startswith("000000000001-")
    file = world.data / "in-the-way"
    file.write_text("")
    async with world.running(audit_checkpoints=str(file / "checkpoints")) as plane:
        client = await world.client(plane)
        voice_id = (await client.enrol("Bob", seed=1)).voice.voice_id
        assert (await client.erase(voice_id, wait_ms=WAIT_MS)).state == people_pb2.Erasure.STATE_ERASED
        await until(lambda: plane.metrics.audit_checkpoint_failures._value.get() > 0)
        found = await verdict(client)
        assert any("no signed checkpoint" in note for note in found.notes)


def test_a_checkpoint_that_was_changed_or_signed_by_another_does_not_pass(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    content = signed(7, bytes(32), epoch="e", at_s=1.0, key=key)
    assert (opened(content).sequence, opened(content).hash) == (7, "00" * 32)
    for changed in (
        content.replace(b'"sequence": 7', b'"sequence": 8'),
        content.replace(b'"at_s": 1.0', b'"at_s": 2.0'),
        content[:40],
        b"{}",
        b"[]",
        b"",
    ):
        with pytest.raises(InvalidRequest, match="checkpoint"):
            opened(changed)
    assert (
        audit_checkpoints.opened(signed(7, bytes(32), epoch="e", at_s=1.0, key=Ed25519PrivateKey.generate())).public_key
        != opened(content).public_key
    )

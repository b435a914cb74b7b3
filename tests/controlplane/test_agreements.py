"""Consents and licences: kept as they were given, by the database itself; taken back, given anew, and run out."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from controlplane import audit_verify
from controlplane.app import ControlPlane
from controlplane.database.schema import agreement_events, consents, data_keys, licences, metadata, voices
from controlplane.database.triggers import IMMUTABLE, missing_triggers, postgresql_triggers, sqlite_triggers
from controlplane.holdings import held_after
from controlplane.keys import VoiceAddress
from controlplane.policy import GLOBAL_TENANT
from runtime.errors import Conflict, InvalidRequest, NotFound
from runtime.tickets import verify_ticket
from speakerd.administration import timestamp
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import World, until
from tests.controlplane.people import Library, make_key, make_tenant

CONSENT = people_pb2.Consent(full_name="Ada Lovelace", purpose="meetings", text="I agree", version="3")
FROZEN = people_pb2.Voice.STATE_FROZEN


async def admin_of(world: World) -> str:
    return (world.data / "admin.key").read_text().strip()


async def verdict(plane: ControlPlane) -> audit_verify.Verdict:
    async with plane.core.database.read() as connection:
        return await audit_verify.verify(
            connection, checkpoints=(), journal=None, trusted_keys=frozenset(), subject_of=None
        )


async def events(plane: ControlPlane, voice_id: str) -> list[str]:
    async with plane.core.database.read() as connection:
        rows = await connection.execute(
            select(agreement_events.c.kind)
            .where(agreement_events.c.voice_id == voice_id)
            .order_by(agreement_events.c.sequence)
        )
        return [row.kind for row in rows]


def licence(**fields: Any) -> people_pb2.Licence:
    return people_pb2.Licence(licensor="Famous Voices Ltd", terms="as agreed", **fields)


async def filled(world: World) -> tuple[ControlPlane, Library, str]:
    """A consent, a licence, their events, and an audit."""
    plane = await world.plane(chore_s=3600.0)
    library, key = Library(plane), await admin_of(world)
    await library.enrol(key, label="Ada", consent=CONSENT, subject="emp-1")
    await library.enrol(
        key,
        label="Famous",
        scope=people_pb2.VOICE_SCOPE_GLOBAL,
        licence=licence(kind=people_pb2.Licence.KIND_PERPETUAL),
    )
    return plane, library, key


TAMPERING = {
    "audit": ("body", "sequence"),
    "consents": ("ciphertext", "tenant_id, voice_id, generation"),
    "licences": ("kind", "tenant_id, voice_id, generation"),
    "agreement_events": ("kind", "sequence"),
}


@pytest.mark.parametrize("table", sorted(IMMUTABLE))
async def test_no_statement_changes_or_deletes_a_row_that_only_grows(any_world: World, table: str) -> None:
    plane, _, _ = await filled(any_world)
    column, key = TAMPERING[table]
    on_conflict = f"INSERT INTO {table} SELECT * FROM {table} WHERE true ON CONFLICT ({key}) DO UPDATE SET {column} ="
    statements = [
        f"UPDATE {table} SET {column} = {column}",
        f"DELETE FROM {table}",
        f"{on_conflict} excluded.{column}",
    ]
    if plane.core.database.is_sqlite:
        columns = ", ".join(one.name for one in metadata.tables[table].columns)
        statements += [
            f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
            f"REPLACE INTO {table} SELECT * FROM {table}",
            f"UPDATE OR REPLACE {table} SET {column} = {column}",
            f"UPDATE OR IGNORE {table} SET {column} = {column}",
            # Under another key, in the place of the row that has this hidden number.
            f"INSERT OR REPLACE INTO {table} (rowid, {columns}) SELECT rowid, {columns} FROM {table}",
        ]
    else:
        statements += [
            f"TRUNCATE {table}",
            f"TRUNCATE {table} CASCADE",
            f"SET LOCAL session_replication_role = replica; DELETE FROM {table}",
        ]
    async with plane.core.database.read() as connection:
        before = (await connection.execute(text(f"SELECT * FROM {table}"))).all()
    assert before
    for statement in statements:
        with pytest.raises(DBAPIError, match=r"grow|UNIQUE"):
            async with plane.core.database.engine.connect() as connection:
                await connection.execution_options(writes=True)
                async with connection.begin():
                    for part in statement.split("; "):
                        await connection.exec_driver_sql(part)
    async with plane.core.database.read() as connection:
        assert (await connection.execute(text(f"SELECT * FROM {table}"))).all() == before
        assert await missing_triggers(connection) == []


async def test_a_row_of_a_new_key_does_not_replace_another_under_its_hidden_number(world: World) -> None:
    plane, _, _ = await filled(world)
    async with plane.core.database.read() as connection:
        before = (await connection.execute(text("SELECT * FROM audit"))).all()
    with pytest.raises(DBAPIError, match="grow"):
        async with plane.core.database.write() as connection:
            await connection.exec_driver_sql(
                "INSERT OR REPLACE INTO audit (rowid, sequence, body, previous_hash, hash)"
                f" VALUES (1, {len(before) + 1}, '{{}}', X'00', X'00')"
            )
    async with plane.core.database.read() as connection:
        assert (await connection.execute(text("SELECT * FROM audit"))).all() == before


async def test_taking_a_trigger_away_turns_the_audit_red(any_world: World) -> None:
    plane, _, _ = await filled(any_world)
    assert (await verdict(plane)).ok, (await verdict(plane)).problems
    sqlite = plane.core.database.is_sqlite
    made = sqlite_triggers("consents") if sqlite else postgresql_triggers("consents")
    (name, made_by), *_ = made.items()
    async with plane.core.database.write() as connection:
        await connection.exec_driver_sql(f"DROP TRIGGER {name}" if sqlite else f"DROP TRIGGER {name} ON consents")
    found = await verdict(plane)
    assert not found.ok
    assert any(name in problem for problem in found.problems)
    # One that has the name and does nothing is no better.
    weak = (
        f"CREATE TRIGGER {name} BEFORE UPDATE ON consents BEGIN SELECT 1; END"
        if sqlite
        else made_by.replace("rows_only_grow()", "nothing()")
    )
    async with plane.core.database.write() as connection:
        if not sqlite:
            await connection.exec_driver_sql(
                "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
            )
        else:
            # A connection that has not heard of it yet refuses a second one of the name.
            await connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        await connection.exec_driver_sql(weak)
    assert any(name in problem for problem in (await verdict(plane)).problems)


async def test_a_trigger_that_was_switched_off_or_a_function_that_was_emptied_is_noticed(any_world: World) -> None:
    plane, _, _ = await filled(any_world)
    if plane.core.database.is_sqlite:
        return  # it has neither
    async with plane.core.database.write() as connection:
        await connection.exec_driver_sql("ALTER TABLE consents DISABLE TRIGGER consents_rows_only_grow")
    async with plane.core.database.read() as connection:
        assert await missing_triggers(connection) == ["consents_rows_only_grow"]
    async with plane.core.database.write() as connection:
        await connection.exec_driver_sql("ALTER TABLE consents ENABLE ALWAYS TRIGGER consents_rows_only_grow")
        await connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION rows_only_grow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN NEW; END $$"
        )
    async with plane.core.database.read() as connection:
        assert "audit_is_never_emptied" in await missing_triggers(connection)


async def test_a_consent_that_was_taken_away_past_the_triggers_is_missed_by_the_audit(world: World) -> None:
    plane, _, _ = await filled(world)
    triggers = sqlite_triggers("consents")
    async with plane.core.database.write() as connection:
        for name in triggers:
            await connection.exec_driver_sql(f"DROP TRIGGER {name}")
        await connection.exec_driver_sql("DELETE FROM consents")
        for statement in triggers.values():
            await connection.exec_driver_sql(statement)
    async with plane.core.database.read() as connection:
        assert await missing_triggers(connection) == []
    found = await verdict(plane)
    assert any("consent or licence" in problem for problem in found.problems)


async def test_a_consent_is_kept_word_for_word_with_its_hashes_and_yields_to_erasure_by_its_key(
    any_world: World,
) -> None:
    plane, library, key = await filled(any_world)
    voice_id = (await library.ListVoices(key, label="Ada")).voices[0].voice_id

    async def stored() -> tuple[bytes, bytes | None]:
        async with plane.core.database.read() as connection:
            kept = (await connection.execute(select(consents).where(consents.c.voice_id == voice_id))).one()
            query = select(data_keys.c.wrapped).where(data_keys.c.voice_id == voice_id)
            return bytes(kept.ciphertext), (await connection.execute(query)).scalar_one_or_none()

    ciphertext, wrapped = await stored()
    assert b"Lovelace" not in ciphertext
    assert wrapped is not None
    data_key = plane.core.people.rotation._keys.open(VoiceAddress("default", voice_id), bytes(wrapped))
    said = json.loads(data_key.decrypt(ciphertext, "consent", 1))
    assert (said["full_name"], said["version"], len(said["text_sha256"])) == ("Ada Lovelace", "3", 64)
    assert len(said["recordings_sha256"]) == 1
    await library.EraseVoice(key, voice_id=voice_id)
    still, gone = await stored()
    assert still == ciphertext
    assert gone is None
    assert (await verdict(plane)).ok


async def test_consent_that_is_taken_back_freezes_the_voice_and_a_new_one_brings_it_back(any_world: World) -> None:
    plane = await any_world.plane()
    node = await any_world.node(plane)
    library, key = Library(plane), await admin_of(any_world)
    voice_id = (await library.enrol(key, label="Ada", consent=CONSENT)).voice.voice_id
    assert ("default", voice_id) in node.voices
    frozen = (await library.WithdrawConsent(key, voice_id=voice_id)).voice
    assert (frozen.state, frozen.generation, frozen.label) == (FROZEN, 2, "Ada")
    await until(lambda: ("default", voice_id) not in node.voices)
    assert (await library.WithdrawConsent(key, voice_id=voice_id)).voice.generation == 2
    with pytest.raises(InvalidRequest, match="full_name"):
        await library.GiveConsent(key, voice_id=voice_id, consent=people_pb2.Consent(full_name="Ada"))
    with pytest.raises(Conflict, match="withdrawn"):
        await library.enrol(key, voice_id=voice_id)
    back = await library.GiveConsent(key, voice_id=voice_id, consent=CONSENT)
    assert back.generation == 3
    await until(lambda: ("default", voice_id) in node.voices)

    async def ready() -> bool:
        return (await library.GetVoice(key, voice_id=voice_id)).state == people_pb2.Voice.STATE_READY

    await until(ready)
    assert await events(plane, voice_id) == ["consent_given", "consent_withdrawn", "consent_given"]
    assert (await verdict(plane)).ok


async def test_a_person_who_opted_out_stays_out_until_they_agree_anew(any_world: World) -> None:
    plane, library, key = await filled(any_world)
    voice_id = (await library.ListVoices(key, label="Ada")).voices[0].voice_id
    answer = await library.WithdrawConsent(key, voice_id=voice_id, opt_out=True, erase=True)
    assert answer.erasure.audit_id
    assert answer.voice.state in (people_pb2.Voice.STATE_ERASING, people_pb2.Voice.STATE_ERASED)
    for consent in (None, CONSENT):
        # The same wording sent again is no new consent, and case makes nobody another person.
        with pytest.raises(Conflict, match="opted out"):
            await library.enrol(key, label="Ada", consent=consent, subject="EMP-1")
    earlier = people_pb2.Consent()
    earlier.CopyFrom(CONSENT)
    earlier.given_at.FromJsonString("2020-01-01T00:00:00Z")
    with pytest.raises(Conflict, match="opted out"):
        await library.enrol(key, label="Ada", consent=earlier, subject="emp-1")
    later = people_pb2.Consent()
    later.CopyFrom(CONSENT)
    later.given_at.FromJsonString("2099-01-01T00:00:00Z")
    with pytest.raises(InvalidRequest, match="future"):
        await library.enrol(key, label="Ada", consent=later, subject="emp-1")
    later.given_at.CopyFrom(timestamp(time.time() + 60))
    again = await library.enrol(key, label="Ada", consent=later, subject="emp-1")
    assert again.voice.voice_id != voice_id
    # Another tenant's person of the same reference is another person.
    await make_tenant(plane, "other")
    await library.enrol(await make_key(plane, "other", "admin"), label="Ada", subject="emp-1")


async def test_a_person_who_opted_out_is_not_enrolled_anew_as_somebody_else(world: World) -> None:
    plane = await world.plane()
    library, key = Library(plane), await admin_of(world)
    await world.node(plane)
    voice_id = (await library.enrol(key, label="Ada", consent=CONSENT, subject="emp-1")).voice.voice_id
    await library.WithdrawConsent(key, voice_id=voice_id, opt_out=True)
    with pytest.raises(Conflict, match="opted out"):
        await library.enrol(key, voice_id=voice_id, consent=CONSENT, subject="emp-2")
    assert (await library.GetVoice(key, voice_id=voice_id)).state == people_pb2.Voice.STATE_FROZEN


async def test_opting_out_needs_to_know_who_it_is(world: World) -> None:
    plane = await world.plane()
    library, key = Library(plane), await admin_of(world)
    voice_id = (await library.enrol(key, label="Ada")).voice.voice_id
    with pytest.raises(Conflict, match="subject"):
        await library.WithdrawConsent(key, voice_id=voice_id, opt_out=True)


async def test_consent_is_asked_for_where_the_deployment_requires_it(world: World) -> None:
    plane = await world.plane(require_consent=True)
    library, key = Library(plane), await admin_of(world)
    with pytest.raises(InvalidRequest, match="full_name, purpose and text"):
        await library.enrol(key, label="Ada")
    voice_id = (await library.enrol(key, label="Ada", consent=CONSENT)).voice.voice_id
    assert (await library.GetVoice(key, voice_id=voice_id)).label == "Ada"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": people_pb2.Licence.KIND_TIME_BOUND}, "expires_at"),
        ({"kind": people_pb2.Licence.KIND_TIME_BOUND, "expires_at": Timestamp(seconds=-1)}, "between the years"),
        ({"kind": people_pb2.Licence.KIND_USAGE_BOUND, "unit": "smiles", "usage_max": 5}, "unit"),
        ({"kind": people_pb2.Licence.KIND_USAGE_BOUND, "unit": "seconds"}, "usage_max"),
        ({"kind": people_pb2.Licence.KIND_PERPETUAL, "usage_max": 5}, "usage"),
        ({}, "kind"),
    ],
)
async def test_a_licence_that_does_not_say_when_it_ends_is_refused(
    world: World, fields: dict[str, Any], why: str
) -> None:
    library = Library(await world.plane())
    with pytest.raises(InvalidRequest, match=why):
        await library.enrol(
            await admin_of(world), label="F", scope=people_pb2.VOICE_SCOPE_GLOBAL, licence=licence(**fields)
        )


async def test_a_global_voice_has_a_licence_and_no_other_has(world: World) -> None:
    library, key = Library(await world.plane()), await admin_of(world)
    with pytest.raises(InvalidRequest, match="licence"):
        await library.enrol(key, label="F", scope=people_pb2.VOICE_SCOPE_GLOBAL)
    with pytest.raises(InvalidRequest, match="licence"):
        await library.enrol(key, label="F", licence=licence(kind=people_pb2.Licence.KIND_PERPETUAL))


async def test_a_global_voice_is_seen_by_every_tenant_and_changed_by_none(any_world: World) -> None:
    plane, library, _ = await filled(any_world)
    await make_tenant(plane, "other")
    admin = await make_key(plane, "other", "admin")
    (voice,) = (await library.ListVoices(admin)).voices
    assert (voice.label, voice.scope) == ("Famous", people_pb2.VOICE_SCOPE_GLOBAL)
    assert [found.label for found in (await library.ListVoices(admin, label="famous")).voices] == ["Famous"]
    async with plane.core.database.read() as connection:
        row = (await connection.execute(select(voices).where(voices.c.voice_id == voice.voice_id))).one()
        assert row.tenant_id == GLOBAL_TENANT
        assert (await connection.execute(select(licences.c.kind))).scalar_one() == "perpetual"
    for name, fields in (("UpdateVoice", {"label": "Mine"}), ("EraseVoice", {}), ("WithdrawConsent", {})):
        with pytest.raises(Exception, match="owner"):
            await getattr(library, name)(admin, voice_id=voice.voice_id, **fields)
    with pytest.raises(NotFound):
        await library.GetVoice(admin, voice_id="v_none")


async def test_nodes_are_told_for_whom_each_voice_is_and_tickets_for_whom_each_stream(any_world: World) -> None:
    plane = await any_world.plane()
    node = await any_world.node(plane)
    library, root = Library(plane), await admin_of(any_world)
    await make_tenant(plane, "acme", "u1")
    user = await make_key(plane, "acme", "voices:read", "voices:write", "voices:share", user_id="u1")
    mine = (await library.enrol(user, label="Mine", scope=people_pb2.VOICE_SCOPE_USER)).voice.voice_id
    ours = (await library.enrol(user, label="Ours", seed=1)).voice.voice_id
    famous = (
        await library.enrol(
            root,
            label="Famous",
            seed=2,
            scope=people_pb2.VOICE_SCOPE_GLOBAL,
            licence=licence(kind=people_pb2.Licence.KIND_PERPETUAL),
        )
    ).voice.voice_id

    async def told() -> dict[str, str]:
        async with plane.core.database.read() as connection:
            held = await held_after(connection, node.model, None, 10)
        return {one.voice.voice_id: one.audience or one.voice.tenant_id for one in held}

    assert await told() == {mine: "acme/u1", ours: "acme", famous: "global"}
    await library.ShareVoice(user, voice_id=mine)
    assert await told() == {mine: "acme", ours: "acme", famous: "global"}
    await until(plane.core.registry.nodes)
    keys = tuple((await node.renew_once()).ticket_keys)
    for token, audiences in ((user, ("acme", "acme/u1", "global")), (root, ("default", "global"))):
        principal = await plane.core.identity.principal(token, "voices:read")
        placed = await plane.core.placing.place(principal, stream_id="", voice_ids=[], avoid=())
        ticket = verify_ticket(placed.ticket, keys, node_id=node.node_id, now_s=time.time())
        assert (ticket.tenant_id, ticket.audiences) == (principal.tenant_id, audiences)

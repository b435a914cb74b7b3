"""What was ended stays ended: withdrawals, opt-outs, keys and tenants of after a backup that is restored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import event

from controlplane import decisions as decisions_module
from controlplane.agreements import Event, Signed, note
from controlplane.app import ControlPlane
from controlplane.database.engine import open_database
from controlplane.decision_replay import forgotten
from controlplane.decisions import Decisions, known_decisions
from controlplane.erasure_journal import Journal, open_journal
from controlplane.journal_records import Closed, Decision, KeyEnded, OptedOut, Record, Withdrawn
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.metrics import declare
from runtime.clock import SystemClock
from runtime.errors import Conflict, Unauthenticated, Unavailable
from speakerd.administration import Administration
from speakerd.errors import SpeakerdError
from speakerd.v1 import admin_pb2, people_pb2
from tests.controlplane.conftest import World, until
from tests.controlplane.people import Library, make_key, make_tenant
from tests.controlplane.test_agreements import CONSENT, admin_of
from tests.controlplane.test_audit import rows_of, verdict
from tests.controlplane.test_erasure_journal import Backup, epoch
from tests.faults.figures import Figures

FROZEN = people_pb2.Voice.STATE_FROZEN
KEY = bytes(range(32))
READER = admin_pb2.CreateKeyRequest(scopes=["voices:read"])


async def is_refused(library: Library, key: str) -> bool:
    try:
        await library.ListVoices(key)
    except Unauthenticated:
        return True
    return False


@pytest.mark.fault("F13", "P1", "P13")
async def test_a_restored_backup_brings_back_nothing_that_was_ended_after_it(world: World, figures: Figures) -> None:
    async with world.running() as plane:
        library, root = Library(plane), await admin_of(world)
        node = await world.node(plane)
        ada = (await library.enrol(root, label="Ada", consent=CONSENT, subject="emp-1")).voice.voice_id
        bob = (await library.enrol(root, label="Bob", seed=1)).voice.voice_id
        await make_tenant(plane, "acme")
        acme = await make_key(plane, "acme", "admin")
        async with Administration(plane.grpc_address, root) as admin:
            await admin.create_user("ursula")
            keys = {name: await admin.create_key(READER) for name in ("revoked", "rotated", "kept")}
        backup = Backup(world.data)
        await library.WithdrawConsent(root, voice_id=ada, opt_out=True)
        # Decided of a voice that the backup does not know: the person is remembered, the voice is not there.
        eve = (await library.enrol(root, label="Eve", seed=2, subject="emp-2")).voice.voice_id
        await library.WithdrawConsent(root, voice_id=eve, opt_out=True)
        async with Administration(plane.grpc_address, root) as admin:
            await admin.revoke_key(keys["revoked"].key.key_id)
            await admin.rotate_key(keys["rotated"].key.key_id, overlap_s=0)
            await admin.delete_user("ursula")
            await admin.delete_tenant("acme")
        await node.stop()
        before = await epoch(plane)
    backup.restore()
    restored_s = time.monotonic()
    async with world.running() as plane:
        figures.record("a restored database to open ports", time.monotonic() - restored_s)
        library = Library(plane)
        assert await epoch(plane) != before
        frozen = await library.GetVoice(root, voice_id=ada)
        assert (frozen.state, frozen.label) == (FROZEN, "Ada")
        assert (await library.GetVoice(root, voice_id=bob)).state != FROZEN
        for subject in ("emp-1", "emp-2"):
            with pytest.raises(Conflict, match="opted out"):
                await library.enrol(root, label="X", seed=3, consent=CONSENT, subject=subject)
        assert await is_refused(library, keys["revoked"].secret)
        assert await is_refused(library, keys["rotated"].secret)
        assert not await is_refused(library, keys["kept"].secret)
        assert await is_refused(library, acme)
        async with Administration(plane.grpc_address, root) as admin:
            assert [user.closed_at.seconds > 0 for user in await admin.users()] == [True]
            assert [one.closed_at.seconds > 0 for one in await admin.tenants() if one.tenant_id == "acme"] == [True]
        node = await world.node(plane)
        await until(lambda: set(node.voices) == {("default", bob)})
        replayed = [row["action"] for row in await rows_of(plane) if row.get("source") == "journal"]
        assert sorted(replayed) == [
            "consent.withdrawn", "key.ends", "key.revoked", "person.opted_out", "person.opted_out", "tenant.closed",
            "user.closed",
        ]  # fmt: skip
        assert list((await verdict(await world.client(plane))).problems) == []
        # And once is enough: a consent that is given anew is not taken back by the next start.
        later = people_pb2.Consent()
        later.CopyFrom(CONSENT)
        later.given_at.GetCurrentTime()
        await library.GiveConsent(root, voice_id=ada, consent=later)
        after = await epoch(plane)
    async with world.running() as plane:
        assert await epoch(plane) == after
        assert (await Library(plane).GetVoice(root, voice_id=ada)).state != FROZEN


async def test_a_tenant_of_the_same_id_that_came_after_the_restore_is_another(world: World) -> None:
    async with world.running() as plane:
        root = await admin_of(world)
        backup = Backup(world.data)
        async with Administration(plane.grpc_address, root) as admin:
            await admin.create_tenant("acme")
            await admin.delete_tenant("acme")
    backup.restore()
    async with world.running() as plane, Administration(plane.grpc_address, root) as admin:
        await admin.create_tenant("acme")
    async with world.running() as plane, Administration(plane.grpc_address, root) as admin:
        assert [one.closed_at.seconds for one in await admin.tenants() if one.tenant_id == "acme"] == [0]


def journal_of(plane: ControlPlane) -> Journal:
    return plane.core.erasures._work._journal


async def decisions(plane: ControlPlane) -> set[type[Decision]]:
    return {type(record) for record in await journal_of(plane).read() if isinstance(record, Decision)}


async def test_what_was_ended_is_answered_when_it_is_in_the_journal_and_asked_for_again_until_then(
    world: World,
) -> None:
    plane = await world.plane()
    library, root = Library(plane), await admin_of(world)
    voice_id = (await library.enrol(root, label="Ada", consent=CONSENT)).voice.voice_id
    path, aside = world.data / "erasure-journal", world.data / "aside"
    async with Administration(plane.grpc_address, root) as admin:
        made = await admin.create_key(READER)
        path.rename(aside)
        for _ in range(2):
            with pytest.raises(Unavailable, match="in effect"):
                await library.WithdrawConsent(root, voice_id=voice_id)
            with pytest.raises(SpeakerdError, match="in effect"):
                await admin.revoke_key(made.key.key_id)
        # A successor is told all the same: its secret is told once.
        old = await admin.create_key(READER)
        successor = (await admin.rotate_key(old.key.key_id)).secret
        assert not await is_refused(library, successor)
        # Unanswered, and in effect.
        assert (await library.GetVoice(root, voice_id=voice_id)).state == FROZEN
        assert await is_refused(library, made.secret)
        aside.rename(path)
        await admin.revoke_key(made.key.key_id)
    assert await decisions(plane) == {Withdrawn, KeyEnded}
    assert len([one for one in await journal_of(plane).read() if isinstance(one, KeyEnded)]) == 2


async def test_a_withdrawal_is_written_though_whoever_asked_left_before_the_nodes_had_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await world.plane()
    library, root = Library(plane), await admin_of(world)
    voice_id = (await library.enrol(root, label="Ada", consent=CONSENT)).voice.voice_id
    telling = asyncio.Event()

    async def spread(_: VoiceAddress) -> tuple[str, ...]:
        telling.set()
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(plane.core.library, "spread", spread)
    asked = asyncio.create_task(library.WithdrawConsent(root, voice_id=voice_id))
    async with asyncio.timeout(30):
        await telling.wait()
    asked.cancel()
    await asyncio.wait((asked,))
    assert (await library.GetVoice(root, voice_id=voice_id)).state == FROZEN

    async def is_written() -> bool:
        return await decisions(plane) == {Withdrawn}

    await until(is_written, seconds=60)


async def test_a_journal_that_hangs_holds_up_no_answer_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions_module, "BOUND_S", 0.2)
    hangs = asyncio.Event()
    written: list[Record] = []

    class Slow:
        journal_id = "slow"

        async def append(self, records: Sequence[Record]) -> None:
            await hangs.wait()
            written.extend(records)

        async def read(self) -> list[Record]:
            return written

    kept = Decisions(Slow(), declare(CollectorRegistry()))
    ended = KeyEnded("default", "abc", 5.5, is_revoked=True)
    async with asyncio.timeout(60):
        with pytest.raises(Unavailable, match="in effect"):
            await kept.write([ended])
        await kept.write_soon([ended])
        hangs.set()
        assert await kept.catch_up() == 1
    assert written == [ended]


async def test_what_is_known_of_very_many_decisions_is_asked_for_once(tmp_path: Path) -> None:
    keys, asked = KeyRing(bytes(32)), 0
    database = await open_database(f"sqlite+aiosqlite:///{tmp_path / 'speakerd.db'}", SystemClock(), lease_s=30)

    def count(*_: object) -> None:
        nonlocal asked
        asked += 1

    try:
        async with database.write() as connection:
            for number in range(50):
                said = Signed("key", float(number))
                nobody, person = VoiceAddress("default", ""), number.to_bytes(32)
                await note(connection, Event.OPTED_OUT, nobody, 0, signed=said, subject_index=person)
            told: list[Decision] = list(await known_decisions(connection, keys))
            assert len(told) == 50
            later = OptedOut("default", "ab" * 32, 99.0, "key")
            event.listen(database.engine.sync_engine, "before_cursor_execute", count)
            assert await forgotten(connection, keys, [*told, later, later], {}) == [later]
            event.remove(database.engine.sync_engine, "before_cursor_execute", count)
        assert asked < 20
    finally:
        await database.close()


async def test_a_journal_of_before_decisions_were_kept_learns_them_at_the_next_start(world: World) -> None:
    async with world.running() as plane:
        library, root = Library(plane), await admin_of(world)
        voice_id = (await library.enrol(root, label="Ada", consent=CONSENT, subject="emp-1")).voice.voice_id
        without = (world.data / "erasure-journal").read_bytes()
        await library.WithdrawConsent(root, voice_id=voice_id, opt_out=True)
    (world.data / "erasure-journal").write_bytes(without)
    async with world.running() as plane:
        assert await decisions(plane) == {Withdrawn, OptedOut}
        held = await plane.core.erasures._work._journal.read()
    async with world.running() as plane:
        again = await plane.core.erasures._work._journal.read()
        # Each of them once, however often it starts.
        assert [one for one in again if isinstance(one, Decision)] == [one for one in held if isinstance(one, Decision)]


@pytest.mark.parametrize("kind", ["file", "objects"])
async def test_decisions_are_read_as_they_were_written(kind: str, tmp_path: Path) -> None:
    place = str(tmp_path / "journal") if kind == "file" else f"file://{tmp_path}"
    journal = await open_journal(place, KEY, make=True)
    assert journal is not None
    written = [
        Withdrawn("default", "ab" * 32, 1.25, "key"),
        OptedOut("default", "cd" * 32, 1e9 + 1 / 3, ""),
        KeyEnded("default", "abc", 5.5, is_revoked=True),
        Closed("default", "ursula", 6.5),
    ]
    await journal.append(written)
    assert await journal.read() == written


async def test_the_journal_names_nobody_who_withdrew_or_opted_out(world: World) -> None:
    plane = await world.plane()
    library, root = Library(plane), await admin_of(world)
    voice_id = (await library.enrol(root, label="Zaphod", consent=CONSENT, subject="emp-canary")).voice.voice_id
    await library.WithdrawConsent(root, voice_id=voice_id, opt_out=True)
    journal = (world.data / "erasure-journal").read_bytes()
    assert b"opted_out" in journal
    for secret in (voice_id, "Zaphod", "emp-canary", "Lovelace"):
        assert secret.encode() not in journal

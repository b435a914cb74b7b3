"""The erasure journal: durable, authenticated, and what a restored database learns from it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from sqlalchemy import text

from controlplane import erasure_journal, outside
from controlplane.app import ControlPlane
from controlplane.erasure_journal import (
    HEADER_BYTES,
    Erased,
    FileJournal,
    Journal,
    Mark,
    ObjectJournal,
    Proven,
    open_journal,
)
from controlplane.journal_records import decoded, encoded
from controlplane.journal_replay import BEFORE_RESTORE
from runtime.errors import InvalidRequest, SpeakerdError, Unavailable
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import WAIT_MS, Client, World, until
from tests.controlplane.test_audit import rows_of, verdict
from tests.faults.figures import Figures

ERASED = people_pb2.Erasure.STATE_ERASED
KEY = bytes(range(32))


def erased(number: int) -> Erased:
    return Erased(f"e_{number}", "default", f"{number:064x}", 2, number, "epoch", "user_request", 1.5)


def where(kind: str, tmp_path: Path) -> str:
    return str(tmp_path / "journal") if kind == "file" else f"file://{tmp_path}"


async def opened(place: str, *, make: bool = True) -> Journal:
    journal = await open_journal(place, KEY, make=make)
    assert journal is not None
    return journal


@pytest.mark.parametrize("kind", ["file", "objects"])
async def test_what_was_appended_is_read_again_whoever_opens_it(kind: str, tmp_path: Path) -> None:
    place = where(kind, tmp_path)
    assert await open_journal(place, KEY, make=False) is None
    journal = await opened(place)
    records = [erased(1), Proven("e_1", 2.5, ("node-1",)), Mark("epoch", "run", 7, 3, "ab", 2.0)]
    await journal.append(records)
    await journal.append([erased(2)])
    assert await journal.read() == [*records, erased(2)]
    again = await opened(place, make=False)
    assert again.journal_id == journal.journal_id
    assert await again.read() == [*records, erased(2)]


@pytest.mark.parametrize("kind", ["file", "objects"])
async def test_several_control_planes_append_to_one_journal(kind: str, tmp_path: Path) -> None:
    place = where(kind, tmp_path)
    one, other = await opened(place), await opened(place)
    for number in range(6):
        await (one, other)[number % 2].append([erased(number)])
    await asyncio.gather(one.append([erased(6)]), other.append([erased(7)]), one.append([erased(8)]))
    read = await (await opened(place)).read()
    assert {record.audit_id for record in read if isinstance(record, Erased)} == {f"e_{number}" for number in range(9)}


@pytest.mark.parametrize("kind", ["file", "objects"])
async def test_another_key_reads_nothing_and_is_told(kind: str, tmp_path: Path) -> None:
    await (await opened(where(kind, tmp_path))).append([erased(1)])
    journal = await open_journal(where(kind, tmp_path), bytes(32), make=False)
    assert journal is not None
    with pytest.raises(InvalidRequest, match="damaged"):
        await journal.read()


async def test_a_record_that_was_cut_off_as_it_was_written_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    await (await opened(str(path))).append([erased(1), erased(2)])
    whole = path.read_bytes()
    for cut in (1, 30, 60):
        path.write_bytes(whole[:-cut])
        journal = await opened(str(path))
        assert await journal.read() == [erased(1)]
        await journal.append([erased(3)])
        assert await (await opened(str(path))).read() == [erased(1), erased(3)]
        path.write_bytes(whole)


async def test_a_change_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    await (await opened(str(path))).append([erased(1), erased(2), erased(3)])
    whole = path.read_bytes()
    first = HEADER_BYTES
    length = int.from_bytes(whole[first : first + 4], "big") + 36
    for damaged in (
        whole.replace(b'"e_2"', b'"e_9"'),
        whole[: first + 40] + b"x" + whole[first + 41 :],
        whole[:first] + whole[first + length :],  # a record taken out
    ):
        path.write_bytes(damaged)
        with pytest.raises(InvalidRequest, match="damaged at byte"):
            await (await opened(str(path))).read()
        with pytest.raises(InvalidRequest, match="damaged at byte"):
            await (await opened(str(path))).append([erased(4)])
    path.write_bytes(b"something else")
    with pytest.raises(InvalidRequest, match="not an erasure journal"):
        await opened(str(path))


async def test_a_control_plane_that_froze_as_it_wrote_holds_up_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure_journal, "LOCK_S", 0.2)
    journal = await opened(where("file", tmp_path))
    with (tmp_path / "journal").open("rb") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_EX)
        try:
            for call in (journal.append([erased(1)]), journal.read()):
                with pytest.raises(Unavailable, match="locked"):
                    async with asyncio.timeout(60):
                        await call
        finally:
            fcntl.flock(frozen, fcntl.LOCK_UN)
    await journal.append([erased(2)])
    assert await journal.read() == [erased(2)]


class Hanging:
    """An object store that takes a connection, and no more."""

    async def put_async(self, _name: str, _content: bytes, *, mode: str) -> None:
        await asyncio.Event().wait()


async def test_an_object_store_that_hangs_is_as_good_as_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "PUT_S", 0.2)
    journal = await opened(where("objects", tmp_path))
    assert isinstance(journal, ObjectJournal)
    monkeypatch.setattr(journal._store, "_store", Hanging())
    with pytest.raises(Unavailable, match="away"):
        async with asyncio.timeout(60):
            await journal.append([erased(1)])


async def test_a_journal_that_is_taken_away_is_not_begun_anew(tmp_path: Path) -> None:
    journal = await opened(str(tmp_path / "journal"))
    (tmp_path / "journal").unlink()
    with pytest.raises(Unavailable, match="away"):
        await journal.append([erased(1)])


class Backup:
    """A copy of a database as an operator may make and restore it."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._copy = data.with_name("copy.db")
        with sqlite3.connect(data / "speakerd.db") as source, sqlite3.connect(self._copy) as target:
            source.backup(target)

    def restore(self) -> None:
        for path in self._data.glob("speakerd.db*"):
            path.unlink()
        shutil.copy(self._copy, self._data / "speakerd.db")


async def erasure_of(client: Client, audit_id: str) -> people_pb2.Erasure:
    return await client.people.GetErasure(people_pb2.GetErasureRequest(audit_id=audit_id), metadata=client.metadata)


async def proven(client: Client, audit_id: str) -> bool:
    return (await erasure_of(client, audit_id)).state == ERASED


@pytest.mark.fault("F13", "P1", "P3")
async def test_a_database_from_before_an_erasure_erases_again_before_anybody_can_ask(
    world: World, figures: Figures
) -> None:
    async with world.running() as plane:
        client = await world.client(plane)
        node = await world.node(plane)
        alice = (await client.enrol("Alice")).voice.voice_id
        bob = (await client.enrol("Bob", seed=1)).voice.voice_id
        backup = Backup(world.data)
        carol = (await client.enrol("Carol", seed=2)).voice.voice_id
        first, second = await client.erase(alice, wait_ms=WAIT_MS), await client.erase(carol, wait_ms=WAIT_MS)
        await node.stop()
    backup.restore()
    restored_s = time.monotonic()
    plane = await world.plane()
    figures.record("a restored database to open ports", time.monotonic() - restored_s)
    client = await world.client(plane)
    # Read before the worker has done anything: the tombstone and the missing key come from the replay itself.
    assert (await client.get(alice)).state in (people_pb2.Voice.STATE_ERASING, people_pb2.Voice.STATE_ERASED)
    assert (await client.get(alice)).label == ""
    assert (await client.get(bob)).label == "Bob"
    async with plane.core.database.read() as connection:
        kept = (await connection.execute(text("SELECT voice_id FROM data_keys"))).scalars().all()
    assert kept == [bob]
    with pytest.raises(aio.AioRpcError) as refused:
        await client.get(carol)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    for erasure in (first, second):
        await until(lambda erasure=erasure: proven(client, erasure.audit_id))
    figures.record("both erasures proven again after", time.monotonic() - restored_s)
    again = await erasure_of(client, first.audit_id)
    assert (again.voice_id, again.source, again.requested_at) == (alice, "journal", first.requested_at)
    replayed = [row for row in await rows_of(plane) if row["action"] == "erase.replayed"]
    assert {row["audit_id"]: row["is_found"] for row in replayed} == {first.audit_id: True, second.audit_id: False}
    completed = [row for row in await rows_of(plane) if row["action"] == "erase.completed"]
    assert {row["source"] for row in completed} == {"journal"}
    found = await verdict(client)
    assert list(found.problems) == []
    assert any("a backup was restored" in note for note in found.notes)


async def epoch(plane: ControlPlane) -> str:
    async with plane.core.database.read() as connection:
        return str((await connection.execute(text("SELECT epoch FROM fleet_head"))).scalar_one())


async def test_a_node_that_lived_through_a_restore_forgets_what_the_backup_does_not_know(world: World) -> None:
    async with world.running(grpc="127.0.0.1:0") as plane:
        client = await world.client(plane)
        node = await world.node(plane)
        await client.enrol("Alice")
        backup = Backup(world.data)
        address, before = plane.grpc_address, await epoch(plane)
        lost = [(await client.enrol(f"P{index}", seed=index + 5)).voice.voice_id for index in range(2)]
        await until(lambda: len(node.voices) == 3)
        node.freeze()
    backup.restore()
    async with world.running(grpc=address) as plane:
        assert await epoch(plane) != before
        client = await world.client(plane)
        # The head grows past what the node has applied, with other voices at the same revisions.
        for index in range(4):
            await client.enrol(f"Q{index}", seed=index + 20)
        node.thaw()
        await until(lambda: len(node.voices) == 5 and not {voice_id for _, voice_id in node.voices} & set(lost))
        assert (await verdict(client)).ok


async def test_no_incarnation_is_given_again_however_often_one_backup_is_restored(world: World) -> None:
    given: list[int] = []
    async with world.running() as plane:
        backup = Backup(world.data)
        given.append((await world.node(plane)).incarnation)
    for _ in range(3):
        # What the backup knows is the same each time; what was given out since, only the journal can tell.
        backup.restore()
        async with world.running(restored=True) as plane:
            given.append((await world.node(plane)).incarnation)
    assert given == sorted(set(given))


def test_a_mark_that_was_written_before_marks_told_incarnations_is_read() -> None:
    fields = json.loads(encoded(Mark("epoch", "run", 7, 3, "ab", 2.0, incarnation=9)))
    assert fields.pop("incarnation") == 9
    assert decoded(json.dumps(fields).encode()) == Mark("epoch", "run", 7, 3, "ab", 2.0)


async def test_an_ordinary_restart_changes_no_epoch_and_nodes_keep_what_they_hold(world: World) -> None:
    epochs = []
    for _ in range(3):
        async with world.running() as plane:
            client = await world.client(plane)
            voice_id = (await client.enrol("Alice", seed=len(epochs))).voice.voice_id
            await client.erase(voice_id, wait_ms=WAIT_MS)
            epochs.append(await epoch(plane))
    assert len(set(epochs)) == 1


async def test_whoever_held_a_lease_in_the_time_that_was_lost_is_waited_for(world: World) -> None:
    async with world.running() as plane:
        client = await world.client(plane)
        voice_id = (await client.enrol("Alice")).voice.voice_id
        backup = Backup(world.data)
        node = await world.node(plane)
        await until(lambda: len(node.voices) == 1 or plane.core.fleet.changed.beat())
        node.freeze()
        erasure = await client.erase(voice_id)
        assert erasure.state != ERASED
    backup.restore()
    async with world.running() as plane:
        client = await world.client(plane)
        assert not await proven(client, erasure.audit_id)
        await until(lambda: proven(client, erasure.audit_id))
        again = await erasure_of(client, erasure.audit_id)
        assert [(outcome.node_id, outcome.ok) for outcome in again.nodes] == [(BEFORE_RESTORE, False)]
        # It was not proven before, so that somebody unknown may hold it still.
        assert list(again.residual_node_ids) == [BEFORE_RESTORE]
        node.thaw()


async def refused(world: World, **settings: Any) -> str:
    with pytest.raises(SpeakerdError) as error:
        async with world.running(**settings):
            pass
    return str(error.value)


async def test_a_missing_damaged_or_foreign_journal_stops_the_start_until_that_is_accepted(
    world: World, tmp_path: Path
) -> None:
    async with world.running() as plane:
        client = await world.client(plane)
        voice_id = (await client.enrol("Alice")).voice.voice_id
        erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    path, kept = world.data / "erasure-journal", tmp_path / "kept"
    path.rename(kept)
    assert "missing" in await refused(world)
    assert not path.exists()
    await opened(str(path))
    assert "belongs to another database" in await refused(world)
    damaged = kept.read_bytes().replace(erasure.audit_id.encode(), b"e" * len(erasure.audit_id))
    path.write_bytes(damaged)
    assert "damaged" in await refused(world)
    path.unlink()
    for why in ("missing", "damaged"):
        if why == "damaged":
            path.write_bytes(path.read_bytes().replace(erasure.audit_id.encode(), b"e" * len(erasure.audit_id)))
            assert "damaged" in await refused(world)
        async with world.running(accept_journal_loss=True) as plane:
            rows = await rows_of(plane)
            assert [row["why"] for row in rows if row["action"] == "journal.loss_accepted"][-1] == why
            journal = plane.core.erasures._work._journal

            async def knows(journal: Journal = journal) -> bool:
                return erasure.audit_id in {
                    record.audit_id for record in await journal.read() if isinstance(record, Erased)
                }

            # What the database knows is in the new journal too.
            await until(knows)
            assert (await verdict(await world.client(plane))).ok
        async with world.running():
            pass


async def test_an_erasure_is_answered_when_it_is_in_the_journal_and_not_before(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    path, aside = world.data / "erasure-journal", world.data / "aside"
    path.rename(aside)
    for _ in range(2):
        with pytest.raises(aio.AioRpcError) as refused:
            await client.erase(voice_id)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "journal" in str(refused.value.details())
    assert (await client.get(voice_id)).state == people_pb2.Voice.STATE_ERASING
    await asyncio.sleep(0.7)
    assert (await client.get(voice_id)).state == people_pb2.Voice.STATE_ERASING
    # Nor when the proof is there already, and nobody looks at the journal before.
    work = plane.core.erasures._work
    (waiting,) = await work._open()
    await work._finish(waiting)
    assert (await client.get(voice_id)).state == people_pb2.Voice.STATE_ERASING
    aside.rename(path)
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == ERASED
    journal = plane.core.erasures._work._journal
    assert isinstance(journal, FileJournal)
    written = [record.audit_id for record in await journal.read() if isinstance(record, Erased)]
    assert written == [erasure.audit_id]
    rows = [row["action"] for row in await rows_of(plane) if row.get("audit_id") == erasure.audit_id]
    assert rows == ["erase.requested", "erase.completed"]


async def test_the_journal_names_nobody(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    voice_id = (await client.enrol("Zaphod Canary")).voice.voice_id
    await client.erase(voice_id, wait_ms=WAIT_MS)
    journal = (world.data / "erasure-journal").read_bytes()
    assert voice_id.encode() not in journal
    assert b"Zaphod" not in journal
    assert json.dumps("default").encode() in journal


async def test_control_planes_on_one_database_have_to_share_the_journal(
    postgresql_url: str, tmp_path: Path, world: World
) -> None:
    world.database_url = postgresql_url
    async with world.running() as plane:
        other = tmp_path / "other"
        other.mkdir(mode=0o700)
        for name in ("kek.key", "fleet.key", "ticket.key", "audit.key", "admin.key"):
            shutil.copy(world.data / name, other / name)
        said = await refused(world, data=other)
        assert "missing" in said
        shared = str(world.data / "erasure-journal")
        async with world.running(data=other, erasure_journal=shared) as second:
            client = await world.client(second)
            voice_id = (await client.enrol("Alice")).voice.voice_id
            assert (await client.erase(voice_id, wait_ms=WAIT_MS)).state == ERASED
            assert await epoch(plane) == await epoch(second)
            assert (await verdict(client)).ok

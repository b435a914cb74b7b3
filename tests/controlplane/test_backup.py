"""`speakerd backup` and `restore`, with the daemon as it is run: a voice erased since the backup stays gone."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc import aio
from sqlalchemy import text

from controlplane.backup import back_up
from controlplane.config import ControlPlaneSettings
from controlplane.restore import restore
from runtime.errors import Conflict, InvalidRequest
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import WAIT_MS, World, until
from tests.controlplane.test_audit import verdict
from tests.controlplane.test_daemon import ROOT, admin, plane_arguments, running
from tests.faults.test_fault_points import voice_of

DAY_S = 86_400.0
GONE = (people_pb2.Voice.STATE_ERASING, people_pb2.Voice.STATE_ERASED)


def speakerd(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "speakerd", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd=ROOT, check=False,
    )  # fmt: skip


def everything_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


async def test_a_voice_erased_after_the_backup_stays_gone_when_it_is_restored(tmp_path: Path) -> None:
    data, out, fresh = tmp_path / "data", tmp_path / "out", tmp_path / "fresh"
    async with running(*plane_arguments(data), log=tmp_path / "log") as daemon, admin(daemon, data) as client:
        alice = (await client.enrol("Alice", data=voice_of("Alice"))).voice.voice_id
        bob = (await client.enrol("Bob", data=voice_of("Bob"))).voice.voice_id
        made = speakerd("backup", "--data", data, "--out", out, "--json")
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["num_keys"] == 2
        carol = (await client.enrol("Carol", data=voice_of("Carol"))).voice.voice_id
        erasure = await client.erase(alice, wait_ms=WAIT_MS)
        assert erasure.state == people_pb2.Erasure.STATE_ERASED
        await daemon.end(signal.SIGTERM)
    # The machine is lost. What is in no backup, its operator has kept: the key of keys, and the journal of erasures.
    fresh.mkdir(mode=0o700)
    shutil.copy(data / "kek.key", fresh / "kek.key")
    refused = speakerd("restore", out, "--data", fresh)
    assert refused.returncode == 1
    assert "erasure journal" in refused.stderr
    assert not (fresh / "speakerd.db").exists()
    shutil.copy(data / "erasure-journal", fresh / "erasure-journal")
    done = speakerd("restore", out, "--data", fresh, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) | {"backup_id": ""} == {
        "backup_id": "", "num_keys": 1, "num_erased": 1, "num_blobs": 2,
    }  # fmt: skip
    async with running(*plane_arguments(fresh), log=tmp_path / "log") as daemon, admin(daemon, fresh) as client:
        found = await client.get(alice)
        assert (found.state in GONE, found.label) == (True, "")
        assert (await client.get(bob)).label == "Bob"
        with pytest.raises(aio.AioRpcError) as absent:
            await client.get(carol)
        assert absent.value.code() is grpc.StatusCode.NOT_FOUND

        async def proven() -> bool:
            request = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
            answer = await client.people.GetErasure(request, metadata=client.metadata)
            return answer.state == people_pb2.Erasure.STATE_ERASED

        await until(proven, 40)
        online = speakerd("audit", "verify", "--server", daemon.grpc_address, "--data", fresh, "--json")
        assert (online.returncode, json.loads(online.stdout)["problems"]) == (0, []), online.stderr
        await daemon.end(signal.SIGTERM)
    offline = speakerd("audit", "verify", "--offline", "--data", fresh, "--json")
    assert (offline.returncode, json.loads(offline.stdout)["ok"]) == (0, True), offline.stdout
    # A hand in the file: red, with a line that says where.
    with sqlite3.connect(fresh / "speakerd.db") as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE audit SET body = replace(body, 'voice.enrolled', 'voice.imagined') WHERE sequence = 1")
    offline = speakerd("audit", "verify", "--offline", "--data", fresh)
    assert offline.returncode == 1
    assert "row 1 of the audit was changed" in offline.stderr


async def test_a_backup_holds_no_key_outside_its_file_of_keys(world: World, tmp_path: Path) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await client.enrol("Alice")
    async with plane.core.database.read() as connection:
        wrapped = [bytes(row[0]) for row in await connection.execute(text("SELECT wrapped FROM data_keys"))]
    await back_up(ControlPlaneSettings(data=world.data), tmp_path / "out", keys_days=30, now_s=time.time())
    stored = everything_under(tmp_path / "out" / "data")
    assert len(stored) > 100_000
    for key in [*wrapped, *(key[12:44] for key in wrapped)]:
        assert key not in stored
    assert (world.data / "kek.key").read_bytes().strip() not in everything_under(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("erasure-journal"))
    assert not list((tmp_path / "out").rglob("audit-checkpoints"))
    assert [path for path in (tmp_path / "out").rglob("*") if path.stat().st_mode & 0o077] == []
    with sqlite3.connect(tmp_path / "out" / "data" / "speakerd.db") as copy:
        assert copy.execute("SELECT count(*) FROM data_keys").fetchone() == (0,)
        assert copy.execute("SELECT count(*) FROM voices").fetchone() == (1,)
        with pytest.raises(sqlite3.IntegrityError, match="only grow"):
            copy.execute("DELETE FROM audit")
    with pytest.raises(Conflict, match="not empty"):
        await back_up(ControlPlaneSettings(data=world.data), tmp_path / "out", keys_days=30, now_s=time.time())


async def test_keys_past_their_date_are_refused_and_deleted_by_the_next_backup(world: World, tmp_path: Path) -> None:
    async with world.running() as plane:
        await (await world.client(plane)).enrol("Alice")
    settings, out, now_s = ControlPlaneSettings(data=world.data), tmp_path / "out", time.time()
    made = await back_up(settings, out, keys_days=30, now_s=now_s)
    fresh = tmp_path / "fresh"
    fresh.mkdir(mode=0o700)
    for name in ("kek.key", "erasure-journal"):
        shutil.copy(world.data / name, fresh / name)
    target = ControlPlaneSettings(data=fresh)

    async def restored(now_s: float, *, accept: bool = False, keys_file: Path | None = None) -> int:
        done = await restore(target, out, keys_file=keys_file, accept_expired_keys=accept, now_s=now_s)
        return done.num_keys

    with pytest.raises(InvalidRequest, match="expired"):
        await restored(now_s + 31 * DAY_S)
    # The date cannot be moved by hand.
    file = out / "keys" / f"{made.backup_id}.json"
    moved = tmp_path / "moved.json"
    moved.write_text(file.read_text().replace(str(int(now_s))[:6], str(int(now_s + 400 * DAY_S))[:6]))
    with pytest.raises(InvalidRequest, match="was changed"):
        await restored(now_s + 31 * DAY_S, keys_file=moved)
    assert not (fresh / "speakerd.db").exists()
    assert await restored(now_s + 31 * DAY_S, accept=True) == 1
    with pytest.raises(Conflict, match="there is a database"):
        await restored(now_s)
    later = tmp_path / "later"
    (later / "keys").mkdir(parents=True)
    shutil.copy(file, later / "keys" / file.name)
    again = await back_up(settings, later, keys_days=30, now_s=now_s + 31 * DAY_S)
    assert again.pruned == (file.name,)
    assert [path.name for path in (later / "keys").iterdir()] == [f"{again.backup_id}.json"]
    with pytest.raises(InvalidRequest, match="keys are not at"):
        (fresh / "speakerd.db").unlink()
        file.unlink()
        await restored(now_s)


async def test_with_postgresql_its_own_tools_bring_the_rows_and_we_the_keys(
    postgresql_url: str, world: World, tmp_path: Path
) -> None:
    world.database_url = postgresql_url
    settings = ControlPlaneSettings(data=world.data, database_url=postgresql_url)
    async with world.running() as plane:
        client = await world.client(plane)
        alice, bob = [
            (await client.enrol(label, seed=number)).voice.voice_id for number, label in enumerate(("Alice", "Bob"))
        ]
        made = await back_up(settings, tmp_path / "out", keys_days=30, now_s=time.time())
        assert "pg_dump" in made.database
        assert (made.num_keys, made.num_blobs) == (2, 2)
        erasure = await client.erase(alice, wait_ms=WAIT_MS)
        # As pg_restore leaves it: the rows of then, without keys.
        async with plane.core.database.write() as connection:
            await connection.execute(text("DELETE FROM data_keys"))
            await connection.execute(text("DELETE FROM erasures"))
            await connection.execute(text("UPDATE voices SET state = 'ready', generation = 1"))
    shutil.rmtree(world.data / "blobs")
    done = await restore(settings, tmp_path / "out", keys_file=None, accept_expired_keys=False, now_s=time.time())
    assert (done.num_keys, done.num_erased, done.num_blobs) == (1, 1, 2)
    async with world.running() as plane:
        client = await world.client(plane)
        assert (await client.get(alice)).state in GONE
        assert (await client.get(bob)).label == "Bob"

        async def proven() -> bool:
            request = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
            answer = await client.people.GetErasure(request, metadata=client.metadata)
            return answer.state == people_pb2.Erasure.STATE_ERASED

        await until(proven)
        found = await verdict(client, skip_inventory=True)
        # Only the copy's erasures were taken away here; their rows of the audit were not, and are missed.
        assert all(erasure.audit_id in problem for problem in found.problems)

"""The database: migrated, durable, and one process's alone where it has to be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from sqlite3 import ProgrammingError

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from controlplane.database import engine
from controlplane.database.engine import open_database
from controlplane.database.schema import metadata
from controlplane.secret_files import prepare_data_folder, read_or_make_bytes, read_or_make_text
from runtime.clock import SteppedClock
from runtime.errors import InvalidRequest, Unavailable
from tests.controlplane.conftest import World


def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/speakerd.db"


async def test_the_migrations_make_the_tables_that_the_code_names(any_world: World) -> None:
    plane = await any_world.plane()

    def difference(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with plane.core.database.engine.connect() as connection:
        assert await connection.run_sync(difference) == []


async def test_sqlite_is_durable_forgets_what_is_deleted_and_keeps_references(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path), SteppedClock(), lease_s=1.0)
    async with database.write() as connection:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("secure_delete", 1), ("foreign_keys", 1)):
            assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value
    await database.close()


async def test_a_write_that_fails_leaves_nothing(any_world: World) -> None:
    plane = await any_world.plane()
    database = plane.core.database
    with pytest.raises(KeyError):
        async with database.write() as connection:
            await connection.execute(text("INSERT INTO tenants (tenant_id, created_at_s) VALUES ('x', 0)"))
            raise KeyError
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM tenants WHERE tenant_id = 'x'"))).scalar_one() == 0


LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT max(i) FROM n"


async def test_a_caller_who_goes_away_in_the_middle_of_a_write_leaves_the_database_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 15_000)  # a lock that is left behind is held for ever
    database = await open_database(url(tmp_path), SteppedClock(), lease_s=1.0)

    async def write(tenant_id: str, statement: str) -> None:
        async with database.write() as connection:
            await connection.execute(text(f"INSERT INTO tenants (tenant_id, created_at_s) VALUES ('{tenant_id}', 0)"))
            begun.set()
            await connection.execute(text(statement))

    kept = []
    for number in range(6):
        begun = asyncio.Event()
        going = asyncio.create_task(write(f"left-{number}", LONG))
        await begun.wait()
        await asyncio.sleep(0.01 * number)
        going.cancel()
        # Whoever was cancelled is looked at for long: what it held is not collected.
        kept += await asyncio.gather(going, return_exceptions=True)
        assert isinstance(kept[-1], asyncio.CancelledError)
        begun = asyncio.Event()
        await write(f"stays-{number}", "SELECT 1")
    async with database.read() as connection:
        found = (await connection.execute(text("SELECT tenant_id FROM tenants ORDER BY 1"))).scalars().all()
    assert found == [f"stays-{number}" for number in range(6)]
    await database.close()


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_statement_that_was_cancelled_leaves_no_log_beside_the_file_once_it_is_closed(
    tmp_path: Path, kind: str
) -> None:
    database = await open_database(url(tmp_path), SteppedClock(), lease_s=1.0)
    begun = asyncio.Event()
    kept: list[BaseException] = []

    async def ask() -> None:
        try:
            async with getattr(database, kind)() as connection:
                begun.set()
                await connection.execute(text(LONG))
        except asyncio.CancelledError as error:
            kept.append(error)  # with its traceback, and in it whatever the statement held

    going = asyncio.create_task(ask())
    await begun.wait()
    await asyncio.sleep(0.05)
    going.cancel()
    await going
    assert kept, "it was over before it was cancelled"
    await database.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speakerd.db", "speakerd.db.lock"]


async def test_a_connection_of_sqlite_may_be_closed_twice_while_a_cursor_of_it_is_held(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path), SteppedClock(), lease_s=1.0)
    async with database.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        opened = driver._conn
        cursor = opened.cursor().execute("SELECT 1")
        await connection.invalidate()
    opened.close()  # as when a close that was cancelled is forced
    with pytest.raises(ProgrammingError, match="closed"):
        cursor.fetchone()
    await database.close()


async def test_a_second_process_on_the_same_sqlite_is_refused(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path), SteppedClock(), lease_s=1.0)
    with pytest.raises(Unavailable, match="another control plane"):
        await open_database(url(tmp_path), SteppedClock(), lease_s=1.0)
    await database.close()
    await (await open_database(url(tmp_path), SteppedClock(), lease_s=1.0)).close()


@pytest.mark.parametrize("bad", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "sqlite:///x", "mysql://x/y"])
async def test_a_database_that_cannot_hold_the_truth_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest, match="database_url"):
        await open_database(bad, SteppedClock(), lease_s=1.0)


async def test_a_database_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="away"):
        await open_database("postgresql+asyncpg://nobody@127.0.0.1:1/none", SteppedClock(), lease_s=1.0)


async def test_a_full_database_is_unavailable_and_reads_go_on(world: World) -> None:
    plane = await world.plane()
    database = plane.core.database
    async with database.read() as connection:
        before = (await connection.execute(text("SELECT count(*) FROM tenants"))).scalar_one()
    with pytest.raises(Unavailable, match="full"):
        async with database.write() as connection:
            await connection.execute(text("PRAGMA max_page_count = 40"))
            for index in range(2_000):
                values = {"tenant": f"t{index}" * 10}
                await connection.execute(text("INSERT INTO tenants VALUES (:tenant, 0)"), values)
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM tenants"))).scalar_one() == before


class SaidByPostgres(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.fault("F12", "P10")
@pytest.mark.parametrize("sqlstate", ["08006", "53100", "53200", "53300", "57P01", "57P03", "58030", "55P03", "40P01"])
def test_what_postgresql_says_of_its_own_trouble_is_worth_another_try(sqlstate: str) -> None:
    with pytest.raises(Unavailable), engine._availability():
        raise DBAPIError("INSERT", {}, SaidByPostgres(sqlstate))


@pytest.mark.parametrize("sqlstate", ["42P01", "23505", "42601"])
def test_what_postgresql_says_of_our_mistakes_is_not(sqlstate: str) -> None:
    with pytest.raises(DBAPIError), engine._availability():
        raise DBAPIError("INSERT", {}, SaidByPostgres(sqlstate))


@pytest.mark.fault("F12", "P10", "P8")
async def test_who_is_far_back_in_the_queue_of_writers_is_told_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = (await world.plane()).core.database
    async with database.write():
        monkeypatch.setattr(engine, "TURN_S", 0.2)
        with pytest.raises(Unavailable, match="busy"):
            async with database.write():
                pass
        monkeypatch.setattr(engine, "TURN_S", 60.0)
    async with database.write():
        pass


def test_secrets_are_their_owners_alone_and_stay_what_they_are(tmp_path: Path) -> None:
    prepare_data_folder(tmp_path / "data")
    path = tmp_path / "data" / "kek.key"
    made = read_or_make_bytes(path)
    assert len(made) == 32
    assert read_or_make_bytes(path) == made
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        read_or_make_bytes(path)
    path.chmod(0o600)
    path.write_text("AAAA")
    with pytest.raises(InvalidRequest, match="damaged"):
        read_or_make_bytes(path)
    path.write_text("")
    with pytest.raises(InvalidRequest, match="empty"):
        read_or_make_text(path, lambda: "never")


def test_a_secret_that_another_process_made_in_the_meantime_is_taken_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "kek.key"

    def make() -> str:
        # Between our look and our writing, another process starts on the same folder, and relies on its key already.
        assert read_or_make_text(path, lambda: "theirs") == "theirs"
        return "ours"

    assert read_or_make_text(path, make) == "theirs"
    assert path.read_text().strip() == "theirs"
    assert [one.name for one in tmp_path.iterdir()] == ["kek.key"]


async def test_a_key_that_does_not_belong_to_the_database_is_refused_before_anything_is_served(
    any_world: World,
) -> None:
    async with any_world.running() as plane:
        client = await any_world.client(plane)
        await client.enrol("Alice")
    kek = any_world.data / "kek.key"
    right = kek.read_text()
    kek.unlink()
    with pytest.raises(InvalidRequest, match=r"kek\.key"):
        await any_world.plane()
    kek.write_text(right)
    plane = await any_world.plane()
    assert (await (await any_world.client(plane)).list()).voices[0].label == "Alice"

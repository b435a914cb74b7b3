"""Opens the database, brings it up to date, and gives out transactions.

In: a SQLAlchemy URL (SQLite or PostgreSQL). Out: `Database.read()` and `Database.write()`. What always holds: a write
is durable when its block ends (SQLite: synchronous=FULL), writers of SQLite never wait for each other inside the
database, and a second process on the same SQLite file is refused, for its leases would not be ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from controlplane.database.schema import fleet_head, node_leases
from runtime.clock import Clock
from runtime.errors import InvalidRequest, Unavailable

BUSY_TIMEOUT_MS = 5_000
TURN_S = 10.0
"""How long a writer of SQLite waits for those before it: while another process holds the file, each of them takes its
BUSY_TIMEOUT_MS, and whoever is far behind is told at once rather than after all of them."""
POOL_SIZE = 8
POOL_WAIT_S = 5.0
CONNECT_S = 5.0
STATEMENT_S = 10.0
"""How long a statement may take, so that a server that is frozen, or gone without a word, holds up nobody longer."""
LOCK_WAIT_MS = 5_000
"""How long PostgreSQL lets a statement wait for a lock that somebody else holds."""
IDLE_IN_TRANSACTION_S = 5.0
"""A control plane that freezes within a transaction holds up the others, and their erasures, no longer than this."""
UNSTORABLE = ("22001", "22021", "22P05")
"""What PostgreSQL says of text that is too long or holds NUL: a caller's mistake, where SQLite would take it."""
OUTAGES = ("08", "53", "57", "58", "55P03", "25P03", "40001", "40P01")
"""What SQLSTATE begins with when PostgreSQL is unreachable, out of disk, memory or connections, shutting down, broken,
or was kept waiting for a lock: not this statement's mistake, and worth another try."""
# Any number, the same in all control planes: one of them at a time migrates a PostgreSQL.
_MIGRATION_LOCK = 7_310_221


class DatabaseAway(Unavailable):
    """The database is away, full or locked."""


class Database:
    """The engine, and the one lock of SQLite's writers."""

    def __init__(self, engine: AsyncEngine, clock: Clock, lock_file: int | None) -> None:
        self.engine = engine
        self._clock = clock
        self._lock_file = lock_file
        self._writer = asyncio.Lock()
        # Told of each transaction that failed over the database, and of each what kind it was and what it took.
        self.failed: Callable[[], None] = lambda: None
        self.took: Callable[[str, float], None] = lambda _kind, _seconds: None

    def __repr__(self) -> str:
        return f"Database({self.engine.dialect.name})"

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite: one process, our own clock, a log to truncate after erasures."""
        return self.engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads one consistent state."""
        with self._measured("read"):
            async with self.engine.connect() as connection:
                if not self.is_sqlite:
                    await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits when the block ends, and rolls back when it raises."""
        with self._measured("write"):
            if not self.is_sqlite:
                async with self.engine.begin() as connection:
                    yield connection
                return
            async with self._turn(), self.engine.connect() as connection:
                await connection.execution_options(writes=True)
                async with connection.begin():
                    yield connection

    @contextmanager
    def _measured(self, kind: str) -> Iterator[None]:
        began_s = time.monotonic()
        try:
            with _availability():
                yield
        except Unavailable as error:
            if isinstance(error, DatabaseAway):
                self.failed()
            raise
        finally:
            self.took(kind, time.monotonic() - began_s)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The turn of a writer of SQLite. Raises Unavailable when those before it do not end."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._writer.acquire()
        except TimeoutError:
            raise Unavailable("the database is busy; try again", retry_after_s=1.0) from None
        try:
            yield
        finally:
            self._writer.release()

    async def lease_now_s(self, connection: AsyncConnection) -> float:
        """Now, on the clock that leases are counted on.

        SQLite belongs to one process, whose own clock counts suspension and never jumps. Control planes that share a
        PostgreSQL share its clock.
        """
        if self.is_sqlite:
            return self._clock.lease_now_s()
        return float((await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))).scalar_one())

    async def truncate_log(self) -> bool:
        """Leave nothing deleted behind in SQLite's write-ahead log; secure_delete has zeroed the pages themselves.

        False when a reader was in the way and the log still holds what it held. Raises Unavailable.
        """
        if not self.is_sqlite:
            return True
        with _availability():
            async with self._turn(), self.engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                is_busy = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]
        return not is_busy

    async def close(self) -> None:
        """Close all connections and let another process in."""
        await self.engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


async def open_database(url: str, clock: Clock, *, lease_s: float) -> Database:
    """Open and migrate. lease_s: how long a lease given out by an earlier run may still be relied upon.

    Raises InvalidRequest for a URL that is not for SQLite or PostgreSQL, Unavailable when another process has the
    SQLite file or the server does not answer.
    """
    parsed = make_url(url)
    if parsed.drivername not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise InvalidRequest("database_url: write sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/NAME")
    lock_file = None
    if parsed.drivername == "sqlite+aiosqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidRequest("database_url: a database in memory loses every voice; name a file")
        lock_file = _lock(Path(f"{parsed.database}.lock"))
        engine = create_async_engine(
            parsed,
            pool_size=POOL_SIZE,
            max_overflow=0,
            hide_parameters=True,
            connect_args={"factory": _SqliteConnection},
        )
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        event.listen(engine.sync_engine, "invalidate", _roll_back_sqlite)
    else:
        settings = {
            "idle_in_transaction_session_timeout": str(round(IDLE_IN_TRANSACTION_S * 1000)),
            "lock_timeout": str(LOCK_WAIT_MS),
        }
        engine = create_async_engine(
            parsed,
            pool_size=POOL_SIZE,
            pool_timeout=POOL_WAIT_S,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"server_settings": settings, "timeout": CONNECT_S, "command_timeout": STATEMENT_S},
        )
    database = Database(engine, clock, lock_file)
    try:
        if database.is_sqlite:
            async with database.write() as connection:
                await connection.run_sync(_migrate)
            await _restart_leases(database, lease_s)
        else:
            await _migrate_postgresql(parsed)
    except BaseException:
        await database.close()
        raise
    return database


async def locked_head(connection: AsyncConnection) -> tuple[int, int]:
    """The fleet's (revision, incarnation), locked until the transaction ends: what rises by one has one order."""
    row = (await connection.execute(select(fleet_head).with_for_update())).one()
    return int(row.revision), int(row.incarnation)


async def _restart_leases(database: Database, lease_s: float) -> None:
    # A deadline of an earlier run may be on the clock of an earlier boot. No node can rely on its lease for longer than
    # one full lease from now, so that is what every deadline becomes.
    async with database.write() as connection:
        now_s = await database.lease_now_s(connection)
        await connection.execute(
            update(node_leases).where(node_leases.c.fenced.is_(False)).values(deadline_lease_s=now_s + lease_s)
        )


async def _migrate_postgresql(url: URL) -> None:
    # Over a connection without bounds: who waits for another's migration, or builds an index, takes what it takes.
    engine = create_async_engine(url, poolclass=NullPool, hide_parameters=True, connect_args={"timeout": CONNECT_S})
    with _availability():
        try:
            async with engine.begin() as connection:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
                await connection.run_sync(_migrate)
        finally:
            await engine.dispose()


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class _SqliteConnection(sqlite3.Connection):
    """A connection that is closed when it is closed, whoever still holds a cursor that it gave out.

    SQLite keeps a connection, its transaction and its log for as long as a statement of it lives; that of a caller who
    was cancelled lies in a traceback until garbage is collected. Nobody could write until then, and a control plane
    that ends would leave its log beside the file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        cursor = super().cursor(factory)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        # Closing it once more does nothing, and must not fail over cursors that cannot be closed any more.
        cursors, self._cursors = list(self._cursors), WeakSet()
        for cursor in cursors:
            cursor.close()
        super().close()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions on its own, too late and of the wrong kind: `_begin_sqlite` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "secure_delete=ON",
        "foreign_keys=ON",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _roll_back_sqlite(connection: Any, _record: Any, _error: Any) -> None:
    """Called before a connection is given up: its statement was cancelled, by a caller who went away or by a bound.

    The statement runs on to its end, which this waits for: the next writer's turn comes once the lock is free.
    """
    # What gives it up goes on as it was going: cancelled, whether or not it is cancelled again meanwhile.
    with contextlib.suppress(Exception, asyncio.CancelledError):
        connection.rollback()


def _lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        raise Unavailable(
            f"another control plane has the database {path.stem}: stop it, or use PostgreSQL for several"
        ) from None
    return number


@contextmanager
def _availability() -> Iterator[None]:
    """Turns a database that is away, full or locked into Unavailable; other mistakes pass as they are."""
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in UNSTORABLE:
            raise InvalidRequest("a field is too long, or holds a character (NUL) that cannot be stored") from None
        if not _is_outage(error):
            raise
        raise DatabaseAway("the database is away or full; try again", retry_after_s=1.0) from error
    except (OSError, PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # A server that is away, full or shutting down refuses before SQLAlchemy has anything to wrap; a statement that
        # took too long ends in TimeoutError, an OSError; and where all connections are in use, each is held by one.
        if isinstance(error, asyncpg.PostgresError) and not _is_state_of_outage(error.sqlstate):
            raise
        raise DatabaseAway("the database is away; try again", retry_after_s=1.0) from error


def _is_outage(error: DBAPIError) -> bool:
    return (
        error.connection_invalidated
        or isinstance(error, OperationalError | InterfaceError)
        or _is_state_of_outage(getattr(error.orig, "sqlstate", None))
    )


def _is_state_of_outage(state: str | None) -> bool:
    return state is not None and state.startswith(OUTAGES)

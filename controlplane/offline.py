"""The parts of a control plane that a command opens while the daemon runs, or without one: read, never made.

In: a data folder and where things lie when not in it. Out: the database to read from, and the keys. What always holds:
nothing is created, migrated or locked; SQLite is opened read-only beside a running daemon.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from controlplane.config import ControlPlaneSettings
from controlplane.database.schema import wrapped_secrets
from controlplane.kek import kek_source
from controlplane.keys import KeyRing
from controlplane.tenant_keys import AUDIT
from runtime.errors import InvalidRequest, Unavailable


def sqlite_file(database_url: str) -> Path | None:
    """The file of a SQLite database; None for another one."""
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database:
        raise InvalidRequest("database_url: name a file")
    return Path(url.database)


@asynccontextmanager
async def reading(database_url: str) -> AsyncIterator[AsyncConnection]:
    """One consistent state of a database. Raises InvalidRequest when there is none, Unavailable."""
    file = sqlite_file(database_url)
    if file is not None:
        if not file.exists():
            raise InvalidRequest(f"there is no database at {file}: name the data folder with --data")
        engine = create_async_engine(f"sqlite+aiosqlite:///file:{file.resolve()}?mode=ro&uri=true")
        # The driver would begin transactions on its own, and each statement would see another state.
        event.listen(engine.sync_engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    else:
        engine = create_async_engine(database_url)
    try:
        async with engine.connect() as connection:
            if file is None:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with connection.begin():
                yield connection
    except (DBAPIError, OSError) as error:
        raise Unavailable(f"the database cannot be read ({type(error).__name__}): is it of this version?") from None
    finally:
        await engine.dispose()


def kek_of(settings: ControlPlaneSettings) -> KeyRing | None:
    """The deployment's keys; None when they are a file that is not there."""
    if settings.kek is None and settings.kek_source == "file":
        file = settings.kek_file or settings.data / "kek.key"
        if not file.exists():
            return None
    return KeyRing(*kek_source(settings).load())


async def take_audit_key(connection: AsyncConnection, keys: KeyRing) -> None:
    """Name subjects as this database's audit does. Raises SpeakerdError when the keys are not this database's."""
    query = select(wrapped_secrets.c.wrapped).where(wrapped_secrets.c.name == AUDIT)
    wrapped = (await connection.execute(query)).scalar_one_or_none()
    if wrapped is not None:
        keys.name_subjects_with(keys.open_secret(AUDIT, bytes(wrapped)))

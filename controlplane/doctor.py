"""What the doctor looks at of a control plane: settings, keys, Redis, the database, stores, certificates.

In: a data folder, a configuration file, the environment. Out: checks as plain values, for the command line imports none
of this. What always holds: nothing is made, migrated or locked, a probe that is written is taken away again, and no
secret and no URL with a password is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
from alembic.script import ScriptDirectory
from obstore.exceptions import BaseError
from obstore.store import from_url
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import text
from sqlalchemy.engine import make_url

from controlplane.config import ControlPlaneSettings
from controlplane.embedded_redis import find_server
from controlplane.offline import reading, sqlite_file
from controlplane.outside import is_url, open_outside
from controlplane.redis_client import close_redis, open_redis
from runtime.config import load
from runtime.diagnosis import Row, certificates, note, ok, problem
from runtime.errors import SpeakerdError, Unavailable

ASK_S = 5.0
KEY_FILES = ("admin.key", "fleet.key", "ticket.key", "audit.key", "kek.key")
MIGRATIONS = Path(__file__).parent / "database" / "migrations"


def look(data: Path, config: Path | None, *, is_running: bool) -> list[Row]:
    """Everything, as rows of name, verdict, found, mend; the entry point `speakerd.offline:doctor`.

    is_running: whether a control plane of this data folder runs now, as far as the command line knows.
    """
    try:
        settings = load(ControlPlaneSettings, section="controlplane", file=config, flags={"data": data})
    except SpeakerdError as error:
        return [problem("configuration", str(error), "mend the setting that is named")]
    rows = [ok("configuration", "can be read")]
    rows += _keys(settings)
    rows += certificates(settings, "control plane")
    return rows + asyncio.run(_outside(settings, is_running=is_running))


async def _outside(settings: ControlPlaneSettings, *, is_running: bool) -> list[Row]:
    checkpoints = settings.resolved_audit_checkpoints()
    looks: tuple[tuple[str, Callable[[], AsyncIterator[Row]]], ...] = (
        ("Redis", lambda: _redis(settings, is_running=is_running)),
        ("database", lambda: _database(settings, is_running=is_running)),
        ("recordings", lambda: _store("recordings", str(settings.data / "blobs"), "data")),
        ("media store", lambda: _store("media store", settings.resolved_media(), "media_url")),
        ("erasure journal", lambda: _store("erasure journal", settings.resolved_erasure_journal(), "erasure_journal")),
        ("audit checkpoints", lambda: _store("audit checkpoints", checkpoints, "audit_checkpoints")),
    )
    rows: list[Row] = []
    for name, found in looks:
        try:
            async with asyncio.timeout(2 * ASK_S):
                rows += [row async for row in found()]
        except TimeoutError:
            rows.append(problem(name, f"no answer in {2 * ASK_S:.0f} s", "see whether it runs and can be reached"))
        except SpeakerdError as error:
            rows.append(problem(name, str(error), "mend what is named"))
        except OSError as error:
            why = error.strerror or type(error).__name__
            rows.append(
                problem(name, f"cannot be looked at ({why})", "see the rights of the data folder, and the disk")
            )
        except Exception as error:  # noqa: BLE001 - a URL that nobody can read is reported, and the other looks are had
            # Not what it says, which may repeat a password.
            why = type(error).__name__
            mend = "see the setting that says where it is: a URL that is misspelt, or wants a driver that is not here"
            rows.append(problem(name, f"cannot be looked at ({why})", mend))
    return rows


def _keys(settings: ControlPlaneSettings) -> Iterator[Row]:
    there = [settings.data / name for name in KEY_FILES if (settings.data / name).exists()]
    open_to_all = [file.name for file in there if file.stat().st_mode & 0o077]
    if open_to_all:
        names = ", ".join(open_to_all)
        yield problem("keys", f"others can read {names}", f"chmod 600 in {settings.data}, and replace them if in doubt")
    elif there:
        yield ok("keys", f"{len(there)} files, their owner's alone")
    if (settings.data / "speakerd.db").exists() and settings.kek is None and settings.kek_source == "file":
        kek = settings.kek_file or settings.data / "kek.key"
        if not kek.exists():
            yield problem(
                "key-encryption key", f"{kek} is gone", "restore it from your backup: no voice opens without it"
            )


async def _redis(settings: ControlPlaneSettings, *, is_running: bool) -> AsyncIterator[Row]:
    url = settings.redis_url
    if url is None:
        try:
            server = find_server()
        except Unavailable as error:
            yield problem("Redis", "none", str(error).removeprefix("no Redis: "))
            return
        if not is_running:
            yield ok("Redis", f"{server}, started with the control plane")
            return
        folder = settings.data.resolve() / "redis"
        said_where = folder / "socket"
        url = f"unix://{said_where.read_text().strip() if said_where.exists() else folder / 'redis.sock'}"
        mend = "the control plane starts it again within seconds; if not: memory, disk, DATA/logs/controlplane.log"
    else:
        mend = "start it, or mend redis_url (SPEAKERD_REDIS_URL, REDIS_URL); streams are placed from memory meanwhile"
    client = open_redis(url, timeout_s=ASK_S)
    try:
        began_s = time.monotonic()
        await client.ping()
        took_s = time.monotonic() - began_s
        said: dict[str, Any] = await client.info()
    except ResponseError as error:
        # Its own word comes first: MISCONF where it cannot write its file, NOAUTH, LOADING.
        word = (str(error).split() or ["?"])[0]
        cure = "make room on its disk" if word == "MISCONF" else "see its log, and redis_url"
        yield problem("Redis", f"answers, and refuses ({word})", cure)
        return
    except (RedisError, OSError) as error:
        yield problem("Redis", f"does not answer ({type(error).__name__})", mend)
        return
    finally:
        await close_redis(client)
    up_s = said.get("uptime_in_seconds", 0)
    found = f"{said.get('redis_version', '?')} answers in {took_s * 1000:.0f} ms, up for {up_s} s"
    if said.get("loading"):
        yield note("Redis", f"{found}, and is loading", "wait")
    elif said.get("aof_last_write_status", "ok") != "ok" or said.get("rdb_last_bgsave_status", "ok") != "ok":
        yield problem("Redis", f"{found}, and cannot write its file", "make room on its disk")
    elif took_s > 0.1:
        yield note("Redis", found, "it is slow: see what else the machine does, and how far away it is")
    else:
        yield ok("Redis", found)


async def _database(settings: ControlPlaneSettings, *, is_running: bool) -> AsyncIterator[Row]:
    url = settings.resolved_database_url()
    file = sqlite_file(url)
    name = f"SQLite at {file}" if file is not None else f"PostgreSQL at {make_url(url).host}"
    if file is not None and not file.exists():
        if is_running:
            yield problem(
                "database", f"{file} is gone", "stop the control plane and restore a backup: speakerd restore"
            )
        else:
            yield ok("database", f"none yet: made at {file} by the first start")
        return
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    try:
        async with reading(url) as connection:
            at = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()
            now = (
                None
                if file
                else (await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))).scalar()
            )
            ours_s = time.time()
    except SpeakerdError as error:
        yield problem("database", f"{name}: {error}", "see that it runs, that database_url is right, and its password")
        return
    if at == head:
        yield ok("database", f"{name} answers; its tables are of this version ({at})")
    elif at is not None and at > str(head):
        yield problem(
            "database", f"{name} has tables of a later version ({at})", "install the version that it was used with"
        )
    else:
        yield note(
            "database", f"{name} is at {at}, this version at {head}", "the next start of a control plane migrates it"
        )
    if now is not None:
        ahead_s = float(now) - ours_s
        mend = "let both machines follow one time service (chrony, systemd-timesyncd)"
        found = f"{ahead_s:+.1f} s from this machine's"
        yield ok("clock of the database", found) if abs(ahead_s) < 1 else note("clock of the database", found, mend)


async def _store(name: str, where: str, setting: str) -> AsyncIterator[Row]:
    if not is_url(where):
        folder = Path(where)
        # Some are files, some are folders, and some are made by the first start.
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        why = await asyncio.to_thread(_write_probe, there)
        if why:
            yield problem(
                name, f"{folder} cannot be written to ({why})", f"make room or mend its rights, or set {setting}"
            )
        else:
            yield ok(name, f"{folder} can be written to")
        return
    said = where.partition("?")[0]
    try:
        if setting == "media_url":
            store: Any = from_url(where)
            probe = f"doctor-{time.time_ns()}"
            await obstore.put_async(store, probe, b"\0")
            await obstore.delete_async(store, probe)
            yield ok(name, f"{said} can be written to")
        else:
            # What is written there stays for ever: it is looked at, and no more.
            yield ok(name, f"{said} answers ({len(await open_outside(where).names())} objects)")
    except (BaseError, SpeakerdError, OSError, ValueError):
        yield problem(
            name, f"{said} does not answer or refuses", f"see {setting}, its credentials, and whether it runs"
        )


def _write_probe(folder: Path) -> str:
    probe = folder / f".doctor-{time.time_ns()}"
    try:
        probe.write_bytes(b"\0" * 65_536)
    except OSError as error:
        return error.strerror or type(error).__name__
    finally:
        probe.unlink(missing_ok=True)
    return ""

"""A backup brought back into a data folder, without bringing back anybody who was erased since.

In: a backup, its file of keys, and a data folder that holds the key-encryption key and the erasure journal, which are
in no backup. Out: a database that knows it was restored: the control plane that starts on it replays the journal before
its ports open, and begins a new epoch. What always holds: the key of a voice whose erasure the journal knows is not
written; keys past their date are not used unless that is said; nothing that is there is overwritten.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from controlplane.backup import BLOBS_FOLDER, DATA_FOLDER, DATABASE_FILE, KEYS_FOLDER, MANIFEST_FILE, read_signed
from controlplane.config import ControlPlaneSettings
from controlplane.database.schema import data_keys, fleet_head, wrapped_secrets
from controlplane.database.spaces_schema import space_audios, space_identities, space_keys, space_voiceprints
from controlplane.derived_keys import journal_key
from controlplane.erasure_journal import Erased, open_journal
from controlplane.journal_replay import MISSING, RESTORED
from controlplane.keys import KeyRing
from controlplane.offline import kek_of, reading, sqlite_file, take_audit_key
from controlplane.outside import fsync_folder
from controlplane.secret_files import only_ours
from runtime.errors import Conflict, InvalidRequest, Unavailable


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back. num_erased: voices whose keys were left out, because they were erased since."""

    backup_id: str
    num_keys: int
    num_erased: int
    num_blobs: int


async def restore(
    settings: ControlPlaneSettings,
    source: Path,
    *,
    keys_file: Path | None,
    accept_expired_keys: bool,
    now_s: float,
) -> Restored:
    """Restore into settings.data. Raises InvalidRequest and Conflict, saying what is missing or in the way."""
    keys = kek_of(settings)
    if keys is None:
        raise InvalidRequest(f"put the key-encryption key of this deployment at {settings.data / 'kek.key'} first")
    with only_ours():
        return await _restore(
            settings, source, keys, keys_file=keys_file, accept_expired_keys=accept_expired_keys, now_s=now_s
        )


async def _restore(
    settings: ControlPlaneSettings,
    source: Path,
    keys: KeyRing,
    *,
    keys_file: Path | None,
    accept_expired_keys: bool,
    now_s: float,
) -> Restored:
    url = settings.resolved_database_url()
    target = sqlite_file(url)
    if target is not None and target.exists():
        raise Conflict(f"there is a database at {target}: restore into a data folder without one")
    held = source / DATA_FOLDER / DATABASE_FILE
    if (target is not None) != held.exists():
        raise InvalidRequest("this backup is of another kind of database: see --database-url")
    async with reading(url if target is None else f"sqlite+aiosqlite:///{held.resolve()}") as connection:
        await take_audit_key(connection, keys)
    manifest = read_signed(source / DATA_FOLDER / MANIFEST_FILE, keys)
    if target is not None and _digest(held) != manifest["database_sha256"]:
        raise InvalidRequest(f"{held} was changed since the backup was made")
    wrapped = _keys_of(manifest, source, keys_file, keys, accept_expired=accept_expired_keys, now_s=now_s)
    erased = await _erased(settings, keys, str(manifest["journal_id"]))
    kept = [row for row in wrapped["data_keys"] if keys.subject(row["tenant_id"], row["voice_id"]) not in erased]
    # Backups of before there were spaces have no keys of theirs.
    brought = _Brought(kept, wrapped["wrapped_secrets"], wrapped.get("space_keys", []), keys, frozenset(erased))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Under a name that no daemon opens, until it is whole.
        part = target.with_name(f".{target.name}.restoring")
        part.unlink(missing_ok=True)
        shutil.copyfile(held, part)
        await _put(f"sqlite+aiosqlite:///{part.resolve()}", manifest, brought)
        num_blobs = _copy_blobs(source / DATA_FOLDER / BLOBS_FOLDER, settings.data / "blobs")
        part.rename(target)
        fsync_folder(target.parent)
    else:
        await _put(url, manifest, brought)
        num_blobs = _copy_blobs(source / DATA_FOLDER / BLOBS_FOLDER, settings.data / "blobs")
    return Restored(str(manifest["backup_id"]), len(kept), len(wrapped["data_keys"]) - len(kept), num_blobs)


def _keys_of(
    manifest: dict[str, Any],
    source: Path,
    keys_file: Path | None,
    keys: KeyRing,
    *,
    accept_expired: bool,
    now_s: float,
) -> dict[str, Any]:
    path = keys_file or source / KEYS_FOLDER / f"{manifest['backup_id']}.json"
    if not path.exists():
        raise InvalidRequest(
            f"the voices' keys are not at {path}: name their file with --keys; once it has expired and is deleted, "
            "the voices of this backup cannot be opened by anybody"
        )
    said = read_signed(path, keys)
    if said["backup_id"] != manifest["backup_id"]:
        raise InvalidRequest(f"{path} belongs to backup {said['backup_id']}, this is {manifest['backup_id']}")
    if said["expires_at_s"] < now_s and not accept_expired:
        expired = datetime.fromtimestamp(said["expires_at_s"], UTC).date().isoformat()
        raise InvalidRequest(
            f"the voices' keys of this backup expired on {expired}, and should have been deleted by then: they open "
            "what people may have been told is gone. To use them all the same: --accept-expired-keys"
        )
    wrapped: dict[str, Any] = said["keys"]
    return wrapped


async def _erased(settings: ControlPlaneSettings, keys: KeyRing, journal_id: str) -> set[str]:
    """Whom the erasure journal knows to be erased."""
    where = settings.resolved_erasure_journal()
    journal = await open_journal(where, journal_key(keys), make=False)
    if journal is None and journal_id and not settings.accept_journal_loss:
        raise InvalidRequest(MISSING.format(where=where))
    if journal is None:
        return set()
    if journal_id and journal.journal_id != journal_id and not settings.accept_journal_loss:
        raise InvalidRequest(f"the erasure journal at {where} belongs to another database than this backup")
    return {record.subject for record in await journal.read() if isinstance(record, Erased)}


@dataclass(frozen=True, slots=True)
class _Brought:
    """Wrapped keys that go back: of voices that were not erased, of tenants, and of what lies in spaces.

    erased: subjects, as the journal names them.
    """

    data_keys: list[dict[str, Any]]
    secrets: list[dict[str, Any]]
    space_keys: list[dict[str, Any]]
    keys: KeyRing
    erased: frozenset[str]


async def _put(url: str, manifest: dict[str, Any], brought: _Brought) -> None:
    async with _writing(url) as connection:
        # A dump of PostgreSQL brings the tenants' secrets along; what the backup kept of them is the same or newer.
        names = [row["name"] for row in brought.secrets]
        await connection.execute(delete(wrapped_secrets).where(wrapped_secrets.c.name.in_(names)))
        things = await _living_things(connection, brought) if brought.space_keys else []
        for table, rows in ((data_keys, brought.data_keys), (wrapped_secrets, brought.secrets), (space_keys, things)):
            values = [{**row, "wrapped": base64.b64decode(row["wrapped"])} for row in rows]
            if values:
                await connection.execute(insert(table), values)
        # Whoever starts on this database learns from it that time was lost.
        await connection.execute(update(fleet_head).values(run=f"{RESTORED}{manifest['backup_id']}"))


async def _living_things(connection: AsyncConnection, brought: _Brought) -> list[dict[str, Any]]:
    """The keys of what lies in spaces, but for identities that were erased, their voiceprints and their audios."""
    rows = await connection.execute(
        select(space_identities.c.tenant_id, space_identities.c.voice_id, space_identities.c.identity_id)
    )
    gone = {
        (row.tenant_id, row.identity_id)
        for row in rows
        if brought.keys.subject(row.tenant_id, row.voice_id) in brought.erased
    }
    without = set(gone)
    for table, thing in ((space_audios, "audio_id"), (space_voiceprints, "voiceprint_id")):
        held = await connection.execute(select(table.c.tenant_id, table.c.identity_id, table.c[thing].label("thing")))
        without |= {(row.tenant_id, row.thing) for row in held if (row.tenant_id, row.identity_id) in gone}
    return [row for row in brought.space_keys if (row["tenant_id"], row["thing_id"]) not in without]


@asynccontextmanager
async def _writing(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            yield connection
    except (DBAPIError, OSError) as error:
        raise Unavailable(f"the database cannot be written ({type(error).__name__}): restore it first") from None
    finally:
        await engine.dispose()


def _copy_blobs(source: Path, target: Path) -> int:
    count = 0
    for path in sorted(source.rglob("*")) if source.exists() else []:
        if path.is_file():
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(path, to)
            count += 1
    return count


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A backup of a control plane: what may be kept for long, and apart from it the keys, which may not.

In: a data folder, while its daemon runs or not. Out: OUT/data (the database without any voice's key, recordings as
ciphertext, a manifest) and OUT/keys/ID.json (the wrapped keys of voices, and of what lies in spaces, with a date after
which they are not to be used). What always holds: the database is copied as of one moment; no key of a voice is ever
written into OUT/data; the erasure journal, the checkpoints and the key-encryption key are in neither.

The keys are apart because forgetting a voice's key is what erases it: a copy of the keys is a copy of everybody who was
enrolled then. They are kept for days, the rest for as long as one likes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from controlplane.config import ControlPlaneSettings
from controlplane.database.schema import data_keys, fleet_head, samples, wrapped_secrets
from controlplane.database.spaces_schema import space_audios, space_keys
from controlplane.derived_keys import backup_key
from controlplane.keys import KeyRing
from controlplane.offline import kek_of, reading, sqlite_file, take_audit_key
from controlplane.secret_files import only_ours
from controlplane.tenant_keys import AUDIT
from runtime.errors import Conflict, InvalidRequest, SpeakerdError, Unavailable

FORMAT = 1
KEYS_DAYS = 30
DATA_FOLDER, KEYS_FOLDER = "data", "keys"
DATABASE_FILE, MANIFEST_FILE, BLOBS_FOLDER = "speakerd.db", "manifest.json", "blobs"
KEY_TABLES = ("data_keys", "space_keys")
"""Copied into the keys' file alone."""
NOT_IN_IT = "not in it: use pg_dump --exclude-table-data=data_keys --exclude-table-data=space_keys"


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a backup holds. missing_blobs: recordings that were erased while it was made. pruned: old files of keys."""

    backup_id: str
    database: str
    num_keys: int
    num_blobs: int
    missing_blobs: int
    keys_expire_at: str
    pruned: tuple[str, ...]


async def back_up(settings: ControlPlaneSettings, out: Path, *, keys_days: int, now_s: float) -> BackedUp:
    """Make a backup in an empty or absent OUT/data; keys join those that are in OUT/keys. Raises InvalidRequest."""
    keys = kek_of(settings)
    if keys is None:
        raise InvalidRequest("the key-encryption key is not here: a backup that nobody could check is not made")
    folder = out / DATA_FOLDER
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty: name another --out; {out / KEYS_FOLDER} may be shared by linking it")
    with only_ours():
        return await _write(settings, out, keys, keys_days=keys_days, now_s=now_s)


async def _write(settings: ControlPlaneSettings, out: Path, keys: KeyRing, *, keys_days: int, now_s: float) -> BackedUp:
    folder = out / DATA_FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (out / KEYS_FOLDER).mkdir(parents=True, exist_ok=True, mode=0o700)
    backup_id = f"b_{datetime.fromtimestamp(now_s, UTC).strftime('%Y%m%dT%H%M%SZ')}_{secrets.token_hex(4)}"
    url = settings.resolved_database_url()
    file = sqlite_file(url)
    if file is not None:
        wrapped, named = _copy_sqlite(file, folder / DATABASE_FILE, keys)
    else:
        wrapped, named = await _read_keys(url, keys)
    num_blobs, missing = _copy_blobs(settings.data / "blobs", folder / BLOBS_FOLDER, named)
    expires_s = now_s + keys_days * 86_400.0
    keys_file = out / KEYS_FOLDER / f"{backup_id}.json"
    write_signed(
        keys_file,
        {"format": FORMAT, "backup_id": backup_id, "made_at_s": now_s, "expires_at_s": expires_s, "keys": wrapped},
        keys,
    )
    async with reading(url) as connection:
        journal_id = str((await connection.execute(select(fleet_head.c.journal_id))).scalar_one())
    write_signed(
        folder / MANIFEST_FILE,
        {
            "format": FORMAT,
            "backup_id": backup_id,
            "made_at_s": now_s,
            "journal_id": journal_id,
            "database": None if file is None else DATABASE_FILE,
            "database_sha256": None if file is None else _digest(folder / DATABASE_FILE),
            "num_blobs": num_blobs,
        },
        keys,
    )
    pruned = prune_keys(out / KEYS_FOLDER, keys, now_s)
    return BackedUp(
        backup_id=backup_id,
        database="SQLite" if file is not None else NOT_IN_IT,
        num_keys=len(wrapped["data_keys"]),
        num_blobs=num_blobs,
        missing_blobs=missing,
        keys_expire_at=datetime.fromtimestamp(expires_s, UTC).isoformat(),
        pruned=pruned,
    )


def prune_keys(folder: Path, keys: KeyRing, now_s: float) -> tuple[str, ...]:
    """Delete files of keys that have expired: only then has an erasure reached the backups too."""
    pruned = []
    for path in sorted(folder.glob("b_*.json")):
        try:
            said = read_signed(path, keys)
        except SpeakerdError:
            continue  # not ours to judge
        if said["expires_at_s"] < now_s:
            path.unlink()
            pruned.append(path.name)
    return tuple(pruned)


def write_signed(path: Path, said: dict[str, Any], keys: KeyRing) -> None:
    """Write values as JSON, authenticated with a key that never is in a backup, so that no date can be moved."""
    body = json.dumps(said, sort_keys=True)
    mac = hmac.digest(backup_key(keys), body.encode(), "sha256").hex()
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(number, "w") as file:
        json.dump({"said": body, "mac": mac}, file)
        file.flush()
        os.fsync(file.fileno())


def read_signed(path: Path, keys: KeyRing) -> dict[str, Any]:
    """Read them again. Raises InvalidRequest when they were changed, or are another deployment's."""
    try:
        held = json.loads(path.read_text())
        body, mac = str(held["said"]), str(held["mac"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidRequest(f"{path} is missing or damaged") from None
    if not hmac.compare_digest(hmac.digest(backup_key(keys), body.encode(), "sha256").hex(), mac):
        raise InvalidRequest(f"{path} was changed, or belongs to a deployment with another key")
    said: dict[str, Any] = json.loads(body)
    return said


def _copy_sqlite(source: Path, target: Path, keys: KeyRing) -> tuple[dict[str, Any], set[str]]:
    """Copy all tables but those of keys, in one transaction that reads; the keys, and the blobs that are named.

    Table by table into a new file, rather than whole and then thinned out: what is never written cannot be left over.
    """
    if not source.exists():
        raise InvalidRequest(f"there is no database at {source}: name the data folder with --data")
    connection = sqlite3.connect(f"file:{source.resolve()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("ATTACH DATABASE ? AS copy", (f"file:{target.resolve()}?mode=rwc",))
        connection.execute("PRAGMA copy.journal_mode=DELETE")
        connection.execute("BEGIN")
        made = connection.execute(
            "SELECT type, name, sql FROM main.sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        for kind, name, sql in made:
            if kind != "table":
                continue
            connection.execute(sql.replace("CREATE TABLE ", "CREATE TABLE copy.", 1))
            if name not in KEY_TABLES:
                where = f" WHERE name = '{AUDIT}'" if name == "wrapped_secrets" else ""
                connection.execute(f'INSERT INTO copy."{name}" SELECT * FROM main."{name}"{where}')  # noqa: S608
        for kind, _, sql in made:
            # Triggers last, which is also when the rows that they guard are there.
            if kind in ("index", "trigger"):
                prefix = f"CREATE {'UNIQUE INDEX' if sql.startswith('CREATE UNIQUE') else kind.upper()} "
                connection.execute(sql.replace(prefix, f"{prefix}copy.", 1))
        # A daemon that has not been started since there are spaces has not made their tables.
        has_spaces = any(name == "space_keys" for _, name, _ in made)
        wrapped = {
            "data_keys": _rows(connection.execute("SELECT * FROM main.data_keys")),
            "space_keys": _rows(connection.execute("SELECT * FROM main.space_keys")) if has_spaces else [],
            "wrapped_secrets": _rows(
                connection.execute("SELECT * FROM main.wrapped_secrets WHERE name <> ?", (AUDIT,))
            ),
        }
        (audit_key,) = connection.execute(
            "SELECT wrapped FROM main.wrapped_secrets WHERE name = ?", (AUDIT,)
        ).fetchone() or (None,)
        if audit_key is not None:
            keys.name_subjects_with(keys.open_secret(AUDIT, audit_key))
        named = {key for (key,) in connection.execute("SELECT blob_key FROM main.samples")}
        if has_spaces:
            audios = connection.execute("SELECT blob_key FROM main.space_audios WHERE blob_key IS NOT NULL")
            named |= {key for (key,) in audios}
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise Unavailable(f"the database could not be copied: {error}") from None
    finally:
        connection.close()
    return wrapped, named


async def _read_keys(url: str, keys: KeyRing) -> tuple[dict[str, Any], set[str]]:
    async with reading(url) as connection:
        await take_audit_key(connection, keys)
        secret = select(wrapped_secrets).where(wrapped_secrets.c.name != AUDIT)
        wrapped = {
            table.name: [_plain(dict(row)) for row in (await connection.execute(query)).mappings()]
            for table, query in (
                (data_keys, select(data_keys)),
                (space_keys, select(space_keys)),
                (wrapped_secrets, secret),
            )
        }
        named = {row.blob_key for row in await connection.execute(select(samples.c.blob_key))}
        in_spaces = select(space_audios.c.blob_key).where(space_audios.c.blob_key.is_not(None))
        named |= {row.blob_key for row in await connection.execute(in_spaces)}
    return wrapped, named


def _rows(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [_plain(dict(zip(names, row, strict=True))) for row in cursor]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON can hold it; bytes are the `wrapped` column alone."""
    return {**row, "wrapped": base64.b64encode(row["wrapped"]).decode()}


def _copy_blobs(source: Path, target: Path, named: set[str]) -> tuple[int, int]:
    missing = 0
    for key in sorted(named):
        path = target / key
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            shutil.copyfile(source / key, path)
        except FileNotFoundError:
            missing += 1  # erased since the database was read
    return len(named) - missing, missing


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""`speakerd audit verify --offline`: everything that can be checked without a daemon, from what lies on the disk."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane.audit_verify import verify
from controlplane.config import ControlPlaneSettings
from controlplane.derived_keys import journal_key
from controlplane.erasure_journal import Record, open_journal
from controlplane.offline import kek_of, reading, take_audit_key
from controlplane.outside import open_outside
from controlplane.secret_files import read_or_make_bytes
from runtime.errors import SpeakerdError


def verify_offline(
    data: Path,
    *,
    given: Sequence[bytes],
    database_url: str | None,
    journal: str | None,
    checkpoints: str | None,
    trust: Sequence[str],
) -> dict[str, Any]:
    """The verdict as plain values; the entry point `speakerd.offline:audit`.

    given: checkpoints kept elsewhere. trust: public keys (base64) whose checkpoints count beside the data folder's own.
    """
    values = {
        "data": data,
        "database_url": database_url,
        "erasure_journal": journal,
        "audit_checkpoints": checkpoints,
    }
    settings = ControlPlaneSettings(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
    return asyncio.run(_verify(settings, given, trust))


async def _verify(settings: ControlPlaneSettings, given: Sequence[bytes], trust: Sequence[str]) -> dict[str, Any]:
    notes: list[str] = ["no node was asked what it holds"]
    problems: list[str] = []
    store = open_outside(settings.resolved_audit_checkpoints())
    kept = [await store.get(name) for name in await store.names() if name.endswith(".json")]
    trusted = {*trust, *_own_key(settings.data)}
    if not trusted:
        notes.append("there is no audit.key to tell by whom checkpoints are signed: name a public key with --trust")
    keys = kek_of(settings)
    records: list[Record] | None = None
    if keys is None:
        notes.append("the key-encryption key is not here: the erasure journal was not checked")
    else:
        async with reading(settings.resolved_database_url()) as connection:
            await take_audit_key(connection, keys)
        try:
            found = await open_journal(settings.resolved_erasure_journal(), journal_key(keys), make=False)
            if found is None:
                problems.append("the erasure journal is missing")
            else:
                records = await found.read()
        except SpeakerdError as error:
            problems.append(str(error))
    # After the journal: what is in it was committed before it was written there.
    async with reading(settings.resolved_database_url()) as connection:
        verdict = await verify(
            connection,
            checkpoints=[*(kept if trusted else ()), *given],
            journal=records,
            trusted_keys=frozenset(trusted),
            subject_of=None if keys is None else keys.subject,
        )
    problems = [*verdict.problems, *problems]
    return {
        "ok": not problems,
        "num_rows": verdict.num_rows,
        "num_checkpoints": verdict.num_checkpoints,
        "num_erasures": verdict.num_erasures,
        "problems": problems,
        "notes": [*verdict.notes, *notes],
    }


def _own_key(data: Path) -> list[str]:
    path = data / "audit.key"
    if not path.exists():
        return []
    public = Ed25519PrivateKey.from_private_bytes(read_or_make_bytes(path)).public_key()
    return [base64.b64encode(public.public_bytes_raw()).decode()]

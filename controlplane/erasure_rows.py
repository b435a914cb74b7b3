"""The rows of an erasure: each function is a step of the caller's transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import (
    data_keys,
    erasures,
    fleet_log,
    idempotency,
    voiceprint_members,
    voiceprints,
    voices,
)
from controlplane.fleet_log import Change
from controlplane.keys import VoiceAddress
from controlplane.voices import Outcome


@dataclass(frozen=True, slots=True)
class Erasure:
    """An erasure. Instants are Unix seconds; nodes: applied, or why it was not waited for."""

    audit_id: str
    voice: VoiceAddress
    generation: int
    state: str
    revision: int
    requested_at_s: float
    erased_at_s: float | None
    nodes: tuple[Outcome, ...]
    residual_node_ids: tuple[str, ...]
    blob_bytes_deleted: int
    blobs_pending: bool


async def destroy(
    connection: AsyncConnection, voice: VoiceAddress, generation: int, revision: int, now_s: float
) -> None:
    """The tombstone: the voice's key and voiceprints go at once; its recordings follow.

    Consents and licences stay, as ciphertext that nothing opens any more.
    """
    for table in (data_keys, voiceprints, voiceprint_members, idempotency):
        await connection.execute(
            delete(table).where(table.c.tenant_id == voice.tenant_id, table.c.voice_id == voice.voice_id)
        )
    await connection.execute(
        update(voices)
        .where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
        .values(
            state="erasing",
            state_reason="",
            generation=generation,
            label_ciphertext=None,
            label_index=None,
            details_ciphertext=None,
            language="",
            gender="",
            net_speech_ms=0,
            model="",
            revision=revision,
            updated_at_s=now_s,
        )
    )


async def latest_of(connection: AsyncConnection, voice: VoiceAddress) -> str:
    """The audit id of a voice's last erasure."""
    query = (
        select(erasures.c.audit_id)
        .where(erasures.c.tenant_id == voice.tenant_id, erasures.c.voice_id == voice.voice_id)
        .order_by(erasures.c.revision.desc())
        .limit(1)
    )
    return str((await connection.execute(query)).scalar_one())


async def first_entry_of(connection: AsyncConnection, voice: VoiceAddress) -> tuple[int, float] | None:
    """Where, and when (lease clock), the voice entered the fleet log; None when no node was ever told of it."""
    query = (
        select(fleet_log.c.revision, fleet_log.c.at_lease_s)
        .where(
            fleet_log.c.tenant_id == voice.tenant_id,
            fleet_log.c.voice_id == voice.voice_id,
            fleet_log.c.kind == Change.ENROLL.value,
        )
        .order_by(fleet_log.c.revision)
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else (int(row.revision), float(row.at_lease_s))


def erasure_of(row: Row[Any]) -> Erasure:
    """A row of `erasures`."""
    return Erasure(
        audit_id=row.audit_id,
        voice=VoiceAddress(row.tenant_id, row.voice_id),
        generation=int(row.generation),
        state=row.state,
        revision=int(row.revision),
        requested_at_s=row.requested_at_s,
        erased_at_s=row.erased_at_s,
        nodes=tuple(Outcome(node_id, ok, error) for node_id, ok, error in json.loads(row.nodes)),
        residual_node_ids=tuple(json.loads(row.residual_node_ids)),
        blob_bytes_deleted=int(row.blob_bytes_deleted),
        blobs_pending=bool(row.blobs_pending),
    )

"""The rows of an erasure: each function is a step of the caller's transaction."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import (
    data_keys,
    erasures,
    idempotency,
    voiceprint_members,
    voiceprints,
    voices,
)
from controlplane.keys import VoiceAddress
from controlplane.space_rows import forget_voice
from controlplane.voices import Outcome
from runtime.errors import InvalidRequest

TRIGGERS = ("user_request", "license_revoked", "license_expired", "platform_decision")
SOURCES = ("api", "cli", "worker")
JOURNAL = "journal"
"""Source of an erasure that a restored database had forgotten."""
GONE = ("erasing", "erased")
"""States of a voice that nobody may use any more."""
REASON_CHARACTERS_MAX = 500
_USER = re.compile(r"[A-Za-z0-9._:@+/-]{0,128}")


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for an erasure, where, and why. trigger_user: as the caller calls them; key_id: empty for workers."""

    trigger: str = TRIGGERS[0]
    source: str = SOURCES[0]
    trigger_user: str = ""
    reason: str = ""
    key_id: str = ""

    def require_valid(self) -> None:
        """Raises InvalidRequest, naming the field."""
        if self.trigger not in TRIGGERS:
            raise InvalidRequest(f"trigger: one of {', '.join(TRIGGERS)}")
        if self.source not in SOURCES:
            raise InvalidRequest(f"source: one of {', '.join(SOURCES)}")
        if _USER.fullmatch(self.trigger_user) is None:
            raise InvalidRequest("trigger_user: an id of letters, digits and . _ : @ + / -, at most 128 characters")
        if len(self.reason) > REASON_CHARACTERS_MAX:
            raise InvalidRequest(f"reason: at most {REASON_CHARACTERS_MAX} characters")


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
    asking: Asking
    replicas_evicted: int
    journaled: bool
    is_open: bool


async def destroy(
    connection: AsyncConnection, voice: VoiceAddress, generation: int, revision: int, now_s: float
) -> None:
    """The tombstone: the voice's key and voiceprints go at once; its recordings follow.

    So does what dialects have of their own: the identity in a space, and the profile, that the voice is. Consents and
    licences stay, as ciphertext that nothing opens any more.
    """
    await forget_voice(connection, voice, generation)
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
            state_code="",
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
    """Where, and when (lease clock), nodes were told of the voice first; None when none ever was."""
    query = select(voices.c.first_revision, voices.c.first_at_lease_s).where(
        voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id, voices.c.first_revision > 0
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else (int(row.first_revision), float(row.first_at_lease_s))


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
        # The reason stays sealed: nobody needs it to go on with the erasure.
        asking=Asking(row.trigger_kind, row.source, row.trigger_user, "", row.key_id),
        replicas_evicted=int(row.replicas_evicted),
        journaled=bool(row.journaled),
        is_open=bool(row.is_open),
    )

"""The next generation of a voice: the same voiceprints, with something else said of it or another audience.

In: a voice, locked within the caller's transaction, and what changes. Out: its rows as they are then, its place in the
fleet log if it ever had one, and a row of the audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit, fleet_log
from controlplane.database.schema import data_keys, voiceprints, voices
from controlplane.failures import CONSENT_WITHDRAWN
from controlplane.fleet_log import Change
from controlplane.holdings import LIVE_STATES
from controlplane.keys import DataKey, KeyRing, VoiceAddress

FROZEN = "frozen"
FREEZES: Mapping[str, str] = {
    "state": FROZEN,
    "state_reason": "consent was withdrawn",
    "state_code": CONSENT_WITHDRAWN,
}
"""What a voice is whose consent was withdrawn."""


@dataclass(frozen=True, slots=True)
class Held:
    """A voice as it is, locked, with its key opened."""

    voice: VoiceAddress
    row: Row[Any]
    key: DataKey

    @property
    def generation(self) -> int:
        """The one that it has now."""
        return int(self.row.generation)


@dataclass(frozen=True, slots=True)
class At:
    """When something is written: Unix seconds, and seconds of the lease clock."""

    now_s: float
    now_lease_s: float


async def held(connection: AsyncConnection, keys: KeyRing, voice: VoiceAddress) -> Held | None:
    """A voice that has its key still; the caller holds the head."""
    query = (
        select(voices, data_keys.c.wrapped)
        .join(data_keys, (data_keys.c.tenant_id == voices.c.tenant_id) & (data_keys.c.voice_id == voices.c.voice_id))
        .where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Held(voice, row, keys.open(voice, bytes(row.wrapped)))


async def advance(
    connection: AsyncConnection,
    keys: KeyRing,
    now: Held,
    action: str,
    values: Mapping[str, Any],
    *,
    at: At,
    key_id: str,
    facts: Mapping[str, object],
) -> int:
    """Write the next generation, and return it. key_id: of the API key that asked for it."""
    voice, generation = now.voice, now.generation + 1
    of_voice = (voiceprints.c.tenant_id == voice.tenant_id, voiceprints.c.voice_id == voice.voice_id)
    prints = (await connection.execute(select(voiceprints).where(*of_voice))).all()
    for row in prints:
        embedding = now.key.decrypt(bytes(row.ciphertext), "voiceprint", int(row.generation), row.model)
        await connection.execute(
            update(voiceprints)
            .where(*of_voice, voiceprints.c.model == row.model)
            .values(generation=generation, ciphertext=now.key.encrypt(embedding, "voiceprint", generation, row.model))
        )
    revision = int(now.row.revision)
    state = str(values.get("state", now.row.state))
    if prints:
        change = Change.ENROLL if state in LIVE_STATES else Change.EVICT
        revision = await fleet_log.append(connection, change, voice, generation, now_lease_s=at.now_lease_s)
    await connection.execute(
        update(voices)
        .where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
        .values(**{**values, "generation": generation, "revision": revision, "updated_at_s": at.now_s})
    )
    said: dict[str, object] = {
        "subject": keys.subject(voice.tenant_id, voice.voice_id),
        "tenant_id": voice.tenant_id,
        "generation": generation,
        "key_id": key_id,
        **facts,
    }
    await audit.append(connection, action, at_s=at.now_s, facts=said)
    return generation

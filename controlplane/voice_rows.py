"""The rows of a voice: each function is a step of the caller's transaction.

What holds a name or a voice is sealed with the voice's own key before it comes here or on its way in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import fleet_log
from controlplane.database.schema import consents, data_keys, samples, voiceprint_members, voiceprints, voices
from controlplane.enrolment_request import Consent
from controlplane.fleet_log import Change
from controlplane.intake import Clip
from controlplane.keys import DataKey, VoiceAddress
from controlplane.nodes import Analysis
from runtime.errors import Conflict


@dataclass(frozen=True, slots=True)
class Kept:
    """A clip in the blob store."""

    blob_key: str
    blob_bytes: int
    clip: Clip


async def insert_voice(
    connection: AsyncConnection,
    voice: VoiceAddress,
    *,
    label: str,
    key: DataKey,
    wrapped: bytes,
    now_s: float,
) -> None:
    """A new voice, pending, and its key."""
    await connection.execute(
        insert(voices).values(
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=1,
            state="pending",
            state_reason="no node has listened to the recording yet",
            label_ciphertext=key.encrypt(label.encode(), "label"),
            net_speech_ms=0,
            model="",
            revision=0,
            created_at_s=now_s,
            updated_at_s=now_s,
        )
    )
    await connection.execute(
        insert(data_keys).values(
            tenant_id=voice.tenant_id, voice_id=voice.voice_id, wrapped=wrapped, created_at_s=now_s
        )
    )


async def replace_voice(
    connection: AsyncConnection,
    voice: VoiceAddress,
    *,
    label: str,
    key: DataKey,
    generation: int,
    now_s: float,
) -> list[str]:
    """Make room for the next generation. Returns the keys of the blobs that are of no use once this commits."""
    values: dict[str, Any] = {
        "generation": generation,
        "state": "pending",
        "revision": 0,
        "updated_at_s": now_s,
    }
    if label:
        values["label_ciphertext"] = key.encrypt(label.encode(), "label")
    changed = await connection.execute(
        update(voices)
        .where(
            voices.c.tenant_id == voice.tenant_id,
            voices.c.voice_id == voice.voice_id,
            voices.c.generation == generation - 1,
            voices.c.state.in_(("pending", "ready", "failed")),
        )
        .values(**values)
    )
    if changed.rowcount != 1:
        raise Conflict("the voice was changed by someone else in the meantime: read it and try again")
    old = await connection.execute(
        select(samples.c.blob_key).where(samples.c.tenant_id == voice.tenant_id, samples.c.voice_id == voice.voice_id)
    )
    blob_keys = [row.blob_key for row in old]
    for table in (samples, voiceprints, voiceprint_members):
        await connection.execute(
            delete(table).where(table.c.tenant_id == voice.tenant_id, table.c.voice_id == voice.voice_id)
        )
    return blob_keys


async def insert_evidence(
    connection: AsyncConnection,
    voice: VoiceAddress,
    *,
    generation: int,
    consent: Consent,
    key: DataKey,
    kept: Sequence[Kept],
    now_s: float,
) -> None:
    """What a voice stands on: the consent, sealed, and where its recordings lie."""
    agreed = json.dumps(
        {
            "full_name": consent.full_name,
            "purpose": consent.purpose,
            "text": consent.text,
        }
    )
    await connection.execute(
        insert(consents).values(
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=generation,
            ciphertext=key.encrypt(agreed.encode(), "consent", generation),
            created_at_s=now_s,
        )
    )
    for index, blob in enumerate(kept):
        await connection.execute(
            insert(samples).values(
                tenant_id=voice.tenant_id,
                voice_id=voice.voice_id,
                generation=generation,
                clip=index,
                purpose="consent" if blob.clip.is_consent else "reference",
                blob_key=blob.blob_key,
                blob_bytes=blob.blob_bytes,
                encoding=blob.clip.encoding,
                sample_rate_hz=blob.clip.sample_rate_hz,
                channels=blob.clip.channels,
            )
        )


async def place_voiceprint(
    connection: AsyncConnection,
    voice: VoiceAddress,
    generation: int,
    analysis: Analysis,
    key: DataKey,
    *,
    now_lease_s: float,
    now_wall_s: float,
) -> int:
    """Keep a voiceprint and append the enrolment to the fleet log. The voice stays ready, or is pending until held."""
    made = analysis.voiceprint
    await connection.execute(
        insert(voiceprints).values(
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            model=made.model,
            generation=generation,
            net_speech_ms=made.net_speech_ms,
            ciphertext=key.encrypt(made.embedding, "voiceprint", generation, made.model),
        )
    )
    for number, clip in enumerate(analysis.clips):
        if clip.voiceprint is None:
            continue
        await connection.execute(
            insert(voiceprint_members).values(
                tenant_id=voice.tenant_id,
                voice_id=voice.voice_id,
                model=made.model,
                generation=generation,
                clip=number,
                net_speech_ms=clip.net_speech_ms,
                cohesion=clip.probability,
                left_out=clip.left_out,
                ciphertext=key.encrypt(clip.voiceprint.embedding, "member", generation, number, made.model),
            )
        )
    revision = await fleet_log.append(connection, Change.ENROLL, voice, generation, now_lease_s=now_lease_s)
    await connection.execute(
        update(voices)
        .where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
        .values(
            state_reason=case((voices.c.state == "ready", ""), else_="no node holds the voice yet"),
            net_speech_ms=made.net_speech_ms,
            model=made.model,
            revision=revision,
            updated_at_s=now_wall_s,
        )
    )
    return revision

"""The rows of a voice: each function is a step of the caller's transaction.

What holds a name or a voice is sealed with the voice's own key before it comes here or on its way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import fleet_log
from controlplane.database.schema import data_keys, samples, voiceprint_members, voiceprints, voices
from controlplane.enrolment_request import Details, details_text
from controlplane.fleet_log import Change
from controlplane.intake import Clip
from controlplane.keys import DataKey, VoiceAddress
from controlplane.nodes import Analysis
from controlplane.policy import VoiceFacts
from runtime.errors import Conflict

NOT_HEARD = "no node has listened to the recording yet"


@dataclass(frozen=True, slots=True)
class Kept:
    """A clip in the blob store."""

    blob_key: str
    blob_bytes: int
    clip: Clip


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of a voice. label "": as it is. label_index: what it is found by; details None: as they are."""

    label: str
    label_index: bytes | None
    details: Details | None

    def values(self, key: DataKey) -> dict[str, Any]:
        """The columns of `voices` that change, sealed."""
        values: dict[str, Any] = {}
        if self.label:
            values["label_ciphertext"] = key.encrypt(self.label.encode(), "label")
            values["label_index"] = self.label_index
        if self.details is not None:
            values["language"], values["gender"] = self.details.language, self.details.gender
            values["details_ciphertext"] = key.encrypt(details_text(self.details).encode(), "details")
        return values


async def insert_voice(
    connection: AsyncConnection,
    voice: VoiceAddress,
    *,
    facts: VoiceFacts,
    said: Said,
    key: DataKey,
    wrapped: bytes,
    kek_id: str,
    now_s: float,
) -> None:
    """A new voice, pending, and its key."""
    await connection.execute(
        insert(voices).values(
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=1,
            state="pending",
            state_reason=NOT_HEARD,
            net_speech_ms=0,
            model="",
            revision=0,
            created_at_s=now_s,
            updated_at_s=now_s,
            scope=facts.scope.value,
            owner_user_id=facts.owner_user_id,
            **said.values(key),
        )
    )
    await connection.execute(
        insert(data_keys).values(
            tenant_id=voice.tenant_id, voice_id=voice.voice_id, wrapped=wrapped, created_at_s=now_s, kek_id=kek_id
        )
    )


async def replace_voice(
    connection: AsyncConnection,
    voice: VoiceAddress,
    *,
    said: Said,
    key: DataKey,
    generation: int,
    keep_samples: bool,
    now_s: float,
) -> list[str]:
    """Make room for the next generation. Returns the keys of the blobs that are of no use once this commits."""
    values: dict[str, Any] = {
        "generation": generation,
        "state": "pending",
        "state_code": "",
        "revision": 0,
        "updated_at_s": now_s,
        **said.values(key),
    }
    changed = await connection.execute(
        update(voices)
        .where(
            voices.c.tenant_id == voice.tenant_id,
            voices.c.voice_id == voice.voice_id,
            voices.c.generation == generation - 1,
            voices.c.state.in_(("pending", "ready", "failed", "frozen")),
        )
        .values(**values)
    )
    if changed.rowcount != 1:
        raise Conflict("the voice was changed by someone else in the meantime: read it and try again")
    blob_keys: list[str] = []
    if not keep_samples:
        of_voice = (samples.c.tenant_id == voice.tenant_id, samples.c.voice_id == voice.voice_id)
        blob_keys = [row.blob_key for row in await connection.execute(select(samples.c.blob_key).where(*of_voice))]
        await connection.execute(delete(samples).where(*of_voice))
    for table in (voiceprints, voiceprint_members):
        await connection.execute(
            delete(table).where(table.c.tenant_id == voice.tenant_id, table.c.voice_id == voice.voice_id)
        )
    return blob_keys


async def insert_samples(
    connection: AsyncConnection, voice: VoiceAddress, *, generation: int, kept: Sequence[Kept]
) -> None:
    """Where the recordings of a generation lie."""
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
            quality=analysis.cohesion,
            num_members=max(1, sum(clip.voiceprint is not None and not clip.left_out for clip in analysis.clips)),
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

"""The rows of spaces: each function is a step of the caller's transaction.

What always holds: what is said of a thing is sealed under the thing's own key; forgetting a voice forgets, in the same
transaction, the identity that it is, with its voiceprints, its audios and all their keys. Usage records stay.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.agreements import Consent
from controlplane.database.schema import samples
from controlplane.database.spaces_schema import (
    space_audios,
    space_identities,
    space_keys,
    space_members,
    space_verifications,
    space_voiceprints,
    voice_profiles,
)
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from runtime.errors import NotFound

CLIP_OF_SPACES = 1_000
"""Recordings of an erased identity are numbered from here among those of its voice, whose deletion takes them along."""
_CONTAINER = 5
"""speakerd.v1.Encoding.ENCODING_CONTAINER."""
GONE = "it was erased in the meantime"


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of an identity."""

    alias: str = ""
    consent: Consent = field(default_factory=Consent)


async def make_key(connection: AsyncConnection, keys: KeyRing, tenant_id: str, thing_id: str, now_s: float) -> DataKey:
    """A new thing's key, stored wrapped. Hold the head: the key that wraps may be exchanged."""
    key, _ = keys.make(VoiceAddress(tenant_id, thing_id))
    await connection.execute(
        insert(space_keys).values(
            tenant_id=tenant_id, thing_id=thing_id, wrapped=keys.wrap(key), kek_id=keys.kek_id, created_at_s=now_s
        )
    )
    return key


async def open_keys(
    connection: AsyncConnection, keys: KeyRing, tenant_id: str, thing_ids: Sequence[str]
) -> dict[str, DataKey]:
    """The keys of things. Raises NotFound when one of them is gone."""
    query = select(space_keys).where(space_keys.c.tenant_id == tenant_id, space_keys.c.thing_id.in_(thing_ids))
    found = {
        row.thing_id: keys.open(VoiceAddress(tenant_id, row.thing_id), bytes(row.wrapped))
        for row in await connection.execute(query)
    }
    if len(found) < len(set(thing_ids)):
        raise NotFound(GONE)
    return found


def alias_of(key: DataKey, ciphertext: bytes | None) -> str | None:
    """An alias, opened."""
    return None if ciphertext is None else key.decrypt(bytes(ciphertext), "alias").decode()


def sealed_alias(key: DataKey, alias: str | None) -> bytes | None:
    """An alias, sealed. None: there is none."""
    return None if not alias else key.encrypt(alias.encode(), "alias")


def sealed_said(key: DataKey, said: Said) -> bytes:
    """What is said of an identity, sealed."""
    return key.encrypt(json.dumps(asdict(said)).encode(), "said")


def said_of(key: DataKey, ciphertext: bytes) -> Said:
    """What `sealed_said` sealed."""
    values: dict[str, Any] = json.loads(key.decrypt(bytes(ciphertext), "said"))
    return Said(values["alias"], Consent(**values["consent"]))


def new_id() -> str:
    """An id: a random UUID, which tells nothing."""
    return str(uuid.uuid4())


async def forget_voice(connection: AsyncConnection, voice: VoiceAddress, generation: int) -> None:
    """A voice is being erased: the identity and the profile that it is go with it. The voice's row is there."""
    of_voice = (voice.tenant_id, voice.voice_id)
    await connection.execute(
        delete(voice_profiles).where(
            voice_profiles.c.tenant_id == of_voice[0], voice_profiles.c.voice_id == of_voice[1]
        )
    )
    query = select(space_identities.c.identity_id).where(
        space_identities.c.tenant_id == of_voice[0], space_identities.c.voice_id == of_voice[1]
    )
    identity_id = (await connection.execute(query)).scalar_one_or_none()
    if identity_id is None:
        return
    # Their ciphertext is deleted, counted and written down with the voice's own recordings.
    audios = await _audios_of(connection, voice.tenant_id, identity_id)
    for number, row in enumerate(audio for audio in audios if audio.blob_key is not None):
        await connection.execute(
            insert(samples).values(
                tenant_id=voice.tenant_id,
                voice_id=voice.voice_id,
                generation=generation,
                clip=CLIP_OF_SPACES + number,
                purpose="reference",
                blob_key=row.blob_key,
                blob_bytes=row.blob_bytes,
                encoding=_CONTAINER,
                sample_rate_hz=row.sample_rate_hz or 0,
                channels=1,
            )
        )
    await delete_identity(connection, voice.tenant_id, identity_id, [audio.audio_id for audio in audios])


async def delete_audios(connection: AsyncConnection, tenant_id: str, audio_ids: Sequence[str]) -> None:
    """Audios that no voiceprint holds, and all about them. Their blobs are the caller's to delete."""
    for table, column in ((space_verifications, "audio_id"), (space_members, "audio_id"), (space_audios, "audio_id")):
        await connection.execute(delete(table).where(table.c.tenant_id == tenant_id, table.c[column].in_(audio_ids)))
    await _delete_keys(connection, tenant_id, audio_ids)


async def empty_audio(connection: AsyncConnection, tenant_id: str, audio_id: str) -> None:
    """An audio's file is gone; what it gave to a voiceprint stays written down."""
    await connection.execute(
        update(space_audios)
        .where(space_audios.c.tenant_id == tenant_id, space_audios.c.audio_id == audio_id)
        .values(state="notAvailable", blob_key=None, blob_bytes=0, alias_ciphertext=None)
    )
    await _delete_keys(connection, tenant_id, [audio_id])


async def delete_voiceprint(connection: AsyncConnection, tenant_id: str, voiceprint_id: str) -> None:
    """A voiceprint that was not computed."""
    for table in (space_members, space_voiceprints):
        await connection.execute(
            delete(table).where(table.c.tenant_id == tenant_id, table.c.voiceprint_id == voiceprint_id)
        )
    await _delete_keys(connection, tenant_id, [voiceprint_id])


async def _audios_of(connection: AsyncConnection, tenant_id: str, identity_id: str) -> list[Any]:
    query = select(space_audios).where(space_audios.c.tenant_id == tenant_id, space_audios.c.identity_id == identity_id)
    return list((await connection.execute(query)).all())


async def delete_identity(
    connection: AsyncConnection, tenant_id: str, identity_id: str, audio_ids: Sequence[str]
) -> None:
    """An identity, its voiceprints and these audios of its, with their keys; its voice is another's to erase."""
    query = select(space_voiceprints.c.voiceprint_id).where(
        space_voiceprints.c.tenant_id == tenant_id, space_voiceprints.c.identity_id == identity_id
    )
    voiceprint_ids = [row.voiceprint_id for row in await connection.execute(query)]
    await connection.execute(
        delete(space_verifications).where(
            space_verifications.c.tenant_id == tenant_id, space_verifications.c.identity_id == identity_id
        )
    )
    await connection.execute(
        delete(space_members).where(
            space_members.c.tenant_id == tenant_id, space_members.c.voiceprint_id.in_(voiceprint_ids)
        )
    )
    await connection.execute(
        delete(space_voiceprints).where(
            space_voiceprints.c.tenant_id == tenant_id, space_voiceprints.c.identity_id == identity_id
        )
    )
    await delete_audios(connection, tenant_id, audio_ids)
    await connection.execute(
        delete(space_identities).where(
            space_identities.c.tenant_id == tenant_id, space_identities.c.identity_id == identity_id
        )
    )
    await _delete_keys(connection, tenant_id, [identity_id, *voiceprint_ids])


async def _delete_keys(connection: AsyncConnection, tenant_id: str, thing_ids: Sequence[str]) -> None:
    await connection.execute(
        delete(space_keys).where(space_keys.c.tenant_id == tenant_id, space_keys.c.thing_id.in_(thing_ids))
    )

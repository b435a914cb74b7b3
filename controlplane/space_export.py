"""What spaces and profiles hold of the person behind a voice, opened, for an export. Reads alone.

In: a connection, a voice. Out: plain values; recordings are named, and opened one by one as their turn comes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.spaces_schema import (
    space_audios,
    space_identities,
    space_members,
    space_verifications,
    space_voiceprints,
    voice_profiles,
)
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from controlplane.space_rows import alias_of, open_keys, said_of

SEALED = ("said_ciphertext", "alias_ciphertext", "ciphertext", "blob_key")


@dataclass(frozen=True, slots=True)
class HeldAudio:
    """An audio whose file is to be exported."""

    audio_id: str
    blob_key: str
    key: DataKey


@dataclass(frozen=True, slots=True)
class HeldInSpaces:
    """All of it: rows by kind, and the audios that have files."""

    rows: dict[str, list[dict[str, Any]]]
    audios: tuple[HeldAudio, ...]


async def held_in_spaces(connection: AsyncConnection, keys: KeyRing, voice: VoiceAddress) -> HeldInSpaces:
    """What there is; empty for a voice that is neither an identity nor a profile."""
    profile = await _mappings(connection, voice_profiles, voice, voice_profiles.c.voice_id == voice.voice_id)
    identities = await _mappings(connection, space_identities, voice, space_identities.c.voice_id == voice.voice_id)
    rows: dict[str, list[dict[str, Any]]] = {"profile": profile, "identity": identities}
    if not identities:
        return HeldInSpaces(rows, ())
    identity_id = identities[0]["identity_id"]
    prints = await _mappings(connection, space_voiceprints, voice, space_voiceprints.c.identity_id == identity_id)
    audios = await _mappings(connection, space_audios, voice, space_audios.c.identity_id == identity_id)
    verified = space_verifications.c.identity_id == identity_id
    members = space_members.c.voiceprint_id.in_([row["voiceprint_id"] for row in prints])
    rows |= {
        "voiceprints_in_spaces": prints,
        "audios": audios,
        "members": await _mappings(connection, space_members, voice, members),
        "verifications": await _mappings(connection, space_verifications, voice, verified),
    }
    sealed = [
        row[thing]
        for found, thing in ((identities, "identity_id"), (prints, "voiceprint_id"), (audios, "audio_id"))
        for row in found
        if any(row.get(column) is not None for column in SEALED)
    ]
    opened = await open_keys(connection, keys, voice.tenant_id, sealed) if sealed else {}
    files = tuple(
        HeldAudio(row["audio_id"], row["blob_key"], opened[row["audio_id"]])
        for row in audios
        if row["blob_key"] is not None
    )
    for found, thing in ((identities, "identity_id"), (prints, "voiceprint_id"), (audios, "audio_id")):
        for row in found:
            _open(row, opened.get(row[thing]))
    return HeldInSpaces(rows, files)


async def _mappings(connection: AsyncConnection, table: Any, voice: VoiceAddress, where: Any) -> list[dict[str, Any]]:
    query = select(table).where(table.c.tenant_id == voice.tenant_id, where)
    return [dict(row._mapping) for row in await connection.execute(query)]


def _open(row: dict[str, Any], key: DataKey | None) -> None:
    """Put what is sealed in a row in the clear, in place."""
    said, alias, embedding = (row.get(column) for column in SEALED[:3])
    for column in SEALED:
        row.pop(column, None)
    if key is None:
        return
    if said is not None:
        row["said"] = asdict(said_of(key, said))
    if alias is not None:
        row["alias"] = alias_of(key, alias)
    if embedding is not None:
        plain = key.decrypt(bytes(embedding), "voiceprint", row["engine_model"])
        row["float32_little_endian_hex"] = plain.hex()

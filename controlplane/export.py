"""All that is held on the person behind a voice, as one zip file.

In: an administrator and a voice. Out: the bytes of the file in pieces, each recording decrypted as its turn comes, so
that memory holds one at a time. What always holds: the export is in the audit before its first byte leaves; what has
been erased is not in it, for nothing opens it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit
from controlplane.blobs import Blobs
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import (
    agreement_events,
    consents,
    data_keys,
    erasures,
    licences,
    samples,
    usage_records,
    voiceprints,
)
from controlplane.database.schema import audit as audit_rows
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from controlplane.policy import Principal, Right
from controlplane.space_export import HeldInSpaces, held_in_spaces
from controlplane.voice_lookup import NO_SUCH_VOICE, find_voice
from controlplane.voices import Voices
from runtime.clock import Clock
from runtime.errors import NotFound

PIECE_BYTES = 1 << 20
_RAW = {1: "s16le", 2: "f32le", 3: "mulaw", 4: "alaw"}
_README = """This is all that is held on the person behind one voice.

voice.json       the voice, its label and its details
consents.json    what the person agreed to, word for word, with the hashes that were kept of it
licences.json    by what right a global voice is used
events.json      what became of consents and licences
voiceprints.json what recognition compares: a list of numbers for each model
recordings/      the recordings, as they came; recordings.json says what they are
audit.json       every row of the audit about this voice
erasures.json    erasures of it
spaces/          what a space holds of them as an identity: its voiceprints, audios and verifications; and their profile
usage.json       what was counted of it; reports of single matches are not kept
"""


class Export:
    """The use case."""

    def __init__(self, *, database: Database, keys: KeyRing, blobs: Blobs, library: Voices, clock: Clock) -> None:
        self._database = database
        self._keys = keys
        self._blobs = blobs
        self._library = library
        self._clock = clock

    def __repr__(self) -> str:
        return "Export()"

    async def voice(self, principal: Principal, voice_id: str) -> AsyncIterator[bytes]:
        """The zip file, in pieces. Raises NotFound, also for a voice that was erased, and Denied."""
        voice, key = await self._noted(principal, voice_id)
        sink = _Sink()
        with zipfile.ZipFile(sink, "w") as archive:
            archive.writestr("README.txt", _README)
            shown = asdict(await self._library.get(voice))
            archive.writestr("voice.json", _json({**shown, "scope": shown["scope"].value}))
            for name, rows in (await self._tables(voice, key)).items():
                archive.writestr(f"{name}.json", _json(rows), zipfile.ZIP_DEFLATED)
            in_spaces = await self._in_spaces(voice)
            for name, found in in_spaces.rows.items():
                if found:
                    archive.writestr(f"spaces/{name}.json", _json(found), zipfile.ZIP_DEFLATED)
            for audio in in_spaces.audios:
                await self._require_not_erased(voice)
                ciphertext = await self._blobs.get(audio.blob_key)
                if ciphertext is not None:
                    archive.writestr(f"spaces/{audio.audio_id}.audio", audio.key.decrypt(ciphertext, "audio"))
                for piece in sink.pieces():
                    yield piece
            for name, row in _named(await self._samples(voice)):
                await self._require_not_erased(voice)
                ciphertext = await self._blobs.get(row.blob_key)
                if ciphertext is not None:
                    archive.writestr(
                        f"recordings/{name}", key.decrypt(ciphertext, "sample", int(row.generation), row.clip)
                    )
                for piece in sink.pieces():
                    yield piece
        for piece in sink.pieces():
            yield piece

    async def _noted(self, principal: Principal, voice_id: str) -> tuple[VoiceAddress, DataKey]:
        async with self._database.write() as connection:
            await locked_head(connection)
            voice = await find_voice(connection, principal, voice_id, Right.EXPORT)
            query = select(data_keys.c.wrapped).where(*_of(data_keys, voice))
            wrapped = (await connection.execute(query)).scalar_one_or_none()
            if wrapped is None:
                raise NotFound(NO_SUCH_VOICE)
            facts = {
                "subject": self._keys.subject(voice.tenant_id, voice.voice_id),
                "tenant_id": voice.tenant_id,
                "key_id": principal.key_id,
            }
            await audit.append(connection, "voice.exported", at_s=self._clock.wall_s(), facts=facts)
        return voice, self._keys.open(voice, bytes(wrapped))

    async def _require_not_erased(self, voice: VoiceAddress) -> None:
        # We hold the key, and whoever reads slowly would get recordings long after the voice was erased.
        async with self._database.read() as connection:
            key = await connection.execute(select(data_keys.c.kek_id).where(*_of(data_keys, voice)))
            if key.one_or_none() is None:
                raise NotFound(NO_SUCH_VOICE)

    async def _tables(self, voice: VoiceAddress, key: DataKey) -> dict[str, list[dict[str, Any]]]:
        subject = self._keys.subject(voice.tenant_id, voice.voice_id)

        def opened(row: Row[Any], kind: str) -> dict[str, Any]:
            said = json.loads(key.decrypt(bytes(row.ciphertext), kind, int(row.generation)))
            return {**_plain(row, "ciphertext"), "agreed": said}

        async with self._database.read() as connection:
            return {
                "consents": [opened(row, "consent") for row in await _rows(connection, consents, voice)],
                "licences": [opened(row, "licence") for row in await _rows(connection, licences, voice)],
                "events": [_plain(row) for row in await _rows(connection, agreement_events, voice)],
                "voiceprints": [_print(row, key) for row in await _rows(connection, voiceprints, voice)],
                "recordings": [_plain(row, "blob_key") for row in await _rows(connection, samples, voice)],
                "erasures": [_plain(row, "reason_ciphertext") for row in await _rows(connection, erasures, voice)],
                "usage": [
                    _plain(row)
                    for row in await connection.execute(
                        select(usage_records).where(usage_records.c.subject == subject).order_by(usage_records.c.at_s)
                    )
                ],
                "audit": [
                    {"sequence": int(row.sequence), **json.loads(row.body)}
                    for row in await connection.execute(
                        # The subject is hexadecimal, so nothing in it means anything to LIKE.
                        select(audit_rows)
                        .where(audit_rows.c.body.like(f'%"{subject}"%'))
                        .order_by(audit_rows.c.sequence)
                    )
                ],
            }

    async def _in_spaces(self, voice: VoiceAddress) -> HeldInSpaces:
        async with self._database.read() as connection:
            return await held_in_spaces(connection, self._keys, voice)

    async def _samples(self, voice: VoiceAddress) -> list[Row[Any]]:
        async with self._database.read() as connection:
            return await _rows(connection, samples, voice)


class _Sink(io.RawIOBase):
    """Takes what zipfile writes, and gives it away in pieces. It cannot be sought, so zipfile never goes back."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def write(self, data: Any) -> int:
        """Take some bytes."""
        self._buffer += data
        return len(data)

    def pieces(self) -> Iterator[bytes]:
        """All that came since."""
        taken, self._buffer = bytes(self._buffer), bytearray()
        for start in range(0, len(taken), PIECE_BYTES):
            yield taken[start : start + PIECE_BYTES]


async def _rows(connection: AsyncConnection, table: Any, voice: VoiceAddress) -> list[Row[Any]]:
    return list((await connection.execute(select(table).where(*_of(table, voice)))).all())


def _of(table: Any, voice: VoiceAddress) -> tuple[Any, Any]:
    return table.c.tenant_id == voice.tenant_id, table.c.voice_id == voice.voice_id


def _plain(row: Row[Any], *without: str) -> dict[str, Any]:
    return {name: _value(name, value) for name, value in row._mapping.items() if name not in without}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if name.endswith("_at_s") and isinstance(value, float) and 0 <= value < 253_402_300_800:
        return datetime.fromtimestamp(value, UTC).isoformat()
    return value


def _print(row: Row[Any], key: DataKey) -> dict[str, Any]:
    embedding = key.decrypt(bytes(row.ciphertext), "voiceprint", int(row.generation), row.model)
    return {**_plain(row, "ciphertext"), "float32_little_endian_hex": embedding.hex()}


def _named(rows: list[Row[Any]]) -> Iterator[tuple[str, Row[Any]]]:
    for row in sorted(rows, key=lambda row: (int(row.generation), row.clip)):
        ending = _RAW.get(row.encoding, "audio")
        yield f"{row.generation}-{row.clip}-{row.purpose}.{ending}", row


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)

"""Reading consents and licences back: what a person agreed to, and by what right a global voice is used.

In: who asks, and voices. Out: records as they were written. What always holds: what a person agreed to is read by
whoever may change the voice, and nobody else; once a voice is erased there is nothing to read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.agreements import LicenceKind
from controlplane.database.engine import Database
from controlplane.database.schema import consents, data_keys, licences, samples
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.policy import GLOBAL_TENANT, Principal, Right
from controlplane.voice_lookup import find_voice


@dataclass(frozen=True, slots=True)
class ConsentRecord:
    """A consent as it is kept. evidence: the keyed digest of all of it, in hex, which the audit has too.

    recordings_sha256: of all that came with it. spoken_sha256: of the person agreeing aloud; None: no such came, or it
    is not kept any more.
    """

    full_name: str
    purpose: str
    text: str
    version: str
    given_at_s: float | None
    recorded_at_s: float
    text_sha256: str
    recordings_sha256: tuple[str, ...]
    spoken_sha256: str | None
    evidence: str


@dataclass(frozen=True, slots=True)
class LicenceRecord:
    """A licence as it is kept."""

    licensor: str
    terms: str
    kind: LicenceKind
    expires_at_s: float | None
    unit: str
    usage_max: int | None
    recorded_at_s: float


class AgreementReading:
    """The use case."""

    def __init__(self, database: Database, keys: KeyRing) -> None:
        self._database = database
        self._keys = keys

    def __repr__(self) -> str:
        return "AgreementReading()"

    async def consent(self, principal: Principal, voice_id: str) -> ConsentRecord | None:
        """The last consent of a voice; None: there is none. Raises NotFound, Denied."""
        async with self._database.read() as connection:
            voice = await find_voice(connection, principal, voice_id, Right.CHANGE)
            rows = await _rows(connection, consents, voice.tenant_id, [voice.voice_id])
            spoken = await _spoken(connection, voice, int(rows[-1].generation)) if rows else None
        if not rows:
            return None
        row = rows[-1]
        said = self._opened(row, "consent")
        digests = tuple(said["recordings_sha256"])
        return ConsentRecord(
            full_name=said["full_name"],
            purpose=said["purpose"],
            text=said["text"],
            version=said["version"],
            given_at_s=said["given_at_s"],
            recorded_at_s=row.created_at_s,
            text_sha256=said["text_sha256"],
            recordings_sha256=digests,
            spoken_sha256=digests[spoken] if spoken is not None and spoken < len(digests) else None,
            evidence="" if row.evidence is None else bytes(row.evidence).hex(),
        )

    async def licences(self, voice_ids: Collection[str]) -> dict[str, LicenceRecord]:
        """The licences of global voices, which everybody may read. Other voices have none."""
        async with self._database.read() as connection:
            rows = await _rows(connection, licences, GLOBAL_TENANT, voice_ids)
        found: dict[str, LicenceRecord] = {}
        for row in rows:
            said = self._opened(row, "licence")
            found[row.voice_id] = LicenceRecord(
                licensor=said["licensor"],
                terms=said["terms"],
                kind=LicenceKind(row.kind),
                expires_at_s=row.expires_at_s,
                unit=row.unit,
                usage_max=None if row.usage_max is None else int(row.usage_max),
                recorded_at_s=row.created_at_s,
            )
        return found

    def _opened(self, row: Row[Any], what: str) -> dict[str, Any]:
        key = self._keys.open(VoiceAddress(row.tenant_id, row.voice_id), bytes(row.wrapped))
        said: dict[str, Any] = json.loads(key.decrypt(bytes(row.ciphertext), what, int(row.generation)))
        return said


async def _spoken(connection: AsyncConnection, voice: VoiceAddress, generation: int) -> int | None:
    """Which of the recordings of a generation is the person agreeing aloud."""
    query = select(samples.c.clip).where(
        samples.c.tenant_id == voice.tenant_id,
        samples.c.voice_id == voice.voice_id,
        samples.c.generation == generation,
        samples.c.purpose == "consent",
    )
    found = (await connection.execute(query)).scalars().first()
    return None if found is None else int(found)


async def _rows(
    connection: AsyncConnection, table: Table, tenant_id: str, voice_ids: Collection[str]
) -> Sequence[Row[Any]]:
    """What is kept of voices that have their key, in the order in which it came."""
    has_key = (data_keys.c.tenant_id == table.c.tenant_id) & (data_keys.c.voice_id == table.c.voice_id)
    query = (
        select(table, data_keys.c.wrapped)
        .join(data_keys, has_key)
        .where(table.c.tenant_id == tenant_id, table.c.voice_id.in_(voice_ids))
        .order_by(table.c.voice_id, table.c.generation)
    )
    return (await connection.execute(query)).all()

"""Consents and licences: rows that only grow, and events that say what became of them.

In: a person's agreement, or a licensor's. Out: rows within the caller's transaction. What always holds: what an
agreement says lies under the voice's own key and becomes unreadable with it; a keyed digest of it stays in the row and
in the audit, so that a row that was put in later, or taken away, is noticed; a person who opted out is refused until
they agree anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import locked_head
from controlplane.database.schema import agreement_events, consents, licences
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from runtime.errors import Conflict, InvalidRequest

SKEW_S = 300.0
"""How far a caller's clock may be ahead of ours."""


class Event(Enum):
    """What may become of an agreement."""

    CONSENT_GIVEN = "consent_given"
    CONSENT_WITHDRAWN = "consent_withdrawn"
    OPTED_OUT = "opted_out"
    LICENCE_GRANTED = "licence_granted"
    LICENCE_EXPIRED = "licence_expired"
    LICENCE_USED_UP = "licence_used_up"
    LICENCE_REVOKED = "licence_revoked"
    LICENCE_ENDED = "licence_ended"  # by a decision of the platform's


class LicenceKind(Enum):
    """How long a licence lasts."""

    PERPETUAL = "perpetual"
    TIME_BOUND = "time_bound"
    USAGE_BOUND = "usage_bound"


@dataclass(frozen=True, slots=True)
class Consent:
    """What the person agreed to. All empty: not recorded. given_at_s: Unix time; None: not said."""

    full_name: str = ""
    purpose: str = ""
    text: str = ""
    version: str = ""
    given_at_s: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it says who agreed, what for, and to what."""
        return all(part.strip() for part in (self.full_name, self.purpose, self.text))


@dataclass(frozen=True, slots=True)
class Licence:
    """By what right a global voice is used. unit: characters, seconds or matches."""

    licensor: str
    terms: str
    kind: LicenceKind
    expires_at_s: float | None = None
    unit: str = ""
    usage_max: int | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """Who wrote an agreement down, and when (Unix time)."""

    key_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Dated:
    """Of which voice an agreement is, in which generation, under which key, and who wrote it down."""

    voice: VoiceAddress
    generation: int
    key: DataKey
    signed: Signed


async def keep_consent(
    connection: AsyncConnection,
    keys: KeyRing,
    dated: Dated,
    consent: Consent,
    *,
    subject_index: bytes | None,
    recordings: Sequence[bytes],
) -> str:
    """Keep a consent with the hashes of its text and of the recordings that came with it; its evidence, in hex."""
    said = json.dumps(
        {
            "full_name": consent.full_name,
            "purpose": consent.purpose,
            "text": consent.text,
            "version": consent.version,
            "given_at_s": consent.given_at_s,
            "text_sha256": hashlib.sha256(consent.text.encode()).hexdigest(),
            "recordings_sha256": [hashlib.sha256(recording).hexdigest() for recording in recordings],
        }
    )
    voice, generation, signed = dated.voice, dated.generation, dated.signed
    if consent.given_at_s is not None and consent.given_at_s > signed.at_s + SKEW_S:
        raise InvalidRequest("consent.given_at: it lies in the future")
    evidence = keys.consent(voice.tenant_id, voice.voice_id, str(generation), said)
    await connection.execute(
        insert(consents).values(
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=generation,
            ciphertext=dated.key.encrypt(said.encode(), "consent", generation),
            created_at_s=signed.at_s,
            given_at_s=consent.given_at_s,
            version=consent.version,
            subject_index=subject_index,
            evidence=bytes.fromhex(evidence),
            key_id=signed.key_id,
        )
    )
    await note(connection, Event.CONSENT_GIVEN, voice, generation, subject_index=subject_index, signed=signed)
    return evidence


async def keep_licence(connection: AsyncConnection, keys: KeyRing, dated: Dated, licence: Licence) -> str:
    """Keep a licence; its evidence, in hex."""
    said = json.dumps(
        {
            "licensor": licence.licensor,
            "terms": licence.terms,
            "kind": licence.kind.value,
            "expires_at_s": licence.expires_at_s,
            "unit": licence.unit,
            "usage_max": licence.usage_max,
        }
    )
    voice, generation, signed = dated.voice, dated.generation, dated.signed
    evidence = keys.consent(voice.tenant_id, voice.voice_id, str(generation), said)
    await connection.execute(
        insert(licences).values(
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=generation,
            kind=licence.kind.value,
            expires_at_s=licence.expires_at_s,
            unit=licence.unit,
            usage_max=licence.usage_max,
            ciphertext=dated.key.encrypt(said.encode(), "licence", generation),
            created_at_s=signed.at_s,
            evidence=bytes.fromhex(evidence),
            key_id=signed.key_id,
        )
    )
    await note(connection, Event.LICENCE_GRANTED, voice, generation, signed=signed)
    return evidence


async def note(
    connection: AsyncConnection,
    event: Event,
    voice: VoiceAddress,
    generation: int,
    *,
    signed: Signed,
    subject_index: bytes | None = None,
) -> None:
    """Append what became of an agreement."""
    # Holding the head, nobody else counts at the same time.
    await locked_head(connection)
    last = (await connection.execute(select(func.max(agreement_events.c.sequence)))).scalar_one()
    await connection.execute(
        insert(agreement_events).values(
            sequence=(last or 0) + 1,
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=generation,
            kind=event.value,
            subject_index=subject_index,
            at_s=signed.at_s,
            key_id=signed.key_id,
        )
    )


async def require_not_opted_out(
    connection: AsyncConnection, tenant_id: str, subject_index: bytes, consent: Consent
) -> None:
    """Raises Conflict when the person opted out and this is no consent that was given after that."""
    query = (
        select(agreement_events.c.kind, agreement_events.c.at_s)
        .where(
            agreement_events.c.tenant_id == tenant_id,
            agreement_events.c.subject_index == subject_index,
            agreement_events.c.kind.in_((Event.OPTED_OUT.value, Event.CONSENT_GIVEN.value)),
        )
        .order_by(agreement_events.c.sequence.desc())
        .limit(1)
    )
    last = (await connection.execute(query)).one_or_none()
    if last is None or last.kind != Event.OPTED_OUT.value:
        return
    if not consent.is_whole or consent.given_at_s is None or consent.given_at_s <= last.at_s:
        raise Conflict(
            "this person opted out: enrol them only with a consent that they gave after that, and say when "
            "(consent: full_name, purpose, text, given_at)"
        )


async def subject_of(connection: AsyncConnection, voice: VoiceAddress) -> bytes | None:
    """The person behind a voice, as the last consent that said it has it."""
    query = (
        select(consents.c.subject_index)
        .where(
            consents.c.tenant_id == voice.tenant_id,
            consents.c.voice_id == voice.voice_id,
            consents.c.subject_index.is_not(None),
        )
        .order_by(consents.c.generation.desc())
        .limit(1)
    )
    found: bytes | None = (await connection.execute(query)).scalar_one_or_none()
    return None if found is None else bytes(found)


async def unproven(connection: AsyncConnection, evidence_in_audit: set[str]) -> list[str]:
    """Which agreements and audit rows do not stand for each other: rows put in, or taken away, past the triggers.

    evidence_in_audit: the fact `evidence` of every audit row that has one.
    """
    kept: set[str] = set()
    for table in (consents, licences):
        rows = await connection.execute(select(table.c.evidence).where(table.c.evidence.is_not(None)))
        kept |= {bytes(row.evidence).hex() for row in rows}
    return sorted(kept ^ evidence_in_audit)

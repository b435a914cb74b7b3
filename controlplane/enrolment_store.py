"""Storing an enrolment: blobs first, then one transaction of everything that says that they are.

In: what was asked, where it goes, what was heard. Out: where the voice lies. What always holds: what is refused leaves
nothing behind; the voice, its key, its consent, its recordings, its voiceprint, its place in the fleet log and its
audit row are one transaction.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit, usage
from controlplane.accounts import require_open
from controlplane.agreements import (
    Consent,
    Dated,
    Signed,
    keep_consent,
    keep_licence,
    require_not_opted_out,
    subject_of,
)
from controlplane.blobs import Blobs
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import idempotency, samples
from controlplane.derived_keys import kept_answers_key
from controlplane.enrolment_request import Request
from controlplane.fault_points import reach
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from controlplane.nodes import Analysis
from controlplane.policy import Principal, VoiceFacts
from controlplane.quotas import require_room
from controlplane.tenant_keys import TenantKeys
from controlplane.voice_rows import Kept, Said, insert_samples, insert_voice, place_voiceprint, replace_voice
from controlplane.voices import Voice
from runtime.clock import Clock
from runtime.errors import Conflict, Unavailable

IDEMPOTENCY_S = 24 * 3600.0
FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class New:
    """A voice to be. voice_id "": any."""

    facts: VoiceFacts
    voice_id: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """A voice as it was when it was looked at, and its key."""

    voice: VoiceAddress
    before: Voice
    key: DataKey


Step = Callable[[AsyncConnection, VoiceAddress, DataKey], Awaitable[None]]
"""What a dialect writes of its own in the transaction that writes the voice. Whatever it raises undoes all of it."""


@dataclass(frozen=True, slots=True)
class Storing:
    """What is to be stored, for whom, and how it was asked. also: done within the same transaction."""

    principal: Principal
    request: Request
    place: New | Known
    analysis: Analysis | None
    digest: bytes
    also: Step | None = None


class EnrolmentStore:
    """Stores enrolments, and knows which requests were answered."""

    def __init__(
        self, *, database: Database, keys: KeyRing, tenant_keys: TenantKeys, blobs: Blobs, clock: Clock
    ) -> None:
        self._database = database
        self._keys = keys
        self._tenant_keys = tenant_keys
        self._blobs = blobs
        self._clock = clock

    def __repr__(self) -> str:
        return "EnrolmentStore()"

    async def answered(self, principal: Principal, key: str, digest: bytes) -> str | None:
        """The voice that a repeated request was answered with. Raises Conflict for another request under its key."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    select(idempotency).where(
                        idempotency.c.tenant_id == principal.tenant_id,
                        idempotency.c.idempotency_key == kept_as(self._keys, principal, key),
                        idempotency.c.created_at_s > self._clock.wall_s() - IDEMPOTENCY_S,
                    )
                )
            ).one_or_none()
        if row is None:
            return None
        if bytes(row.request_digest) != digest:
            raise Conflict("this idempotency key was used for another request: use a new one")
        return str(row.voice_id)

    async def store(self, storing: Storing) -> VoiceAddress:
        """Make it durable. Raises Conflict, Overloaded, Unauthenticated, Unavailable."""
        principal, request, place = storing.principal, storing.request, storing.place
        if isinstance(place, New):
            voice, generation = VoiceAddress(place.facts.tenant_id, place.voice_id or new_voice_id()), 1
            key, _ = self._keys.make(voice)
        else:
            voice, generation, key = place.voice, place.before.generation + 1, place.key
            if place.before.state == FROZEN and not request.consent.is_whole:
                raise Conflict("consent was withdrawn: enrol the person anew with the consent that they gave since")
        signed = Signed(principal.key_id, self._clock.wall_s())
        kept: list[Kept] = []
        replaced: list[str] = []
        try:
            for index, clip in enumerate(request.clips):
                ciphertext = key.encrypt(clip.data, "sample", generation, index)
                kept.append(Kept(await self._blobs.put(ciphertext), len(ciphertext), clip))
                reach("enrol.blob_stored")
            async with self._database.write() as connection:
                # Who writes takes the head first, everywhere, so that no two wait for each other.
                await locked_head(connection)
                # Listening takes seconds. Who was closed meanwhile had their voices erased, and this one would stay.
                await require_open(connection, principal)
                said = await self._said(connection, voice, request)
                if isinstance(place, New):
                    stored_bytes = sum(blob.blob_bytes for blob in kept)
                    await require_room(connection, voice.tenant_id, more_voices=1, more_bytes=stored_bytes)
                    await insert_voice(
                        connection,
                        voice,
                        facts=place.facts,
                        said=said,
                        key=key,
                        # Not before the head is held: the key that wraps may have been exchanged, and the old one
                        # dropped, while the recordings were stored.
                        wrapped=self._keys.wrap(key),
                        kek_id=self._keys.kek_id,
                        now_s=signed.at_s,
                    )
                else:
                    replaced = await replace_voice(
                        connection,
                        voice,
                        said=said,
                        key=key,
                        generation=generation,
                        keep_samples=request.add_clips,
                        now_s=signed.at_s,
                    )
                    stored_bytes = sum(blob.blob_bytes for blob in kept)
                    await require_room(connection, voice.tenant_id, more_voices=0, more_bytes=stored_bytes)
                reach("enrol.voice_written")
                await insert_samples(connection, voice, generation=generation, kept=kept)
                reach("enrol.samples_written")
                facts: dict[str, str | int] = {
                    "subject": self._keys.subject(voice.tenant_id, voice.voice_id),
                    "tenant_id": voice.tenant_id,
                    "generation": generation,
                    "key_id": principal.key_id,
                    **await self._agreement(connection, Dated(voice, generation, key, signed), request),
                }
                if storing.analysis is not None:
                    await place_voiceprint(
                        connection,
                        voice,
                        generation,
                        storing.analysis,
                        key,
                        now_lease_s=await self._database.lease_now_s(connection),
                        now_wall_s=signed.at_s,
                    )
                    reach("enrol.voiceprint_placed")
                    subject = str(facts["subject"])
                    use = usage.Use(principal.tenant_id, subject, usage.VOICEPRINTS, 1)
                    await usage.record(connection, use, signed.at_s)
                if request.idempotency_key:
                    await self._remember(connection, voice, storing)
                if storing.also is not None:
                    await storing.also(connection, voice, key)
                await audit.append(connection, "voice.enrolled", at_s=signed.at_s, facts=facts)
                reach("enrol.audited")
            reach("enrol.committed")
        except Exception:
            await self._discard(kept)
            raise
        for blob_key in replaced:
            await self._blobs.delete(blob_key)
            reach("enrol.old_blob_deleted")
        return voice

    async def _said(self, connection: AsyncConnection, voice: VoiceAddress, request: Request) -> Said:
        index = None
        if request.label:
            index = await self._tenant_keys.label_index(connection, voice.tenant_id, request.label)
        return Said(request.label, index, request.details)

    async def _agreement(self, connection: AsyncConnection, dated: Dated, request: Request) -> dict[str, str | int]:
        """Keep the consent or licence, and give what the audit says of it. Raises Conflict for who opted out."""
        if request.licence is not None:
            evidence = await keep_licence(connection, self._keys, dated, request.licence)
            return {"evidence": evidence}
        voice = dated.voice
        subjects = [await subject_of(connection, voice)]
        if request.subject:
            subjects.append(await self._tenant_keys.subject_index(connection, voice.tenant_id, request.subject))
        # Both: who opted out is not enrolled again by calling them something else.
        for one in subjects:
            if one is not None:
                await require_not_opted_out(connection, voice.tenant_id, one, request.consent)
        subject = subjects[-1]
        if request.consent == Consent() and not request.subject:
            return {}
        evidence = await keep_consent(
            connection,
            self._keys,
            dated,
            request.consent,
            subject_index=subject,
            recordings=[clip.data for clip in request.clips],
        )
        return {"evidence": evidence}

    async def _discard(self, kept: list[Kept]) -> None:
        """Free the room of what was not committed. Asks first: an error may hide a commit that succeeded."""
        blob_keys = [blob.blob_key for blob in kept]
        with contextlib.suppress(Unavailable):
            async with self._database.read() as connection:
                found = await connection.execute(select(samples.c.blob_key).where(samples.c.blob_key.in_(blob_keys)))
                named = {row.blob_key for row in found}
            for blob_key in blob_keys:
                if blob_key not in named:
                    await self._blobs.delete(blob_key)

    async def _remember(self, connection: AsyncConnection, voice: VoiceAddress, storing: Storing) -> None:
        principal = storing.principal
        tenant_id = principal.tenant_id
        idempotency_key = kept_as(self._keys, principal, storing.request.idempotency_key)
        now_s = self._clock.wall_s()
        await connection.execute(delete(idempotency).where(idempotency.c.created_at_s < now_s - IDEMPOTENCY_S))
        known = await connection.execute(
            select(idempotency.c.voice_id).where(
                idempotency.c.tenant_id == tenant_id, idempotency.c.idempotency_key == idempotency_key
            )
        )
        if known.one_or_none() is not None:
            raise Conflict("a request with this idempotency key is being answered: repeat it in a moment")
        await connection.execute(
            insert(idempotency).values(
                tenant_id=tenant_id,
                idempotency_key=idempotency_key,
                request_digest=storing.digest,
                voice_id=voice.voice_id,
                created_at_s=now_s,
            )
        )


def kept_as(keys: KeyRing, principal: Principal, key: str) -> str:
    """What an idempotency key is found by: callers put names into them, so no database shows one in clear."""
    # One user's keys are not another's: what came of them is for the one who asked.
    whose = json.dumps([principal.tenant_id, principal.user_id, key]).encode()
    return hmac.digest(kept_answers_key(keys), whose, "sha256").hex()


def new_voice_id() -> str:
    """An id that no voice has: random."""
    return f"v_{secrets.token_hex(10)}"

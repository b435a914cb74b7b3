"""Enrolling a voice: from clips and consent to a durable voice that nodes hold.

What always holds: what is answered is committed, and what is refused leaves nothing behind; the voice, its key, its
consent, its recordings, its voiceprint, its place in the fleet log and its audit row are one transaction. A voice that
no node could listen to yet waits as pending; `completion` takes it up as soon as one is there.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit
from controlplane.blobs import Blobs
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import data_keys, idempotency, samples
from controlplane.enrolment_request import Request, request_digest, validate
from controlplane.intake import Intake
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from controlplane.metrics import Metrics
from controlplane.nodes import Analysis, CollisionScope
from controlplane.policy import Principal
from controlplane.pulse import Pulse
from controlplane.voice_lookup import NO_SUCH_VOICE
from controlplane.voice_rows import Kept, insert_evidence, insert_voice, place_voiceprint, replace_voice
from controlplane.voices import Voice, Voices
from runtime.clock import Clock
from runtime.errors import Conflict, NotFound, SpeakerdError, Unavailable
from runtime.media import Finding, SignalPreflight

IDEMPOTENCY_S = 24 * 3600.0
NOTE_PENDING = "no node is online: the voice is safe, waits as pending, and becomes ready by itself when one joins"
NOTE_CATCHING_UP = "no node holds the voice yet: it becomes ready by itself as they catch up"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The answer. preflight and analysis are None when a request is repeated, analysis also while no node is online."""

    voice: Voice
    preflight: SignalPreflight | None
    analysis: Analysis | None
    enrolled_on: tuple[str, ...]
    note: str
    findings: tuple[Finding, ...] = ()


class Enrolment:
    """The use case."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        blobs: Blobs,
        intake: Intake,
        library: Voices,
        clock: Clock,
        metrics: Metrics,
        waiting_voices: Pulse,
    ) -> None:
        self._database = database
        self._keys = keys
        self._blobs = blobs
        self._intake = intake
        self._library = library
        self._clock = clock
        self._metrics = metrics
        self._waiting_voices = waiting_voices

    def __repr__(self) -> str:
        return "Enrolment()"

    async def enrol(self, principal: Principal, request: Request) -> Enrolled:
        """Enrol a person's voice, anew or in place.

        Raises BadAudio, UnsupportedMedia, TooLarge and InvalidRequest for what has to be mended, NotFound, Conflict,
        Overloaded, Unavailable.
        """
        try:
            enrolled = await self._enrol(principal, request)
        except SpeakerdError as error:
            self._metrics.enrolments.labels(error.cause.value).inc()
            raise
        self._metrics.enrolments.labels(enrolled.voice.state).inc()
        return enrolled

    async def _enrol(self, principal: Principal, request: Request) -> Enrolled:
        validate(request)
        digest = request_digest(request)
        if request.idempotency_key:
            repeated = await self._repeated(principal.tenant_id, request.idempotency_key, digest)
            if repeated is not None:
                return Enrolled(await self._library.get(repeated), None, None, (), "this request was answered before")
        before = None
        if request.voice_id:
            before = await self._library.get(VoiceAddress(principal.tenant_id, request.voice_id))
            _may_be_enrolled_anew(before)
        sound = await self._intake.listen(request.clips)
        scope = CollisionScope(principal.tenant_id, except_voice_id=request.voice_id)
        analysis = await self._intake.analyze(sound, scope=scope)
        findings: tuple[Finding, ...] = ()
        if analysis is not None:
            findings = self._intake.judge(analysis)
        elif before is not None:
            raise Unavailable(
                "no node is online to listen to the recording, and the voice that is enrolled stays as it is; try again"
            )
        voice = VoiceAddress(principal.tenant_id, request.voice_id or f"v_{secrets.token_hex(10)}")
        await self._store(
            principal=principal, voice=voice, request=request, before=before, analysis=analysis, digest=digest
        )
        enrolled_on: tuple[str, ...] = ()
        if analysis is None:
            self._waiting_voices.beat()
        else:
            enrolled_on = await self._library.spread(voice)
        note = "" if enrolled_on else NOTE_PENDING if analysis is None else NOTE_CATCHING_UP
        return Enrolled(await self._library.get(voice), sound.preflight, analysis, enrolled_on, note, findings)

    async def _repeated(self, tenant_id: str, key: str, digest: bytes) -> VoiceAddress | None:
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    select(idempotency).where(
                        idempotency.c.tenant_id == tenant_id,
                        idempotency.c.idempotency_key == key,
                        idempotency.c.created_at_s > self._clock.wall_s() - IDEMPOTENCY_S,
                    )
                )
            ).one_or_none()
        if row is None:
            return None
        if bytes(row.request_digest) != digest:
            raise Conflict("this idempotency key was used for another request: use a new one")
        return VoiceAddress(tenant_id, row.voice_id)

    async def _store(
        self,
        *,
        principal: Principal,
        voice: VoiceAddress,
        request: Request,
        before: Voice | None,
        analysis: Analysis | None,
        digest: bytes,
    ) -> None:
        generation = 1 if before is None else before.generation + 1
        key, wrapped = await self._key_of(voice) if before is not None else self._keys.make(voice)
        now_s, consent = self._clock.wall_s(), request.consent
        kept: list[Kept] = []
        replaced: list[str] = []
        try:
            for index, clip in enumerate(request.clips):
                ciphertext = key.encrypt(clip.data, "sample", generation, index)
                kept.append(Kept(await self._blobs.put(ciphertext), len(ciphertext), clip))
            async with self._database.write() as connection:
                # Who writes takes the head first, everywhere, so that no two wait for each other.
                await locked_head(connection)
                if before is None:
                    await insert_voice(connection, voice, label=request.label, key=key, wrapped=wrapped, now_s=now_s)
                else:
                    replaced = await replace_voice(
                        connection, voice, label=request.label, key=key, generation=generation, now_s=now_s
                    )
                await insert_evidence(
                    connection,
                    voice,
                    generation=generation,
                    consent=consent,
                    key=key,
                    kept=kept,
                    now_s=now_s,
                )
                if analysis is not None:
                    await place_voiceprint(
                        connection,
                        voice,
                        generation,
                        analysis,
                        key,
                        now_lease_s=await self._database.lease_now_s(connection),
                        now_wall_s=now_s,
                    )
                if request.idempotency_key:
                    await self._remember(connection, voice, request.idempotency_key, digest)
                facts: dict[str, str | int] = {
                    "subject": self._keys.subject(voice.tenant_id, voice.voice_id),
                    "tenant_id": voice.tenant_id,
                    "generation": generation,
                    "key_id": principal.key_id,
                    "consent_digest": self._keys.consent(
                        voice.tenant_id, voice.voice_id, consent.full_name, consent.purpose, consent.text
                    ),
                }
                await audit.append(connection, "voice.enrolled", at_s=self._clock.wall_s(), facts=facts)
        except Exception:
            await self._discard(kept)
            raise
        for blob_key in replaced:
            await self._blobs.delete(blob_key)

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

    async def _key_of(self, voice: VoiceAddress) -> tuple[DataKey, bytes]:
        async with self._database.read() as connection:
            wrapped = (
                await connection.execute(
                    select(data_keys.c.wrapped).where(
                        data_keys.c.tenant_id == voice.tenant_id, data_keys.c.voice_id == voice.voice_id
                    )
                )
            ).scalar_one_or_none()
        if wrapped is None:
            raise NotFound(NO_SUCH_VOICE)
        return self._keys.open(voice, bytes(wrapped)), bytes(wrapped)

    async def _remember(
        self, connection: AsyncConnection, voice: VoiceAddress, idempotency_key: str, digest: bytes
    ) -> None:
        now_s = self._clock.wall_s()
        await connection.execute(delete(idempotency).where(idempotency.c.created_at_s < now_s - IDEMPOTENCY_S))
        known = await connection.execute(
            select(idempotency.c.voice_id).where(
                idempotency.c.tenant_id == voice.tenant_id, idempotency.c.idempotency_key == idempotency_key
            )
        )
        if known.one_or_none() is not None:
            raise Conflict("a request with this idempotency key is being answered: repeat it in a moment")
        await connection.execute(
            insert(idempotency).values(
                tenant_id=voice.tenant_id,
                idempotency_key=idempotency_key,
                request_digest=digest,
                voice_id=voice.voice_id,
                created_at_s=now_s,
            )
        )


def _may_be_enrolled_anew(voice: Voice) -> None:
    if voice.state == "erased":
        raise NotFound(NO_SUCH_VOICE)
    if voice.state == "erasing":
        raise Conflict("the voice is being erased: enrol the person as a new voice")

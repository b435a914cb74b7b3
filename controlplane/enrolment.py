"""Enrolling a voice: from clips and consent to a durable voice that nodes hold.

What always holds: what is answered is committed, and what is refused leaves nothing behind; the voice, its key, its
consent, its recordings, its voiceprint, its place in the fleet log and its audit row are one transaction. A voice that
no node could listen to yet waits as pending; `completion` takes it up as soon as one is there.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit, fleet_log
from controlplane.blobs import Blobs
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import consents, data_keys, idempotency, samples, voiceprints, voices
from controlplane.fleet_log import Change
from controlplane.identity import Principal
from controlplane.intake import Clip, Intake, judge
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from controlplane.metrics import Metrics
from controlplane.nodes import Analysis
from controlplane.pulse import Pulse
from controlplane.voices import NO_SUCH_VOICE, Voice, Voices
from runtime.clock import Clock
from runtime.errors import Conflict, InvalidRequest, NotFound, SpeakerdError, Unavailable
from runtime.media import SignalPreflight

LABEL_CHARS_MAX = 200
CONSENT_CHARS_MAX = 20_000
IDEMPOTENCY_S = 24 * 3600.0
IDEMPOTENCY_KEY_CHARS_MAX = 255
NOTE_PENDING = "no node is online: the voice is safe, waits as pending, and becomes ready by itself when one joins"
NOTE_CATCHING_UP = "no node holds the voice yet: it becomes ready by itself as they catch up"


@dataclass(frozen=True, slots=True)
class Consent:
    """What the person agreed to. All empty: not recorded."""

    full_name: str = ""
    purpose: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. voice_id "": a new voice. idempotency_key "": not repeatable."""

    voice_id: str
    label: str
    consent: Consent
    idempotency_key: str
    clips: Sequence[Clip]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The answer. preflight and analysis are None when a request is repeated, analysis also while no node is online."""

    voice: Voice
    preflight: SignalPreflight | None
    analysis: Analysis | None
    enrolled_on: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """A clip in the blob store."""

    blob_key: str
    blob_bytes: int
    clip: Clip


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
        _validate(request)
        digest = _digest(request)
        if request.idempotency_key:
            repeated = await self._repeated(principal.tenant_id, request.idempotency_key, digest)
            if repeated is not None:
                return Enrolled(await self._library.get(repeated), None, None, (), "this request was answered before")
        before = None
        if request.voice_id:
            before = await self._library.get(VoiceAddress(principal.tenant_id, request.voice_id))
            _may_be_enrolled_anew(before)
        sound = await self._intake.listen(request.clips)
        analysis = await self._intake.analyze(sound)
        if analysis is not None:
            judge(analysis)
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
        return Enrolled(await self._library.get(voice), sound.preflight, analysis, enrolled_on, note)

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
        kept: list[_Kept] = []
        replaced: list[str] = []
        try:
            for index, clip in enumerate(request.clips):
                ciphertext = key.encrypt(clip.data, "sample", generation, index)
                kept.append(_Kept(await self._blobs.put(ciphertext), len(ciphertext), clip))
            async with self._database.write() as connection:
                # Who writes takes the head first, everywhere, so that no two wait for each other.
                await locked_head(connection)
                if before is None:
                    await self._insert_voice(connection, voice, request, key, wrapped)
                else:
                    replaced = await self._replace_voice(connection, voice, request, key, before)
                await self._insert_evidence(
                    connection, voice, generation=generation, request=request, key=key, kept=kept
                )
                if analysis is not None:
                    await self._place(connection, voice, generation, analysis, key)
                if request.idempotency_key:
                    await self._remember(connection, voice, request.idempotency_key, digest)
                facts: dict[str, str | int] = {
                    "subject": self._keys.subject(voice.tenant_id, voice.voice_id),
                    "tenant_id": voice.tenant_id,
                    "generation": generation,
                    "key_id": principal.key_id,
                    "consent_digest": _consent_digest(request.consent),
                }
                await audit.append(connection, "voice.enrolled", at_s=self._clock.wall_s(), facts=facts)
        except BaseException:
            # Without its row a blob is ciphertext whose key is gone already; this only frees the room.
            for blob in kept:
                await self._blobs.delete(blob.blob_key)
            raise
        for blob_key in replaced:
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

    async def _insert_voice(
        self, connection: AsyncConnection, voice: VoiceAddress, request: Request, key: DataKey, wrapped: bytes
    ) -> None:
        now_s = self._clock.wall_s()
        await connection.execute(
            insert(voices).values(
                tenant_id=voice.tenant_id,
                voice_id=voice.voice_id,
                generation=1,
                state="pending",
                state_reason="no node has listened to the recording yet",
                label_ciphertext=key.encrypt(request.label.encode(), "label"),
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

    async def _replace_voice(
        self, connection: AsyncConnection, voice: VoiceAddress, request: Request, key: DataKey, before: Voice
    ) -> list[str]:
        """Make room for the next generation; the blobs that are of no use once this commits."""
        values: dict[str, Any] = {
            "generation": before.generation + 1,
            "state": "pending",
            "revision": 0,
            "updated_at_s": self._clock.wall_s(),
        }
        if request.label:
            values["label_ciphertext"] = key.encrypt(request.label.encode(), "label")
        changed = await connection.execute(
            update(voices)
            .where(
                voices.c.tenant_id == voice.tenant_id,
                voices.c.voice_id == voice.voice_id,
                voices.c.generation == before.generation,
                voices.c.state.in_(("pending", "ready", "failed")),
            )
            .values(**values)
        )
        if changed.rowcount != 1:
            raise Conflict("the voice was changed by someone else in the meantime: read it and try again")
        old = await connection.execute(
            select(samples.c.blob_key).where(
                samples.c.tenant_id == voice.tenant_id, samples.c.voice_id == voice.voice_id
            )
        )
        blob_keys = [row.blob_key for row in old]
        for table in (samples, voiceprints):
            await connection.execute(
                delete(table).where(table.c.tenant_id == voice.tenant_id, table.c.voice_id == voice.voice_id)
            )
        return blob_keys

    async def _insert_evidence(
        self,
        connection: AsyncConnection,
        voice: VoiceAddress,
        *,
        generation: int,
        request: Request,
        key: DataKey,
        kept: Sequence[_Kept],
    ) -> None:
        consent = json.dumps(
            {
                "full_name": request.consent.full_name,
                "purpose": request.consent.purpose,
                "text": request.consent.text,
            }
        )
        await connection.execute(
            insert(consents).values(
                tenant_id=voice.tenant_id,
                voice_id=voice.voice_id,
                generation=generation,
                ciphertext=key.encrypt(consent.encode(), "consent", generation),
                created_at_s=self._clock.wall_s(),
            )
        )
        for index, blob in enumerate(kept):
            await connection.execute(
                insert(samples).values(
                    tenant_id=voice.tenant_id,
                    voice_id=voice.voice_id,
                    generation=generation,
                    clip=index,
                    blob_key=blob.blob_key,
                    blob_bytes=blob.blob_bytes,
                    encoding=blob.clip.encoding,
                    sample_rate_hz=blob.clip.sample_rate_hz,
                    channels=blob.clip.channels,
                )
            )

    async def _place(
        self, connection: AsyncConnection, voice: VoiceAddress, generation: int, analysis: Analysis, key: DataKey
    ) -> None:
        await place_voiceprint(
            connection,
            voice,
            generation,
            analysis,
            key,
            now_lease_s=await self._database.lease_now_s(connection),
            now_wall_s=self._clock.wall_s(),
        )

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


def _validate(request: Request) -> None:
    if not request.label and not request.voice_id:
        raise InvalidRequest("label: 1 to 200 characters, what the person's turns are to be labelled with")
    if len(request.label) > LABEL_CHARS_MAX or any(ord(character) < 32 for character in request.label):
        raise InvalidRequest(f"label: 1 to {LABEL_CHARS_MAX} characters, no control characters")
    if len(request.idempotency_key) > IDEMPOTENCY_KEY_CHARS_MAX:
        raise InvalidRequest(f"idempotency_key: at most {IDEMPOTENCY_KEY_CHARS_MAX} characters")
    consent = request.consent
    if len(consent.full_name) + len(consent.purpose) + len(consent.text) > CONSENT_CHARS_MAX:
        raise InvalidRequest(f"consent: at most {CONSENT_CHARS_MAX} characters in all")


def _may_be_enrolled_anew(voice: Voice) -> None:
    if voice.state == "erased":
        raise NotFound(NO_SUCH_VOICE)
    if voice.state == "erasing":
        raise Conflict("the voice is being erased: enrol the person as a new voice")


def _digest(request: Request) -> bytes:
    digest = hashlib.sha256()
    consent = request.consent
    parts = [request.voice_id, request.label, consent.full_name, consent.purpose, consent.text]
    for part in [*(part.encode() for part in parts), *(clip.data for clip in request.clips)]:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _consent_digest(consent: Consent) -> str:
    return hashlib.sha256(json.dumps([consent.full_name, consent.purpose, consent.text]).encode()).hexdigest()

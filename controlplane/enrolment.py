"""Enrolling a voice: from clips and consent to a durable voice that nodes hold.

What always holds: what is answered is committed, and what is refused leaves nothing behind; the voice, its key, its
consent, its recordings, its voiceprint, its place in the fleet log and its audit row are one transaction. A voice that
no node could listen to yet waits as pending; `completion` takes it up as soon as one is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import select

from controlplane.blobs import Blobs
from controlplane.database.engine import Database
from controlplane.database.schema import data_keys, samples
from controlplane.enrolment_request import Request, request_digest, validate
from controlplane.enrolment_store import EnrolmentStore, Known, New, Step, Storing
from controlplane.intake import Clip, Intake
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from controlplane.metrics import Metrics
from controlplane.nodes import Analysis, CollisionScope
from controlplane.policy import Principal, Right, VoiceFacts, audiences_of, scope_of_new
from controlplane.pulse import Pulse
from controlplane.voice_lookup import NO_SUCH_VOICE
from controlplane.voices import Voice, Voices
from runtime.errors import Conflict, NotFound, SpeakerdError, Unavailable
from runtime.media import Finding, PreflightLimits, SignalPreflight

IDEMPOTENCY_S = 24 * 3600.0
NOTE_PENDING = "no node is online: the voice is safe, waits as pending, and becomes ready by itself when one joins"
NOTE_NO_RECORDING = "enrolled from what was heard: no recording is kept, so another model cannot be given this voice"
REFERENCE = "reference"
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
        metrics: Metrics,
        waiting_voices: Pulse,
        store: EnrolmentStore,
        consent_required: bool = False,
    ) -> None:
        self._database = database
        self._keys = keys
        self._store = store
        self._consent_required = consent_required
        self._blobs = blobs
        self._intake = intake
        self._library = library
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

    async def check(self, clip: Clip, limits: PreflightLimits | None = None) -> SignalPreflight:
        """What a recording looks like as a signal, before there is an enrolment. Raises as `enrol` does of clips."""
        (fetched,) = await self._intake.fetch((clip,))
        return (await self._intake.listen((fetched,), limits)).preflight

    async def promote(self, principal: Principal, request: Request, analysis: Analysis) -> Enrolled:
        """Enrol a person from what a node heard of them already. Raises as `enrol`."""
        validate(request, consent_required=True)
        return await self.keep(principal, request, analysis, place=scope_of_new(principal, request.scope))

    async def keep(
        self,
        principal: Principal,
        request: Request,
        analysis: Analysis,
        *,
        place: VoiceFacts | VoiceAddress,
        voice_id: str = "",
        also: Step | None = None,
    ) -> Enrolled:
        """Enrol what a node has heard and the caller has judged: a new voice, or in place of what one had.

        voice_id: what a new one is to be called; "": anything.

        The clips of the request are kept; without any, the voice stays with the models that have heard it. Whether
        the principal may is the caller's to have asked. Raises as `enrol`.
        """
        validate(request, consent_required=self._consent_required and isinstance(place, VoiceFacts))
        where: New | Known
        if isinstance(place, VoiceAddress):
            before = await self._library.get(place)
            _may_be_enrolled_anew(before)
            key, _ = await self._key_of(place)
            where = Known(place, before, key)
        else:
            where = New(place, voice_id)
        storing = Storing(principal, request, where, analysis, request_digest(request), also)
        voice = await self._store.store(storing)
        enrolled_on = await self._library.spread(voice)
        note = "" if request.clips else NOTE_NO_RECORDING
        return Enrolled(await self._library.get(voice), None, analysis, enrolled_on, note)

    async def _enrol(self, principal: Principal, request: Request) -> Enrolled:
        validate(request, consent_required=self._consent_required and not request.voice_id)
        digest = request_digest(request)
        if request.idempotency_key:
            repeated = await self._store.answered(principal, request.idempotency_key, digest)
            if repeated is not None:
                voice_then = await self._library.seen(principal, repeated)
                return Enrolled(voice_then, None, None, (), "this request was answered before")
        place: New | Known
        earlier: list[Clip] = []
        if request.voice_id:
            voice = await self._library.find(principal, request.voice_id, Right.CHANGE)
            before = await self._library.get(voice)
            _may_be_enrolled_anew(before)
            key, _ = await self._key_of(voice)
            if request.add_clips:
                earlier = await self._kept_clips(voice, key)
            place = Known(voice, before, key)
        else:
            place = New(scope_of_new(principal, request.scope))
        request = replace(request, clips=await self._intake.fetch(request.clips))
        sound = await self._intake.listen([*earlier, *request.clips], request.preflight)
        scope = CollisionScope(principal.tenant_id, audiences_of(principal), except_voice_id=request.voice_id)
        analysis = await self._intake.analyze(sound, scope=scope)
        findings: tuple[Finding, ...] = ()
        if analysis is not None:
            findings = self._intake.judge(analysis)
        elif isinstance(place, Known):
            raise Unavailable(
                "no node is online to listen to the recording, and the voice that is enrolled stays as it is; try again"
            )
        voice = await self._store.store(Storing(principal, request, place, analysis, digest))
        enrolled_on: tuple[str, ...] = ()
        if analysis is None:
            self._waiting_voices.beat()
        else:
            enrolled_on = await self._library.spread(voice)
        note = "" if enrolled_on else NOTE_PENDING if analysis is None else NOTE_CATCHING_UP
        return Enrolled(await self._library.get(voice), sound.preflight, analysis, enrolled_on, note, findings)

    async def _kept_clips(self, voice: VoiceAddress, key: DataKey) -> list[Clip]:
        async with self._database.read() as connection:
            rows = (
                await connection.execute(
                    select(samples)
                    .where(samples.c.tenant_id == voice.tenant_id, samples.c.voice_id == voice.voice_id)
                    .order_by(samples.c.generation, samples.c.clip)
                )
            ).all()
        clips = []
        for row in rows:
            # Another consent may come with the clips that are added; the one before was listened to already.
            if row.purpose != REFERENCE:
                continue
            ciphertext = await self._blobs.get(row.blob_key)
            if ciphertext is None:
                raise SpeakerdError("a kept recording is missing from the store")
            data = key.decrypt(ciphertext, "sample", int(row.generation), row.clip)
            clips.append(Clip(data, row.encoding, row.sample_rate_hz, row.channels))
        return clips

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


def _may_be_enrolled_anew(voice: Voice) -> None:
    if voice.state == "erased":
        raise NotFound(NO_SUCH_VOICE)
    if voice.state == "erasing":
        raise Conflict("the voice is being erased: enrol the person as a new voice")

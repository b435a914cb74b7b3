"""speakerd.v1.People on the wire: translates, makes one call, translates back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from controlplane.arrivals import arriving
from controlplane.enrolment import Enrolled, Enrolment
from controlplane.enrolment_request import Consent, Request
from controlplane.erasure import Erasures
from controlplane.erasure_rows import Asking, Erasure
from controlplane.identity import Identity
from controlplane.intake import CLIP_BYTES_MAX, CLIPS_MAX, CONTAINER, TOTAL_BYTES_MAX, Clip
from controlplane.keys import VoiceAddress
from controlplane.nodes import Analysis
from controlplane.policy import Principal
from controlplane.relay import Relay
from controlplane.scopes import JOBS_WRITE, VOICES_ERASE, VOICES_READ, VOICES_WRITE
from controlplane.voices import Outcome, Voice, Voices, Warmth
from runtime.errors import InvalidRequest, Overloaded, SpeakerdError, TooLarge
from runtime.grpc_server import bearer
from runtime.media import Finding, SignalPreflight
from runtime.pcm import said_rate_and_channels
from speakerd.v1 import node_pb2, people_pb2, people_pb2_grpc

CHUNK_BYTES_MAX = 1 << 20
UPLOADS_MAX = 32
"""Enrolments at once: the clips of each lie in memory, up to TOTAL_BYTES_MAX."""

Context = aio.ServicerContext[Any, Any]


class PeopleServicer(people_pb2_grpc.PeopleServicer):
    """The wire side of voices."""

    def __init__(
        self, identity: Identity, library: Voices, enrolment: Enrolment, erasures: Erasures, relay: Relay
    ) -> None:
        self._identity = identity
        self._library = library
        self._enrolment = enrolment
        self._erasures = erasures
        self._relay = relay
        self._uploads = 0

    async def EnrollVoice(  # noqa: N802
        self, request_iterator: AsyncIterator[people_pb2.EnrollVoiceRequest], context: Context
    ) -> people_pb2.EnrollVoiceResponse:
        """Collect the clips, then enrol."""
        principal = await self._caller(context, VOICES_WRITE)
        if self._uploads >= UPLOADS_MAX:
            raise Overloaded("too many enrolments are under way; try again", retry_after_s=2.0)
        self._uploads += 1
        try:
            request = await _collected(request_iterator)
            return _enrolled(await self._enrolment.enrol(principal, request))
        finally:
            self._uploads -= 1

    async def GetVoice(self, request: people_pb2.GetVoiceRequest, context: Context) -> people_pb2.Voice:  # noqa: N802
        """One voice."""
        principal = await self._caller(context, VOICES_READ)
        return _voice(await self._library.get(VoiceAddress(principal.tenant_id, request.voice_id)))

    async def ListVoices(  # noqa: N802
        self, request: people_pb2.ListVoicesRequest, context: Context
    ) -> people_pb2.ListVoicesResponse:
        """A page of voices."""
        principal = await self._caller(context, VOICES_READ)
        found, token = await self._library.list(
            principal.tenant_id, page_size=request.page_size, page_token=request.page_token, label=request.label
        )
        return people_pb2.ListVoicesResponse(voices=[_voice(voice) for voice in found], next_page_token=token)

    async def GetWarm(self, request: people_pb2.GetWarmRequest, context: Context) -> people_pb2.WarmStatus:  # noqa: N802
        """Where a voice is warm."""
        principal = await self._caller(context, VOICES_READ)
        return _warmth(await self._library.warmth(VoiceAddress(principal.tenant_id, request.voice_id)))

    async def WarmVoice(self, request: people_pb2.WarmVoiceRequest, context: Context) -> people_pb2.WarmStatus:  # noqa: N802
        """Send a voice to nodes again."""
        principal = await self._caller(context, VOICES_WRITE)
        voice = VoiceAddress(principal.tenant_id, request.voice_id)
        return _warmth(await self._library.warm(voice, tuple(request.node_ids)))

    async def EraseVoice(self, request: people_pb2.EraseVoiceRequest, context: Context) -> people_pb2.Erasure:  # noqa: N802
        """Erase a voice."""
        principal = await self._caller(context, VOICES_ERASE)
        erasure = await self._erasures.erase(
            principal, request.voice_id, asking=_asking(request), wait_s_max=request.wait_ms / 1000
        )
        return erasure_on_the_wire(erasure)

    async def EraseAllVoices(  # noqa: N802
        self, request: people_pb2.EraseAllVoicesRequest, context: Context
    ) -> AsyncIterator[people_pb2.Erasure]:
        """Erase every voice of the caller's tenant."""
        principal = await self._caller(context, VOICES_ERASE)
        async for erasure in self._erasures.erase_all(principal, request.tenant_id, _asking(request)):
            yield erasure_on_the_wire(erasure)

    async def GetErasure(self, request: people_pb2.GetErasureRequest, context: Context) -> people_pb2.Erasure:  # noqa: N802
        """How an erasure stands."""
        principal = await self._caller(context, VOICES_READ)
        return erasure_on_the_wire(await self._erasures.get(principal, request.audit_id))

    async def ReportMatches(  # noqa: N802
        self, request_iterator: AsyncIterator[people_pb2.ReportMatchesRequest], context: Context
    ) -> people_pb2.ReportMatchesResponse:
        """The speakers of a recording, and why each was named or not."""
        principal = await self._caller(context, JOBS_WRITE)

        async def requests() -> AsyncIterator[node_pb2.DiarizeFileRequest]:
            async for message in request_iterator:
                if message.HasField("open"):
                    yield node_pb2.DiarizeFileRequest(open=message.open)
                else:
                    yield node_pb2.DiarizeFileRequest(audio=message.audio)

        async for answer in self._relay.diarize_file(principal.tenant_id, requests()):
            if answer.HasField("result"):
                return people_pb2.ReportMatchesResponse(speakers=answer.result.speakers)
        raise SpeakerdError("the node ended without a result")

    async def _caller(self, context: Context, scope: str) -> Principal:
        return await self._identity.principal(bearer(context), scope)


@dataclass(slots=True)
class _Gathering:
    """A clip whose chunks are coming in."""

    encoding: int
    sample_rate_hz: int
    channels: int
    data: bytearray = field(default_factory=bytearray)
    is_consent: bool = False


async def _collected(requests: AsyncIterator[people_pb2.EnrollVoiceRequest]) -> Request:
    """The whole request, within its bounds. Raises InvalidRequest and TooLarge."""
    spec: people_pb2.VoiceSpec | None = None
    clips: list[_Gathering] = []
    total_bytes = 0
    async for message in arriving(requests):
        if message.HasField("spec"):
            if spec is not None:
                raise InvalidRequest("spec comes once, first")
            spec = message.spec
            continue
        if spec is None:
            raise InvalidRequest("the first message is `spec`; chunks follow")
        chunk = message.chunk
        data = chunk.data
        if chunk.clip > len(clips) or chunk.clip + 1 < len(clips):
            raise InvalidRequest("clips are numbered 0, 1, … and come one after the other")
        if chunk.clip == len(clips):
            if len(clips) == CLIPS_MAX + 1:  # the consent besides
                raise TooLarge(f"at most {CLIPS_MAX} clips")
            said = chunk.format if chunk.HasField("format") else None
            encoding = CONTAINER if said is None else said.encoding or 1
            rate_hz, channels = said_rate_and_channels(said) if said else (0, 0)
            clips.append(_Gathering(encoding, rate_hz, channels, is_consent=chunk.is_consent))
        if len(data) > CHUNK_BYTES_MAX:
            raise TooLarge("a chunk is at most 1 MiB: send more of them")
        clips[-1].data += data
        total_bytes += len(data)
        if len(clips[-1].data) > CLIP_BYTES_MAX or total_bytes > TOTAL_BYTES_MAX:
            raise TooLarge(f"at most {CLIP_BYTES_MAX >> 20} MiB a clip and {TOTAL_BYTES_MAX >> 20} MiB in all")
    if spec is None:
        raise InvalidRequest("the first message is `spec`; the stream ended without it")
    return Request(
        voice_id=spec.voice_id,
        label=spec.label,
        consent=Consent(spec.consent.full_name, spec.consent.purpose, spec.consent.text),
        idempotency_key=spec.idempotency_key,
        clips=tuple(
            Clip(bytes(clip.data), clip.encoding, clip.sample_rate_hz, clip.channels, clip.is_consent) for clip in clips
        ),
    )


def _enrolled(answer: Enrolled) -> people_pb2.EnrollVoiceResponse:
    return people_pb2.EnrollVoiceResponse(
        voice=_voice(answer.voice),
        preflight=None if answer.preflight is None else _preflight(answer.preflight),
        analysis=None if answer.analysis is None else _analysis(answer.analysis),
        enrolled_on=answer.enrolled_on,
        note=answer.note,
        speaker_checks_deferred=answer.preflight is not None and answer.analysis is None,
        findings=[_finding(finding, refuses=False) for finding in answer.findings],
        consent_probability=answer.analysis.consent.probability if answer.analysis and answer.analysis.consent else 0.0,
    )


def _preflight(measured: SignalPreflight) -> people_pb2.Preflight:
    return people_pb2.Preflight(
        duration_ms=measured.duration_ms,
        sample_rate_hz=measured.sample_rate_hz,
        channels=measured.channels,
        peak_dbfs=measured.peak_dbfs,
        voice_activity_ratio=measured.voice_activity_ratio,
        snr_db=measured.snr_db,
        warnings=[finding.text for finding in measured.warnings],
        clipped_ratio=measured.clipped_ratio,
        findings=[
            *(_finding(finding, refuses=True) for finding in measured.fail_reasons),
            *(_finding(finding, refuses=False) for finding in measured.warnings),
        ],
    )


def _finding(finding: Finding, *, refuses: bool) -> people_pb2.Finding:
    return people_pb2.Finding(
        code=finding.code,
        measured=finding.measured,
        threshold=finding.threshold,
        text=finding.text,
        refuses=refuses,
    )


def _analysis(heard: Analysis) -> node_pb2.VoiceAnalysis:
    return node_pb2.VoiceAnalysis(
        duration_ms=heard.duration_ms,
        net_speech_ms=heard.net_speech_ms,
        num_speakers=heard.num_speakers,
        cohesion=heard.cohesion,
        warnings=heard.warnings,
    )


def _voice(voice: Voice) -> people_pb2.Voice:
    return people_pb2.Voice(
        voice_id=voice.voice_id,
        label=voice.label or "",
        generation=voice.generation,
        state=people_pb2.Voice.State.Value(f"STATE_{voice.state.upper()}"),
        state_reason=voice.state_reason,
        created_at=timestamp(voice.created_at_s),
        updated_at=timestamp(voice.updated_at_s),
        net_speech_ms=voice.net_speech_ms,
        model=voice.model,
    )


def _asking(request: people_pb2.EraseVoiceRequest | people_pb2.EraseAllVoicesRequest) -> Asking:
    default = Asking()
    return Asking(
        trigger=request.trigger or default.trigger,
        source=request.source or default.source,
        trigger_user=request.trigger_user,
        reason=request.reason,
    )


def erasure_on_the_wire(erasure: Erasure) -> people_pb2.Erasure:
    """An erasure as it is answered."""
    return people_pb2.Erasure(
        audit_id=erasure.audit_id,
        voice_id=erasure.voice.voice_id,
        state=people_pb2.Erasure.State.Value(f"STATE_{erasure.state.upper()}"),
        revision=erasure.revision,
        requested_at=timestamp(erasure.requested_at_s),
        erased_at=None if erasure.erased_at_s is None else timestamp(erasure.erased_at_s),
        nodes=[_outcome(outcome) for outcome in erasure.nodes],
        residual_node_ids=erasure.residual_node_ids,
        blob_bytes_deleted=erasure.blob_bytes_deleted,
        blobs_pending=erasure.blobs_pending,
        trigger=erasure.asking.trigger,
        trigger_user=erasure.asking.trigger_user,
        source=erasure.asking.source,
        replicas_evicted=erasure.replicas_evicted,
    )


def _warmth(warmth: Warmth) -> people_pb2.WarmStatus:
    return people_pb2.WarmStatus(
        warm_node_ids=warmth.warm,
        candidate_node_ids=warmth.candidates,
        stale_node_ids=warmth.stale,
        outcomes=[_outcome(outcome) for outcome in warmth.outcomes],
    )


def _outcome(outcome: Outcome) -> people_pb2.NodeOutcome:
    return people_pb2.NodeOutcome(node_id=outcome.node_id, ok=outcome.ok, error=outcome.error)


def timestamp(seconds: float) -> Timestamp:
    """Unix seconds as a Timestamp, to the microsecond."""
    microseconds = round(seconds * 1_000_000)
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)

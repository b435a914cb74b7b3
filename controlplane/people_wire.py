"""People and their voices between the core and the wire: requests in, answers out."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.agreements import Consent, Licence, LicenceKind
from controlplane.enrolment import Enrolled
from controlplane.enrolment_request import Details, Request
from controlplane.erasure_rows import Asking, Erasure
from controlplane.intake import Clip
from controlplane.nodes import Analysis
from controlplane.policy import VoiceScope
from controlplane.usage import UsageRecord
from controlplane.voices import Filter, Outcome, Voice, Warmth
from runtime.errors import InvalidRequest
from runtime.media import Finding, SignalPreflight
from speakerd.v1 import node_pb2, people_pb2

_SCOPES: dict[int, VoiceScope] = {
    people_pb2.VOICE_SCOPE_USER: VoiceScope.USER,
    people_pb2.VOICE_SCOPE_TENANT: VoiceScope.TENANT,
    people_pb2.VOICE_SCOPE_GLOBAL: VoiceScope.GLOBAL,
}
_LICENCES: dict[int, LicenceKind] = {
    people_pb2.Licence.KIND_PERPETUAL: LicenceKind.PERPETUAL,
    people_pb2.Licence.KIND_TIME_BOUND: LicenceKind.TIME_BOUND,
    people_pb2.Licence.KIND_USAGE_BOUND: LicenceKind.USAGE_BOUND,
}


def request_of(spec: people_pb2.VoiceSpec, clips: Sequence[Clip]) -> Request:
    """An enrolment."""
    return Request(
        voice_id=spec.voice_id,
        label=spec.label,
        consent=consent_of(spec.consent),
        idempotency_key=spec.idempotency_key,
        clips=tuple(clips),
        scope=scope_of(spec.scope) or VoiceScope.TENANT,
        subject=spec.subject,
        licence=_licence_of(spec.licence) if spec.HasField("licence") else None,
        details=details_of(spec.details) if spec.HasField("details") else None,
        add_clips=spec.add_clips,
    )


def consent_of(said: people_pb2.Consent) -> Consent:
    """A consent."""
    given_at_s = seconds_of(said.given_at) if said.HasField("given_at") else None
    return Consent(said.full_name, said.purpose, said.text, said.version, given_at_s)


def details_of(said: people_pb2.VoiceDetails) -> Details:
    """What a library shows."""
    return Details(
        language=said.language,
        gender=said.gender,
        description=said.description,
        languages=tuple(said.languages),
        style_tags=tuple(said.style_tags),
        age=said.age,
    )


def scope_of(said: int) -> VoiceScope | None:
    """For whom a voice is; None: not said. Raises InvalidRequest."""
    if said and said not in _SCOPES:
        raise InvalidRequest("scope: USER, TENANT or GLOBAL")
    return _SCOPES.get(said)


def filter_of(request: people_pb2.ListVoicesRequest) -> Filter:
    """Which voices are asked for."""
    state = ""
    if request.state:
        try:
            state = people_pb2.Voice.State.Name(request.state).removeprefix("STATE_").lower()
        except ValueError:
            raise InvalidRequest("state: no such state") from None
    return Filter(request.label, scope_of(request.scope), request.language, request.gender, state)


def asking_of(request: people_pb2.EraseVoiceRequest | people_pb2.EraseAllVoicesRequest) -> Asking:
    """Why a voice is to be erased."""
    default = Asking()
    return Asking(
        trigger=request.trigger or default.trigger,
        source=request.source or default.source,
        trigger_user=request.trigger_user,
        reason=request.reason,
    )


def enrolled_on_the_wire(answer: Enrolled) -> people_pb2.EnrollVoiceResponse:
    """An enrolment as it is answered."""
    return people_pb2.EnrollVoiceResponse(
        voice=voice_on_the_wire(answer.voice),
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


def voice_on_the_wire(voice: Voice) -> people_pb2.Voice:
    """A voice as it is answered."""
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
        scope=people_pb2.VoiceScope.Value(f"VOICE_SCOPE_{voice.scope.name}"),
        owner_user_id=voice.owner_user_id or "",
        details=people_pb2.VoiceDetails(
            language=voice.details.language,
            gender=voice.details.gender,
            description=voice.details.description,
            languages=voice.details.languages,
            style_tags=voice.details.style_tags,
            age=voice.details.age,
        )
        if voice.details != Details()
        else None,
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


def warmth_on_the_wire(warmth: Warmth) -> people_pb2.WarmStatus:
    """Where a voice is warm."""
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


def seconds_of(said: Timestamp) -> float:
    """A Timestamp as Unix seconds. Raises InvalidRequest for one that is out of its range."""
    if not -62_135_596_800 <= said.seconds <= 253_402_300_799 or not 0 <= said.nanos < 1_000_000_000:
        raise InvalidRequest("a timestamp is out of range: years 1 to 9999")
    return said.seconds + said.nanos / 1_000_000_000


def usage_on_the_wire(record: UsageRecord) -> people_pb2.UsageRecord:
    """A usage record as it is answered."""
    return people_pb2.UsageRecord(
        record_id=record.record_id,
        subject=record.subject,
        unit=record.unit,
        quantity=record.quantity,
        at=timestamp(record.at_s),
    )


def _licence_of(said: people_pb2.Licence) -> Licence:
    kind = _LICENCES.get(said.kind)
    if kind is None:
        raise InvalidRequest("licence.kind: PERPETUAL, TIME_BOUND or USAGE_BOUND")
    return Licence(
        licensor=said.licensor,
        terms=said.terms,
        kind=kind,
        expires_at_s=seconds_of(said.expires_at) if said.HasField("expires_at") else None,
        unit=said.unit,
        usage_max=said.usage_max or None,
    )

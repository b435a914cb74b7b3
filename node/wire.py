"""Between the contract's messages and the node's own dataclasses. No decisions, no I/O but a stream's read and write.

What always holds: a message that is out of its documented range raises InvalidRequest naming the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from models.analysis import FloatArray
from models.enrolment import CombinedVoice
from models.file_turns import FrameConfidence
from models.identification import score_of
from models.naming import UNKNOWN_VOICE_SAMPLES, Reason
from models.seams import VoiceSample
from node import events
from node.audiences import AUDIENCES_MAX, require_heard_audience
from node.enrolment import HeardVoice
from node.load import Load
from node.naming import Match, Name
from node.standing import NodeState
from runtime.errors import InvalidRequest
from runtime.pcm import said_rate_and_channels
from runtime.units import ms_from_samples, samples_from_ms
from speakerd.v1 import common_pb2, node_pb2

LATENCY_DEFAULT_MS, LATENCY_MIN_MS, LATENCY_MAX_MS = 2000, 500, 5000
NUM_SPEAKERS_MAX = 20
LABEL_CHARACTERS_MAX = 200
VOICE_IDS_MAX = 10_000
SENT_VOICEPRINTS_MAX = 50
RESULT_TURNS_MAX = 10_000
"""Turns of a result in one message, which stays below the 4 MiB that gRPC's clients take unless they ask for more."""
CONFIDENCE_FRAMES_MAX = 262_144
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

_OUTCOMES = {
    Reason.MATCHED: common_pb2.MatchReport.OUTCOME_MATCHED,
    Reason.BELOW_THRESHOLD: common_pb2.MatchReport.OUTCOME_BELOW_THRESHOLD,
    Reason.THIN_MARGIN: common_pb2.MatchReport.OUTCOME_THIN_MARGIN,
    Reason.TOO_LITTLE_SPEECH: common_pb2.MatchReport.OUTCOME_TOO_LITTLE_SPEECH,
    Reason.TAKEN: common_pb2.MatchReport.OUTCOME_TAKEN,
    Reason.NO_VOICES: common_pb2.MatchReport.OUTCOME_NO_CANDIDATES,
}

_STATES = {
    NodeState.JOINING: node_pb2.NODE_STATE_JOINING,
    NodeState.SERVING: node_pb2.NODE_STATE_SERVING,
    NodeState.DRAINING: node_pb2.NODE_STATE_DRAINING,
    NodeState.FENCED: node_pb2.NODE_STATE_FENCED,
}


class GrpcPeer:
    """A client of Diarize, through read() and write() of its call."""

    def __init__(self, context: aio.ServicerContext[node_pb2.DiarizeRequest, node_pb2.DiarizeResponse]) -> None:
        self._context = context

    async def receive(self) -> events.StreamRequest | bytes | events.Finish | None:
        """The next message; None when the client half-closed."""
        message: Any = await self._context.read()
        if message is aio.EOF:
            return None
        match message.WhichOneof("message"):
            case "audio":
                audio: bytes = message.audio
                return audio
            case "open":
                return stream_request(message.open)
            case "finish":
                return events.Finish()
            case _:
                raise InvalidRequest("an empty message: send `open`, then `audio`, then `finish`")

    async def send(self, event: events.Event) -> None:
        """Write one event."""
        await self._context.write(response(event))


class GrpcFilePeer:
    """A client of DiarizeFile."""

    def __init__(
        self, context: aio.ServicerContext[node_pb2.DiarizeFileRequest, node_pb2.DiarizeFileResponse], model: str
    ) -> None:
        """model: the node's; voiceprints of another one are compared with nothing."""
        self._context = context
        self._model = model

    async def receive(self) -> events.FileRequest | bytes | None:
        """The next message; None when the client half-closed."""
        message: Any = await self._context.read()
        if message is aio.EOF:
            return None
        match message.WhichOneof("message"):
            case "audio":
                audio: bytes = message.audio
                return audio
            case "open":
                return file_request(message.open, self._model)
            case _:
                raise InvalidRequest("an empty message: send `open`, then `audio`")

    async def send(self, event: events.FileProgress | events.FileResult) -> None:
        """Write one event."""
        for response in file_responses(event):
            await self._context.write(response)


def identifier(value: str, field: str, *, default: str = "") -> str:
    """An id as the contract allows it; `default` where it is absent."""
    if not value and default:
        return default
    if not _ID.fullmatch(value):
        raise InvalidRequest(f"{field}: write 1 to 64 characters out of A-Z a-z 0-9 _ . : -")
    return value


def label(value: str, *, default: str) -> str:
    """What turns are labelled with."""
    if len(value) > LABEL_CHARACTERS_MAX or any(ord(character) < 32 for character in value):
        raise InvalidRequest(f"label: write 1 to {LABEL_CHARACTERS_MAX} characters, none of them control characters")
    return value or default


def stream_request(message: node_pb2.StreamOpen) -> events.StreamRequest:
    """A StreamOpen, checked and with its defaults filled in."""
    latency_ms = message.latency_ms or LATENCY_DEFAULT_MS
    if not LATENCY_MIN_MS <= latency_ms <= LATENCY_MAX_MS:
        raise InvalidRequest(f"latency_ms is {latency_ms}: give {LATENCY_MIN_MS} to {LATENCY_MAX_MS}")
    num_speakers_max = message.num_speakers_max or NUM_SPEAKERS_MAX
    if num_speakers_max > NUM_SPEAKERS_MAX:
        raise InvalidRequest(f"num_speakers_max is {num_speakers_max}: give 1 to {NUM_SPEAKERS_MAX}")
    return events.StreamRequest(
        stream_id=identifier(message.stream_id, "stream_id") if message.stream_id else "",
        tenant_id=identifier(message.tenant_id, "tenant_id") if message.tenant_id else "",
        ticket=message.ticket,
        sound=sound_format(message.format),
        latency_samples=samples_from_ms(latency_ms),
        exclusive=message.exclusive,
        voice_ids=voice_ids(message.voice_ids),
        num_speakers_max=num_speakers_max,
        checkpoint=message.checkpoint,
        provisional=message.provisional,
    )


def audiences(said: Iterable[str], tenant_id: str) -> tuple[str, ...]:
    """Whose voices a tenant's request is matched against. Raises InvalidRequest for those of another."""
    found = tuple(said)
    if len(found) > AUDIENCES_MAX:
        raise InvalidRequest(f"audiences: at most {AUDIENCES_MAX}")
    for audience in found:
        require_heard_audience(tenant_id, audience)
    return found


def sound_format(message: common_pb2.AudioFormat) -> events.SoundFormat:
    """How bytes hold sound."""
    return events.SoundFormat(message.encoding, *said_rate_and_channels(message), message.parties_apart)


def file_request(message: node_pb2.FileOpen, model: str) -> events.FileRequest:
    """A FileOpen, checked. model: the node's."""
    if message.format.parties_apart:
        raise InvalidRequest("parties_apart is for streams: send each channel as a recording of its own")
    return events.FileRequest(
        tenant_id=identifier(message.tenant_id, "tenant_id") if message.tenant_id else "",
        sound=sound_format(message.format),
        duration_samples=samples_from_ms(message.duration_ms),
        num_speakers=message.num_speakers or None,
        min_speakers=message.min_speakers or None,
        max_speakers=message.max_speakers or None,
        voice_ids=voice_ids(message.voice_ids),
        fast=message.mode == node_pb2.FileOpen.MODE_FAST,
        audiences=audiences(message.audiences, message.tenant_id or "default"),
        embeddings=message.embeddings,
        frame_confidence=message.frame_confidence,
        identify=_identify(message.identify, model) if message.HasField("identify") else None,
        job_id=identifier(message.job_id, "job_id") if message.job_id else "",
    )


def _identify(message: node_pb2.FileIdentify, model: str) -> events.Identify:
    if len(message.voiceprints) > SENT_VOICEPRINTS_MAX:
        raise InvalidRequest(f"identify.voiceprints: at most {SENT_VOICEPRINTS_MAX}")
    if not 0.0 <= message.threshold <= 100.0:
        raise InvalidRequest("identify.threshold: 0 to 100")
    return events.Identify(
        sent=tuple(
            events.SentVoice(
                _unit(embedding(sent, model)) if sent.model == model else None,
                samples_from_ms(sent.net_speech_ms) or UNKNOWN_VOICE_SAMPLES,
            )
            for sent in message.voiceprints
        ),
        enrolled=message.enrolled,
        exclusive=message.exclusive,
        threshold=message.threshold,
    )


def file_responses(event: events.FileProgress | events.FileResult) -> Iterator[node_pb2.DiarizeFileResponse]:
    """An event of a file as the client gets it: one message, or several of a long result."""
    if isinstance(event, events.FileProgress):
        progress = node_pb2.FileProgress(
            processed_ms=ms_from_samples(event.processed_samples),
            duration_ms=ms_from_samples(event.duration_samples),
        )
        yield node_pb2.DiarizeFileResponse(progress=progress)
        return
    if event.confidence is not None:
        yield from _confidences(event.confidence)
    for at in range(0, max(len(event.turns), len(event.exclusive_turns), 1), RESULT_TURNS_MAX):
        piece = slice(at, at + RESULT_TURNS_MAX)
        result = node_pb2.FileResult(
            turns=[turn(found) for found in event.turns[piece]],
            exclusive_turns=[turn(found) for found in event.exclusive_turns[piece]],
        )
        if at == 0:
            result.speakers.extend(speaker(summary) for summary in event.speakers)
            result.duration_ms = ms_from_samples(event.duration_samples)
            result.warnings.extend(event.warnings)
            result.identities.extend(_identity(one) for one in event.identities)
        yield node_pb2.DiarizeFileResponse(result=result)


def _unit(vector: FloatArray) -> FloatArray:
    # In double precision: the squares of large floats are beyond what a float holds.
    norm = float(np.linalg.norm(vector.astype(np.float64))) if np.isfinite(vector).all() else 0.0
    if norm <= 0.0:
        raise InvalidRequest("identify.voiceprints: an embedding has to be finite, and not zero")
    unit: FloatArray = (vector / norm).astype(np.float32)
    return unit


def _identity(found: events.SpeakerIdentity) -> node_pb2.SpeakerIdentity:
    return node_pb2.SpeakerIdentity(
        speaker=speaker_id(found.speaker),
        match=None if found.match is None else _candidate(found.match),
        candidates=[_candidate(one) for one in found.candidates],
    )


def _candidate(one: events.Candidate) -> node_pb2.Candidate:
    said = node_pb2.Candidate(probability=one.probability, score=score_of(one.probability))
    if one.sent is not None:
        said.sent = one.sent + 1
    if one.name is not None:
        said.voice_id, said.label = one.name.voice_id, one.name.label
    return said


def _confidences(confidence: FrameConfidence) -> Iterator[node_pb2.DiarizeFileResponse]:
    for at in range(0, len(confidence.values), CONFIDENCE_FRAMES_MAX):
        piece = node_pb2.FileConfidence(
            start_ms=ms_from_samples(at * confidence.step_samples),
            frame_ms=ms_from_samples(confidence.step_samples),
            values=confidence.values[at : at + CONFIDENCE_FRAMES_MAX].tobytes(),
        )
        yield node_pb2.DiarizeFileResponse(confidence=piece)


def voice_ids(values: Any) -> frozenset[str]:
    """The voices that may be named; empty for all."""
    if len(values) > VOICE_IDS_MAX:
        raise InvalidRequest(f"voice_ids: name at most {VOICE_IDS_MAX} voices, or none for all of the tenant's")
    return frozenset(identifier(value, "voice_ids") for value in values)


def response(event: events.Event) -> node_pb2.DiarizeResponse:
    """An event as the client gets it."""
    match event:
        case events.Opened():
            return node_pb2.DiarizeResponse(
                opened=node_pb2.StreamOpened(
                    stream_id=event.stream_id,
                    node_id=event.node_id,
                    latency_ms=ms_from_samples(event.latency_samples),
                    step_ms=ms_from_samples(event.step_samples),
                    num_voices=event.num_voices,
                    resume_ms=ms_from_samples(event.resume_samples),
                )
            )
        case events.Turns():
            return node_pb2.DiarizeResponse(
                turns=node_pb2.Turns(
                    turns=[turn(piece) for piece in event.pieces], final_ms=ms_from_samples(event.final_samples)
                )
            )
        case events.Relabel():
            return node_pb2.DiarizeResponse(
                relabel=node_pb2.Relabel(
                    speaker=speaker_id(event.speaker),
                    since_ms=ms_from_samples(event.since_samples),
                    match=match_report(event.match),
                    **named(event.name, speaker_id(event.shown_as)),
                )
            )
        case events.Progress():
            return node_pb2.DiarizeResponse(
                progress=node_pb2.Progress(
                    received_ms=ms_from_samples(event.received_samples),
                    final_ms=ms_from_samples(event.final_samples),
                    lag_ms=ms_from_samples(event.lag_samples),
                    skipped_windows=event.skipped_windows,
                )
            )
        case events.Checkpoint():
            return node_pb2.DiarizeResponse(
                checkpoint=node_pb2.Checkpoint(data=event.data, position_ms=ms_from_samples(event.position_samples))
            )
        case events.Draining():
            deadline = Timestamp()
            deadline.FromMilliseconds(round(event.deadline_s * 1000))
            return node_pb2.DiarizeResponse(draining=node_pb2.Draining(deadline=deadline))
        case events.Degraded():
            reason = "this node has no lease of its fleet: turns go on under anonymous labels" if event.active else ""
            return node_pb2.DiarizeResponse(degraded=node_pb2.Degraded(active=event.active, reason=reason))
        case events.Closed():
            return node_pb2.DiarizeResponse(
                closed=node_pb2.StreamClosed(
                    duration_ms=ms_from_samples(event.duration_samples),
                    speakers=[speaker(summary) for summary in event.speakers],
                    num_final_turns=event.num_final_turns,
                    skipped_windows=event.skipped_windows,
                    speakers_left_out=event.num_left_out,
                )
            )


def turn(piece: events.TurnPiece) -> common_pb2.Turn:
    """A piece of a turn."""
    return common_pb2.Turn(
        start_ms=ms_from_samples(piece.start_samples),
        end_ms=ms_from_samples(piece.end_samples),
        speaker=speaker_id(piece.speaker),
        state=common_pb2.Turn.STATE_FINAL if piece.final else common_pb2.Turn.STATE_PROVISIONAL,
        sequence=piece.sequence,
        confidence=piece.confidence,
        **named(piece.name, speaker_id(piece.speaker)),
    )


def speaker(summary: events.SpeakerSummary) -> common_pb2.Speaker:
    """A speaker, summed up."""
    return common_pb2.Speaker(
        speaker=speaker_id(summary.speaker),
        speech_ms=ms_from_samples(summary.speech_samples),
        net_speech_ms=ms_from_samples(summary.net_speech_samples),
        match=match_report(summary.match),
        confidence=summary.confidence,
        voiceprint=_speaker_print(summary),
        token=summary.token,
        **named(summary.name, speaker_id(summary.speaker)),
    )


def _speaker_print(summary: events.SpeakerSummary) -> common_pb2.Voiceprint | None:
    if summary.voiceprint is None:
        return None
    return common_pb2.Voiceprint(
        model=summary.voiceprint.model,
        embedding=summary.voiceprint.embedding,
        net_speech_ms=ms_from_samples(summary.net_speech_samples),
    )


def speaker_id(number: int) -> str:
    """ "spk_0", "spk_1", ..."""
    return f"spk_{number}"


def named(name: Name | None, anonymous: str) -> dict[str, Any]:
    """The fields that say who somebody is."""
    if name is None:
        return {"label": anonymous}
    return {"label": name.label, "voice_id": name.voice_id, "probability": name.probability}


def match_report(match: Match | None) -> common_pb2.MatchReport | None:
    """Why somebody was named, or was not."""
    if match is None:
        return None
    return common_pb2.MatchReport(
        outcome=_OUTCOMES[match.reason],
        best_voice_id=match.best.voice_id if match.best else "",
        best_probability=match.probability,
        best_cosine=match.cosine,
        runner_up_voice_id=match.runner_up.voice_id if match.runner_up else "",
        runner_up_cosine=match.runner_up_cosine,
        net_speech_ms=ms_from_samples(match.net_speech_samples),
        margin=match.margin,
        best_net_speech_ms=ms_from_samples(match.best.net_speech_samples) if match.best else 0,
        runner_up_probability=match.runner_up_probability,
    )


def embedding(voiceprint: common_pb2.Voiceprint, model: str) -> FloatArray:
    """A voiceprint's vector (D,), if it is of this model."""
    if voiceprint.model != model:
        raise InvalidRequest(f"the voiceprint is of model {voiceprint.model[:80]!r}, this node's is {model!r}")
    if len(voiceprint.embedding) % 4:
        raise InvalidRequest("voiceprint.embedding: send little-endian float32, four bytes each")
    return np.frombuffer(voiceprint.embedding, "<f4").astype(np.float32)


def voiceprint(heard: VoiceSample, model: str) -> common_pb2.Voiceprint:
    """A voiceprint as it travels."""
    return common_pb2.Voiceprint(
        model=model,
        embedding=heard.embedding.astype("<f4").tobytes(),
        net_speech_ms=ms_from_samples(heard.net_speech_samples),
    )


def voice_analysis(heard: HeardVoice) -> node_pb2.VoiceAnalysis:
    """What was heard in a clip."""
    return node_pb2.VoiceAnalysis(
        duration_ms=ms_from_samples(heard.duration_samples),
        net_speech_ms=ms_from_samples(heard.sample.net_speech_samples),
        num_speakers=heard.sample.num_speakers,
        cohesion=heard.sample.cohesion,
        warnings=heard.warnings,
    )


def analysis(
    model: str,
    whole: HeardVoice,
    clips: Sequence[HeardVoice],
    together: CombinedVoice,
    *,
    consent: tuple[HeardVoice, float] | None,
    collision: tuple[str, float] | None,
    against: Sequence[float] = (),
) -> node_pb2.AnalyzeResponse:
    """What was heard in an enrolment's clips. consent, collision: with their probabilities; against: those alone."""
    return node_pb2.AnalyzeResponse(
        analysis=voice_analysis(whole),
        voiceprint=_voiceprint_of(whole, model),
        clips=[
            node_pb2.ClipAnalysis(
                analysis=voice_analysis(clip),
                voiceprint=_voiceprint_of(clip, model),
                probability=probability,
                left_out=left_out,
            )
            for clip, probability, left_out in zip(clips, together.probabilities, together.left_out, strict=True)
        ],
        consent=None
        if consent is None
        else node_pb2.ConsentAnalysis(analysis=voice_analysis(consent[0]), probability=consent[1]),
        collision=None if collision is None else node_pb2.Collision(voice_id=collision[0], probability=collision[1]),
        against_probabilities=against,
    )


def _voiceprint_of(heard: HeardVoice, model: str) -> common_pb2.Voiceprint | None:
    return voiceprint(heard.sample, model) if heard.sample.num_speakers else None


def node_load(load: Load) -> node_pb2.NodeLoad:
    """A load as it travels."""
    return node_pb2.NodeLoad(
        streams=load.streams,
        streams_max=load.streams_max,
        files=load.files,
        files_max=load.files_max,
        voices=load.voices,
        queued_windows=load.queued_windows,
        lag_p99_ms=round(load.lag_p99_s * 1000),
    )


def node_state(state: NodeState) -> node_pb2.NodeState.ValueType:
    """What a node says of itself, as it travels."""
    return _STATES[state]

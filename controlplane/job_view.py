"""A job as its caller sees it, for every dialect. Instants are Unix seconds, positions milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.job_spec import JobKind, JobState, Webhook
from speakerd.v1 import common_pb2


@dataclass(frozen=True, slots=True)
class JobTurn:
    """A stretch of speech, half-open. speaker: from 0 in order of appearance.

    name: who it is, as a caller may be told now; None: nobody who is known. voice_id: of the enrolled voice, where it
    is one. confidence: the share of the turn in which this speaker is expected to be speaking, in [0, 1].
    """

    start_ms: int
    end_ms: int
    speaker: int
    name: str | None = None
    voice_id: str | None = None
    confidence: float | None = None

    def __repr__(self) -> str:
        return f"JobTurn({self.start_ms}..{self.end_ms}, speaker {self.speaker})"


@dataclass(frozen=True, slots=True)
class JobSpeaker:
    """A speaker of the recording.

    match: the label that it was identified as (IDENTIFY jobs), None: nobody. voice_id: the enrolled voice, where the
    match is one. scores: round(100 p) of every candidate by its label. report: why an ordinary match was made, or not.
    """

    speaker: int
    speech_ms: int
    net_speech_ms: int
    match: str | None = None
    voice_id: str | None = None
    scores: Mapping[str, int] | None = None
    report: common_pb2.MatchReport | None = None
    confidence: float | None = None

    def __repr__(self) -> str:
        return f"JobSpeaker({self.speaker})"


@dataclass(frozen=True, slots=True)
class FrameConfidences:
    """How sure the result is of each frame: a byte each, 255 times the probability that all said of it is right."""

    frame_ms: int
    values: bytes


@dataclass(frozen=True, slots=True)
class JobOutput:
    """What a job that succeeded gave. voiceprint: base64, of a VOICEPRINT job. confidence: if asked for and known."""

    duration_ms: int = 0
    turns: tuple[JobTurn, ...] = ()
    exclusive_turns: tuple[JobTurn, ...] = ()
    speakers: tuple[JobSpeaker, ...] = ()
    confidence: FrameConfidences | None = None
    voiceprint: str | None = None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"JobOutput({len(self.turns)} turns, {len(self.speakers)} speakers)"


@dataclass(frozen=True, slots=True)
class JobAsked:
    """What of its request a job's answer depends on. model: as the caller called it."""

    exclusive: bool = False
    confidence: bool = False
    turn_confidence: bool = False
    model: str = ""
    webhook: Webhook | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job now.

    processed_ms, duration_ms: how far it is, 0 while unknown. error: of a failed one, what to mend. warning: to be told
    with the answer to its creation, and with its result. output: of one that succeeded, until it expires; lists have
    none. asked: None once its request has been deleted, with the output. expires_at_s: when that is; None before it
    ends.
    """

    job_id: str
    tenant_id: str
    kind: JobKind
    state: JobState
    created_at_s: float
    updated_at_s: float
    processed_ms: int = 0
    duration_ms: int = 0
    error: str | None = None
    warning: str | None = None
    output: JobOutput | None = None
    asked: JobAsked | None = None
    expires_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first, without outputs. next_cursor: None on the last."""

    jobs: tuple[Job, ...]
    next_cursor: str | None

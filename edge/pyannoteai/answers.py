"""The shapes of what is answered, for OpenAPI. `edge.pyannoteai.outputs` makes them; a test holds the two together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Score = Annotated[int, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0)]
Status = Literal["pending", "created", "running", "succeeded", "failed", "canceled"]
Outcome = Literal[
    "unspecified", "matched", "below_threshold", "thin_margin", "too_little_speech", "taken", "no_candidates"
]


class _Answered(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class Created(_Answered):
    """A job that was taken."""

    job_id: str
    status: Status
    warning: str | None = Field(None, json_schema_extra={"description": "Left out where there is none."})


class Segment(_Answered):
    """A stretch of one speaker's speech."""

    speaker: str
    start: Seconds
    end: Seconds
    confidence: dict[str, Score] | None = Field(None, description="With turnLevelConfidence: of the turn's speaker.")


class Identified(_Answered):
    """A stretch of speech, and whose it is. speaker: the match, else the diarization's label."""

    speaker: str
    start: Seconds
    end: Seconds
    diarization_speaker: str
    match: str | None


class MatchedSpeaker(_Answered):
    """A speaker of the recording, and how well each label fits."""

    speaker: str
    match: str | None
    confidence: dict[str, Score]


class Curve(_Answered):
    """How sure the diarization is, sample by sample. resolution: seconds a sample."""

    score: list[Score]
    resolution: float


class Output(_Answered):
    """What a job gave. Which fields there are depends on the job; `error` alone, when it failed."""

    diarization: list[Segment] | None = None
    exclusive_diarization: list[Segment] | None = None
    identification: list[Identified] | None = None
    voiceprints: list[MatchedSpeaker] | None = None
    voiceprint: str | None = None
    confidence: Curve | None = None
    warning: str | None = None
    error: str | None = None


class JobAnswer(_Answered):
    """A job. `output` is left out where there is none."""

    job_id: str
    status: Status
    created_at: str
    updated_at: str
    progress: Score
    output: Output | None = None


class JobItem(_Answered):
    """A job in a list."""

    id: str
    status: Status
    created_at: str


class JobList(_Answered):
    """A page of jobs, newest first."""

    items: list[JobItem]
    next_cursor: str | None


class Report(_Answered):
    """Why a speaker was matched with an enrolled person, or not."""

    outcome: Outcome
    best_voice_id: str
    best_probability: float
    best_cosine: float
    best_net_speech: Seconds
    runner_up_voice_id: str
    runner_up_probability: float
    runner_up_cosine: float
    margin: float


class ReportedSpeaker(_Answered):
    """A speaker of the recording. speech, net_speech: seconds in all, and of that clean and alone."""

    speaker: str
    match: str | None
    speech: Seconds
    net_speech: Seconds
    confidence: dict[str, Score]
    voice_id: str | None = None
    report: Report | None = None


class MatchReportAnswer(_Answered):
    """The match report of a job."""

    job_id: str
    speakers: list[ReportedSpeaker]

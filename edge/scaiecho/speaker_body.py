"""A speaker as ScaiEcho tells it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from controlplane.enrolment import Enrolled
from controlplane.voices import Voice, Warmth
from edge.scaigrid.preflight import Preflight, preflight_of
from edge.scaigrid.times import instant

Status = Literal["pending", "ready", "failed", "evicted"]
STATUSES: dict[str, Status] = {
    "pending": "pending",
    "ready": "ready",
    "failed": "failed",
    # Consent was withdrawn: no node holds the voice.
    "frozen": "evicted",
    "erasing": "evicted",
    "erased": "evicted",
}
STATES: dict[Status, tuple[str, ...]] = {
    "pending": ("pending",),
    "ready": ("ready",),
    "failed": ("failed",),
    "evicted": ("frozen",),
}
"""The states of the core that a list shows; who was erased is in none."""


class Speaker(BaseModel):
    """An enrolled speaker. id and speaker_id are the same."""

    id: str
    speaker_id: str
    display_name: str
    language_primary: str
    description: str
    scope: str = Field(description="Ours: user, tenant or global; for whose streams the speaker is named.")
    enrollment_status: Status
    enrollment_status_reason: str = Field(description="What it waits for, or why it failed; empty when ready.")
    created_at: str
    updated_at: str


class SpeakerAnswer(BaseModel):
    """One speaker."""

    data: Speaker


class PageMeta(BaseModel):
    """Where a list goes on."""

    next_cursor: str | None = Field(description="Send it as `cursor`; null: that was all.")


class SpeakerList(BaseModel):
    """Speakers that the caller may see."""

    data: list[Speaker]
    meta: PageMeta


class Enrolment(Speaker):
    """A new speaker: its own fields, the same again as `speaker`, and what came of the enrolment."""

    speaker: Speaker
    preflight: Preflight | None = Field(description="null when the answer to an earlier request is repeated.")
    enrolled_on: list[str] = Field(description="Nodes that hold the speaker.")
    note: str | None = Field(default=None, description="What it waits for; left out when there is nothing to say.")


class EnrolmentAnswer(BaseModel):
    """A new speaker."""

    data: Enrolment


class Warm(BaseModel):
    """Where a speaker is held, by node id."""

    warm_node_ids: list[str] = Field(description="In the registry, and serving.")
    candidate_node_ids: list[str] = Field(description="Nodes that run the engine now.")
    stale_node_ids: list[str] = Field(description="In the registry, and no candidate.")


class WarmAnswer(BaseModel):
    """Where a speaker is held."""

    data: Warm


class Warmed(Warm):
    """Where a speaker is held, after it was sent again."""

    enrolled_on: list[str] = Field(description="Those asked for that took it.")
    error_summary: dict[str, str] = Field(description="By node, why one did not.")


class WarmedAnswer(BaseModel):
    """Where a speaker is held, after it was sent again."""

    data: Warmed


def speaker_of(voice: Voice) -> Speaker:
    """A voice as a speaker."""
    return Speaker(
        id=voice.voice_id,
        speaker_id=voice.voice_id,
        display_name=voice.label or "",
        language_primary=voice.details.language,
        description=voice.details.description,
        scope=voice.scope.value,
        enrollment_status=STATUSES[voice.state],
        enrollment_status_reason=voice.state_reason,
        created_at=instant(voice.created_at_s),
        updated_at=instant(voice.updated_at_s),
    )


def enrolment_of(enrolled: Enrolled) -> Enrolment:
    """An enrolment as it is answered."""
    speaker = speaker_of(enrolled.voice)
    said = {**speaker.model_dump(), "speaker": speaker, "enrolled_on": list(enrolled.enrolled_on)}
    said["preflight"] = None
    if enrolled.preflight is not None:
        said["preflight"] = preflight_of(enrolled.preflight, enrolled.findings)
    if enrolled.note:
        said["note"] = enrolled.note
    return Enrolment(**said)


def warm_of(warmth: Warmth) -> Warm:
    """Where a voice is warm."""
    return Warm(
        warm_node_ids=list(warmth.warm),
        candidate_node_ids=list(warmth.candidates),
        stale_node_ids=list(warmth.stale),
    )


def warmed_of(warmth: Warmth) -> Warmed:
    """Where it is warm, and what became of sending it."""
    return Warmed(
        **warm_of(warmth).model_dump(),
        enrolled_on=[outcome.node_id for outcome in warmth.outcomes if outcome.ok],
        error_summary={outcome.node_id: outcome.error for outcome in warmth.outcomes if not outcome.ok},
    )

"""What this dialect's answers look like, made of the core's views.

Instants are ISO 8601 in UTC with milliseconds, durations ISO 8601 too ("PT3.500S").
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from controlplane.space_ground import (
    AudioView,
    Collaborator,
    IdentityView,
    MemberView,
    RecordView,
    Reference,
    SpaceView,
    VerificationView,
    VoiceprintView,
)

Item = TypeVar("Item")
View = TypeVar("View")
BODY = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Named(BaseModel):
    """What is referred to."""

    model_config = BODY

    id: str
    handle: str
    alias: str | None


class OfIdentity(BaseModel):
    """Whose something is."""

    model_config = BODY

    handle: str
    alias: str | None


class ModelBody(BaseModel):
    """A model of the index."""

    model_config = BODY

    handle: str
    version: str


class SpaceBody(BaseModel):
    """A space."""

    model_config = BODY

    id: str
    handle: str
    alias: str | None
    owner: str
    is_organisation: bool
    created_at: str


class CollaboratorBody(BaseModel):
    """A user who was let in."""

    model_config = BODY

    user: str
    may_write: bool
    created_at: str


class IdentityBody(BaseModel):
    """An identity. voice: its voice in the other dialects, once a voiceprint was computed."""

    model_config = BODY

    id: str
    handle: str
    alias: str | None
    voice: str | None
    voiceprints: list[Named]
    created_at: str


class AudioBody(BaseModel):
    """An audio. state: avaitingFile, available, notAvailable; voiceDuration: null while no node has listened."""

    model_config = BODY

    id: str
    handle: str
    alias: str | None
    state: str
    duration: str | None
    voice_duration: str | None
    sample_rate: int | None
    identity: OfIdentity | None
    voiceprints: list[Named]
    verifications: int
    created_at: str
    uploaded_at: str | None


class MemberBody(BaseModel):
    """An audio of a voiceprint. leftOut: as it was computed, it was found to be of somebody else."""

    model_config = BODY

    id: str
    handle: str
    alias: str | None
    duration: str
    voice_duration: str
    left_out: bool


class VoiceprintBody(BaseModel):
    """A voiceprint. state: notComputable, computable, computed."""

    model_config = BODY

    id: str
    handle: str
    alias: str | None
    state: str
    model: ModelBody
    identity: OfIdentity
    total_duration: str
    min_audios: int
    audios: list[MemberBody]
    verifications: int
    created_at: str
    computed_at: str | None


class VerificationBody(BaseModel):
    """A verification. score: probability that the audio is of that person, more than 0 and less than 1."""

    model_config = BODY

    id: str
    state: str
    model: ModelBody
    score: float
    audio: Named
    identity: OfIdentity
    voiceprint: Named
    created_at: str


class RecordBody(BaseModel):
    """What was used. It outlives what it records: these ids may lead nowhere."""

    model_config = BODY

    id: str
    type: str
    space: str
    identity: str
    voiceprint: str
    model: ModelBody
    audios: int
    duration: str
    voice_duration: str
    created_at: str


class ErasureBody(BaseModel):
    """An erasure that was asked for. state: erasing, or erased once no node holds the voice."""

    model_config = BODY

    audit_id: str
    state: str


class SpaceErasureBody(BaseModel):
    """The erasures of all that were in a space."""

    model_config = BODY

    erasures: list[ErasureBody]


def at(unix_s: float) -> str:
    """An instant as it leaves."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lasting(milliseconds: int) -> str:
    """A duration as it leaves."""
    return f"PT{milliseconds / 1000:.3f}S"


def named(reference: Reference) -> Named:
    """A reference."""
    return Named(id=reference.thing_id, handle=reference.handle, alias=reference.alias)


def space_body(view: SpaceView) -> SpaceBody:
    """A space."""
    return SpaceBody(
        id=view.space_id,
        handle=view.handle,
        alias=view.alias,
        owner=view.owner,
        is_organisation=view.is_organisation,
        created_at=at(view.created_at_s),
    )


def collaborator_body(view: Collaborator) -> CollaboratorBody:
    """A collaborator."""
    return CollaboratorBody(user=view.user_id, may_write=view.may_write, created_at=at(view.created_at_s))


def identity_body(view: IdentityView) -> IdentityBody:
    """An identity."""
    return IdentityBody(
        id=view.identity_id,
        handle=view.handle,
        alias=view.alias,
        voice=view.voice_id,
        voiceprints=[named(one) for one in view.voiceprints],
        created_at=at(view.created_at_s),
    )


def audio_body(view: AudioView) -> AudioBody:
    """An audio."""
    return AudioBody(
        id=view.audio_id,
        handle=view.handle,
        alias=view.alias,
        state=view.state,
        duration=None if view.duration_ms is None else lasting(view.duration_ms),
        voice_duration=None if view.voice_ms is None else lasting(view.voice_ms),
        sample_rate=view.sample_rate_hz,
        identity=None if view.identity is None else _whose(view.identity),
        voiceprints=[named(one) for one in view.voiceprints],
        verifications=view.num_verifications,
        created_at=at(view.created_at_s),
        uploaded_at=None if view.uploaded_at_s is None else at(view.uploaded_at_s),
    )


def voiceprint_body(view: VoiceprintView) -> VoiceprintBody:
    """A voiceprint."""
    return VoiceprintBody(
        id=view.voiceprint_id,
        handle=view.handle,
        alias=view.alias,
        state=view.state,
        model=ModelBody(handle=view.model_handle, version=view.model_version),
        identity=_whose(view.identity),
        total_duration=lasting(view.total_ms),
        min_audios=view.min_audios,
        audios=[_member(member) for member in view.members],
        verifications=view.num_verifications,
        created_at=at(view.created_at_s),
        computed_at=None if view.computed_at_s is None else at(view.computed_at_s),
    )


def verification_body(view: VerificationView) -> VerificationBody:
    """A verification."""
    return VerificationBody(
        id=view.verification_id,
        state="computed",
        model=ModelBody(handle=view.model_handle, version=view.model_version),
        score=round(view.score, 6),
        audio=named(view.audio),
        identity=_whose(view.identity),
        voiceprint=named(view.voiceprint),
        created_at=at(view.created_at_s),
    )


def record_body(view: RecordView) -> RecordBody:
    """A record."""
    handle, _, version = view.model.partition("/")
    return RecordBody(
        id=view.record_id,
        type=view.kind,
        space=view.space_id,
        identity=view.identity_id,
        voiceprint=view.voiceprint_id,
        model=ModelBody(handle=handle, version=version),
        audios=view.num_audios,
        duration=lasting(view.duration_ms),
        voice_duration=lasting(view.voice_ms),
        created_at=at(view.at_s),
    )


def _member(view: MemberView) -> MemberBody:
    return MemberBody(
        **named(view.audio).model_dump(),
        duration=lasting(view.duration_ms),
        voice_duration=lasting(view.voice_ms),
        left_out=view.left_out,
    )


def _whose(reference: Reference) -> OfIdentity:
    return OfIdentity(handle=reference.handle, alias=reference.alias)


Handle = Annotated[str | None, Field(description="1 to 50 lower-case letters, digits and hyphens; absent: the id.")]
Alias = Annotated[str | None, Field(description="At most 100 characters.")]

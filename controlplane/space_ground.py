"""What the use cases of spaces stand on, and the views that they give out."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.blobs import Blobs
from controlplane.database.engine import Database
from controlplane.enrolment import Enrolment
from controlplane.erasure import Erasures
from controlplane.erasure_rows import Asking, Erasure
from controlplane.intake import Intake
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.space_tombstones import ensure_voice
from controlplane.voices import Voices
from runtime.clock import Clock
from runtime.media import PreflightLimits


@dataclass(frozen=True, slots=True)
class SpaceGround:
    """What all of them need."""

    database: Database
    keys: KeyRing
    blobs: Blobs
    intake: Intake
    enrolment: Enrolment
    erasures: Erasures
    library: Voices
    clock: Clock
    preflight_limits: PreflightLimits

    async def erase(self, voice: VoiceAddress, asking: Asking, *, wait_s_max: float = 0.0) -> Erasure:
        """Erase the voice that an identity is, or would be. Raises NotFound, Unavailable."""

        async def before(connection: AsyncConnection) -> None:
            await ensure_voice(connection, self.keys, voice, self.clock.wall_s())

        return await self.erasures.erase_voice(voice, asking, before=before, wait_s_max=wait_s_max)


@dataclass(frozen=True, slots=True)
class Reference:
    """What something is called where something else refers to it."""

    thing_id: str
    handle: str
    alias: str | None


@dataclass(frozen=True, slots=True)
class SpaceView:
    """A space. owner: as paths name it. Instants are Unix times, in all views."""

    space_id: str
    handle: str
    alias: str | None
    owner: str
    is_organisation: bool
    created_at_s: float


@dataclass(frozen=True, slots=True)
class Collaborator:
    """A user who was let into another's space."""

    user_id: str
    may_write: bool
    created_at_s: float


@dataclass(frozen=True, slots=True)
class IdentityView:
    """An identity. voice_id: its voice in the core, None while no voiceprint was computed."""

    identity_id: str
    handle: str
    alias: str | None
    voice_id: str | None
    voiceprints: tuple[Reference, ...]
    created_at_s: float


@dataclass(frozen=True, slots=True)
class AudioView:
    """An audio. Durations are milliseconds; voice_ms: clean speech, None while no node has listened."""

    audio_id: str
    handle: str
    alias: str | None
    state: str
    duration_ms: int | None
    voice_ms: int | None
    sample_rate_hz: int | None
    identity: Reference | None
    voiceprints: tuple[Reference, ...]
    num_verifications: int
    created_at_s: float
    uploaded_at_s: float | None


@dataclass(frozen=True, slots=True)
class MemberView:
    """An audio of a voiceprint, and what it gave."""

    audio: Reference
    duration_ms: int
    voice_ms: int
    left_out: bool


@dataclass(frozen=True, slots=True)
class VoiceprintView:
    """A voiceprint. state: notComputable, computable, computed. total_ms: length of its audios."""

    voiceprint_id: str
    handle: str
    alias: str | None
    state: str
    model_handle: str
    model_version: str
    identity: Reference
    min_audios: int
    total_ms: int
    voice_ms: int
    members: tuple[MemberView, ...]
    num_verifications: int
    created_at_s: float
    computed_at_s: float | None


@dataclass(frozen=True, slots=True)
class VerificationView:
    """A comparison of an audio with a voiceprint. score: probability that it is of that person, within (0, 1).

    sealed_by: with whose key what is told here of the person is sealed: the identity's, or that of a voice which was
    enrolled elsewhere.
    """

    verification_id: str
    score: float
    model_handle: str
    model_version: str
    audio: Reference
    identity: Reference
    voiceprint: Reference
    created_at_s: float
    sealed_by: str


@dataclass(frozen=True, slots=True)
class RecordView:
    """What was used: it outlives what it records, and holds ids alone."""

    record_id: str
    kind: str
    space_id: str
    identity_id: str
    voiceprint_id: str
    model: str
    num_audios: int
    duration_ms: int
    voice_ms: int
    at_s: float

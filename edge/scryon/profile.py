"""/api/users/me/voice-profile: make or replace it, look at it, delete it, and look for its user in a recording."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from controlplane.match_outcome import Outcome
from controlplane.scopes import JOBS_WRITE, VOICES_ERASE, VOICES_READ, VOICES_WRITE
from controlplane.voice_profile import Profile
from edge.failures import FieldError, InvalidFields
from edge.terms import Caller, TheEdge, tells_of, terms
from edge.uploads import UploadedFile, multipart
from runtime.errors import UnsupportedMedia

PATH = "/api/users/me/voice-profile"
FORM_BYTES = 64 << 10
"""What a form takes beside its file."""
UPLOAD_BYTES_MAX = (32 << 20) + FORM_BYTES
RECORDING_BYTES_MAX = 256 << 20
_KINDS = ("wav", "x-wav", "wave", "vnd.wave", "mpeg", "mp3", "x-mp3", "mpeg3", "mp4", "m4a", "x-m4a", "mp4a-latm")
MIME = frozenset(f"audio/{kind}" for kind in _KINDS)
# A client that does not know says one of these; the file itself tells.
UNSAID = frozenset({"", "application/octet-stream", "video/mp4"})


class ProfileStatus(BaseModel):
    """The user's profile."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["ACTIVE"] = "ACTIVE"
    provider: Literal["pyannote"] = "pyannote"
    consent_version: str = Field(serialization_alias="consentVersion")
    created_at: str = Field(serialization_alias="createdAt")


class MadeProfile(ProfileStatus):
    """The profile that was just made."""

    sample_duration_seconds: float = Field(serialization_alias="sampleDurationSeconds")


class MissingProfile(BaseModel):
    """There is none."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["MISSING"] = "MISSING"


class MatchResult(BaseModel):
    """Whether the user speaks in a recording. speaker: who of its speakers; voiceMatchScore: the highest there was."""

    model_config = ConfigDict(extra="forbid")

    outcome: Outcome
    speaker: str | None
    voice_match_score: float | None = Field(serialization_alias="voiceMatchScore")


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post(PATH, status_code=201, openapi_extra=_form("file", "consentAccepted"))
    @terms(VOICES_WRITE, rate="scryon.upload", body_bytes_max=UPLOAD_BYTES_MAX, idempotent=True)
    async def make(request: Request, caller: Caller, edge: TheEdge) -> MadeProfile:
        """Make the user's profile of a sample, or replace it."""
        bytes_max = round(edge.settings.scryon_voice_sample_max_size_mb * (1 << 20)) + FORM_BYTES
        async with multipart(request, edge.uploads, files_max=1, bytes_max=bytes_max) as form:
            file = form.files.get("file")
            if file is None:
                raise InvalidFields(FieldError("file", "the sample of the user's voice is required"))
            if form.fields.get("consentAccepted", "true").strip().lower() != "true":
                raise InvalidFields(FieldError("consentAccepted", "without the user's consent there is no profile"))
            _require_kind(file)
            profile = await edge.core.profiles.replace(caller, file.data)
        tells_of(request, caller.tenant_id, profile.voice_id)
        seconds = round(profile.sample_s or 0.0, 3)
        return MadeProfile(**_shown(profile), sample_duration_seconds=int(seconds) if seconds.is_integer() else seconds)

    @app.get(f"{PATH}/status")
    @terms(VOICES_READ)
    async def status(caller: Caller, edge: TheEdge) -> ProfileStatus | MissingProfile:
        """The user's profile, or that there is none."""
        profile = await edge.core.profiles.status(caller)
        return MissingProfile() if profile is None else ProfileStatus(**_shown(profile))

    @app.delete(PATH, status_code=204)
    @terms(VOICES_ERASE)
    async def delete(caller: Caller, edge: TheEdge) -> Response:
        """Delete the user's profile; there being none is as good."""
        await edge.core.profiles.delete(caller)
        return Response(status_code=204)

    @app.post(f"{PATH}/match", openapi_extra=_form("file"))
    @terms(JOBS_WRITE, rate="scryon.upload", body_bytes_max=RECORDING_BYTES_MAX)
    async def match(
        request: Request,
        caller: Caller,
        edge: TheEdge,
        confidence: Annotated[Literal["high", "medium"], Query()] = "high",
    ) -> MatchResult:
        """Whether the user is among the speakers of a recording."""
        async with multipart(request, edge.uploads, files_max=1, bytes_max=RECORDING_BYTES_MAX) as form:
            file = form.files.get("file")
            if file is None:
                raise InvalidFields(FieldError("file", "the recording is required"))
            found = await edge.core.profiles.match(caller, _once(file.data), strict=confidence == "high")
        score = None if found.score is None else round(found.score, 4)
        return MatchResult(outcome=found.outcome, speaker=found.speaker, voice_match_score=score)


def _require_kind(file: UploadedFile) -> None:
    kind = file.content_type.partition(";")[0].strip().lower()
    if kind not in MIME and kind not in UNSAID:
        raise UnsupportedMedia("send the sample as audio/wav, audio/mpeg or audio/mp4")


def _shown(profile: Profile) -> dict[str, Any]:
    created = datetime.fromtimestamp(profile.created_at_s, UTC).replace(microsecond=0)
    return {
        "consent_version": profile.consent_version,
        "created_at": created.isoformat().replace("+00:00", "Z"),
    }


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _form(file: str, *fields: str) -> dict[str, Any]:
    properties: dict[str, Any] = {file: {"type": "string", "format": "binary"}}
    properties |= {name: {"type": "boolean"} for name in fields}
    schema = {"type": "object", "required": [file], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}

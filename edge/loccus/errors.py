"""Errors as Loccus sends them: {"error": {"id", "code", "errors": [{"message"}]}}. Total over causes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from controlplane.space_models import AudioUnfit
from controlplane.speaker_checks import SpeakerChecksFailed
from edge.failures import Failure
from runtime.errors import HTTP_STATUS, Cause

_CODES: Mapping[Cause, str] = {
    Cause.INVALID: "badRequest",
    # The audio cannot be decoded, or is not what the model asks for.
    Cause.BAD_AUDIO: "audioUnfit",
    Cause.TOO_LARGE: "tooLarge",
    Cause.UNSUPPORTED_MEDIA: "unsupportedMedia",
    Cause.UNAUTHENTICATED: "unauthorized",
    Cause.DENIED: "forbidden",
    Cause.NOT_FOUND: "notFound",
    Cause.CONFLICT: "conflict",
    Cause.STALE: "conflict",
    Cause.OVERLOADED: "tooManyRequests",
    Cause.UNAVAILABLE: "unavailable",
    Cause.TIMEOUT: "timeout",
    Cause.UNIMPLEMENTED: "notImplemented",
    Cause.INTERNAL: "internal",
}

ERRORS: Mapping[int, str] = {
    400: "The request is malformed, or the audio is unfit.",
    401: "The API key is missing, unknown, expired or revoked.",
    403: "The API key lacks the scope, or what is asked is another's to do.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    409: "It collides with what there is: a handle that is taken, a voiceprint that is frozen.",
    413: "The body or the audio is too large.",
    415: "The audio's format is not read.",
    429: "Too many requests, or a quota is used up.",
    500: "Our fault.",
    503: "A part that is needed, such as a node, is away.",
    504: "It took too long.",
}


class Problem(BaseModel):
    """One thing that is wrong."""

    model_config = ConfigDict(extra="forbid")

    message: str


class ErrorBody(BaseModel):
    """What went wrong. id: of the request, as in the answer's X-Request-Id."""

    model_config = ConfigDict(extra="forbid")

    id: str
    code: str
    errors: list[Problem] = Field(min_length=1)


class ErrorEnvelope(BaseModel):
    """Every error of this dialect."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorBody


def render(failure: Failure) -> tuple[int, dict[str, Any]]:
    """A failure as it leaves."""
    messages = [f"{one.field}: {one.message}" if one.field else one.message for one in failure.fields]
    if isinstance(failure.error, AudioUnfit):
        messages = list(failure.error.reasons)
    elif isinstance(failure.error, SpeakerChecksFailed):
        messages = [finding.text for finding in failure.error.findings]
    body = {
        "id": failure.request_id,
        "code": _CODES[failure.cause],
        "errors": [{"message": message} for message in messages or [failure.message]],
    }
    return failure.status or HTTP_STATUS[failure.cause], {"error": body}

"""Errors as Scryon sends them: {"error": {"code", "message", "details"}}. Total over causes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from controlplane.speaker_checks import SpeakerChecksFailed
from controlplane.voice_profile import NoProfile, ProviderFailed, SampleTooLong, SampleTooShort
from edge.failures import Failure
from runtime.errors import HTTP_STATUS, Cause, NotFound, SpeakerdError
from runtime.media import PreflightFailed


class FeatureOff(NotFound):
    """Voice profiles are not offered here."""

    def __init__(self) -> None:
        super().__init__("voice profiles are not offered here")


_OWN: Mapping[type[SpeakerdError], tuple[int, str]] = {
    FeatureOff: (404, "feature_not_available"),
    NoProfile: (404, "voice_profile_missing"),
    SampleTooShort: (400, "voice_sample_too_short"),
    SampleTooLong: (400, "voice_sample_too_long"),
    ProviderFailed: (502, "voice_provider_error"),
}
_CODES: Mapping[Cause, str] = {
    Cause.INVALID: "invalid_request",
    # Sound that is no sound, or that nobody can be told by.
    Cause.BAD_AUDIO: "voice_sample_unusable",
    Cause.TOO_LARGE: "voice_sample_too_large",
    Cause.UNSUPPORTED_MEDIA: "unsupported_media_type",
    Cause.UNAUTHENTICATED: "unauthenticated",
    Cause.DENIED: "forbidden",
    Cause.NOT_FOUND: "not_found",
    Cause.CONFLICT: "conflict",
    Cause.STALE: "conflict",
    Cause.OVERLOADED: "rate_limited",
    Cause.UNAVAILABLE: "unavailable",
    Cause.TIMEOUT: "timeout",
    Cause.UNIMPLEMENTED: "not_implemented",
    Cause.INTERNAL: "internal_error",
}

ERRORS: Mapping[int, str] = {
    400: "The request is malformed, or the sample too short, too long or unusable.",
    401: "The API key is missing, unknown, expired or revoked.",
    403: "The API key lacks the scope, or stands for no user.",
    404: "The feature is off, or there is no such thing.",
    405: "The path does not take this method.",
    409: "The request collides with another one.",
    413: "The sample is too large.",
    415: "The sample is neither wav, mp3 nor m4a.",
    429: "Too many requests.",
    500: "Our fault.",
    502: "No node could analyse the sample.",
    503: "A part that is needed is away.",
    504: "It took too long.",
}


class Details(BaseModel):
    """What there is to know beside the message: wrong fields, or what was measured."""

    model_config = ConfigDict(extra="allow")


class ErrorBody(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid")

    code: str
    message: str
    details: Details


class ErrorEnvelope(BaseModel):
    """Every error of this dialect."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorBody


def render(failure: Failure) -> tuple[int, dict[str, Any]]:
    """A failure as it leaves."""
    status, code = _OWN.get(type(failure.error), (HTTP_STATUS[failure.cause], _CODES[failure.cause]))  # type: ignore[arg-type]
    details: dict[str, Any] = {"requestId": failure.request_id}
    if failure.fields:
        details["fields"] = [{"field": one.field, "message": one.message} for one in failure.fields]
    details["reasons"] = [finding.code for finding in _findings(failure.error)]
    if not details["reasons"]:
        del details["reasons"]
    return failure.status or status, {"error": {"code": code, "message": failure.message, "details": details}}


def _findings(error: SpeakerdError | None) -> tuple[Any, ...]:
    if isinstance(error, PreflightFailed):
        return error.preflight.fail_reasons
    return error.findings if isinstance(error, SpeakerChecksFailed) else ()

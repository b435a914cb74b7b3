"""ScaiGrid's envelope: {"data": …} for what succeeds, {"status": "error", "error": {…}, "meta": {…}} for what does not.

In: a failure, and how a dialect's fields are called. Out: status and body, total over causes. A field of the core's
that is wrong is named as the caller knows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from controlplane.intake import OF_CONSENT
from controlplane.speaker_checks import SpeakerChecksFailed
from edge.failures import CredentialsMissing, Failure, FieldError
from edge.scaigrid.preflight import Preflight, preflight_of
from runtime.errors import Cause
from runtime.media import PreflightFailed

REFERENCE = "reference"
CONSENT = "consent"
ABOUT_AUDIO = (Cause.BAD_AUDIO, Cause.UNSUPPORTED_MEDIA, Cause.TOO_LARGE)
BACKEND_UNAVAILABLE = "BACKEND_UNAVAILABLE"

CODES: Mapping[Cause, tuple[int, str]] = {
    Cause.INVALID: (422, "VALIDATION_ERROR"),
    Cause.BAD_AUDIO: (422, "VALIDATION_ERROR"),
    Cause.UNSUPPORTED_MEDIA: (422, "VALIDATION_ERROR"),
    Cause.TOO_LARGE: (413, "PAYLOAD_TOO_LARGE"),
    Cause.UNAUTHENTICATED: (401, "AUTH_TOKEN_INVALID"),
    Cause.DENIED: (403, "AUTHZ_PERMISSION_DENIED"),
    Cause.NOT_FOUND: (404, "NOT_FOUND"),
    Cause.CONFLICT: (409, "CONFLICT"),
    Cause.STALE: (409, "CONFLICT"),
    Cause.OVERLOADED: (429, "RATE_LIMITED"),
    Cause.UNAVAILABLE: (502, BACKEND_UNAVAILABLE),
    Cause.TIMEOUT: (504, "BACKEND_TIMEOUT"),
    Cause.UNIMPLEMENTED: (501, "NOT_IMPLEMENTED"),
    Cause.INTERNAL: (500, "INTERNAL_ERROR"),
}

ERRORS: Mapping[int, str] = {
    401: "AUTH_TOKEN_MISSING or AUTH_TOKEN_INVALID.",
    403: "AUTHZ_PERMISSION_DENIED: the API key lacks the permission, or the row may only be seen.",
    404: "NOT_FOUND: there is no such thing for this caller.",
    405: "METHOD_NOT_ALLOWED.",
    409: "CONFLICT.",
    413: "PAYLOAD_TOO_LARGE.",
    422: "VALIDATION_ERROR: `details` names the fields.",
    429: "RATE_LIMITED: too many requests, or a quota is used up.",
    500: "INTERNAL_ERROR: our fault.",
    502: "…_BACKEND_UNAVAILABLE: a part that is needed is away.",
    504: "BACKEND_TIMEOUT.",
}


class Detail(BaseModel):
    """A field that is wrong."""

    field: str
    message: str


class Problem(BaseModel):
    """What went wrong. code: what software tells it by."""

    model_config = ConfigDict(extra="forbid")

    code: str
    message: str
    retry_after: int | None = Field(default=None, description="Seconds.")
    details: list[Detail] | None = None
    preflight: Preflight | None = Field(default=None, description="What was measured of a recording that was refused.")


class Meta(BaseModel):
    """What every error carries."""

    request_id: str


class ErrorBody(BaseModel):
    """Every error of these dialects."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["error"]
    error: Problem
    meta: Meta


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders failures for one dialect.

    module: what its own codes begin with. fields: the core's names of fields, and the caller's.
    own: errors with a status and a code of this dialect's; the first that fits counts.
    """

    module: str
    fields: Mapping[str, str]
    own: tuple[tuple[type[Exception], int, str], ...] = ()

    def __call__(self, failure: Failure) -> tuple[int, dict[str, Any]]:
        """A failure as it leaves."""
        status, code = self._code(failure)
        problem: dict[str, Any] = {"code": code, "message": failure.message}
        if failure.retry_after_s is not None:
            problem["retry_after"] = max(1, math.ceil(failure.retry_after_s))
        details = self._details(failure)
        if details:
            problem["details"] = [{"field": one.field, "message": one.message} for one in details]
        if isinstance(failure.error, PreflightFailed):
            problem["preflight"] = preflight_of(failure.error.preflight).model_dump()
        return status, {"status": "error", "error": problem, "meta": {"request_id": failure.request_id}}

    def _code(self, failure: Failure) -> tuple[int, str]:
        for kind, status, code in self.own:
            if isinstance(failure.error, kind):
                return status, code
        if failure.status == 405:
            return 405, "METHOD_NOT_ALLOWED"
        if isinstance(failure.error, CredentialsMissing):
            return 401, "AUTH_TOKEN_MISSING"
        status, code = CODES[failure.cause]
        return status, f"{self.module}_{code}" if code == BACKEND_UNAVAILABLE else code

    def _details(self, failure: Failure) -> tuple[FieldError, ...]:
        """What is wrong in which field, where that is known."""
        if failure.fields:
            return failure.fields
        error = failure.error
        if isinstance(error, PreflightFailed):
            return tuple(FieldError(REFERENCE, reason.text) for reason in error.preflight.fail_reasons)
        if isinstance(error, SpeakerChecksFailed):
            return tuple(
                FieldError(CONSENT if finding.code.startswith(CONSENT) else REFERENCE, finding.text)
                for finding in error.findings
            )
        if failure.cause in ABOUT_AUDIO:
            field = CONSENT if failure.message.startswith(OF_CONSENT) else REFERENCE
            return (FieldError(field, failure.message.removeprefix(OF_CONSENT)),)
        if failure.cause is Cause.INVALID:
            named, _, message = failure.message.partition(": ")
            if named in self.fields:
                return (FieldError(self.fields[named], message),)
        return ()

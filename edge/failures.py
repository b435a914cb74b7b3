"""What went wrong, as every dialect is told it: one record, whatever raised.

In: our errors, the framework's, a validation's. Out: a Failure with a cause, a message fit for the client, and the
fields that are wrong. What always holds: no value that the client sent is in it, only where it stood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from runtime.errors import Cause, InvalidRequest, SpeakerdError, Unauthenticated

FIELDS_MAX = 20
"""How many wrong fields an answer names."""

CAUSE_OF_STATUS: Mapping[int, Cause] = {
    400: Cause.INVALID,
    401: Cause.UNAUTHENTICATED,
    403: Cause.DENIED,
    404: Cause.NOT_FOUND,
    405: Cause.INVALID,
    413: Cause.TOO_LARGE,
    415: Cause.UNSUPPORTED_MEDIA,
    422: Cause.INVALID,
    429: Cause.OVERLOADED,
    503: Cause.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """A field that is wrong. field: its path with dots, "voiceprints.0.label"; "" for the request as a whole."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request did not succeed.

    status: what HTTP itself says, where it does (no such route, method not allowed); None: the dialect's table decides.
    error: ours, for a dialect that raises errors of its own with codes of its own.
    """

    cause: Cause
    message: str
    request_id: str
    fields: tuple[FieldError, ...] = ()
    status: int | None = None
    retry_after_s: float | None = None
    error: SpeakerdError | None = None

    @property
    def retry_after(self) -> str | None:
        """The Retry-After header: whole seconds, at least one."""
        return None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s)))


class InvalidFields(InvalidRequest):
    """The request is malformed in fields that can be named."""

    def __init__(self, *fields: FieldError) -> None:
        super().__init__("; ".join(f"{one.field}: {one.message}" if one.field else one.message for one in fields))
        self.fields = fields


class CredentialsMissing(Unauthenticated):
    """Nothing that says who calls."""


def failure_of(error: Exception, request_id: str) -> Failure:
    """The record of an error. One that nobody foresaw is our fault, and its text stays here."""
    if isinstance(error, SpeakerdError):
        fields = error.fields if isinstance(error, InvalidFields) else ()
        return Failure(
            error.cause, str(error), request_id, fields=fields, retry_after_s=error.retry_after_s, error=error
        )
    if isinstance(error, RequestValidationError):
        fields = tuple(_field_of(one) for one in error.errors()[:FIELDS_MAX])
        return Failure(Cause.INVALID, "Invalid request", request_id, fields=fields)
    if isinstance(error, HTTPException):
        # The framework hides what a body's reading raised; ours say it better.
        if isinstance(error.__cause__, SpeakerdError):
            return failure_of(error.__cause__, request_id)
        cause = CAUSE_OF_STATUS.get(error.status_code, Cause.INVALID if error.status_code < 500 else Cause.INTERNAL)
        status = error.status_code if error.status_code in (404, 405) else None
        return Failure(cause, str(error.detail), request_id, status=status)
    return Failure(Cause.INTERNAL, "internal error; the daemon's log has the details", request_id)


def _field_of(error: Mapping[str, Any]) -> FieldError:
    where: Sequence[Any] = error["loc"]
    if error["type"] == "json_invalid":
        return FieldError("", "the body is not JSON")
    if tuple(where) == ("body",):
        return FieldError("", "the body has to be a JSON object, sent as application/json")
    # The first part says body, query or path, which the field's own name tells well enough.
    field = ".".join(str(part) for part in where[1:]) if len(where) > 1 else ""
    return FieldError(field, str(error["msg"]))

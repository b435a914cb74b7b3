"""Errors as pyannoteAI sends them: {"message", "errors"?: [{"field", "message"}], "requestId"?}.

In: a failure. Out: its status and body. A malformed request is 400 with every wrong field; past a rate limit 429 with
the request's id. Total over causes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from edge.failures import Failure, FieldError
from runtime.errors import HTTP_STATUS, Cause

STATUS: Mapping[Cause, int] = HTTP_STATUS

ERRORS: Mapping[int, str] = {
    400: "The request is malformed.",
    401: "The API key is missing, unknown, expired or revoked.",
    403: "The API key lacks the scope.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    409: "The request collides with another one.",
    413: "The body is too large.",
    415: "It is of a kind that is not read here.",
    429: "Too many requests, or too many jobs.",
    500: "Our fault.",
    503: "A part that is needed is away.",
    504: "It took too long.",
}


class FieldProblem(BaseModel):
    """A field that is wrong."""

    field: str
    message: str


class ErrorBody(BaseModel):
    """Every error of this dialect."""

    model_config = ConfigDict(extra="forbid")

    message: str
    errors: list[FieldProblem] | None = Field(None, description="The fields that are wrong; with 400.")
    request_id: str | None = Field(None, alias="requestId")


_OUR_FIELD = re.compile(r"([a-z][a-z_]*(?:\.[a-z0-9_]+)*): (.+)", re.DOTALL)


def render(failure: Failure) -> tuple[int, dict[str, Any]]:
    """A failure as it leaves."""
    status = failure.status or STATUS[failure.cause]
    if status == 400:
        fields = failure.fields or (_in_their_words(failure.message),)
        return status, {
            "message": "Invalid request",
            "errors": [{"field": one.field, "message": one.message} for one in fields],
        }
    return status, {"message": failure.message, "requestId": failure.request_id}


def _in_their_words(message: str) -> FieldError:
    """The core's "num_speakers: …" as an error of the field that the client sent: numSpeakers."""
    named = _OUR_FIELD.fullmatch(message)
    if named is None:
        return FieldError("", message)
    return FieldError(".".join(to_camel(part) for part in named[1].split(".")), named[2])

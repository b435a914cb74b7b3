"""What can go wrong, named by cause, with one total table for gRPC and one for HTTP.

An error says what happened and what mends it. It never carries audio, embeddings, names or keys: its text goes to
clients and to logs as it is. Code below the wire raises these; only the wire turns them into a status.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

import grpc


class Cause(Enum):
    """Why a request did not succeed. Every cause has a row in both tables; a test holds them total."""

    INVALID = "invalid"  # the request is malformed, or a value is out of its range
    BAD_AUDIO = "bad_audio"  # the audio cannot be decoded, or cannot be used for what was asked
    TOO_LARGE = "too_large"  # over a documented limit on bytes or seconds
    UNSUPPORTED_MEDIA = "unsupported_media"  # a format that we do not read
    UNAUTHENTICATED = "unauthenticated"  # no credentials, or wrong or expired ones
    DENIED = "denied"  # good credentials that do not reach this far
    NOT_FOUND = "not_found"  # absent, or out of the caller's scope: the two look the same
    CONFLICT = "conflict"  # collides with something that exists
    STALE = "stale"  # fenced by a newer generation, revision or incarnation
    OVERLOADED = "overloaded"  # full; try again after retry_after_s
    UNAVAILABLE = "unavailable"  # a part that is needed is away: draining, no node, no lease, no database
    TIMEOUT = "timeout"  # took longer than its bound
    UNIMPLEMENTED = "unimplemented"  # named in the contract, not built yet
    INTERNAL = "internal"  # our fault


GRPC_STATUS: dict[Cause, grpc.StatusCode] = {
    Cause.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Cause.BAD_AUDIO: grpc.StatusCode.INVALID_ARGUMENT,
    Cause.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Cause.UNSUPPORTED_MEDIA: grpc.StatusCode.INVALID_ARGUMENT,
    Cause.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Cause.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Cause.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Cause.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Cause.STALE: grpc.StatusCode.FAILED_PRECONDITION,
    Cause.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Cause.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Cause.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Cause.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Cause.INTERNAL: grpc.StatusCode.INTERNAL,
}

HTTP_STATUS: dict[Cause, int] = {
    Cause.INVALID: 400,
    Cause.BAD_AUDIO: 400,
    Cause.TOO_LARGE: 413,
    Cause.UNSUPPORTED_MEDIA: 415,
    Cause.UNAUTHENTICATED: 401,
    Cause.DENIED: 403,
    Cause.NOT_FOUND: 404,
    Cause.CONFLICT: 409,
    Cause.STALE: 409,
    Cause.OVERLOADED: 429,
    Cause.UNAVAILABLE: 503,
    Cause.TIMEOUT: 504,
    Cause.UNIMPLEMENTED: 501,
    Cause.INTERNAL: 500,
}


class SpeakerdError(Exception):
    """An error with a cause. `str(error)` is fit for the client: what happened, and what mends it."""

    cause: ClassVar[Cause] = Cause.INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvalidRequest(SpeakerdError):
    """The request is malformed."""

    cause = Cause.INVALID


class BadAudio(SpeakerdError):
    """Audio that cannot be decoded or used."""

    cause = Cause.BAD_AUDIO


class TooLarge(SpeakerdError):
    """Over a limit on bytes or seconds."""

    cause = Cause.TOO_LARGE


class UnsupportedMedia(SpeakerdError):
    """A container or codec that is not read here."""

    cause = Cause.UNSUPPORTED_MEDIA


class Unauthenticated(SpeakerdError):
    """No credentials, or bad ones."""

    cause = Cause.UNAUTHENTICATED


class Denied(SpeakerdError):
    """The caller may not do this."""

    cause = Cause.DENIED


class NotFound(SpeakerdError):
    """Absent or out of scope."""

    cause = Cause.NOT_FOUND


class Conflict(SpeakerdError):
    """Collides with something that exists."""

    cause = Cause.CONFLICT


class Stale(SpeakerdError):
    """Fenced by something newer."""

    cause = Cause.STALE


class Overloaded(SpeakerdError):
    """Full; try again later."""

    cause = Cause.OVERLOADED


class Unavailable(SpeakerdError):
    """A needed part is away."""

    cause = Cause.UNAVAILABLE


class TimedOut(SpeakerdError):
    """A bound on time was passed."""

    cause = Cause.TIMEOUT


class Unimplemented(SpeakerdError):
    """In the contract, not built yet."""

    cause = Cause.UNIMPLEMENTED

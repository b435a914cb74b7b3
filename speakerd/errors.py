"""What a call to speakerd can fail with: one error, whose cause is the contract's word for it.

In come gRPC statuses with their trailer `speakerd-error-bin`; out comes SpeakerdError. Its text says what to mend.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from speakerd.v1 import common_pb2

ERROR_TRAILER = "speakerd-error-bin"

# For peers that send no trailer: proxies, and gRPC itself when nobody answers.
_CAUSE_OF_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.OUT_OF_RANGE: "invalid",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "denied",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.ALREADY_EXISTS: "conflict",
    grpc.StatusCode.FAILED_PRECONDITION: "stale",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.CANCELLED: "unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.UNIMPLEMENTED: "unimplemented",
}

_DEAD_LINE = ("ping timeout", "ping_timeout", "keepalive watchdog")


class SpeakerdError(Exception):
    """A call that did not succeed.

    cause: a word of ErrorInfo.cause in the contract, for example "bad_audio" or "not_found".
    message: what happened and what mends it; also `str(error)`.
    retry_after_s: when to try again, seconds; None without advice.
    """

    def __init__(self, cause: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"SpeakerdError({self.cause!r}, {self.message!r}, retry_after_s={self.retry_after_s})"


class LineWentDead(SpeakerdError):
    """Nothing came back from the peer any more, not even what its gRPC answers by itself whatever the peer is doing."""


def was_lost(error: aio.AioRpcError) -> bool:
    """Whether nobody has answered: the peer went away under the call, which may have been heard, or may not."""
    if any(name == ERROR_TRAILER for name, _ in error.trailing_metadata() or ()):
        return False
    # A daemon that ends refuses what has reached it and was not begun as CANCELLED.
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def error_from_status(error: aio.AioRpcError, *, peer: str, had_answered: bool = False) -> SpeakerdError:
    """The error that a status stands for.

    peer: whom we called, for the text when nobody answers there. had_answered: it did before, in the same call.
    """
    for name, value in error.trailing_metadata() or ():
        if name == ERROR_TRAILER and isinstance(value, bytes):
            info = _parsed(value)
            if info is not None:
                retry_after_s = info.retry_after_ms / 1000 if info.retry_after_ms else None
                return SpeakerdError(info.cause, info.message, retry_after_s=retry_after_s)
    cause = _CAUSE_OF_STATUS.get(error.code(), "internal")
    details = (error.details() or "").lower()
    if cause == "unavailable" and had_answered:
        kind = LineWentDead if any(sign in details for sign in _DEAD_LINE) else SpeakerdError
        return kind(cause, f"{peer} went away in the middle of the stream: stream it again")
    if cause == "unavailable" and "http1" in details:
        return SpeakerdError(
            cause, f"{peer} speaks HTTP and not gRPC: name the address that its ready line calls grpc="
        )
    if cause == "unavailable" and ("handshake" in details or "certificate" in details):
        return SpeakerdError(
            cause,
            f"{peer} and we do not trust one another: name its authority's ca.crt with --tls-ca, if it speaks TLS",
        )
    if cause == "unavailable":
        return SpeakerdError(cause, f"{peer} does not answer: start it with `speakerd up`, or name another address")
    return SpeakerdError(cause, error.details() or f"the call to {peer} failed with status {error.code().name}")


def _parsed(trailer: bytes) -> common_pb2.ErrorInfo | None:
    try:
        info = common_pb2.ErrorInfo.FromString(trailer)
    except DecodeError:
        return None
    return info if info.cause else None

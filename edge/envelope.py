"""One envelope for every error that leaves over HTTP.

In: our errors, the framework's own, and faults. Out: {"error": {"cause", "message", "retry_after_s"?}}. The text of a
foreign exception may hold anything, so neither the client nor the log gets it.
"""

from __future__ import annotations

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from runtime.errors import HTTP_STATUS, Cause, SpeakerdError
from runtime.logs import get_logger

_CAUSE_OF_STATUS = {
    400: Cause.INVALID,
    401: Cause.UNAUTHENTICATED,
    403: Cause.DENIED,
    404: Cause.NOT_FOUND,
    413: Cause.TOO_LARGE,
    415: Cause.UNSUPPORTED_MEDIA,
    422: Cause.INVALID,
    429: Cause.OVERLOADED,
    503: Cause.UNAVAILABLE,
}


def install_error_envelope(app: FastAPI) -> None:
    """Answer every error of an application in the envelope."""

    @app.exception_handler(SpeakerdError)
    async def ours(_request: Request, error: SpeakerdError) -> JSONResponse:
        return envelope(HTTP_STATUS[error.cause], error.cause, str(error), error.retry_after_s)

    @app.exception_handler(HTTPException)
    async def framework(_request: Request, error: HTTPException) -> JSONResponse:
        cause = _CAUSE_OF_STATUS.get(error.status_code, Cause.INVALID if error.status_code < 500 else Cause.INTERNAL)
        answer = envelope(error.status_code, cause, str(error.detail), None)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return envelope(400, Cause.INVALID, f"{where}: {first['msg']}", None)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        get_logger().error("http.failed", path=request.url.path, error_type=type(error).__name__)
        return envelope(500, Cause.INTERNAL, "internal error; the daemon's log has the details", None)


def envelope(status: int, cause: Cause, message: str, retry_after_s: float | None) -> JSONResponse:
    """An error as it leaves."""
    body: dict[str, object] = {"cause": cause.value, "message": message}
    headers = {}
    if retry_after_s is not None:
        body["retry_after_s"] = retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    return JSONResponse({"error": body}, status_code=status, headers=headers)

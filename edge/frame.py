"""A dialect as an application: its routes behind what all dialects share.

In: a Dialect. Out: an ASGI application that answers every path under its prefixes, in its envelope. Around each
request: an id (the client's X-Request-Id when it is a plain word, else a new one), the body meter, and the net that
catches faults. What always holds: whatever happens, the answer is in the dialect's envelope and carries the request's
id.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.dialect import Dialect, Edge
from edge.failures import Failure, failure_of
from edge.openapi import describe
from edge.terms import Guarded
from edge.uploads import METER, BodyMeter
from runtime.errors import InvalidRequest, NotFound, SpeakerdError
from runtime.logs import get_logger, stack_of
from speakerd import __version__

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def application_of(dialect: Dialect, edge: Edge) -> FastAPI:
    """The dialect's application."""
    app = FastAPI(
        title=dialect.title,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.edge = edge
    app.router.route_class = Guarded
    dialect.install(app, edge)
    app.add_middleware(_Around, dialect=dialect)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        failure = failure_of(error, request.state.request_id)
        answer = rendered(dialect, failure)
        if isinstance(error, HTTPException):
            answer.headers.update(error.headers or {})
            if error.status_code == 405:
                answer.headers["allow"] = ", ".join(sorted(_methods(app, request.scope)))
        return answer

    for kind in (SpeakerdError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, failed)
    app.openapi = lambda: describe(app, dialect)  # type: ignore[method-assign]
    return app


def rendered(dialect: Dialect, failure: Failure) -> JSONResponse:
    """A failure in the dialect's envelope."""
    status, body = dialect.render(failure)
    answer = JSONResponse(body, status_code=status)
    if failure.retry_after is not None:
        answer.headers["retry-after"] = failure.retry_after
    if status == 401:
        answer.headers["www-authenticate"] = "Bearer"
    return answer


class Dispatch:
    """Gives a request to the dialect whose prefix its path begins with, and any other to the application behind."""

    def __init__(self, app: ASGIApp, dialects: Mapping[str, ASGIApp]) -> None:
        self._app = app
        # The longest first, so that the first that fits is the closest.
        self._dialects = sorted(dialects.items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] in ("http", "websocket"):
            path: str = scope["path"]
            for prefix, app in self._dialects:
                if path == prefix or path.startswith(prefix + "/"):
                    await app(scope, receive, send)
                    return
        await self._app(scope, receive, send)


class _Around:
    """What is around each request of a dialect. Plain ASGI, so that streamed bodies pass through untouched."""

    def __init__(self, app: ASGIApp, dialect: Dialect) -> None:
        self._app = app
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        answer_headers: dict[str, str] = {"x-request-id": request_id}
        scope.setdefault("state", {}).update(request_id=request_id, answer_headers=answer_headers)
        with structlog.contextvars.bound_contextvars(request_id=request_id, dialect=self._dialect.name):
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._answer(scope, receive, send, answer_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, answer_headers: dict[str, str]) -> None:
        began = False

        async def watch(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in answer_headers.items():
                    headers[name] = value
            await send(message)

        meter = scope[METER] = BodyMeter(scope, receive)
        try:
            _require_text(scope)
            await self._app(scope, meter, watch)
        except ClientDisconnect:
            return
        except SpeakerdError as error:
            await rendered(self._dialect, failure_of(error, scope["state"]["request_id"]))(scope, receive, watch)
        except Exception as error:
            # The text of a foreign exception may hold anything, so neither the client nor the log gets it.
            get_logger().error(
                "http.failed", route=_route_of(scope), error_type=type(error).__name__, frames=stack_of(error)
            )
            if began:
                raise
            await rendered(self._dialect, failure_of(error, scope["state"]["request_id"]))(scope, receive, watch)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return secrets.token_hex(8)


def _require_text(scope: Scope) -> None:
    # No database keeps a NUL in a text, so nothing is found under one.
    if "\0" in scope["path"]:
        raise NotFound("no such path")
    if b"%00" in scope["query_string"]:
        raise InvalidRequest("the query holds a NUL character")


def _route_of(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "none"))


def _methods(app: FastAPI, scope: Scope) -> set[str]:
    """What the path takes: …/x:compute is that route's own path, though …/{name} would match it too."""
    allowed: dict[str, set[str]] = {}
    for route in app.routes:
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            allowed.setdefault(str(getattr(route, "path", "")), set()).update(getattr(route, "methods", None) or ())
    return allowed[max(allowed, key=_literal_chars)] if allowed else set()


def _literal_chars(path: str) -> int:
    """How much of a route's path is not its parameters'."""
    return len(re.sub(r"\{[^}]*\}", "", path))

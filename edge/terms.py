"""The terms of a route: who may call it, how often, how much may be sent, and whether it is done once a key.

`@terms(...)` says them on the endpoint, and `Guarded` keeps them before anything of the body is read or validated. A
route without terms does not come into being: none is open by an oversight.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from controlplane.identity import token_of
from controlplane.kept_answers import Answer, Turn
from controlplane.keys import VoiceAddress
from controlplane.policy import Principal
from controlplane.rate_limits import Standing
from edge.dialect import Edge
from edge.failures import CredentialsMissing
from edge.uploads import BODY_BYTES_MAX, allow_body, body_size
from edge.whole_text import WholeTextRequest
from runtime.errors import Overloaded, Unauthenticated

IDEMPOTENCY_HEADER = "idempotency-key"
REPLAYED_HEADER = "Idempotency-Replayed"
_KEPT_HEADERS = ("content-type", "location")
_BOUNDARY = re.compile(rb'boundary="?([^";]+)"?', re.IGNORECASE)
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds of a route. scope None: anybody may call it. rate: a kind that its dialect counts."""

    scope: str | None
    rate: str | None = None
    body_bytes_max: int = BODY_BYTES_MAX
    idempotent: bool = False


def terms(
    scope: str | None, *, rate: str | None = None, body_bytes_max: int = BODY_BYTES_MAX, idempotent: bool = False
) -> Callable[[_Endpoint], _Endpoint]:
    """Say the terms of an endpoint. Stands below the route's decorator."""

    def say(endpoint: _Endpoint) -> _Endpoint:
        endpoint.__terms__ = Terms(scope, rate, body_bytes_max, idempotent)  # type: ignore[attr-defined]
        return endpoint

    return say


def terms_of(endpoint: Callable[..., Any]) -> Terms:
    """The terms of an endpoint."""
    said = getattr(endpoint, "__terms__", None)
    assert isinstance(said, Terms), f"{endpoint.__name__} is a route without terms: put @terms(...) below it"
    return said


class Guarded(APIRoute):
    """A route that keeps its terms."""

    def get_route_handler(self) -> _Handler:
        """The handler, behind its terms."""
        inner = super().get_route_handler()
        said = terms_of(self.endpoint)

        async def handle(request: Request) -> Response:
            request = WholeTextRequest(request.scope, request.receive)
            edge = edge_of(request)
            if said.scope is not None:
                request.state.principal = await authenticated(edge, request, said.scope)
            if said.rate is not None:
                await _count(edge, request, said.rate)
            allow_body(request, said.body_bytes_max)
            key = request.headers.get(IDEMPOTENCY_HEADER)
            if said.idempotent and key is not None:
                size = body_size(request) if said.body_bytes_max > BODY_BYTES_MAX else 0
                with edge.uploads.hold(size, request.state.principal.tenant_id):
                    return await _once(edge, request, key, inner)
            return await inner(request)

        return handle


def edge_of(connection: HTTPConnection) -> Edge:
    """What the dialect stands on."""
    return cast(Edge, connection.app.state.edge)


async def authenticated(edge: Edge, connection: HTTPConnection, scope: str, *, token: str | None = None) -> Principal:
    """Who calls, over HTTP or a WebSocket. token: one that came elsewhere than in the Authorization header.

    Raises:
        CredentialsMissing: There is no token at all.
        Unauthenticated: It is unknown, expired or revoked.
        Denied: The key lacks the scope.
    """
    given = token or token_of(connection.headers.get("authorization"))
    if not given:
        raise CredentialsMissing("send an API key: Authorization: Bearer sk_…")
    if "\0" in given:
        # In a query it can be written, and no database looks for it.
        raise Unauthenticated("this API key is unknown, expired or revoked")
    return await edge.core.identity.principal(given, scope)


def tells_of(request: Request, tenant_id: str, voice_id: str) -> None:
    """Say that the answer tells of a voice: kept for an Idempotency-Key, it goes with the voice when that is erased."""
    request.state.about = VoiceAddress(tenant_id, voice_id)


async def _caller(request: Request) -> Principal:
    return cast(Principal, request.state.principal)


async def _edge(request: Request) -> Edge:
    return edge_of(request)


async def _turn_name(request: Request) -> str:
    return cast(str, getattr(request.state, "turn_name", ""))


Caller = Annotated[Principal, Depends(_caller)]
"""Who calls, in an endpoint's signature; only where its terms name a scope."""

TheEdge = Annotated[Edge, Depends(_edge)]
"""The edge, in an endpoint's signature."""

TurnName = Annotated[str, Depends(_turn_name)]
"""What the core may know a request with an Idempotency-Key by: a digest, the same for repetitions; "" without one."""


async def _count(edge: Edge, request: Request, kind: str) -> None:
    limit = edge.rates[kind]
    if limit is None:
        return
    principal: Principal = request.state.principal
    standing = await edge.core.rate_limits.take(principal.key_id, limit)
    request.state.answer_headers.update(_rate_headers(standing))
    if not standing.allowed:
        raise Overloaded(
            f"Too many requests: at most {limit.calls_max} in {limit.window_s:.0f} s",
            retry_after_s=max(1.0, standing.frees_in_s),
        )


def _rate_headers(standing: Standing) -> dict[str, str]:
    return {
        "x-ratelimit-limit": str(standing.limit),
        "x-ratelimit-remaining": str(standing.remaining),
        # Whole seconds of Unix time, rounded up: who waits until then is let in.
        "x-ratelimit-reset": str(math.ceil(time.time() + standing.frees_in_s)),
    }


async def _once(edge: Edge, request: Request, key: str, inner: _Handler) -> Response:
    digest = _digest(request, await request.body())
    answers = edge.core.kept_answers
    begun = await answers.begin(request.state.principal, key, f"{request.method} {request.url.path}", digest)
    if isinstance(begun, Answer):
        headers = {**begun.headers, REPLAYED_HEADER: "true"}
        return Response(begun.body, status_code=begun.status, headers=headers)
    return await _done(edge, request, begun, inner)


async def _done(edge: Edge, request: Request, turn: Turn, inner: _Handler) -> Response:
    request.state.turn_name = turn.name
    kept = False
    try:
        response = await inner(request)
        # What came to nothing may be tried again with the same key.
        if 200 <= response.status_code < 300 and isinstance(response.body, bytes):
            headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
            answer = Answer(response.status_code, headers, response.body)
            await edge.core.kept_answers.keep(turn, answer, getattr(request.state, "about", None))
            kept = True
        return response
    finally:
        if not kept:
            await edge.core.kept_answers.drop(turn)


def _digest(request: Request, body: bytes) -> bytes:
    content_type = request.headers.get("content-type", "").encode("latin-1")
    boundary = _BOUNDARY.search(content_type)
    if boundary:
        # A form that is sent again gets another boundary; it is the same request all the same.
        body = body.replace(boundary[1], b"")
    return hashlib.sha256(b"\n".join((request.url.query.encode(), body))).digest()

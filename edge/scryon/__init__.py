"""The dialect of Scryon: one opt-in voice profile a user, and whether the user is among a recording's speakers."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.scryon import profile
from edge.scryon.errors import ERRORS, ErrorEnvelope, FeatureOff, render

UPLOAD = RateLimit("scryon.upload", 30)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    profile.install(app)
    app.add_middleware(_Feature, edge=edge, routes=app.routes)


class _Feature:
    """While the feature is off its calls tell nothing else, whoever asks: no key is looked at, no kept answer given."""

    def __init__(self, app: ASGIApp, edge: Edge, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._edge = edge
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._edge.settings
        if not settings.scryon_voice_embedding_enabled and self._is_call(scope):
            is_deletion = scope["method"] == "DELETE" and scope["path"] == profile.PATH
            if not (is_deletion and settings.scryon_voice_delete_when_disabled):
                raise FeatureOff
        await self._app(scope, receive, send)

    def _is_call(self, scope: Scope) -> bool:
        return scope["type"] == "http" and any(route.matches(scope)[0] is Match.FULL for route in self._routes)


DIALECT = Dialect(
    name="scryon",
    title="speakerd, Scryon dialect",
    prefixes=("/api/users/me/voice-profile",),
    render=render,
    error_model=ErrorEnvelope,
    errors=ERRORS,
    install=install,
    rates=(UPLOAD,),
)

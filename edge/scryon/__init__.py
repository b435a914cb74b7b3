"""The dialect of Scryon: one opt-in voice profile a user, and whether the user is among a recording's speakers."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.scryon import profile
from edge.scryon.errors import ERRORS, ErrorEnvelope, FeatureOff, render

UPLOAD = RateLimit("scryon.upload", 30)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    profile.install(app)
    app.add_middleware(_Feature, edge=edge)


class _Feature:
    """While the feature is off nothing else is told, whoever asks: no key is looked at, no kept answer repeated."""

    def __init__(self, app: ASGIApp, edge: Edge) -> None:
        self._app = app
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._edge.settings
        if scope["type"] == "http" and not settings.scryon_voice_embedding_enabled:
            is_deletion = scope["method"] == "DELETE" and scope["path"] == profile.PATH
            if not (is_deletion and settings.scryon_voice_delete_when_disabled):
                raise FeatureOff
        await self._app(scope, receive, send)


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

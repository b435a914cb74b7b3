"""The dialect of Scryon: one opt-in voice profile a user, and whether the user is among a recording's speakers."""

from __future__ import annotations

from fastapi import FastAPI

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.scryon import profile
from edge.scryon.errors import ERRORS, ErrorEnvelope, render

UPLOAD = RateLimit("scryon.upload", 30)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    del edge
    profile.install(app)


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

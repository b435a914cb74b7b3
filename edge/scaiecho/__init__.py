"""The dialect of ScaiEcho: enrolled speakers, where they are warm, and live transcription that names them."""

from __future__ import annotations

from fastapi import FastAPI

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.scaiecho import speakers, stream, warm
from edge.scaigrid.envelope import ERRORS, ErrorBody, Renderer

FIELDS = {
    "label": "display_name",
    "details": "description",
    "details.language": "language_primary",
    "consent": "consent_text",
    "page_size": "limit",
    "page_token": "cursor",
    "node_ids": "node_ids",
}
"""What the core calls a field, and what ScaiEcho does."""


RENDERER = Renderer("SCAIECHO", FIELDS)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    del edge
    speakers.install(app)
    warm.install(app)
    stream.install(app, f"{speakers.PREFIX}/stream/transcribe", RENDERER)


DIALECT = Dialect(
    name="scaiecho",
    title="speakerd, ScaiEcho dialect",
    prefixes=(speakers.PREFIX,),
    render=RENDERER,
    error_model=ErrorBody,
    errors=ERRORS,
    install=install,
    rates=(RateLimit("scaiecho.enroll", 300),),
)

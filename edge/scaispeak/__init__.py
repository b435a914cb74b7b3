"""The dialect of ScaiSpeak: the voice library, with scopes, consents and licences, and erasure."""

from __future__ import annotations

from fastapi import FastAPI

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.scaigrid.envelope import ERRORS, ErrorBody, Renderer
from edge.scaispeak import admin, record, voices
from edge.scaispeak.sources import AmbiguousSource
from runtime.media import PreflightFailed

FIELDS = {
    "label": "display_name",
    "details": "description",
    "details.language": "language_primary",
    "details.gender": "gender_hint",
    "consent": "consent_text",
    "licence": "license_terms",
    "licence.expires_at": "license_expires_at",
    "page_size": "limit",
    "page_token": "cursor",
    "file_id": "reference_scaidrive_json",
    "mcp_uri": "reference_scaidrive_json",
    "share_url": "reference_scaidrive_json",
}
"""What the core calls a field, and what ScaiSpeak does."""

OWN = (
    (AmbiguousSource, 400, "SCAISPEAK_AMBIGUOUS_SOURCE"),
    (PreflightFailed, 400, "SCAISPEAK_VOICE_PREFLIGHT_FAILED"),
)


RENDERER = Renderer("SCAISPEAK", FIELDS, OWN)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    del edge
    voices.install(app)
    admin.install(app)
    record.install(app, f"{voices.PREFIX}/voices/record", RENDERER)


DIALECT = Dialect(
    name="scaispeak",
    title="speakerd, ScaiSpeak dialect",
    prefixes=(voices.PREFIX,),
    render=RENDERER,
    error_model=ErrorBody,
    errors={400: "SCAISPEAK_AMBIGUOUS_SOURCE or SCAISPEAK_VOICE_PREFLIGHT_FAILED.", **ERRORS},
    install=install,
    rates=(RateLimit("scaispeak.clone", 300),),
)

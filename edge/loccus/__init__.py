"""The dialect of Loccus: spaces with identities, audios and voiceprints, verification, and records of what was used."""

from __future__ import annotations

from fastapi import FastAPI

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.loccus import audios, identities, records, spaces, verifications, voiceprints
from edge.loccus.errors import ERRORS, ErrorEnvelope, render

LISTEN = RateLimit("loccus.listen", 300)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    del edge
    for part in (spaces, identities, audios, voiceprints, verifications, records):
        part.install(app)


DIALECT = Dialect(
    name="loccus",
    title="speakerd, Loccus dialect",
    prefixes=("/v1/spaces", "/v1/orgs", "/v1/records", "/v1/models"),
    render=render,
    error_model=ErrorEnvelope,
    errors=ERRORS,
    install=install,
    rates=(LISTEN,),
)

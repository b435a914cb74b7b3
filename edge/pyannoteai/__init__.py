"""The dialect of pyannoteAI: batch diarization, identification and voiceprints as jobs, media, webhooks, live."""

from __future__ import annotations

from fastapi import FastAPI

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.pyannoteai import account
from edge.pyannoteai.errors import ERRORS, ErrorBody, render

SUBMIT = RateLimit("pyannoteai.submit", 100)
READ = RateLimit("pyannoteai.read", 300)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    del edge
    account.install(app)


DIALECT = Dialect(
    name="pyannoteai",
    title="speakerd, pyannoteAI dialect",
    prefixes=("/v1", "/v2"),
    render=render,
    error_model=ErrorBody,
    errors=ERRORS,
    install=install,
    rates=(SUBMIT, READ),
)

"""The dialect of pyannoteAI: batch diarization, identification and voiceprints as jobs, media, webhooks, live."""

from __future__ import annotations

from fastapi import FastAPI

from controlplane.rate_limits import RateLimit
from edge.dialect import Dialect, Edge
from edge.pyannoteai import account, jobs, live, media, webhook
from edge.pyannoteai.errors import ERRORS, ErrorBody, render

SUBMIT = RateLimit(jobs.SUBMIT, 100)
READ = RateLimit(jobs.READ, 300)


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes."""
    account.install(app)
    media.install(app)
    jobs.install(app)
    live.install(app)
    webhook.install(app, edge)


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

"""Webhooks: what is told of a job that has ended, and the secret that it is signed with.

The secret is ours to give out: POST /v1/webhook-secret makes another one and shows it, once; GET says since when the
one that holds does.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from controlplane.job_view import Job
from controlplane.scopes import ADMIN
from edge.dialect import Edge
from edge.pyannoteai.outputs import instant, output_body
from edge.terms import Caller, TheEdge, terms


class _Answered(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", populate_by_name=True)


class NewSecret(_Answered):
    """What webhooks of the key's tenant are signed with from now on."""

    secret: str
    created_at: str


class SecretState(_Answered):
    """Since when the secret holds."""

    created_at: str | None = Field(description="Absent where none was made yet.")


def install(app: FastAPI, edge: Edge) -> None:
    """Add the routes, and say how a job's end is told."""
    edge.plane.webhook_body = webhook_body

    @app.post("/v1/webhook-secret")
    @terms(ADMIN)
    async def rotate(caller: Caller, edge: TheEdge) -> NewSecret:
        """Make another secret, shown this once; the one before signs nothing any more."""
        made = await edge.core.webhooks.secrets.rotate(caller)
        return NewSecret(secret=made.secret, created_at=instant(made.created_at_s))

    @app.get("/v1/webhook-secret")
    @terms(ADMIN)
    async def read(caller: Caller, edge: TheEdge) -> SecretState:
        """Since when the secret holds."""
        made_at_s = await edge.core.webhooks.secrets.made_at_s(caller)
        return SecretState(created_at=None if made_at_s is None else instant(made_at_s))


def webhook_body(job: Job, status_only: bool) -> bytes:
    """What a receiver is told of a job that has ended."""
    body: dict[str, Any] = {"jobId": job.job_id, "status": job.state.value}
    output = None if status_only else output_body(job)
    if output is not None:
        body["output"] = output
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

"""…/verifications: whether an audio is of the person of a voiceprint."""

from __future__ import annotations

from fastapi import FastAPI, Request
from pydantic import BaseModel

from controlplane.scopes import JOBS_WRITE, VOICES_READ
from controlplane.space_verifications import NewVerification
from edge.loccus.bodies import BODY, VerificationBody, verification_body
from edge.terms import Caller, TheEdge, tells_of, terms

PATH = "/v1/spaces/{owner}/{space}/verifications"


class NewVerificationBody(BaseModel):
    """What is to be compared: an audio with a computed voiceprint of an identity."""

    model_config = BODY

    audio: str
    identity: str
    voiceprint: str


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post(PATH + "/identity", status_code=201)
    @terms(JOBS_WRITE, rate="loccus.listen", idempotent=True)
    async def verify(
        *, request: Request, caller: Caller, edge: TheEdge, owner: str, space: str, body: NewVerificationBody
    ) -> VerificationBody:
        """Compare."""
        new = NewVerification(body.audio, body.identity, body.voiceprint)
        made = await edge.core.spaces.verifications.verify(caller, owner, space, new)
        tells_of(request, caller.tenant_id, made.sealed_by)
        return verification_body(made)

    @app.get(PATH + "/{verification}")
    @terms(VOICES_READ)
    async def get(caller: Caller, edge: TheEdge, owner: str, space: str, verification: str) -> VerificationBody:
        """A verification."""
        return verification_body(await edge.core.spaces.verifications.get(caller, owner, space, verification))

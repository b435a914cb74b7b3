"""…/identities: the persons in a space. A body with a model, posted here, makes a voiceprint, as the guide has it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from pydantic import BaseModel

from controlplane.agreements import Consent
from controlplane.scopes import VOICES_ERASE, VOICES_READ, VOICES_WRITE
from edge.failures import FieldError, InvalidFields
from edge.loccus.bodies import (
    BODY,
    Alias,
    ErasureBody,
    Handle,
    IdentityBody,
    VoiceprintBody,
    identity_body,
    voiceprint_body,
)
from edge.loccus.lists import Listed, PageBody, page_body
from edge.loccus.voiceprints import NewVoiceprintBody, new_voiceprint
from edge.terms import Caller, TheEdge, tells_of, terms

PATH = "/v1/spaces/{owner}/{space}/identities"


class ConsentBody(BaseModel):
    """What the person agreed to."""

    model_config = BODY

    full_name: str = ""
    purpose: str = ""
    text: str = ""
    version: str = ""


class NewIdentity(BaseModel):
    """An identity to be made; or, with a model, a voiceprint of one that there is."""

    model_config = BODY

    handle: Handle = None
    alias: Alias = None
    consent: ConsentBody | None = None
    model: str | dict[str, str] | None = None
    identity: str | None = None
    min_audios: int | None = None


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post(PATH, status_code=201)
    @terms(VOICES_WRITE, idempotent=True)
    async def create(
        *, request: Request, caller: Caller, edge: TheEdge, owner: str, space: str, body: NewIdentity
    ) -> IdentityBody | VoiceprintBody:
        """Make an identity."""
        if body.model is not None:
            if body.identity is None:
                raise InvalidFields(FieldError("identity", "whose voiceprint it is to be is required with a model"))
            new = new_voiceprint(
                NewVoiceprintBody(
                    handle=body.handle,
                    alias=body.alias,
                    model=body.model,
                    identity=body.identity,
                    min_audios=body.min_audios,
                )
            )
            voiceprint = await edge.core.spaces.voiceprints.create(caller, owner, space, new)
            tells_of(request, caller.tenant_id, voiceprint.identity.thing_id)
            return voiceprint_body(voiceprint)
        consent = Consent() if body.consent is None else Consent(**body.consent.model_dump())
        made = await edge.core.spaces.identities.create(
            caller, owner, space, handle=body.handle or "", alias=body.alias or "", consent=consent
        )
        tells_of(request, caller.tenant_id, made.identity_id)
        return identity_body(made)

    @app.get(PATH)
    @terms(VOICES_READ)
    async def listed(caller: Caller, edge: TheEdge, owner: str, space: str, listing: Listed) -> PageBody[IdentityBody]:
        """A space's identities; search looks at handles."""
        page = await edge.core.spaces.identities.listed(caller, owner, space, listing)
        return page_body(page, listing, identity_body)

    @app.get(PATH + "/{identity}")
    @terms(VOICES_READ)
    async def get(caller: Caller, edge: TheEdge, owner: str, space: str, identity: str) -> IdentityBody:
        """An identity."""
        return identity_body(await edge.core.spaces.identities.get(caller, owner, space, identity))

    @app.delete(PATH + "/{identity}")
    @terms(VOICES_ERASE)
    async def erase(caller: Caller, edge: TheEdge, owner: str, space: str, identity: str) -> ErasureBody:
        """Erase an identity: its voiceprints, its audios, and its voice wherever it is held."""
        erasure = await edge.core.spaces.identities.erase(caller, owner, space, identity)
        return ErasureBody(audit_id=erasure.audit_id, state=erasure.state)

    @app.get(PATH + "/{identity}/voiceprints")
    @terms(VOICES_READ)
    async def voiceprints(
        *, caller: Caller, edge: TheEdge, owner: str, space: str, identity: str, listing: Listed
    ) -> PageBody[VoiceprintBody]:
        """An identity's voiceprints."""
        page = await edge.core.spaces.voiceprints.listed(caller, owner, space, identity, listing)
        return page_body(page, listing, voiceprint_body)

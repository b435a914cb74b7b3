"""/v1/spaces/{owner}: spaces, and whom their owners let in; /v1/models: what voiceprints may be computed with."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from controlplane.scopes import VOICES_ERASE, VOICES_READ, VOICES_WRITE
from controlplane.space_models import MODELS, Model, model_of
from edge.loccus.bodies import (
    BODY,
    Alias,
    CollaboratorBody,
    ErasureBody,
    SpaceBody,
    SpaceErasureBody,
    collaborator_body,
    lasting,
    space_body,
)
from edge.loccus.lists import Listed, PageBody, page_body
from edge.terms import Caller, TheEdge, tells_of, terms


class NewSpace(BaseModel):
    """A space to be made."""

    model_config = BODY

    handle: str
    alias: Alias = None


class Rights(BaseModel):
    """What a collaborator may do."""

    model_config = BODY

    may_write: bool = False


class Requirements(BaseModel):
    """What a model asks of audios. voiceDuration: clean speech, divided by minAudios for each audio."""

    model_config = BODY

    voice_duration: str
    max_duration: str
    min_sample_rate: int


class IndexedModel(BaseModel):
    """A model of the index."""

    model_config = BODY

    handle: str
    version: str
    requirements: Requirements


class ModelIndex(BaseModel):
    """The model index."""

    items: list[IndexedModel]


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.get("/v1/models")
    @terms(VOICES_READ)
    async def models() -> ModelIndex:
        """The model index."""
        return ModelIndex(items=[_model(model) for model in MODELS])

    @app.get("/v1/models/{model}/{version}")
    @terms(VOICES_READ)
    async def model(model: str, version: str) -> IndexedModel:
        """A model of the index."""
        return _model(model_of(model, version))

    @app.post("/v1/spaces/{owner}", status_code=201)
    @terms(VOICES_WRITE, idempotent=True)
    async def create(request: Request, caller: Caller, edge: TheEdge, owner: str, body: NewSpace) -> SpaceBody:
        """Make a space."""
        made = await edge.core.spaces.spaces.create(caller, owner, body.handle, body.alias or "")
        tells_of(request, caller.tenant_id, made.space_id)
        return space_body(made)

    @app.get("/v1/spaces/{owner}")
    @terms(VOICES_READ)
    async def listed(caller: Caller, edge: TheEdge, owner: str, listing: Listed) -> PageBody[SpaceBody]:
        """The owner's spaces."""
        return page_body(await edge.core.spaces.spaces.listed(caller, owner, listing), listing, space_body)

    @app.get("/v1/spaces/{owner}/{space}")
    @terms(VOICES_READ)
    async def get(caller: Caller, edge: TheEdge, owner: str, space: str) -> SpaceBody:
        """A space."""
        return space_body(await edge.core.spaces.spaces.get(caller, owner, space))

    @app.delete("/v1/spaces/{owner}/{space}")
    @terms(VOICES_ERASE)
    async def delete(caller: Caller, edge: TheEdge, owner: str, space: str) -> SpaceErasureBody:
        """Delete a space, and erase every identity in it."""
        erasures = await edge.core.spaces.spaces.delete(caller, owner, space)
        return SpaceErasureBody(erasures=[ErasureBody(audit_id=one.audit_id, state=one.state) for one in erasures])

    @app.get("/v1/spaces/{owner}/{space}/collaborators")
    @terms(VOICES_READ)
    async def collaborators(caller: Caller, edge: TheEdge, owner: str, space: str) -> list[CollaboratorBody]:
        """Whom the owner let in."""
        return [collaborator_body(one) for one in await edge.core.spaces.spaces.collaborators(caller, owner, space)]

    @app.put("/v1/spaces/{owner}/{space}/collaborators/{user}")
    @terms(VOICES_WRITE)
    async def let_in(
        *, caller: Caller, edge: TheEdge, owner: str, space: str, user: str, body: Rights
    ) -> CollaboratorBody:
        """Let a user in, or change what they may do."""
        made = await edge.core.spaces.spaces.let_in(caller, owner, space, user, may_write=body.may_write)
        return collaborator_body(made)

    @app.delete("/v1/spaces/{owner}/{space}/collaborators/{user}", status_code=204)
    @terms(VOICES_WRITE)
    async def shut_out(caller: Caller, edge: TheEdge, owner: str, space: str, user: str) -> Response:
        """Let a user in no more."""
        await edge.core.spaces.spaces.shut_out(caller, owner, space, user)
        return Response(status_code=204)


def _model(model: Model) -> IndexedModel:
    return IndexedModel(
        handle=model.handle,
        version=model.version,
        requirements=Requirements(
            voice_duration=lasting(model.voice_ms_min),
            max_duration=lasting(model.audio_ms_max),
            min_sample_rate=model.sample_rate_hz_min,
        ),
    )

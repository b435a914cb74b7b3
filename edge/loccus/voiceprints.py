"""…/voiceprints: named for an identity, filled with audios, computed once."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from controlplane.scopes import VOICES_ERASE, VOICES_READ, VOICES_WRITE
from controlplane.space_voiceprint_rows import Path
from controlplane.space_voiceprints import NewVoiceprint
from edge.failures import FieldError, InvalidFields
from edge.loccus.bodies import BODY, Alias, Handle, VoiceprintBody, voiceprint_body
from edge.terms import Caller, TheEdge, tells_of, terms

PATH = "/v1/spaces/{owner}/{space}/voiceprints"
ONE = PATH + "/{identity}/{voiceprint}"


class NewVoiceprintBody(BaseModel):
    """A voiceprint to be made. model: "default/v1", or {"handle", "version"}."""

    model_config = BODY

    handle: Handle = None
    alias: Alias = None
    model: str | dict[str, str]
    identity: str
    min_audios: int | None = None


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post(PATH, status_code=201)
    @terms(VOICES_WRITE, idempotent=True)
    async def create(
        *, request: Request, caller: Caller, edge: TheEdge, owner: str, space: str, body: NewVoiceprintBody
    ) -> VoiceprintBody:
        """Make a voiceprint, of which nothing is computed yet."""
        made = await edge.core.spaces.voiceprints.create(caller, owner, space, new_voiceprint(body))
        tells_of(request, caller.tenant_id, made.identity.thing_id)
        return voiceprint_body(made)

    @app.post(ONE + ":compute")
    @terms(VOICES_WRITE, rate="loccus.listen")
    async def compute(
        *, caller: Caller, edge: TheEdge, owner: str, space: str, identity: str, voiceprint: str
    ) -> VoiceprintBody:
        """Compute a voiceprint: once, and it is frozen."""
        path = Path(owner, space, identity, voiceprint)
        return voiceprint_body(await edge.core.spaces.voiceprints.compute(caller, path))

    @app.get(ONE)
    @terms(VOICES_READ)
    async def get(
        *, caller: Caller, edge: TheEdge, owner: str, space: str, identity: str, voiceprint: str
    ) -> VoiceprintBody:
        """A voiceprint."""
        path = Path(owner, space, identity, voiceprint)
        return voiceprint_body(await edge.core.spaces.voiceprints.get(caller, path))

    @app.delete(ONE, status_code=204)
    @terms(VOICES_ERASE)
    async def delete(
        *, caller: Caller, edge: TheEdge, owner: str, space: str, identity: str, voiceprint: str
    ) -> Response:
        """Delete a voiceprint that was not computed; one that was goes with its identity."""
        await edge.core.spaces.voiceprints.delete(caller, Path(owner, space, identity, voiceprint))
        return Response(status_code=204)

    @app.post(ONE + "/audios/{audio}", status_code=201)
    @terms(VOICES_WRITE, rate="loccus.listen")
    async def add(
        *, caller: Caller, edge: TheEdge, owner: str, space: str, identity: str, voiceprint: str, audio: str
    ) -> VoiceprintBody:
        """Add an audio."""
        path = Path(owner, space, identity, voiceprint)
        return voiceprint_body(await edge.core.spaces.voiceprints.add(caller, path, audio))

    @app.delete(ONE + "/audios/{audio}")
    @terms(VOICES_WRITE)
    async def remove(
        *, caller: Caller, edge: TheEdge, owner: str, space: str, identity: str, voiceprint: str, audio: str
    ) -> VoiceprintBody:
        """Take an audio out of a voiceprint that is not computed."""
        path = Path(owner, space, identity, voiceprint)
        return voiceprint_body(await edge.core.spaces.voiceprints.remove(caller, path, audio))


def new_voiceprint(body: NewVoiceprintBody) -> NewVoiceprint:
    """What is asked for. Raises InvalidFields."""
    if isinstance(body.model, str):
        handle, _, version = body.model.partition("/")
    else:
        handle, version = body.model.get("handle", ""), body.model.get("version", "")
    if not handle or not version:
        raise InvalidFields(FieldError("model", 'write "default/v1", or {"handle": "default", "version": "v1"}'))
    min_audios = 1 if body.min_audios is None else body.min_audios
    return NewVoiceprint(body.identity, handle, version, body.handle or "", body.alias or "", min_audios)

"""…/audios: recordings in a space, sent as base64 with what is said of them, or raw afterwards."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError

from controlplane.intake import CLIP_BYTES_MAX
from controlplane.scopes import VOICES_READ, VOICES_WRITE
from controlplane.space_audios import NewAudio
from edge.failures import FieldError, InvalidFields
from edge.loccus.bodies import BODY, Alias, AudioBody, Handle, audio_body
from edge.loccus.lists import Listed, PageBody, page_body
from edge.terms import Caller, TheEdge, tells_of, terms

PATH = "/v1/spaces/{owner}/{space}/audios"
JSON_BYTES_MAX = CLIP_BYTES_MAX * 4 // 3 + (64 << 10)
RAW_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
}


class NewAudioBody(BaseModel):
    """An audio to be made. file: base64; absent: it is sent afterwards."""

    model_config = BODY

    handle: Handle = None
    alias: Alias = None
    file: str | None = None
    identity: str | None = None


def install(app: FastAPI) -> None:
    """Add the routes."""
    schema = NewAudioBody.model_json_schema()

    @app.post(
        PATH,
        status_code=201,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )
    @terms(VOICES_WRITE, rate="loccus.listen", body_bytes_max=JSON_BYTES_MAX, idempotent=True)
    async def create(request: Request, caller: Caller, edge: TheEdge, owner: str, space: str) -> AudioBody:
        """Make an audio, with its file or without."""
        # Read here and not by the framework: a recording in a body takes longer to parse than the loop may stand still.
        with edge.uploads.hold(_declared(request, JSON_BYTES_MAX), caller.tenant_id):
            new = await asyncio.to_thread(_new_audio, await request.body())
            made = await edge.core.spaces.audios.create(caller, owner, space, new)
            # Its key goes with it, and with the identity that it is of.
            tells_of(request, caller.tenant_id, made.audio_id)
            return audio_body(made)

    @app.post(PATH + "/{audio}/file", status_code=201, openapi_extra=RAW_BODY)
    @terms(VOICES_WRITE, rate="loccus.listen", body_bytes_max=CLIP_BYTES_MAX)
    async def upload(
        *, request: Request, caller: Caller, edge: TheEdge, owner: str, space: str, audio: str
    ) -> AudioBody:
        """The file of an audio that waits for it, as it is."""
        with edge.uploads.hold(_declared(request, CLIP_BYTES_MAX), caller.tenant_id):
            data = await request.body()
            return audio_body(await edge.core.spaces.audios.upload(caller, owner, space, audio, data))

    @app.get(PATH)
    @terms(VOICES_READ)
    async def listed(caller: Caller, edge: TheEdge, owner: str, space: str, listing: Listed) -> PageBody[AudioBody]:
        """A space's audios; search looks at handles."""
        return page_body(await edge.core.spaces.audios.listed(caller, owner, space, listing), listing, audio_body)

    @app.get(PATH + "/{audio}")
    @terms(VOICES_READ)
    async def get(caller: Caller, edge: TheEdge, owner: str, space: str, audio: str) -> AudioBody:
        """An audio."""
        return audio_body(await edge.core.spaces.audios.get(caller, owner, space, audio))

    @app.delete(PATH + "/{audio}", status_code=204)
    @terms(VOICES_WRITE)
    async def delete(caller: Caller, edge: TheEdge, owner: str, space: str, audio: str) -> Response:
        """Delete an audio; of one that a voiceprint holds, its file."""
        await edge.core.spaces.audios.delete(caller, owner, space, audio)
        return Response(status_code=204)


def _new_audio(raw: bytes) -> NewAudio:
    try:
        body = NewAudioBody.model_validate_json(raw or b"{}")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise InvalidFields(FieldError(".".join(str(part) for part in first["loc"]), first["msg"])) from None
    data = None
    if body.file is not None:
        try:
            data = base64.b64decode("".join(body.file.split()), validate=True)
        except (binascii.Error, ValueError):
            raise InvalidFields(FieldError("file", "it is no base64")) from None
    return NewAudio(body.handle or "", body.alias or "", body.identity, data)


def _declared(request: Request, most: int) -> int:
    said = request.headers.get("content-length", "")
    return min(int(said), most) if said.isdigit() and len(said) < 16 else most

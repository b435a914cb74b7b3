"""The media store: a url to put a recording to, one to get it from, and those urls themselves.

POST /v1/media/input and /v1/media/output are asked with a key; what they give carries its own right in itself, so that
the PUT and the GET that follow need, and take, no key.
"""

from __future__ import annotations

import re

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from controlplane.media_store import BYTES_MAX, MEDIA_PATH
from controlplane.scopes import JOBS_WRITE
from edge.pyannoteai.requests import MEDIA_SCHEME, MediaRequest
from edge.terms import Caller, TheEdge, edge_of, terms
from runtime.errors import InvalidRequest

_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]_]{1,255}")


class MediaPlace(BaseModel):
    """Where to put a recording, or to get it from; good for a limited time, and for nothing else."""

    url: str


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post("/v1/media/input", status_code=201)
    @terms(JOBS_WRITE)
    async def input_url(request: Request, caller: Caller, edge: TheEdge, body: MediaRequest) -> MediaPlace:
        """A url to PUT a recording to, for media://KEY; the same key may be put again."""
        key = body.url.removeprefix(MEDIA_SCHEME)
        return MediaPlace(url=(await edge.core.media.presign_put(caller, key, base_url=base_url(request))).url)

    @app.post("/v1/media/output", status_code=201)
    @terms(JOBS_WRITE)
    async def output_url(request: Request, caller: Caller, edge: TheEdge, body: MediaRequest) -> MediaPlace:
        """A url to GET a recording from."""
        key = body.url.removeprefix(MEDIA_SCHEME)
        return MediaPlace(url=(await edge.core.media.presign_get(caller, key, base_url=base_url(request))).url)

    @app.put(
        MEDIA_PATH + "{token}",
        status_code=200,
        response_class=Response,
        openapi_extra={
            "requestBody": {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}, "required": True}
        },
    )
    @terms(None, body_bytes_max=BYTES_MAX)
    async def put(request: Request, edge: TheEdge, token: str) -> Response:
        """Put a recording where a url of /v1/media/input says."""
        length = request.headers.get("content-length", "")
        await edge.core.media.put_signed(token, request.stream(), int(length) if length.isdigit() else None)
        return Response(status_code=200)

    @app.get(
        MEDIA_PATH + "{token}",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "The recording."}},
    )
    @terms(None)
    async def get(edge: TheEdge, token: str) -> Response:
        """Get the recording that a url of /v1/media/output says."""
        found = await edge.core.media.open_signed(token)
        headers = {"content-length": str(found.size_bytes), "cache-control": "no-store"}
        return StreamingResponse(found.chunks, media_type="application/octet-stream", headers=headers)


def base_url(request: Request) -> str:
    """Where the client reaches us, without a slash at the end."""
    public = edge_of(request).settings.public_url
    if public:
        return public.rstrip("/")
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise InvalidRequest("Host: names no host")
    return f"{request.url.scheme}://{host}"

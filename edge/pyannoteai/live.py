"""POST /v1/live, GET /v1/live/{id}, and the WebSocket that a session's url opens once.

In: frames of 32-bit float samples, little-endian, 16 kHz, one channel (100 ms each, any size is taken), and
{"type": "end_of_stream"}. Out: who begins to speak and who stops, as it becomes final; enrolled people by their name,
others as SPEAKER_00. An error is a frame {"type": "error", "message"} before the close.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.websockets import WebSocket

from controlplane.live_relay import RelayedStream, RelayEvent, StreamOptions
from controlplane.live_sessions import CANCELED, SUCCEEDED, Carrying, LiveSession
from controlplane.scopes import STREAMS_OPEN
from edge.dialect import Edge
from edge.live_socket import (
    BAD_DATA,
    FAULT,
    NORMAL,
    POLICY,
    TRY_LATER,
    Gone,
    LateText,
    LiveSocket,
    carry,
    fault,
    kind_of,
)
from edge.pyannoteai.jobs import READ, SUBMIT
from edge.pyannoteai.media import base_url
from edge.pyannoteai.outputs import instant
from edge.speaker_spans import Boundary, SpeakerSpans
from edge.terms import Caller, TheEdge, terms
from runtime.errors import Cause, InvalidRequest, SpeakerdError
from speakerd.v1 import common_pb2

LATENCY_MS = 1_000
OPTIONS = StreamOptions(encoding=common_pb2.ENCODING_PCM_F32LE, latency_ms=LATENCY_MS)
PATH = "/v1/live/{session_id}/stream"

_CODES = {
    Cause.INVALID: BAD_DATA,
    Cause.BAD_AUDIO: BAD_DATA,
    Cause.TOO_LARGE: BAD_DATA,
    Cause.UNSUPPORTED_MEDIA: BAD_DATA,
    Cause.UNAUTHENTICATED: POLICY,
    Cause.DENIED: POLICY,
    Cause.NOT_FOUND: POLICY,
    Cause.CONFLICT: POLICY,
    Cause.TIMEOUT: POLICY,
    Cause.OVERLOADED: TRY_LATER,
    Cause.UNAVAILABLE: TRY_LATER,
}


class LiveCreated(BaseModel):
    """A live session, and where to connect to it, once, within five minutes."""

    id: str
    url: str


class LiveState(BaseModel):
    """How a live session stands."""

    id: str
    status: Literal["created", "running", "succeeded", "failed", "canceled"]
    started_at: str | None = Field(None, serialization_alias="startedAt")
    completed_at: str | None = Field(None, serialization_alias="completedAt")


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post("/v1/live")
    @terms(STREAMS_OPEN, rate=SUBMIT)
    async def create(request: Request, caller: Caller, edge: TheEdge) -> LiveCreated:
        """Ask for a live session."""
        session, word = await edge.core.live_sessions.create(caller)
        where = base_url(request).replace("http", "ws", 1) + PATH.format(session_id=session.session_id)
        return LiveCreated(id=session.session_id, url=f"{where}?token={word}")

    @app.get("/v1/live/{session_id}")
    @terms(STREAMS_OPEN, rate=READ)
    async def read(session_id: str, caller: Caller, edge: TheEdge) -> LiveState:
        """How a live session stands."""
        return _state(await edge.core.live_sessions.get(caller, session_id))

    @app.websocket(PATH)
    async def connect(websocket: WebSocket, session_id: str) -> None:
        edge: Edge = websocket.app.state.edge
        await websocket.accept()
        socket = LiveSocket(websocket)
        try:
            async with edge.core.live_sessions.carry(session_id, websocket.query_params.get("token", "")) as carrying:
                await _carry(edge, socket, carrying)
            # Once it is written down how it ended, so that whoever asks after the close is told.
            await socket.close(NORMAL)
        except Gone:
            return
        except SpeakerdError as error:
            await _refuse(socket, str(error), _CODES.get(error.cause, FAULT))
        except Exception as error:  # noqa: BLE001 - whoever listens is told that it is over
            fault(error)
            await _refuse(socket, "internal error; the daemon's log has the details", FAULT)


async def _carry(edge: Edge, socket: LiveSocket, carrying: Carrying) -> None:
    try:
        async with await edge.core.live_relay.open(carrying.principal, OPTIONS) as stream:
            spans = SpeakerSpans()
            await carry(socket, stream, feed=partial(_sound, socket), tell=partial(_told, spans, stream))
    except Gone:
        carrying.end(CANCELED)
        raise
    carrying.end(SUCCEEDED)


async def _sound(socket: LiveSocket) -> AsyncIterator[bytes]:
    """The sound, to the end of the stream."""
    while True:
        frame = await socket.receive()
        if isinstance(frame, bytes):
            yield frame
        elif kind_of(frame) == "end_of_stream":
            return
        else:
            raise InvalidRequest('a text frame is {"type": "end_of_stream"}; sound comes in binary frames')


def _told(spans: SpeakerSpans, stream: RelayedStream, event: RelayEvent) -> Iterable[LateText]:
    for boundary in spans.take(event):
        yield partial(_frame, boundary, stream)


def _frame(boundary: Boundary, stream: RelayedStream) -> str:
    """A boundary as it leaves, with the name that may be said at this moment."""
    kind = "diarization_speaker_start" if boundary.is_start else "diarization_speaker_end"
    is_named = bool(boundary.voice_id) and stream.may_name(boundary.voice_id)
    speaker = boundary.label if is_named else anonymous(boundary.speaker)
    return json.dumps({"type": kind, "data": {"timestamp": boundary.at_ms / 1000, "speaker": speaker}})


def anonymous(speaker: str) -> str:
    """A stranger as this dialect calls one: SPEAKER_00."""
    number = speaker.rpartition("_")[2]
    return f"SPEAKER_{int(number):02d}" if number.isdigit() else "SPEAKER_00"


async def _refuse(socket: LiveSocket, message: str, code: int) -> None:
    said: dict[str, Any] = {"type": "error", "message": message}
    try:
        await socket.say(lambda: json.dumps(said))
    except Gone:
        return
    await socket.close(code)


def _state(session: LiveSession) -> LiveState:
    return LiveState.model_validate(
        {
            "id": session.session_id,
            "status": session.state,
            "started_at": None if session.started_at_s is None else instant(session.started_at_s),
            "completed_at": None if session.completed_at_s is None else instant(session.completed_at_s),
        }
    )

"""WS /stream/transcribe: sound in, deltas out, each with who spoke where that is known.

In: {"type": "open", …}, binary sound, {"type": "close"}. Out: ready, deltas, closed; an error is a frame with a code of
this dialect's, and but for a transcriber that fails once, the end. Backend A is ours: diarization, and the transcriber
if there is one. Backend B is the transcriber alone, which knows no speakers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field, ValidationError
from starlette.websockets import WebSocket

from controlplane.live_relay import RelayedStream, StreamOptions
from controlplane.policy import Principal
from controlplane.transcribers import Transcriber, Transcript
from edge.dialect import Edge
from edge.failures import FieldError, InvalidFields
from edge.live_socket import NORMAL, Gone, LiveSocket, first_error, kind_of
from edge.scaiecho.permissions import DIARIZE, TRANSCRIBE
from edge.scaiecho.stretches import Stretches
from edge.scaiecho.transcript import Delta, Stretch, TurnDeltas, WordDeltas
from edge.scaigrid.envelope import Renderer
from edge.scaigrid.frames import UNAUTHENTICATED, error_frame, refuse
from edge.scaigrid.sound import samples_of, sound_type
from edge.terms import authenticated
from runtime.errors import InvalidRequest, Overloaded, Unauthenticated, Unavailable
from runtime.pcm import FloatArray
from speakerd.v1 import common_pb2

LATENCY_MS = 1_000
OPTIONS = StreamOptions(encoding=common_pb2.ENCODING_PCM_F32LE, latency_ms=LATENCY_MS)
FAILURES_MAX = 3
"""A transcriber that failed so often one after another is away."""


class Opening(BaseModel):
    """The first frame."""

    type: Literal["open"]
    language_hint: str | None = Field(None, max_length=35)
    media_type: str | None = Field(None, max_length=100)
    sample_rate: int | None = None
    diarize: bool | None = None
    backend_preference: str | None = Field(None, max_length=16)
    chunk_seconds: float | None = Field(None, ge=1.0, le=30.0)


def install(app: FastAPI, path: str, render: Renderer) -> None:
    """Add the route."""

    @app.websocket(path)
    async def transcribe(websocket: WebSocket) -> None:
        edge: Edge = websocket.app.state.edge
        await websocket.accept()
        socket = LiveSocket(websocket)
        request_id: str = websocket.scope["state"]["request_id"]
        try:
            try:
                token = websocket.query_params.get("token")
                principal = await authenticated(edge, websocket, TRANSCRIBE, token=token)
            except Unauthenticated:
                await socket.close(UNAUTHENTICATED)
                return
            await _Transcribing(
                edge, socket, principal, await _opening(socket), partial(_told, render, request_id)
            ).run()
            await socket.close(NORMAL)
        except Gone:
            return
        except Exception as error:  # noqa: BLE001 - whoever listens is told that it is over
            await refuse(socket, _told(render, request_id, error), error)


class _Transcribing:
    """One stream."""

    def __init__(self, edge: Edge, socket: LiveSocket, principal: Principal, opening: Opening, said: Any) -> None:
        if opening.diarize:
            principal.require(DIARIZE)
        self._tenant_id = principal.tenant_id
        self._socket = socket
        self._said = said
        self._sound = sound_type(opening.media_type or "audio/wav", opening.sample_rate)
        self._transcriber = edge.core.transcriber
        # What is preferred and is not to be had is not insisted on.
        self._is_b = (opening.backend_preference or "").upper() == "B" and self._transcriber is not None
        self._shows_speakers = bool(opening.diarize) and not self._is_b
        self._language = (opening.language_hint or "").partition("-")[0]
        self._chunk_ms = round(1000 * (opening.chunk_seconds or 5.0))
        self._relay = partial(edge.core.live_relay.open, principal, OPTIONS)
        self._taken = partial(edge.core.live_relay.taken, principal)
        self._stream: RelayedStream | None = None
        self._stretches = Stretches(self._chunk_ms) if self._transcriber is not None else None
        self._turns = TurnDeltas(self._chunk_ms)
        self._words = WordDeltas(has_speakers=False)
        self._strangers: dict[str, int] = {}
        self._audio_bytes = 0
        self._failures = 0

    async def run(self) -> None:
        """Serve it to its end."""
        async with AsyncExitStack() as stack:
            # Without speakers to be shown, turns are needed where nothing else would be told.
            if self._shows_speakers or self._transcriber is None:
                await self._open_relay(stack)
            if self._stream is None:
                # No node hears it, and it is a stream all the same: it counts towards what is carried at once.
                await stack.enter_async_context(self._taken())
            self._words = WordDeltas(has_speakers=self._stream is not None)
            ready = {"type": "ready", "backend_used": "B" if self._is_b else "A"}
            await self._socket.say(lambda: json.dumps(ready))
            work = [self._feed(), self._hear_turns(), self._hear_words()]
            try:
                async with asyncio.TaskGroup() as tasks:
                    for one in work:
                        tasks.create_task(one, name="transcribe")
            except BaseExceptionGroup as group:
                raise first_error(group) from None
        closed = {"type": "closed", "audio_bytes": self._audio_bytes}
        await self._socket.say(lambda: json.dumps(closed))

    async def _open_relay(self, stack: AsyncExitStack) -> None:
        try:
            self._stream = await stack.enter_async_context(await self._relay())
        except (Unavailable, Overloaded):
            if self._transcriber is None:
                raise
            # Nobody is there to tell speakers apart: the words come without.

    async def _feed(self) -> None:
        async with aclosing(samples_of(self._sound, self._frames(), self._tenant_id)) as blocks:
            async for block in blocks:
                if self._stream is not None:
                    await self._stream.send(block.astype("<f4").tobytes())
                if self._stretches is not None:
                    await self._stretches.put(block)
        if self._stream is not None:
            await self._stream.finish()
        if self._stretches is not None:
            await self._stretches.end()

    async def _frames(self) -> AsyncIterator[bytes]:
        """The sound of the client's frames, to the end."""
        while True:
            frame = await self._socket.receive()
            if isinstance(frame, bytes):
                self._audio_bytes += len(frame)
                yield frame
            elif kind_of(frame) == "close":
                return
            else:
                raise InvalidRequest('a text frame after the first is {"type": "close"}; sound comes in binary frames')

    async def _hear_turns(self) -> None:
        if self._stream is None:
            return
        async for event in self._stream.events():
            await self._tell((self._turns if self._stretches is None else self._words).take(event))
        await self._tell(self._words.no_more_turns())

    async def _hear_words(self) -> None:
        if self._stretches is None or self._transcriber is None:
            return
        async for start_ms, samples in self._stretches:
            end_ms = start_ms + len(samples) // 16
            transcript = await self._transcribed(self._transcriber, samples)
            await self._tell(self._words.heard(Stretch(start_ms, end_ms, transcript)))

    async def _transcribed(self, transcriber: Transcriber, samples: FloatArray) -> Transcript:
        try:
            heard = await transcriber.transcribe(samples, language=self._language)
        except Unavailable as error:
            self._failures += 1
            if self._failures >= FAILURES_MAX:
                raise
            said = self._said(error)
            await self._socket.say(lambda: json.dumps(said))
            return Transcript("", ())
        self._failures = 0
        return heard

    async def _tell(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            await self._socket.say(partial(self._frame, delta))

    def _frame(self, delta: Delta) -> str:
        """A delta as it leaves, with the name that may be said at this moment."""
        said: dict[str, Any] = {
            "type": "delta",
            "text": delta.text,
            "is_final": True,
            "start": delta.start_ms / 1000,
            "end": delta.end_ms / 1000,
            "confidence": round(delta.confidence, 4),
        }
        by = delta.by
        if self._shows_speakers and by is not None and self._stream is not None:
            is_named = bool(by.voice_id) and self._stream.may_name(by.voice_id)
            said["speaker_label"] = by.label if is_named else self._stranger(by.speaker)
        return json.dumps(said, ensure_ascii=False)

    def _stranger(self, speaker: str) -> str:
        """Strangers are counted among themselves, as their deltas come: the first of them is spk_0."""
        return f"spk_{self._strangers.setdefault(speaker, len(self._strangers))}"


async def _opening(socket: LiveSocket) -> Opening:
    frame = await socket.receive()
    if isinstance(frame, bytes):
        raise InvalidRequest('the first frame is {"type": "open", …}; sound follows after `ready`')
    try:
        return Opening.model_validate_json(frame)
    except ValidationError as error:
        wrong = [FieldError(".".join(map(str, one["loc"])), str(one["msg"])) for one in error.errors()[:20]]
        raise InvalidFields(*wrong) from None


def _told(render: Renderer, request_id: str, error: Exception) -> dict[str, Any]:
    """An error as this stream tells it: by its code and a message alone."""
    frame = error_frame(render, request_id, error)
    return {name: frame[name] for name in ("type", "code", "message")}

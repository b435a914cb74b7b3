"""WS /voices/record: a voice cloned from what is recorded live, the reference first and then the consent.

In: {"type": "open", …} with the fields of POST /voices, then for each phase binary sound and {"type": "end_phase"}.
Out: {"type": "ready", "phase"}, after the reference {"type": "preflight", "passed", "preflight"}, and at the end
{"type": "voice", "data"} as POST /voices answers. What always holds: the checks are those of POST /voices, and nothing
is stored before all of them are passed; a reference that fails its preflight may be recorded anew, a few times.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket

from controlplane.agreements import Consent
from controlplane.intake import Clip
from controlplane.policy import Principal
from edge.dialect import Edge
from edge.live_socket import NORMAL, Gone, LiveSocket, kind_of
from edge.scaigrid.envelope import Renderer
from edge.scaigrid.forms import Fields
from edge.scaigrid.frames import UNAUTHENTICATED, error_frame, refuse
from edge.scaigrid.preflight import preflight_of
from edge.scaigrid.sound import SoundType, sound_type, whole_recording
from edge.scaispeak.cloning import REFERENCE_S_MAX, REFERENCE_S_MIN, Cloning, clone, reference_limits
from edge.scaispeak.permissions import WRITE
from edge.scaispeak.voice_body import cloned_body
from edge.scaispeak.voices import said_of
from edge.terms import authenticated
from edge.uploads import Form
from runtime.errors import InvalidRequest, TooLarge, Unauthenticated
from runtime.media import PreflightFailed

RECORDING_BYTES_MAX = 12 << 20
"""Of one phase: thirty seconds of the largest sound that anybody records, with room to spare."""
RECORDING_S_MAX = 300.0
ATTEMPTS_MAX = 5
REFERENCE, CONSENT = "reference", "consent"


class _Canceled(Exception):
    pass


def install(app: FastAPI, path: str, render: Renderer) -> None:
    """Add the route."""

    @app.websocket(path)
    async def record(websocket: WebSocket) -> None:
        edge: Edge = websocket.app.state.edge
        await websocket.accept()
        socket = LiveSocket(websocket)
        request_id: str = websocket.scope["state"]["request_id"]
        try:
            try:
                principal = await authenticated(edge, websocket, WRITE, token=websocket.query_params.get("token"))
            except Unauthenticated:
                await socket.close(UNAUTHENTICATED)
                return
            with edge.uploads.hold(2 * RECORDING_BYTES_MAX, principal.tenant_id):
                await _record(edge, socket, principal)
            await socket.close(NORMAL)
        except Gone:
            return
        except _Canceled:
            await _say(socket, {"type": "canceled"})
            await socket.close(NORMAL)
        except Exception as error:  # noqa: BLE001 - whoever records is told that it is over
            await refuse(socket, error_frame(render, request_id, error), error)


async def _record(edge: Edge, socket: LiveSocket, principal: Principal) -> None:
    said, sound = await _opening(socket)
    reference = await _reference(edge, socket, sound)
    await _say(socket, {"type": "ready", "phase": CONSENT, "consent_text": said.consent.text})
    consent = await _phase(socket, sound)
    enrolled = await clone(edge, principal, said, reference=reference, consent=consent)
    data = cloned_body(enrolled).model_dump(mode="json", exclude_unset=True)
    await _say(socket, {"type": "voice", "data": data})


async def _opening(socket: LiveSocket) -> tuple[Cloning, SoundType]:
    frame = await socket.receive()
    if isinstance(frame, bytes) or kind_of(frame) != "open":
        raise InvalidRequest('the first frame is {"type": "open", …}, with what is said of the voice')
    said: dict[str, Any] = {name: value for name, value in json.loads(frame).items() if value is not None}
    try:
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("a text of the frame holds half a character: an unpaired surrogate") from None
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}
    fields = Fields(Form(texts, {}))
    label, details = said_of(fields)
    consent = Consent(
        full_name=fields.required("consent_user_full_name"),
        purpose=fields.required("consent_stated_purpose"),
        text=fields.required("consent_text"),
    )
    fields.require_good()
    rate = said.get("sample_rate")
    sound = sound_type(texts.get("media_type", "audio/wav"), rate if isinstance(rate, int) else None)
    return Cloning(label, details, consent), sound


async def _reference(edge: Edge, socket: LiveSocket, sound: SoundType) -> Clip:
    """The reference, once one has passed its preflight. Raises PreflightFailed after the last attempt."""
    limits = reference_limits(edge.settings)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        ready = {"min_seconds": REFERENCE_S_MIN, "max_seconds": REFERENCE_S_MAX, "attempt": attempt}
        await _say(socket, {"type": "ready", "phase": REFERENCE, **ready})
        clip = await _phase(socket, sound)
        try:
            measured, passed = await edge.core.enrolment.check(clip, limits), True
        except PreflightFailed as error:
            if attempt == ATTEMPTS_MAX:
                raise
            measured, passed = error.preflight, False
        await _say(socket, {"type": "preflight", "passed": passed, "preflight": preflight_of(measured).model_dump()})
        if passed:
            return clip
    raise AssertionError("the last attempt passes, or raises")


async def _phase(socket: LiveSocket, sound: SoundType) -> Clip:
    """What is recorded until the phase ends."""
    recorded = bytearray()
    try:
        async with asyncio.timeout(RECORDING_S_MAX):
            while True:
                frame = await socket.receive()
                if isinstance(frame, bytes):
                    recorded += frame
                    if len(recorded) > RECORDING_BYTES_MAX:
                        raise TooLarge(f"a recording is at most {RECORDING_BYTES_MAX >> 20} MiB")
                elif kind_of(frame) == "end_phase":
                    return whole_recording(sound, bytes(recorded))
                elif kind_of(frame) == "cancel":
                    raise _Canceled
                else:
                    raise InvalidRequest('a text frame is {"type": "end_phase"} or {"type": "cancel"}')
    except TimeoutError:
        raise InvalidRequest(f"a phase takes at most {RECORDING_S_MAX:.0f} s") from None


async def _say(socket: LiveSocket, frame: dict[str, Any]) -> None:
    await socket.say(lambda: json.dumps(frame, ensure_ascii=False))

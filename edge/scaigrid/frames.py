"""What the WebSockets of these dialects say of an error, and how they close after it."""

from __future__ import annotations

import json
from typing import Any

from edge.failures import failure_of
from edge.live_socket import FAULT, POLICY, TRY_LATER, Gone, LiveSocket, fault
from edge.scaigrid.envelope import Renderer
from runtime.errors import Cause, SpeakerdError

UNAUTHENTICATED = 4401
FORBIDDEN = 4403

_CODES = {
    Cause.UNAUTHENTICATED: UNAUTHENTICATED,
    Cause.DENIED: FORBIDDEN,
    Cause.OVERLOADED: TRY_LATER,
    Cause.UNAVAILABLE: TRY_LATER,
    Cause.INTERNAL: FAULT,
}


def error_frame(render: Renderer, request_id: str, error: Exception) -> dict[str, Any]:
    """An error as a frame: its code and message as an HTTP answer would have them, and what that adds to them."""
    return {"type": "error", **render(failure_of(error, request_id))[1]["error"]}


async def refuse(socket: LiveSocket, frame: dict[str, Any], error: Exception) -> None:
    """Tell of an error, and close."""
    code = FAULT
    if isinstance(error, SpeakerdError):
        code = _CODES.get(error.cause, POLICY)
    else:
        fault(error)
    try:
        await socket.say(lambda: json.dumps(frame))
    except Gone:
        return
    await socket.close(code)

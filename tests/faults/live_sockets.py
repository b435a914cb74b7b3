"""Live sessions over a WebSocket, as a client of the pyannoteAI dialect holds them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import websockets

FRAME_BYTES = 6_400
"""100 ms of 32-bit floats at 16 kHz."""


@dataclass
class Heard:
    """What one session said, and when."""

    events: list[tuple[str, float, str]] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    code: int | None = None

    def take(self, text: str | bytes) -> None:
        said = json.loads(text)
        if said["type"] == "error":
            self.errors.append(said["message"])
            return
        kind = said["type"].removeprefix("diarization_speaker_")
        assert kind in ("start", "end"), said
        assert set(said) == {"type", "data"} and set(said["data"]) == {"timestamp", "speaker"}, said
        self.events.append((kind, said["data"]["timestamp"], said["data"]["speaker"]))
        self.at_s.append(time.monotonic())

    @property
    def speakers(self) -> set[str]:
        return {speaker for _, _, speaker in self.events}

    def said_after(self, at_s: float) -> set[str]:
        return {speaker for (_, _, speaker), said_s in zip(self.events, self.at_s, strict=True) if said_s > at_s}

    def require_in_order(self) -> None:
        """Each speaker begins before stopping, and has stopped before beginning again; time does not go back."""
        speaking: dict[str, float] = {}
        for kind, at_s, speaker in self.events:
            if kind == "start":
                assert speaker not in speaking, (speaker, at_s)
                speaking[speaker] = at_s
            else:
                assert at_s >= speaking.pop(speaker), (speaker, at_s)
        assert not speaking, speaking

    def spans(self) -> list[tuple[float, float, str]]:
        began: dict[str, float] = {}
        found = []
        for kind, at_s, speaker in self.events:
            if kind == "start":
                began[speaker] = at_s
            else:
                found.append((began.pop(speaker), at_s, speaker))
        return sorted(found)


async def ask(http: httpx.AsyncClient) -> tuple[str, str]:
    """A session's id and url."""
    answer = await http.post("/v1/live")
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert set(said) == {"id", "url"}
    return said["id"], said["url"]


async def live(
    url: str,
    sound: np.ndarray,
    *,
    pace: float = 1.0,
    heard: Heard | None = None,
    until: asyncio.Event | None = None,
) -> Heard:
    """Stream (N,) float32 at `pace` times real time (0: as fast as it is taken), and end the stream well."""
    heard = Heard() if heard is None else heard
    data = sound.astype("<f4").tobytes()
    async with websockets.connect(url, max_size=1 << 20, ping_interval=None) as socket:

        async def send() -> None:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            for number, at in enumerate(range(0, len(data), FRAME_BYTES)):
                if until is not None and until.is_set():
                    break
                if pace:
                    await asyncio.sleep(began_s + number * 0.1 / pace - loop.time())
                await socket.send(data[at : at + FRAME_BYTES])
            await socket.send(json.dumps({"type": "end_of_stream"}))

        sending = asyncio.create_task(send())
        try:
            with contextlib.suppress(websockets.ConnectionClosedError):
                async for text in socket:
                    heard.take(text)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        heard.code = socket.close_code
    return heard

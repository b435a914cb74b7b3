"""WS /stream/transcribe, frame by frame: real daemons, a real endpoint of OpenAI's dialect, and sound that says who."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import wave
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import uvicorn
import websockets
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from speakerd.channel import credentials, open_channel
from speakerd.client import Client
from speakerd.v1 import admin_pb2, admin_pb2_grpc
from tests.edge.conftest import Serving
from tests.faults.conftest import daemons
from tests.faults.processes import Daemon, Processes, node_arguments, plane_arguments, tones, until, voice
from tests.faults.test_continuity import wav

__all__ = ["daemons"]  # a fixture

PATH = "/v1/modules/scaiecho/stream/transcribe"
RATE = 16_000
NAMED, GUEST = 0, 5


@dataclass
class Endpoint:
    """POST /v1/audio/transcriptions as OpenAI answers it, by a listener who knows people by the pitch of their hum."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    failures: int = 0

    def application(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/audio/transcriptions")
        async def transcribe(request: Request) -> JSONResponse:
            async with request.form() as form:
                upload = form["file"]
                assert not isinstance(upload, str)
                content = await upload.read()
                fields = {name: form.getlist(name) for name in form if name != "file"}
            self.asked.append({**fields, "authorization": request.headers.get("authorization")})
            if self.failures:
                self.failures -= 1
                return JSONResponse({"error": {"message": "busy"}}, status_code=503)
            return JSONResponse(_verbose(content))

        return app


def _verbose(content: bytes) -> dict[str, Any]:
    """A word each half second in which somebody hums: "w0" of the first person, "w5" of the sixth."""
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    words = []
    for at in range(0, len(samples) - RATE // 4, RATE // 2):
        piece = samples[at : at + RATE // 2]
        if np.sqrt(np.mean(piece**2)) < 0.02:
            continue
        spectrum = np.abs(np.fft.rfft(piece))
        heard = {n: spectrum[round(voice(n)[0] * len(piece) / RATE)] for n in (NAMED, GUEST)}
        word = f"w{max(heard, key=lambda n: heard[n])}"
        words.append({"word": word, "start": at / RATE, "end": (at + len(piece)) / RATE})
    return {
        "task": "transcribe",
        "language": "english",
        "duration": len(samples) / RATE,
        "text": " ".join(one["word"] for one in words),
        "words": words,
        "segments": [{"id": 0, "start": 0.0, "end": len(samples) / RATE, "text": "", "avg_logprob": -0.105}],
    }


@asynccontextmanager
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    server = uvicorn.Server(uvicorn.Config(made.application(), port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield made
    finally:
        server.should_exit = True
        await serving


@dataclass
class Fleet:
    plane: Daemon
    key: str
    http: httpx.AsyncClient

    @property
    def ws(self) -> str:
        return self.plane.ready["http"].replace("http", "ws", 1) + PATH

    async def make_key(self, *scopes: str) -> str:
        async with open_channel(self.plane.grpc) as channel:
            made = await admin_pb2_grpc.AdminStub(channel).CreateKey(
                admin_pb2.CreateKeyRequest(tenant_id="default", scopes=scopes), metadata=credentials(self.key)
            )
        return str(made.secret)


@asynccontextmanager
async def fleet(daemons: Processes, *flags: str) -> AsyncIterator[Fleet]:
    data = daemons.folder / "data"
    plane = await daemons.start("plane", *plane_arguments(data, "127.0.0.1:0", *flags))
    await daemons.start("n", *node_arguments("n", plane.grpc, data))
    key = (data / "admin.key").read_text().strip()
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=plane.ready["http"], headers=headers, timeout=60) as http:
        async with Client(plane.grpc, key) as client:
            await client.enroll("Ada", [wav(tones(4, *voice(NAMED)))])
        yield Fleet(plane, key, http)


@dataclass
class Said:
    frames: list[dict[str, Any]]
    code: int | None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]


async def transcribe(
    url: str, sound: bytes, *, token: str | None = None, size: int = 8_000, close: bool = True, **opening: Any
) -> Said:
    """One stream from its opening to its end. token None: none is shown in the header."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    frames: list[dict[str, Any]] = []
    async with websockets.connect(url, additional_headers=headers, ping_interval=None) as socket:
        with contextlib.suppress(websockets.ConnectionClosed):
            await socket.send(json.dumps({"type": "open", **opening}))
            frames.append(json.loads(await socket.recv()))
            for at in range(0, len(sound), size):
                await socket.send(sound[at : at + size])
            if close:
                await socket.send(json.dumps({"type": "close"}))
            async for text in socket:
                frames.append(json.loads(text))
        await socket.wait_closed()
        return Said(frames, socket.close_code)


def conversation() -> np.ndarray:
    """Ada for six seconds, a guest for six, Ada again."""
    return np.concatenate([tones(6, *voice(number)) for number in (NAMED, GUEST, NAMED)])


def l16(samples: np.ndarray, order: str = "<i2") -> bytes:
    return (samples * 32767).astype(order).tobytes()


def speaker_at(deltas: list[dict[str, Any]], at_s: float) -> set[str]:
    return {delta.get("speaker_label", "nobody") for delta in deltas if delta["start"] <= at_s < delta["end"]}


async def test_without_a_transcriber_deltas_carry_turns_and_names_and_no_text(daemons: Processes) -> None:
    async with fleet(daemons) as made:
        sound = wav(conversation())
        said = await transcribe(
            made.ws, sound, token=made.key, media_type="audio/wav", diarize=True, language_hint="en",
            sample_rate=None, backend_preference=None, chunk_seconds=2,
        )  # fmt: skip
        assert said.frames[0] == {"type": "ready", "backend_used": "A"}
        assert said.frames[-1] == {"type": "closed", "audio_bytes": len(sound)} and said.code == 1000
        deltas = said.of("delta")
        assert len(deltas) + 2 == len(said.frames)
        for delta in deltas:
            assert set(delta) == {"type", "text", "is_final", "start", "end", "confidence", "speaker_label"}
            assert (delta["text"], delta["is_final"]) == ("", True) and 0 <= delta["confidence"] <= 1
            assert 0 < delta["end"] - delta["start"] <= 2.5
        assert {delta["speaker_label"] for delta in deltas} <= {"Ada", "spk_0", "spk_1"}
        # A guest is spk_N, and who is enrolled is named, once enough was heard.
        assert speaker_at(deltas, 10.3) & {"spk_0", "spk_1"} and speaker_at(deltas, 16.3) == {"Ada"}

        # Raw samples, either way round, and a key in the query; a header that tells no length, as of a live recorder.
        for sent, media_type in (
            (l16(conversation()), "audio/L16;rate=16000;channels=1"),
            (l16(conversation(), ">i2"), "audio/L16; rate=16000; channels=1"),
            (l16(conversation(), ">i2"), "audio/L16;rate=16000;endianness=big-endian"),
            (sound[:4] + b"\xff\xff\xff\xff" + sound[8:40] + b"\xff\xff\xff\xff" + sound[44:], "audio/x-wav"),
        ):
            again = await transcribe(f"{made.ws}?token={made.key}", sent, media_type=media_type, diarize=True,
                                     size=4_801, chunk_seconds=2)  # fmt: skip
            assert again.code == 1000, again.frames[-1]
            assert speaker_at(again.of("delta"), 16.3) == {"Ada"}, media_type

        # Who does not ask for speakers is not told of any.
        quiet = await transcribe(made.ws, sound, token=made.key, media_type="audio/wav")
        assert quiet.of("delta") and not any("speaker_label" in delta for delta in quiet.of("delta"))

        await _refused(made)
        logged = (daemons.folder / "plane.log").read_text()
        assert made.key not in logged and "Ada" not in logged


async def _refused(made: Fleet) -> None:
    async def first_frame(token: str | None, *frames: str | bytes, url: str = "") -> tuple[Any, int | None]:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        async with websockets.connect(url or made.ws, additional_headers=headers) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                for frame in frames:
                    await socket.send(frame)
            said = None
            with contextlib.suppress(websockets.ConnectionClosed):
                said = json.loads(await socket.recv())
                while True:
                    await socket.recv()
            await socket.wait_closed()
            return said, socket.close_code

    opening = json.dumps({"type": "open", "media_type": "audio/wav", "diarize": True})
    for token, url in ((None, ""), ("sk_wrong_key", ""), (None, f"{made.ws}?token=sk_wrong_key")):
        assert await first_frame(token, opening, url=url) == (None, 4401)
    for scopes, code in (
        (["scaiecho:enroll"], "AUTHZ_PERMISSION_DENIED"),
        (["scaiecho:transcribe"], "AUTHZ_PERMISSION_DENIED"),
    ):
        said, closed = await first_frame(await made.make_key(*scopes), opening)
        assert (said["type"], said["code"], closed) == ("error", code, 4403)
    may = await made.make_key("scaiecho:transcribe", "scaiecho:diarize")
    assert (await transcribe(made.ws, wav(tones(2, 300.0)), token=may, diarize=True)).code == 1000
    for frames in (
        [b"\0\0"],
        ["no json"],
        ['{"type": "close"}'],
        [json.dumps({"type": "open", "media_type": "video/mp4"})],
        [json.dumps({"type": "open", "media_type": "audio/L16;rate=1"})],
        [json.dumps({"type": "open", "chunk_seconds": 0})],
        [json.dumps({"type": "open", "diarize": "perhaps"})],
    ):
        said, closed = await first_frame(made.key, *frames)
        assert (said["type"], said["code"], closed) == ("error", "VALIDATION_ERROR", 1008), frames
        assert set(said) == {"type", "code", "message"} and said["message"]
    # Sound that is none, after a good beginning.
    said = await transcribe(made.ws, b"this is no sound" * 1000, token=made.key, media_type="audio/wav")
    assert said.frames[0]["type"] == "ready" and said.frames[-1]["code"] == "VALIDATION_ERROR" and said.code == 1008


async def test_words_go_to_whoever_speaks_and_backend_b_knows_no_speakers(daemons: Processes) -> None:
    config = daemons.folder / "speakerd.toml"
    async with endpoint() as listener, AsyncExitStack() as stack:
        config.write_text(f'[controlplane]\ntranscriber_url = "{listener.url}"\n')
        made = await stack.enter_async_context(fleet(daemons, "--config", str(config)))
        sound = wav(conversation())
        said = await transcribe(
            made.ws, sound, token=made.key, media_type="audio/wav", diarize=True, language_hint="en-GB",
            chunk_seconds=5, backend_preference="A",
        )  # fmt: skip
        assert said.frames[0]["backend_used"] == "A" and said.code == 1000, said.frames[-1]
        deltas = said.of("delta")
        words = [(word, delta) for delta in deltas for word in delta["text"].split()]
        assert {word for word, _ in words} == {"w0", "w5"}
        assert [delta["start"] for delta in deltas] == sorted(delta["start"] for delta in deltas)
        # Once Ada is known, and a moment after each change of speakers, each word is its speaker's.
        settled = [
            (word, delta["speaker_label"])
            for word, delta in words
            if any(from_s < delta["start"] < from_s + 4 for from_s in (8.0, 14.0))
        ]
        assert {label for word, label in settled if word == "w0"} == {"Ada"}
        assert {label for word, label in settled if word == "w5"} in ({"spk_0"}, {"spk_1"})
        assert {delta["confidence"] for delta in deltas} == {0.9003}
        first = listener.asked[0]
        assert (first["language"], first["response_format"]) == (["en"], ["verbose_json"])
        assert first["timestamp_granularities[]"] == ["word", "segment"] and first["authorization"] is None

        relayed = await transcribe(
            made.ws, sound, token=made.key, media_type="audio/wav", diarize=True, backend_preference="B"
        )
        assert relayed.frames[0]["backend_used"] == "B" and relayed.of("delta")
        assert not any("speaker_label" in delta for delta in relayed.of("delta"))

        # It fails once: an error is told, and the stream goes on. It fails for good: that is the end.
        listener.failures = 1
        hiccup = await transcribe(made.ws, sound, token=made.key, diarize=True, chunk_seconds=5)
        assert [frame["code"] for frame in hiccup.of("error")] == ["SCAIECHO_BACKEND_UNAVAILABLE"]
        assert hiccup.of("delta") and hiccup.code == 1000
        listener.failures = 100
        lost = await transcribe(made.ws, sound, token=made.key, diarize=True, chunk_seconds=2)
        assert [frame["code"] for frame in lost.of("error")] == ["SCAIECHO_BACKEND_UNAVAILABLE"] * 3
        assert lost.code == 1013
        listener.failures = 0


async def test_with_neither_a_node_nor_a_transcriber_it_says_that_the_backend_is_away(serving: Serving) -> None:
    served = await serving()
    url = served.url.replace("http", "ws", 1) + PATH
    said = await transcribe(url, b"", token=served.admin_key, media_type="audio/wav", diarize=True)
    assert (said.frames[-1]["code"], said.code) == ("SCAIECHO_BACKEND_UNAVAILABLE", 1013)


async def test_without_a_node_words_come_without_speakers(serving: Serving) -> None:
    async with endpoint() as listener:
        served = await serving(transcriber_url=listener.url)
        url = served.url.replace("http", "ws", 1) + PATH
        alone = await transcribe(url, wav(conversation()), token=served.admin_key, media_type="audio/wav", diarize=True)
        assert alone.code == 1000, alone.frames[-1]
        assert {word for delta in alone.of("delta") for word in delta["text"].split()} == {"w0", "w5"}
        assert not any("speaker_label" in delta for delta in alone.of("delta"))


async def test_a_stream_that_no_node_hears_counts_as_one_that_is_carried(serving: Serving) -> None:
    async with endpoint() as listener:
        served = await serving(transcriber_url=listener.url, relay_streams_max=0)
        url = served.url.replace("http", "ws", 1) + PATH
        said = await transcribe(url, b"", token=served.admin_key, media_type="audio/wav")
        assert (said.frames[-1]["code"], said.code) == ("RATE_LIMITED", 1013)

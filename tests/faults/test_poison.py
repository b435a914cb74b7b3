"""F16: poison audio at every door at once, among good streams: refused with what to mend, and felt by nobody."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import struct
import time
import wave
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
import websockets

from speakerd.client import Client, FileOptions, StreamOptions
from speakerd.errors import SpeakerdError
from speakerd.v1 import common_pb2
from tests.controlplane.test_hostile_media import CORPUS, FORMAT, PCM, chunked, riff, silent_flac
from tests.edge.pyannoteai_calls import ended
from tests.edge.scai import CONSENT, ECHO, SPEAK, SPEAKER, SPOKEN
from tests.edge.spaces import did
from tests.faults.altered import LONG_LEASES, start_altered
from tests.faults.figures import Figures
from tests.faults.processes import Daemon, Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.ready_voices import enrol
from tests.faults.streaming import Told, stream
from tests.faults.test_continuity import wav

RSS_GROWTH_MAX = 200 << 20
SECONDS_MAX = 20.0
PATIENCE = 6.0
"""A machine that is shared among test runs takes so many times as long."""
LIMITS = (
    "pyannoteai.submit",
    "pyannoteai.read",
    "scaiecho.enroll",
    "scaispeak.clone",
    "scryon.upload",
    "loccus.listen",
)


def many_channels() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(64)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(64 * 2 * 16_000))
    return buffer.getvalue()


def floats(value: float) -> bytes:
    samples = tones(4, *voice(3))
    samples[20_000:20_100] = value
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def rate_of(rate_hz: int) -> bytes:
    header = struct.pack("<HHIIHH", 1, 1, rate_hz, (2 * rate_hz) & 0xFFFFFFFF, 2, 16)
    return riff(chunked(b"fmt ", 16, header), chunked(b"data", len(PCM), PCM))


POISON: dict[str, Callable[[], bytes]] = {
    "bomb": CORPUS["10,000 s of silence in a few bytes"],
    "ten hours": lambda: silent_flac(36_000),
    "not a number": lambda: floats(float("nan")),
    "infinity": lambda: floats(float("inf")),
    "playlist": CORPUS["a playlist"],
    "list of files": CORPUS["a list of files"],
    "truncated": lambda: wav(tones(10, *voice(3)))[:1_000],
    "nothing": lambda: b"",
    "64 channels": many_channels,
    "a header that lies": CORPUS["data that claims four gigabytes"],
    "a format without bits": lambda: riff(FORMAT[:-2] + b"\0\0", chunked(b"data", len(PCM), PCM)),
    "silence": lambda: wav(np.zeros(6 * 16_000, np.float32)),
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(4_000),
    "text": lambda: b"Das ist kein Ton. " * 500,
    "a rate of four gigahertz": lambda: rate_of(4_000_000_000),
    "noise": CORPUS["noise"],
}
HEARD_AS_IT_IS = {
    # Containers cut short, lying about their length, or long and silent become what is in them where turns are all that
    # is wanted; an enrolment refuses them.
    "diarize": {"bomb", "ten hours", "silence", "truncated", "64 channels", "a header that lies"},
    "job": {"bomb", "ten hours", "silence", "truncated", "64 channels", "a header that lies"},
    "stream": {"bomb", "ten hours", "silence", "truncated", "64 channels", "a header that lies"},
    "scaiecho socket": {"bomb", "ten hours", "silence", "truncated", "64 channels", "a header that lies"},
    # Milliseconds of sound behind a header that claims gigabytes, as of a stream whose length nobody knew. An audio of
    # a space is any sound; a voiceprint refuses it as too short.
    "loccus": {"a header that lies"},
}
HEARD_FOR_LONG = {"ten hours"}
"""No poison where it is heard, but minutes of work: who sent it may give up, and nobody else may notice."""
WORKED_THROUGH_MAX = 2 * 10 * (15 << 20)
"""What a node holds of two such recordings (diarize, job) until their end: some 11 MiB for each hour of each."""

Door = Callable[[bytes], Awaitable[str]]
"""Sends a recording; what was wrong with it, or "" when it was taken."""


class Doors:
    """Every way by which sound comes in."""

    def __init__(self, plane: Daemon, client: Client, http: httpx.AsyncClient, key: str) -> None:
        self._client = client
        self._http = http
        self._key = key
        self._ws = plane.ready["http"].replace("http://", "ws://")
        self._number = 0

    def all(self) -> dict[str, Door]:
        return {
            "enrol": self._enrol,
            "diarize": self._diarize,
            "stream": self._stream,
            "job": self._job,
            "scaiecho": lambda data: self._form(f"{ECHO}/speakers", data),
            "scaispeak": lambda data: self._form(f"{SPEAK}/voices", data),
            "scryon": self._profile,
            "loccus": self._audio,
            "live socket": self._live,
            "scaiecho socket": self._transcribe,
            "scaispeak socket": self._record,
        }

    async def prepare(self) -> None:
        await did(self._http, "/v1/spaces/default", {"handle": "calls"})
        await did(self._http, "/v1/spaces/default/calls/identities", {"handle": "ada", "alias": "Ada"})

    async def _enrol(self, data: bytes) -> str:
        return await said(lambda: self._client.enroll("Poisoned", [data]))

    async def _diarize(self, data: bytes) -> str:
        return await said(lambda: self._client.diarize_file(data, FileOptions()))

    async def _stream(self, data: bytes) -> str:
        options = StreamOptions(encoding=common_pb2.ENCODING_CONTAINER)
        return await said(lambda: stream(self._client, data, options, pace=0))

    async def _job(self, data: bytes) -> str:
        self._number += 1
        url = f"media://poison/{self._number}"
        place = (await self._http.post("/v1/media/input", json={"url": url})).json()["url"]
        put = await self._http.put(place, content=data)
        if not put.is_success:
            return refusal(put)
        answer = await self._http.post("/v1/diarize", json={"url": url})
        if answer.status_code >= 400:
            return refusal(answer)
        found = await ended(self._http, answer.json()["jobId"])
        return "" if found["status"] == "succeeded" else str(found["output"]["error"])

    async def _form(self, path: str, data: bytes) -> str:
        files = {"reference": ("r.wav", data, "audio/wav"), "consent": ("c.wav", SPOKEN, "audio/wav")}
        return refusal(await self._http.post(path, data=SPEAKER, files=files))

    async def _profile(self, data: bytes) -> str:
        files = {"file": ("me.wav", data, "audio/wav")}
        return refusal(await self._http.post("/api/users/me/voice-profile", files=files))

    async def _audio(self, data: bytes) -> str:
        body = {"file": base64.b64encode(data).decode(), "identity": "ada"}
        return refusal(await self._http.post("/v1/spaces/default/calls/audios", json=body))

    async def _live(self, data: bytes) -> str:
        made = (await self._http.post("/v1/live")).json()
        return await self._frames(
            made["url"], [data[at : at + 6_400] for at in range(0, min(len(data), 1 << 20), 6_400)]
        )

    async def _transcribe(self, data: bytes) -> str:
        opening = json.dumps({"type": "open", "media_type": "audio/wav", "diarize": True})
        parts = [data[at : at + 64_000] for at in range(0, len(data), 64_000)]
        return await self._frames(
            f"{self._ws}{ECHO}/stream/transcribe", [opening, *parts, json.dumps({"type": "close"})]
        )

    async def _record(self, data: bytes) -> str:
        opening = json.dumps({"type": "open", "display_name": "P", "language_primary": "en", **CONSENT})
        frames: list[str | bytes] = [opening, *pieces(data), json.dumps({"type": "end_phase"})]
        return await self._frames(f"{self._ws}{SPEAK}/voices/record", frames)

    async def _frames(self, url: str, frames: Sequence[str | bytes]) -> str:
        """Send all, and listen until it is over or an error was told; that error."""
        headers = {"authorization": f"Bearer {self._key}"}
        told: list[str] = []
        async with websockets.connect(url, additional_headers=headers, ping_interval=None) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                for frame in frames:
                    await socket.send(frame)
                if "/live" in url:
                    await socket.send(json.dumps({"type": "end_of_stream"}))
                async with asyncio.timeout(SECONDS_MAX * PATIENCE):
                    async for text in socket:
                        if said_error(str(text)):
                            told.append(str(text))
                            break
            await socket.close()
            await socket.wait_closed()
            assert socket.close_code != 1011, (url, told, socket.close_reason)
        return told[0] if told else ""


def pieces(data: bytes, size: int = 64_000) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def said_error(text: str) -> bool:
    frame = json.loads(text)
    return frame.get("type") == "error" or frame.get("passed") is False


async def said(call: Callable[[], Awaitable[object]]) -> str:
    """What a call was refused with. Where no node answers for a moment on a busy machine, it is asked again."""
    async with asyncio.timeout(SECONDS_MAX * PATIENCE):
        while True:
            try:
                await call()
            except SpeakerdError as error:
                if error.cause in ("unavailable", "overloaded"):
                    await asyncio.sleep(error.retry_after_s or 1.0)
                    continue
                assert error.cause != "internal", error.message
                return error.message
            return ""


def refusal(answer: httpx.Response) -> str:
    assert answer.status_code < 500, (answer.status_code, answer.text)
    return answer.text if answer.status_code >= 400 else ""


def memory(daemons: Processes) -> int:
    """Resident memory of the daemons. What decodes is a child of theirs, with bounds of its own."""
    return sum(psutil.Process(one.process.pid).memory_info().rss for one in daemons.daemons)


async def poisoned(daemons: Processes, folder: Path, figures: Figures, corpus: list[str]) -> None:
    data = folder / "data"
    limits = {"SPEAKERD_HTTP_RATE_LIMITS": json.dumps(dict.fromkeys(LIMITS, 100_000))}
    profiles = {"SPEAKERD_SCRYON_VOICE_EMBEDDING_ENABLED": "true"}
    plane = await start_altered(daemons, "plane", *plane_arguments(data), env={**limits, **profiles, **LONG_LEASES})
    await daemons.start("node", *node_arguments("node", plane.grpc, data))
    key = (data / "admin.key").read_text().strip()
    async with (
        Client(plane.grpc, key) as client,
        httpx.AsyncClient(
            base_url=plane.ready["http"], headers={"authorization": f"Bearer {key}"}, timeout=SECONDS_MAX * PATIENCE
        ) as http,
    ):
        await enrol(client, "Ada", 0)
        doors = Doors(plane, client, http, key)
        await doors.prepare()
        sound = pcm(tones(600, *voice(0)))
        told, done = Told(), asyncio.Event()
        running = asyncio.create_task(stream(client, sound, told=told, until=done))
        await until(lambda: told.turns, 60)
        before, most, slowest = memory(daemons), 0, (0.0, "")
        wrong = []
        for what in corpus:
            poison = POISON[what]()

            async def send(name: str, door: Door, poison: bytes = poison, what: str = what) -> None:
                nonlocal slowest
                began_s = time.monotonic()
                try:
                    answer = await asyncio.wait_for(door(poison), SECONDS_MAX * PATIENCE)
                except TimeoutError as error:
                    if what not in HEARD_FOR_LONG & HEARD_AS_IT_IS.get(name, set()):
                        wrong.append(f"{name} failed on {what}: {error!r}")
                    return
                except Exception as error:
                    wrong.append(f"{name} failed on {what}: {error!r}")
                    return
                slowest = max(slowest, (time.monotonic() - began_s, f"{name}: {what}"))
                if not answer and name != "live socket" and what not in HEARD_AS_IT_IS.get(name, set()):
                    wrong.append(f"{name} took {what}")
                if answer and (len(answer) < 15 or "passwd" in answer or "Traceback" in answer):
                    wrong.append(f"{name} said of {what}: {answer}")

            async with asyncio.TaskGroup() as tasks:
                for name, door in doors.all().items():
                    tasks.create_task(send(name, door))
            most = max(most, memory(daemons) - before)
        assert not wrong, wrong
        allowed = RSS_GROWTH_MAX + (WORKED_THROUGH_MAX if HEARD_FOR_LONG & set(corpus) else 0)
        assert most < allowed, most >> 20
        figures.record(
            f"{len(corpus)} recordings at {len(doors.all())} doors at once: daemons grew by", most >> 20, "MB"
        )
        figures.record(f"slowest answer ({slowest[1]})", slowest[0])
        done.set()
        await running
        told.require_in_order()
        assert not told.resumed and not told.degraded and {turn.label for turn in told.turns} == {"Ada"}
        figures.record("good streams that felt it", 0, "")
        for daemon in daemons.daemons:
            assert daemon.process.returncode is None


@pytest.mark.fault("F16", "P14", "P7")
async def test_poison_at_every_door_is_refused_and_harms_no_stream(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    await poisoned(daemons, tmp_path, figures, ["not a number", "nothing", "text", "64 channels", "playlist"])


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.fault("F16", "P14", "P7")
async def test_every_poison_at_every_door_is_refused_and_harms_no_stream(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    await poisoned(daemons, tmp_path, figures, list(POISON))

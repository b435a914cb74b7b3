"""Who uses the fleet during a soak: people streaming, hanging up, vanishing, enrolling and being erased; jobs, sockets.

In: a fleet. Out: what happened, counted, and every promise that was broken, in words. What always holds: a name is
looked for after its erasure was proven in everything that anybody is told; an error counts against the fleet unless it
is a refusal that says so, or came while a daemon was away and the same call succeeded when it was made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import random
import time
import wave
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

import httpx
import numpy as np
import websockets

from benchmarks.fleet import RATE_HZ, chord
from benchmarks.soak_fleet import Member, SoakFleet
from speakerd.client import Client, Event, LiveStream, Resumed, SpeakerdError, StreamOptions
from speakerd.timeline import SpeechTimeline
from speakerd.v1 import common_pb2, node_pb2, people_pb2

T = TypeVar("T")

LATENCY_MS = 2_000
CHUNK_MS = 100
CHUNK_BYTES = CHUNK_MS * RATE_HZ // 1000 * 2
VOICE_S = 6.0
GRACE_S = 1.0
"""What was sent before an erasure was proven may still be on its way to us for so long."""
SETTLED_S = 4.0
"""A voice that was enrolled so long ago is expected to be named on every node."""
TRIES = 60
KINDS = ("well", "vanish", "stall", "mute")
"""How streams go: to their end, left in the middle, silent for a while, silent for good."""
FIRST_TURN_MS = 3_500
OVERLAP_MS = 600
REFUSALS = ("overloaded",)


class GivenUp(Exception):
    """It was written down, and there is nothing more to do about it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Who speaks when in a talk, milliseconds."""

    start_ms: int
    end_ms: int
    person: int


@dataclass(slots=True)
class Enrolled:
    """Somebody who may be named."""

    person: int
    label: str
    voice_id: str
    since_s: float
    leaving: bool = False


@dataclass(slots=True)
class Record:
    """What happened. errors and broken: each in words; both have to stay empty."""

    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    in_restarts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    restart_lags_s: list[float] = field(default_factory=list)
    away_s: list[float] = field(default_factory=list)
    proven_s: list[float] = field(default_factory=list)
    enrolled_s: list[float] = field(default_factory=list)
    running: int = 0


@lru_cache(maxsize=64)
def voice_of(person: int) -> bytes:
    """Somebody's voice, as the null engine tells people apart."""
    return chord(VOICE_S, person)


def talk_of(people: Sequence[int], seconds: float, seed: int) -> tuple[bytes, list[Segment]]:
    """People talking in turns of two to four seconds."""
    chooser = random.Random(seed)
    sound, segments, at_ms, number = bytearray(), list[Segment](), 0, 0
    while at_ms < seconds * 1000:
        length_ms = 500 * chooser.randint(4, 8)
        person = people[number % len(people)]
        sound += voice_of(person)[: length_ms * RATE_HZ // 1000 * 2]
        segments.append(Segment(at_ms, at_ms + length_ms, person))
        at_ms, number = at_ms + length_ms, number + 1
    return bytes(sound), segments


def wav(sound: bytes) -> bytes:
    """16-bit sound as a file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(sound)
    return buffer.getvalue()


class Churn:
    """Everybody who uses the fleet."""

    def __init__(
        self,
        fleet: SoakFleet,
        record: Record,
        *,
        seed: int,
        enrolled_max: int,
        hook_url: str,
        told: dict[str, str],
    ) -> None:
        """enrolled_max: people beyond so many are erased. told: job -> status, as the receiver of webhooks heard it."""
        self.fleet = fleet
        self.record = record
        self.over = asyncio.Event()
        self.weights = (0.7, 0.12, 0.12, 0.06)
        self.enrolled: dict[int, Enrolled] = {}
        self.erased_s: dict[str, float] = {}
        self.jobs: dict[str, float] = {}
        self._random = random.Random(seed)
        self._enrolled_max = enrolled_max
        self._hook_url = hook_url
        self._told = told
        self._person = 0
        self._stranger = 1_000_000
        self._asked = 0

    def __repr__(self) -> str:
        return f"Churn({self.record.done!r})"

    async def ask(self, what: str, call: Callable[[Client], Awaitable[T]]) -> T:
        """Make a call of one control plane or the other, until it is answered. Raises GivenUp."""
        for _ in range(TRIES):
            self._asked += 1
            plane = self.fleet.planes[self._asked % len(self.fleet.planes)]
            began_s = time.monotonic()
            try:
                async with self.client(plane) as client:
                    return await call(client)
            except SpeakerdError as error:
                await self._note(what, error, began_s)
        self.record.errors.append(f"{what}: not answered in {TRIES} tries")
        raise GivenUp

    async def _note(self, what: str, error: SpeakerdError, began_s: float) -> None:
        if error.cause in REFUSALS or error.retry_after_s is not None:
            self.record.refused[f"{what}: {error.cause}"] += 1
            await asyncio.sleep(error.retry_after_s or 1.0)
        elif self.fleet.was_away(began_s, time.monotonic()):
            self.record.in_restarts[f"{what}: {error.cause}"] += 1
            await asyncio.sleep(0.5)
        else:
            self.record.errors.append(f"{what}: {error.cause}: {error.message}")
            raise GivenUp

    def client(self, plane: Member) -> Client:
        """A new client of a control plane."""
        return Client(plane.ready["grpc"], self.fleet.token)

    def stranger(self) -> int:
        """Somebody whom nobody knows."""
        self._stranger += 1
        return self._stranger

    def anybody(self) -> Enrolled | None:
        """Somebody enrolled whom every node has had the time to hear of, and who stays for now."""
        now_s = time.monotonic()
        there = [one for one in self.enrolled.values() if not one.leaving and now_s - one.since_s > SETTLED_S]
        return self._random.choice(there) if there else None

    def hear(self, label: str, where: str) -> None:
        """A label was told to somebody."""
        erased_s = self.erased_s.get(label)
        if erased_s is not None and time.monotonic() - erased_s > GRACE_S:
            age_s = time.monotonic() - erased_s
            self.record.broken.append(f"{where}: {label} named {age_s:.2f} s after the erasure was proven")

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the soak is over."""
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return

    async def forever(self, work: Callable[[], Awaitable[None]], every_s: tuple[float, float]) -> None:
        """Do it again and again until the soak is over, with pauses of random length."""
        while not self.over.is_set():
            with contextlib.suppress(GivenUp):
                await work()
            await self.pause(self._random.uniform(*every_s))

    async def talk(self) -> None:
        """One live stream: most end well, some vanish, some stop sending and are cut."""
        seconds = self._random.uniform(12.0, 40.0)
        kind = self._random.choices(KINDS, self.weights)[0]
        known = self.anybody()
        people = [self.stranger(), *([known.person] if known else [self.stranger()])]
        sound, segments = talk_of(people, seconds, self._random.randrange(1 << 30))
        options = StreamOptions(latency_ms=LATENCY_MS, resume_s=0.0 if kind == "mute" else 60.0)
        stream = _Heard(self, segments, steady=kind == "well")
        client: Client | None = None
        for number in range(TRIES):
            client = self.client(self.fleet.planes[(self._asked + number) % 2])
            began_s = time.monotonic()
            try:
                live = await client.open_stream(options)
                break
            except SpeakerdError as error:
                await client.close()
                await self._note("open_stream", error, began_s)
        else:
            self.record.errors.append("open_stream: not placed")
            return
        self._asked += 1
        self.record.running += 1
        try:
            await self._carry(live, sound, kind, seconds, stream)
        finally:
            self.record.running -= 1
            await live.close()
            await client.close()
        if kind == "well" and stream.closed is not None:
            known_throughout = known is not None and known.label not in self.erased_s and not known.leaving
            stream.require_whole(known.label if known and known_throughout else None, people[1])
            self.record.done["streams"] += 1

    async def _carry(self, live: LiveStream, sound: bytes, kind: str, seconds: float, stream: _Heard) -> None:
        sending = asyncio.create_task(self._send(live, sound, kind, seconds, stream))
        try:
            async with asyncio.timeout(seconds + 120.0):
                if kind == "vanish":
                    reading = asyncio.create_task(stream.read(live))
                    await asyncio.wait({sending}, timeout=seconds * self._random.uniform(0.2, 0.8))
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                    self.record.done["vanished"] += 1
                    return
                await stream.read(live)
                await sending
        except TimeoutError:
            self.record.errors.append(f"stream ({kind}): hung")
        except SpeakerdError as error:
            if kind == "mute" and error.cause == "timeout":
                self.record.done["mute streams cut"] += 1
            elif kind == "mute" and self.fleet.was_away(stream.began_s, time.monotonic()):
                self.record.in_restarts["mute stream"] += 1
            else:
                self.record.errors.append(f"stream ({kind}): {error.cause}: {error.message}")
        else:
            if kind == "mute":
                self.record.errors.append("stream (mute): ended without being cut")
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, live: LiveStream, sound: bytes, kind: str, seconds: float, stream: _Heard) -> None:
        stream.began_s = time.monotonic()
        stalls_at = len(sound) // CHUNK_BYTES // 2
        held_s = 0.0
        for number in range(len(sound) // CHUNK_BYTES):
            if kind == "mute" and number == 40:
                return
            if kind == "stall" and number == stalls_at:
                held_s = 4.0
            if (wait_s := stream.began_s + held_s + (number + 1) * CHUNK_MS / 1000 - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            await live.send(sound[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])
        stream.finishing = True
        await live.finish()

    async def enrol(self) -> None:
        """Enrol somebody; when there are many, erase the one who was enrolled first, and wait for the proof."""
        self._person += 1
        person, label = self._person, f"P{self._person}"
        key = f"soak-{person}"
        consent = people_pb2.Consent(full_name=f"Person {person}", purpose="soak", text="I agree")
        began_s = time.monotonic()
        clip = wav(voice_of(person)[: 4 * RATE_HZ * 2])
        answer = await self.ask(
            "enrol", lambda client: client.enroll(label, [clip], consent=consent, idempotency_key=key)
        )
        self.record.enrolled_s.append(time.monotonic() - began_s)
        self.enrolled[person] = Enrolled(person, label, answer.voice.voice_id, time.monotonic())
        self.record.done["enrolled"] += 1
        staying = [one for one in self.enrolled.values() if not one.leaving]
        if len(staying) > self._enrolled_max:
            await self.erase(staying[0])

    async def erase(self, one: Enrolled) -> None:
        """Erase somebody, and wait for the proof."""
        one.leaving = True
        began_s = time.monotonic()
        erasure = await self.ask("erase", lambda client: client.erase(one.voice_id, wait_s=20.0))
        while erasure.state != people_pb2.Erasure.STATE_ERASED:
            if time.monotonic() - began_s > 60.0:
                self.record.broken.append(f"{one.label}: not proven erased within 60 s")
                raise GivenUp
            await asyncio.sleep(0.2)
            audit_id = erasure.audit_id
            erasure = await self.ask("erasure", partial(_erasure, audit_id))
        self.erased_s[one.label] = time.monotonic()
        self.record.proven_s.append(time.monotonic() - began_s)
        del self.enrolled[one.person]
        self.record.done["erased"] += 1

    async def over_http(
        self, what: str, call: Callable[[httpx.AsyncClient], Awaitable[T]], plane: Member | None = None
    ) -> T:
        """The same as `ask`, in the pyannoteAI dialect. plane: that one alone, once."""
        for _ in range(TRIES):
            self._asked += 1
            there = plane or self.fleet.planes[self._asked % len(self.fleet.planes)]
            began_s = time.monotonic()
            headers = {"authorization": f"Bearer {self.fleet.token}"}
            try:
                async with httpx.AsyncClient(base_url=there.ready["http"], headers=headers, timeout=30) as http:
                    return await call(http)
            except (httpx.HTTPError, OSError, websockets.WebSocketException) as error:
                cause = type(error).__name__
                if isinstance(error, httpx.HTTPStatusError):
                    cause = str(error.response.status_code)
                if cause in ("429",):
                    self.record.refused[f"{what}: {cause}"] += 1
                elif self.fleet.was_away(began_s, time.monotonic()):
                    self.record.in_restarts[f"{what}: {cause}"] += 1
                else:
                    self.record.errors.append(f"{what}: {cause}: {str(error)[:200]}")
                    raise GivenUp from None
                if plane is not None:
                    raise GivenUp from None
                await asyncio.sleep(0.5)
        self.record.errors.append(f"{what}: not answered in {TRIES} tries")
        raise GivenUp

    async def job(self) -> None:
        """A recording that is uploaded, diarized and told of by a webhook."""
        known = self.anybody()
        people = [self.stranger(), *([known.person] if known else [self.stranger()])]
        sound, _ = talk_of(people, 12.0, self._random.randrange(1 << 30))
        url = f"media://soak/{self._random.randrange(1 << 40)}.wav"
        identify = self._random.random() < 0.5
        fields = {"matching": {"speakers": "*", "threshold": 50}} if identify else {}
        key = f"job-{self._random.randrange(1 << 40)}"

        async def put(http: httpx.AsyncClient) -> None:
            granted = (await http.post("/v1/media/input", json={"url": url})).raise_for_status().json()
            (await http.put(granted["url"], content=wav(sound))).raise_for_status()

        async def submit(http: httpx.AsyncClient) -> str:
            kind = "identify" if identify else "diarize"
            body = {"url": url, "webhook": self._hook_url, "webhookStatusOnly": True, **fields}
            answer = await http.post(f"/v1/{kind}", json=body, headers={"idempotency-key": key})
            return str(answer.raise_for_status().json()["jobId"])

        await self.over_http("upload", put)
        job_id = await self.over_http("submit", submit)
        self.jobs[job_id] = time.monotonic()
        began_s = time.monotonic()
        while time.monotonic() - began_s < 120.0:
            said = await self.over_http("job", lambda http: _json(http.get(f"/v1/jobs/{job_id}")))
            if said["status"] in ("succeeded", "failed", "canceled"):
                break
            await asyncio.sleep(1.0)
        if said["status"] != "succeeded":
            self.record.broken.append(f"job: {said['status']} after {time.monotonic() - began_s:.0f} s")
            return
        turns = said["output"].get("identification") or said["output"]["diarization"]
        speakers = {turn.get("match") or turn["speaker"] for turn in turns}
        for label in speakers:
            self.hear(label, "job")
        if len(speakers) != 2:
            self.record.broken.append(f"job: {len(speakers)} speakers heard of 2")
        self.record.done["jobs"] += 1

    async def socket(self) -> None:
        """A live session over a WebSocket."""
        known = self.anybody()
        people = [self.stranger(), *([known.person] if known else [self.stranger()])]
        seconds = self._random.uniform(8.0, 20.0)
        sound, _ = talk_of(people, seconds, self._random.randrange(1 << 30))
        self._asked += 1
        plane = self.fleet.planes[self._asked % 2]
        vanishes = self._random.random() < 0.2

        async def session(http: httpx.AsyncClient) -> None:
            url = (await _json(http.post("/v1/live")))["url"]
            async with websockets.connect(url, max_size=1 << 20, ping_interval=None) as socket:
                if vanishes:
                    await _send_floats(socket, sound, vanishes=True)
                    self.record.done["sockets left"] += 1
                    return
                sending = asyncio.create_task(_send_floats(socket, sound, vanishes=False))
                try:
                    async for text in socket:
                        said = json.loads(text)
                        if said["type"] == "error":
                            raise websockets.ProtocolError(said["message"])
                        self.hear(said["data"]["speaker"], "websocket")
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
            if socket.close_code != 1000:
                raise websockets.ProtocolError(f"closed as {socket.close_code}")
            self.record.done["sockets"] += 1

        await self.over_http("socket", session, plane)

    def require_webhooks(self, within_s: float = 30.0) -> None:
        """Every job that ended long enough ago was told of."""
        missing = [
            job_id
            for job_id, asked_s in self.jobs.items()
            if job_id not in self._told and time.monotonic() - asked_s > within_s
        ]
        if missing:
            self.record.broken.append(f"{len(missing)} webhooks never came")
        self.record.done["webhooks"] = len(self._told)


class _Heard:
    """What one stream was told."""

    def __init__(self, churn: Churn, segments: Sequence[Segment], *, steady: bool) -> None:
        self._churn = churn
        self._segments = segments
        self._steady = steady
        self._timeline = SpeechTimeline()
        self._sequence = 0
        self.began_s = time.monotonic()
        self._was_nameless = False
        self._resumed: list[tuple[str, float]] = []
        self.finishing = False
        self.closed: node_pb2.StreamClosed | None = None

    def __repr__(self) -> str:
        return f"_Heard({self._timeline!r})"

    async def read(self, live: LiveStream) -> None:
        """Take everything that it tells."""
        async for event in live:
            self._take(event)

    def _take(self, event: Event) -> None:
        record = self._churn.record
        self._timeline.take(event)
        match event:
            case node_pb2.Turns():
                for turn in event.turns:
                    self._churn.hear(turn.label, "stream")
                    if turn.state == common_pb2.Turn.STATE_FINAL:
                        if turn.sequence != self._sequence + 1:
                            record.broken.append(f"stream: turn {turn.sequence} after {self._sequence}")
                        self._sequence = turn.sequence
                self._time(event.final_ms)
            case node_pb2.Relabel():
                self._churn.hear(event.label, "stream")
            case Resumed():
                record.away_s.append(event.away_s)
                record.done["resumed"] += 1
                self._resumed.append((event.node_id, round(event.away_s, 2)))
            case node_pb2.Degraded():
                # A node whose lease ran out names nobody until it holds one: its control plane was away for too long.
                self._was_nameless = True
                record.done["degraded" if event.active else "degraded no more"] += 1
            case node_pb2.StreamClosed():
                self.closed = event
                for speaker in event.speakers:
                    self._churn.hear(speaker.label, "stream")

    def _time(self, final_ms: int) -> None:
        if not self._steady or self.finishing or not final_ms:
            return
        now_s = time.monotonic()
        chunks = math.ceil((final_ms + LATENCY_MS) / CHUNK_MS)
        lag_s = now_s - self.began_s - chunks * CHUNK_MS / 1000
        away = self._churn.fleet.was_away(now_s, now_s)
        (self._churn.record.restart_lags_s if away else self._churn.record.lags_s).append(lag_s)

    def require_whole(self, label: str | None, person: int) -> None:
        """No turn is missing, and each person kept one label, which is the name of who is enrolled."""
        record = self._churn.record
        assert self.closed is not None
        if self.closed.num_final_turns != self._sequence:
            record.broken.append(f"stream: {self._sequence} turns told of {self.closed.num_final_turns}")
        if self.closed.skipped_windows:
            record.done["skipped windows"] += self.closed.skipped_windows
            return  # the machine stalled, and what it left out was counted
        if self._was_nameless:
            return
        told = [(turn.start_ms, turn.end_ms, turn.label) for turn in self._timeline.turns()]
        talk = [(segment.start_ms, segment.end_ms, segment.person) for segment in self._segments]
        wrong = wrong_labels(told, talk, {person: label}, excused=person if label is None else None)
        if wrong is not None:
            story = {"told": told, "talk": talk, "resumed": self._resumed}
            record.broken.append(f"stream: {wrong}: {json.dumps(story)}")


def wrong_labels(
    told: Sequence[tuple[int, int, str]],
    talk: Sequence[tuple[int, int, int]],
    expected: Mapping[int, str | None],
    *,
    excused: int | None = None,
) -> str | None:
    """What is wrong with the labels that a stream ended with; None: nothing.

    told: turns, as (start, end, label), milliseconds. talk: who spoke when. expected: the names of who is enrolled.
    excused: somebody whose label may change, for the voice was erased meanwhile. Until somebody has spoken for
    FIRST_TURN_MS at a stretch, and as they begin to, they may be taken for whoever spoke before: what is final by then
    was not enough to tell a new voice by.
    """
    labels: dict[int, set[str]] = {}
    heard: set[int] = set()
    for start_ms, end_ms, who in talk:
        if who not in heard:
            if end_ms - start_ms >= FIRST_TURN_MS:
                heard.add(who)
            continue
        said = {label for began, ended, label in told if min(ended, end_ms) - max(began, start_ms) > OVERLAP_MS}
        labels.setdefault(who, set()).update(said)
    for who, said in labels.items():
        name = expected.get(who)
        if len(said) > 1 and who != excused:
            return f"one person was called {sorted(said)}"
        if name is not None and said and said != {name}:
            return f"{name} was called {sorted(said)}"
    return None


async def _erasure(audit_id: str, client: Client) -> people_pb2.Erasure:
    return await client.erasure(audit_id)


async def _json(call: Awaitable[httpx.Response]) -> dict[str, Any]:
    said: dict[str, Any] = (await call).raise_for_status().json()
    return said


async def _send_floats(socket: websockets.ClientConnection, sound: bytes, *, vanishes: bool) -> None:
    data = (np.frombuffer(sound, "<i2").astype("<f4") / 32768).tobytes()
    size, began_s = 2 * CHUNK_BYTES, time.monotonic()
    for number in range(len(data) // size):
        if vanishes and number > 50:
            return
        await asyncio.sleep(max(0.0, began_s + (number + 1) * CHUNK_MS / 1000 - time.monotonic()))
        await socket.send(data[number * size : (number + 1) * size])
    await socket.send(json.dumps({"type": "end_of_stream"}))

"""F17, F18, F24: clients who are slow, mute, or too many; and everybody else, who must not notice."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from grpc import aio

from speakerd.client import Client, SpeakerdError, StreamOptions
from speakerd.v1 import node_pb2, node_pb2_grpc, streams_pb2, streams_pb2_grpc
from tests.faults.figures import Figures
from tests.faults.live_sockets import ask, live
from tests.faults.processes import Daemon, Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.streaming import Told, stream
from tests.faults.test_stalls import is_closed, opened

OPTIONS = StreamOptions(latency_ms=1_000)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MIB = 1 << 20


@dataclass
class Served:
    """A control plane and a node, and a client of theirs."""

    plane: Daemon
    node: Daemon
    key: str
    client: Client

    @property
    def http_address(self) -> str:
        return self.plane.ready["http"].removeprefix("http://")

    def http(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.plane.ready["http"], headers=headers, timeout=60)


@asynccontextmanager
async def served(daemons: Processes, *flags: str, config: str = "", streams_max: int = 64) -> AsyncIterator[Served]:
    data = daemons.folder / "data"
    file = daemons.folder / "speakerd.toml"
    file.write_text(config)
    plane = await daemons.start("plane", *plane_arguments(data), "--config", str(file))
    arguments = node_arguments("n1", plane.grpc, data, "--streams-max", str(streams_max), "--late-s", "0", *flags)
    node = await daemons.start("n1", *arguments)
    key = (data / "admin.key").read_text().strip()
    async with Client(plane.grpc, key) as client:
        yield Served(plane, node, key, client)


def rss_mib(daemon: Daemon) -> float:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Deaf:
    """A client that sends a recording and reads nothing."""

    def __init__(self, place: streams_pb2.PlaceStreamResponse, sound: bytes, *, pause_s: float = 0.0) -> None:
        self._channel = aio.insecure_channel(place.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.call = node_pb2_grpc.NodeStub(self._channel).Diarize()
        self._place = place
        self._sound = sound
        self._pause_s = pause_s
        self.sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        opening = node_pb2.StreamOpen(
            ticket=self._place.ticket, stream_id=self._place.stream_id, provisional=True, latency_ms=5_000
        )
        try:
            await self.call.write(node_pb2.DiarizeRequest(open=opening))
            for at in range(0, len(self._sound), 16_000 if not self._pause_s else 1):
                piece = self._sound[at : at + (16_000 if not self._pause_s else 1)]
                await self.call.write(node_pb2.DiarizeRequest(audio=piece))
                await asyncio.sleep(self._pause_s)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return  # it was cut

    async def close(self) -> None:
        self.sending.cancel()
        self.call.cancel()
        await asyncio.gather(self.sending, return_exceptions=True)
        await self._channel.close()


async def place(made: Served, stream_id: str) -> streams_pb2.PlaceStreamResponse:
    async with aio.insecure_channel(made.plane.grpc) as channel:
        return await streams_pb2_grpc.StreamsStub(channel).PlaceStream(
            streams_pb2.PlaceStreamRequest(stream_id=stream_id),
            metadata=(("authorization", f"Bearer {made.key}"),),
            timeout=30,
        )


@pytest.mark.deep
@pytest.mark.fault("F17", "P7")
async def test_clients_that_read_nothing_cost_little_and_nobody_else_notices(
    daemons: Processes, figures: Figures
) -> None:
    async with served(daemons) as made:
        done, told = asyncio.Event(), [Told() for _ in range(6)]
        sounds = [pcm(tones(60, *voice(number))) for number in range(6)]
        async with asyncio.TaskGroup() as tasks:
            for sound, one in zip(sounds, told, strict=True):
                tasks.create_task(stream(made.client, sound, OPTIONS, told=one, until=done))
            await until(lambda: all(one.final_ms >= 2_000 for one in told), 60)
            before_mib = rss_mib(made.node)
            places = [await place(made, f"deaf-{number}") for number in range(4)]
            deaf = [Deaf(place, pcm(tones(90, *voice(8)))) for place in places]
            await asyncio.sleep(6)
            each_mib = (rss_mib(made.node) - before_mib) / len(deaf)
            at_ms = min(one.final_ms for one in told)
            await until(lambda: min(one.final_ms for one in told) > at_ms + 2_000, 60)
            done.set()
        for one in deaf:
            await one.close()
        figures.record("memory a client that reads nothing", round(max(0.0, each_mib), 1), "MiB")
        assert each_mib <= 5.0
        for one in told:
            one.require_in_order()
            assert not one.resumed and one.closed is not None and not one.closed.skipped_windows
        undisturbed = await stream(made.client, sounds[0][: told[0].sent], OPTIONS, pace=0)
        assert told[0].whole() == undisturbed.whole()


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.fault("F17", "P7")
async def test_a_byte_a_second_is_cut_and_of_a_hundred_streams_none_is_later_for_slow_clients(
    daemons: Processes, figures: Figures
) -> None:
    async with served(daemons, streams_max=128) as made, AsyncExitStack() as stack:
        done, told, lags_s = asyncio.Event(), [Told() for _ in range(97)], list[float]()
        sound = pcm(np.tile(tones(10, *voice(1)), 12))
        async with asyncio.TaskGroup() as tasks:
            for number, one in enumerate(told):
                began_s: list[float] = []

                def note(_: object, one: Told = one, began_s: list[float] = began_s) -> None:
                    began_s = began_s or [time.monotonic()]
                    heard_s = one.sent / 32_000
                    lags_s.append(heard_s - one.final_ms / 1000 if one.final_ms else 0.0)

                tasks.create_task(stream(made.client, sound, OPTIONS, told=one, until=done, on_event=note))
                await asyncio.sleep(0.02 * (number % 2))
            await until(lambda: all(one.final_ms >= 4_000 for one in told), 120)
            lags_s.clear()
            await asyncio.sleep(15)
            alone = float(np.percentile(lags_s, 99))
            slow = [Deaf(await place(made, f"d{number}"), pcm(tones(90, *voice(8)))) for number in range(2)]
            trickle = Deaf(await place(made, "trickle"), b"\0" * 600, pause_s=1.0)
            for one in (*slow, trickle):
                stack.push_async_callback(one.close)
            lags_s.clear()
            began_at_s = time.monotonic()
            await asyncio.sleep(15)
            beside = float(np.percentile(lags_s, 99))
            async with asyncio.timeout(120):
                # It reads nothing, so that its own end of the call may not know why it was cut; the node does.
                await trickle.call.code()
            cut = [line for line in made.node.log.read_text().splitlines() if "trickle" in line and "ended" in line]
            assert len(cut) == 1 and '"reason": "timeout"' in cut[0], cut
            figures.record("a byte a second cut after", round(time.monotonic() - began_at_s, 1))
            done.set()
        figures.record("p99 of the others' lag alone", round(alone, 2))
        figures.record("p99 of the others' lag beside slow clients", round(beside, 2))
        for one in told:
            one.require_in_order()


@pytest.mark.fault("F18", "P7", "P8")
async def test_sockets_that_never_finish_a_word_are_closed_at_every_door_and_streams_are_served(
    daemons: Processes, figures: Figures
) -> None:
    async with served(daemons) as made:
        doors = {
            "node": (made.node.grpc, (b"", PREFACE)),
            "control plane": (made.plane.grpc, (b"", PREFACE)),
            "http": (made.http_address, (b"", b"GET /v1/test HTTP/1.1\r\nHost: here\r\n", b"POST /v1/live HT")),
        }
        mute: list[socket.socket] = []
        for address, words in doors.values():
            for said in words:
                mute += await asyncio.to_thread(opened, address, 60, "127.0.0.2", said)
        try:
            began_s = time.monotonic()
            told = await stream(made.client, pcm(tones(4, *voice(0))), OPTIONS, pace=0)
            figures.record("a stream opened, heard and closed meanwhile in", round(time.monotonic() - began_s, 1))
            told.require_in_order()
            async with made.http() as http:
                assert (await http.get("/v1/test")).status_code == 200
            await until(lambda: all(map(is_closed, mute)), 90)
            figures.record("all 420 closed after", round(time.monotonic() - began_s, 1))
        finally:
            for one in mute:
                one.close()


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.fault("F18", "P7", "P8")
async def test_nine_thousand_connections_delay_no_new_stream(daemons: Processes, figures: Figures) -> None:
    async with served(daemons) as made:
        for name, address, daemon in (
            ("node", made.node.grpc, made.node),
            ("http", made.http_address, made.plane),
        ):
            before_mib = rss_mib(daemon)
            crowd: list[socket.socket] = []
            for number in range(9):
                crowd += await asyncio.to_thread(opened, address, 1_000, f"127.0.1.{number + 2}")
            try:
                began_s = time.monotonic()
                told = await stream(made.client, pcm(tones(2, *voice(0))), OPTIONS, pace=0)
                told.require_in_order()
                figures.record(f"{name}: a stream with 9,000 connections open in", round(time.monotonic() - began_s, 2))
                async with made.http() as http:
                    began_s = time.monotonic()
                    answer = await http.get("/health/ready")
                    figures.record(f"{name}: GET /health/ready in", round(time.monotonic() - began_s, 2))
                    assert answer.status_code == 200
                figures.record(f"{name}: memory", round(rss_mib(daemon) - before_mib, 1), "MiB")
                await until(lambda crowd=crowd: all(map(is_closed, crowd)), 120, every_s=1.0)  # type: ignore[misc]
                figures.record(f"{name}: all closed after", round(time.monotonic() - began_s, 1))
            finally:
                for one in crowd:
                    one.close()
        # From one address alone, no more than a thousand stay.
        crowd = await asyncio.to_thread(opened, made.node.grpc, 3_000, "127.0.2.2")
        try:
            await until(lambda: sum(map(is_closed, crowd)) >= 2_000, 60)
            told = await stream(made.client, pcm(tones(2, *voice(0))), OPTIONS, pace=0)
            told.require_in_order()
        finally:
            for one in crowd:
                one.close()


@pytest.mark.fault("F24", "P8")
async def test_of_twice_as_many_streams_half_are_refused_at_once_and_the_others_are_on_time(
    daemons: Processes, figures: Figures
) -> None:
    config = '[controlplane]\nrelay_streams_max = 4\nhttp_rate_limits = { "pyannoteai.submit" = 13 }\n'
    async with served(daemons, streams_max=12, config=config) as made:
        done, told = asyncio.Event(), [Told() for _ in range(12)]
        sounds = [pcm(tones(60, *voice(number))) for number in range(12)]
        refusals: list[tuple[float, SpeakerdError]] = []

        async def too_many() -> None:
            began_s = time.monotonic()
            try:
                live = await made.client.open_stream(OPTIONS)
            except SpeakerdError as error:
                refusals.append((time.monotonic() - began_s, error))
            else:
                await live.close()

        async with asyncio.TaskGroup() as tasks:
            for sound, one in zip(sounds, told, strict=True):
                tasks.create_task(admitted(made.client, sound, one, done))
            await until(lambda: all(one.nodes for one in told), 60)
            for _ in range(3):
                await asyncio.gather(*(too_many() for _ in range(12)))
            assert len(refusals) == 36
            assert {error.cause for _, error in refusals} == {"overloaded"}
            assert all(error.retry_after_s for _, error in refusals)
            at_ms = min(one.final_ms for one in told)
            await until(lambda: min(one.final_ms for one in told) > at_ms + 3_000, 60)
            done.set()
        figures.record("refused within (p50)", round(float(np.median([s for s, _ in refusals])), 3))
        for one in told:
            one.require_in_order()
            assert not one.resumed and one.closed is not None and not one.closed.skipped_windows
        async with made.http() as http:
            await require_refusals(http, figures)


async def admitted(client: Client, sound: bytes, told: Told, done: asyncio.Event) -> None:
    """A stream that comes again where it is refused: on a machine that stalls a node may be behind for a moment."""
    while True:
        try:
            await stream(client, sound, OPTIONS, told=told, until=done)
            return
        except SpeakerdError as error:
            if error.cause != "overloaded" or told.nodes:
                raise
            await asyncio.sleep(error.retry_after_s or 1.0)


async def require_refusals(http: httpx.AsyncClient, figures: Figures) -> None:
    """Twice as many jobs and sessions as are allowed: the rest are told when to come back."""
    urls = [(await ask(http))[1] for _ in range(8)]
    sessions = await asyncio.gather(*(live(url, tones(3, *voice(0))) for url in urls))
    codes = sorted(session.code or 0 for session in sessions)
    assert codes == [1000] * 3 + [1013] * 5, codes  # of four places one tenant has three
    for session in sessions:
        session.require_in_order()
    # They and the jobs are calls of one kind, of which there may be so many a minute.
    body: dict[str, Any] = {"url": "media://talks/none.wav"}
    began_s = time.monotonic()
    answers = [await http.post("/v1/diarize", json=body) for _ in range(10)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 5 and all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    figures.record("ten jobs asked for, five refused, in", round(time.monotonic() - began_s, 2))

"""F10, F11: Redis loses what it held, is slow, or cannot write, under continuous load."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from controlplane.embedded_redis import find_server
from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.v1 import people_pb2
from tests.controlplane.redis_server import free_port
from tests.faults.altered import LONG_LEASES, start_altered
from tests.faults.figures import Figures
from tests.faults.processes import Daemon, Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.ready_voices import enrol
from tests.faults.storage import SmallDisk, small_disk, toxic
from tests.faults.streaming import Told, stream
from tests.faults.test_continuity import wav

pytestmark = pytest.mark.timeout(600)

ROUTED_WITHIN_S = 5.0
STALLS_S = 20.0
"""What a machine that stalls may add."""


class OwnRedis:
    """A Redis that a test kills, empties and starts on an old file, always at one port."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def file(self) -> Path:
        return self.folder / "dump.rdb"

    def client(self) -> Redis:
        return Redis.from_url(self.url, socket_timeout=5)

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(find_server()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no",
            "--dir", str(self.folder), *self._options,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        client = self.client()

        async def answers() -> bool:
            with contextlib.suppress(Exception):
                return bool(await client.ping())
            return False

        await until(answers, 20)
        await client.aclose()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def do(self, *command: str) -> object:
        client = self.client()
        try:
            return await client.execute_command(*command)
        finally:
            await client.aclose()


class Load:
    """Enrolments, erasures and new streams without a pause, and what was said to each."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.enrolled: dict[str, str] = {}
        self.erased: set[str] = set()
        self.placed: list[tuple[float, float]] = []  # when, and how long it took
        self.refused: list[tuple[float, str]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._tasks = [asyncio.create_task(self._people()), asyncio.create_task(self._streams())]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError | None):
                raise ended

    async def _people(self) -> None:
        for number in range(10_000):
            label = f"L{number}"
            voice_id = (await self.client.enroll(label, [wav(tones(4, *voice(1 + number % 7)))])).voice.voice_id
            self.enrolled[voice_id] = label
            if number % 2:
                await self.client.erase(voice_id)
                self.erased.add(voice_id)
            await asyncio.sleep(0.3)

    async def _streams(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                async with await self.client.open_stream():
                    self.placed.append((time.monotonic(), time.monotonic() - began_s))
            except SpeakerdError as error:
                self.refused.append((time.monotonic(), error.cause))
            await asyncio.sleep(0.1)

    async def require_nothing_lost(self) -> None:
        """Each enrolment and erasure that was answered is so, in the library and in the audit."""
        there = {one.voice_id: one.label for one in await self.client.voices()}
        for voice_id, label in self.enrolled.items():
            if voice_id in self.erased:
                assert there.get(voice_id, "") == ""
            else:
                assert there[voice_id] == label
        verdict = await self.client.verify_audit()
        assert verdict.ok, list(verdict.problems)
        for erasure in await self.client.erasures(limit=200):
            assert erasure.state == people_pb2.Erasure.STATE_ERASED


@asynccontextmanager
async def fleet(daemons: Processes, data: Path, redis_url: str) -> AsyncIterator[tuple[Client, Load, Daemon]]:
    arguments = plane_arguments(data, "127.0.0.1:0", "--redis-url", redis_url)
    plane = await start_altered(daemons, "plane", *arguments, env=LONG_LEASES)
    for node_id in ("n1", "n2"):
        await daemons.start(node_id, *node_arguments(node_id, plane.grpc, data))
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        await enrol(client, "Ada", 0)
        yield client, Load(client), plane


async def routed_again(load: Load, after_s: float) -> float:
    """How long after an instant a stream is placed that was asked for after it."""
    await until(lambda: load.placed and load.placed[-1][0] - load.placed[-1][1] >= after_s, 60)
    return next(at_s for at_s, took_s in load.placed if at_s - took_s >= after_s) - after_s


@pytest.mark.fault("F10", "P4", "P1", "P13")
async def test_redis_emptied_killed_and_set_back_under_load_loses_nothing(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    redis = OwnRedis(tmp_path / "redis")
    await redis.start()
    try:
        async with fleet(daemons, tmp_path / "data", redis.url) as (client, load, plane):
            told, done = Told(), asyncio.Event()
            running = asyncio.create_task(stream(client, pcm(tones(240, *voice(0))), told=told, until=done))
            load.begin()
            await until(lambda: load.placed and len(load.enrolled) > 1 and told.turns, 60)
            await redis.do("SAVE")
            old = shutil.copy(redis.file, tmp_path / "old.rdb")

            async def emptied() -> None:
                await redis.do("FLUSHALL")

            async def killed() -> None:
                await redis.kill()
                redis.file.unlink(missing_ok=True)
                await asyncio.sleep(1)
                await redis.start()

            async def set_back() -> None:
                await redis.kill()
                shutil.copy(old, redis.file)
                await redis.start()

            for what, act in (("FLUSHALL", emptied), ("killed, back empty", killed), ("an old file", set_back)):
                count = len(load.enrolled)
                await act()
                after_s = await routed_again(load, time.monotonic())
                figures.record(f"{what}: new stream routed after", after_s)
                assert after_s < ROUTED_WITHIN_S + STALLS_S
                await until(lambda count=count: len(load.enrolled) > count + 1, 60)

                async def knows_both() -> bool:
                    return {one.node_id for one in (await client.nodes()).nodes} == {"n1", "n2"}

                await until(knows_both, 60)
            await load.end()
            done.set()
            await running
            told.require_in_order()
            assert not told.resumed and not told.degraded
            assert {turn.label for turn in told.turns} == {"Ada"}
            assert {cause for _, cause in load.refused} <= {"unavailable", "overloaded"}
            figures.record("new streams refused meanwhile", len(load.refused), "")
            figures.record("enrolments and erasures lost", 0, "")
            await load.require_nothing_lost()
            assert plane.process.returncode is None
    finally:
        await redis.kill()


@pytest.mark.fault("F11", "P4", "P8")
async def test_a_slow_redis_is_waited_for_a_little_and_then_left_alone(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    redis = OwnRedis(tmp_path / "redis")
    await redis.start()
    try:
        async with (
            toxic(redis.port) as proxy,
            fleet(daemons, tmp_path / "data", f"redis://127.0.0.1:{proxy.port}") as (client, load, plane),
        ):
            key = (tmp_path / "data" / "admin.key").read_text().strip()
            for delay_s, what in ((0.15, "300 ms slow"), (1.0, "2 s slow")):
                proxy.delay_s = delay_s
                took = []
                for _ in range(12):
                    began_s = time.monotonic()
                    async with await client.open_stream():
                        took.append(time.monotonic() - began_s)
                figures.record(f"Redis {what}: open a stream, slowest of {len(took)}", max(took))
                figures.record(f"Redis {what}: open a stream, median", sorted(took)[len(took) // 2])
                await enrol(client, what, 2)
                async with httpx.AsyncClient(base_url=plane.ready["http"], timeout=30) as http:
                    answer = await http.get("/v1/test", headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == 200
            # At two seconds nobody waits for it any more: the calls fail, and routing goes on from memory.
            assert "redis.away" in plane.log.read_text()
            proxy.delay_s = 0.0
            await until(lambda: "redis.back" in plane.log.read_text(), 60)
            await load.require_nothing_lost()
    finally:
        await redis.kill()


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> SmallDisk:
    context = small_disk(8)
    made = context.__enter__()
    request.addfinalizer(lambda: context.__exit__(None, None, None))
    return made


@pytest.mark.fault("F11", "P4")
async def test_a_redis_whose_disk_is_full_costs_no_stream_and_no_enrolment(
    daemons: Processes, tmp_path: Path, disk: SmallDisk, figures: Figures
) -> None:
    redis = OwnRedis(disk.folder / "redis", "--appendonly", "yes", "--appendfsync", "everysec")
    await redis.start()
    try:
        async with fleet(daemons, tmp_path / "data", redis.url) as (client, load, plane):
            load.begin()
            await until(lambda: load.placed and load.enrolled, 60)
            disk.fill()
            # Redis refuses to write as soon as it has noticed.
            await until(lambda: "redis.away" in plane.log.read_text(), 60)
            full_s, count = time.monotonic(), len(load.enrolled)
            figures.record("Redis refuses writes: new stream routed after", await routed_again(load, full_s))
            await until(lambda: len(load.enrolled) > count + 1, 60)
            disk.relieve()
            await until(lambda: "redis.back" in plane.log.read_text(), 60)
            await load.end()
            await load.require_nothing_lost()
            assert client is not None
    finally:
        await redis.kill()

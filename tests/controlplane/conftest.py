"""A whole control plane in this process, over real SQLite (and PostgreSQL where there is one) and a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import pwd
import secrets
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import numpy as np
import pytest
from grpc import aio
from sqlalchemy.engine import make_url

from controlplane.app import ControlPlane
from controlplane.config import ControlPlaneSettings
from controlplane.database.engine import open_database
from runtime.clock import SystemClock
from runtime.grpc_server import open_channel
from runtime.lifecycle import Tasks
from speakerd.v1 import common_pb2, fleet_pb2_grpc, jobs_pb2_grpc, people_pb2, people_pb2_grpc, streams_pb2_grpc
from tests.controlplane.fake_node import FakeNode

NodeT = TypeVar("NodeT", bound=FakeNode)
RATE_HZ = 16_000

HASTY = {"node_lease_s": 0.9, "lease_s": 1.2}
"""Leases for tests of what happens when one ends, in which no other has to go on."""
WAIT_MS = 25_000
"""How long an erasure is waited for: all the time that a lease may take to end, on a machine that stalls."""


def speech(seed: int = 0, seconds: float = 4.0) -> np.ndarray:
    """Bursts of coloured noise with pauses: signal enough for the preflight, and different for each seed."""
    generator = np.random.default_rng(seed)
    count = round(seconds * RATE_HZ)
    envelope = np.repeat(generator.random(count // 1600 + 1) > 0.35, 1600)[:count]
    return (generator.standard_normal(count) * (0.002 + 0.2 * envelope)).clip(-1, 1).astype(np.float32)


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


class Client:
    """An administrator's stubs."""

    def __init__(self, plane: ControlPlane, token: str, channel: aio.Channel | None = None) -> None:
        self.token = token
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.channel = channel or open_channel(plane.grpc_address)
        self.people = people_pb2_grpc.PeopleStub(self.channel)
        self.streams = streams_pb2_grpc.StreamsStub(self.channel)
        self.jobs = jobs_pb2_grpc.JobsStub(self.channel)
        self.fleet = fleet_pb2_grpc.FleetStub(self.channel)

    async def enrol(
        self,
        label: str = "Alice",
        *,
        seed: int = 0,
        data: bytes | None = None,
        container: bool = False,
        voice_id: str = "",
        key: str = "",
        clips: list[bytes] | None = None,
    ) -> people_pb2.EnrollVoiceResponse:
        pcm = (speech(seed) * 32767).astype("<i2").tobytes()
        sound = clips if clips is not None else [pcm if data is None else data]
        form = None if container else common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_S16LE)

        async def requests() -> AsyncIterator[people_pb2.EnrollVoiceRequest]:
            yield people_pb2.EnrollVoiceRequest(
                spec=people_pb2.VoiceSpec(
                    voice_id=voice_id,
                    label=label,
                    consent=people_pb2.Consent(full_name="Alice Fullname", purpose="test", text="I agree"),
                    idempotency_key=key,
                )
            )
            for index, clip in enumerate(sound):
                for start in range(0, max(1, len(clip)), 1 << 20):
                    yield people_pb2.EnrollVoiceRequest(
                        chunk=people_pb2.ClipChunk(clip=index, format=form, data=clip[start : start + (1 << 20)])
                    )

        return await self.people.EnrollVoice(requests(), metadata=self.metadata, timeout=30)

    async def get(self, voice_id: str) -> people_pb2.Voice:
        return await self.people.GetVoice(people_pb2.GetVoiceRequest(voice_id=voice_id), metadata=self.metadata)

    async def list(self, **fields: Any) -> people_pb2.ListVoicesResponse:
        return await self.people.ListVoices(people_pb2.ListVoicesRequest(**fields), metadata=self.metadata)

    async def erase(self, voice_id: str, wait_ms: int = 0) -> people_pb2.Erasure:
        return await self.people.EraseVoice(
            people_pb2.EraseVoiceRequest(voice_id=voice_id, wait_ms=wait_ms), metadata=self.metadata, timeout=40
        )


class World:
    """Starts control planes and nodes, and stops them all."""

    def __init__(self, data: Path, stack: AsyncExitStack, database_url: str | None) -> None:
        self.data = data
        self.database_url = database_url
        self._stack = stack

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[ControlPlane]:
        """A control plane. A data folder that is not there yet is made, its SQLite migrated."""
        if self.database_url is None and "database_url" not in settings and not self.data.exists():
            await lay_database(self.data)
        plane = ControlPlane(self.settings(**settings), SystemClock())
        tasks = Tasks()
        try:
            await plane.start(tasks)
            plane.tell_started()
            yield plane
            assert not tasks.failed.done(), tasks.failed.result()
        finally:
            await plane.stop()
            await tasks.cancel()

    def settings(self, **settings: Any) -> ControlPlaneSettings:
        values = {
            "data": self.data,
            "grpc": "127.0.0.1:0",
            "http": "127.0.0.1:0",
            "database_url": self.database_url,
            # A machine that stalls for seconds must not make a test fail: leases are the product's own unless a test
            # is about their end, and says so with `HASTY`.
            "renew_s": 0.2,
            "node_lease_s": 9.0,
            "lease_s": 10.0,
            "hold_s": 0.4,
            "reconcile_s": 0.2,
            **settings,
        }
        return ControlPlaneSettings(**values)

    async def plane(self, **settings: Any) -> ControlPlane:
        return await self._stack.enter_async_context(self.running(**settings))

    async def client(self, plane: ControlPlane, token: str | None = None) -> Client:
        client = Client(plane, token or (self.data / "admin.key").read_text().strip())
        self._stack.push_async_callback(client.channel.close)
        return client

    async def node(
        self,
        plane: ControlPlane,
        node_id: str = "node-1",
        *,
        renew: bool = True,
        kind: type[NodeT] = FakeNode,  # type: ignore[assignment]
        **fields: Any,
    ) -> NodeT:
        key = (self.data / "fleet.key").read_text().strip()
        node = await kind(node_id, plane.grpc_address, key, **fields).start(renew=renew)
        self._stack.push_async_callback(node.stop)
        if renew:

            async def serves() -> bool:
                return node_id in {lease.node_id for lease in await plane.core.fleet.serving()}

            await until(serves)
        return node


_migrated: list[bytes] = []


async def lay_database(data: Path) -> None:
    """A new data folder with a new SQLite in it, as migrations leave it: they take longer than many a test."""
    if not _migrated:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "speakerd.db"
            await (await open_database(f"sqlite+aiosqlite:///{file}", SystemClock(), lease_s=0.0)).close()
            _migrated.append(file.read_bytes())
    data.mkdir(parents=True, mode=0o700)
    file = data / "speakerd.db"
    file.write_bytes(_migrated[0])
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        # What a migration draws by lot is drawn anew.
        database.execute("UPDATE fleet_head SET epoch = ?", (secrets.token_hex(8),))


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until something holds; awaits it when it is a coroutine."""
    every_s = 0.01
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return
            # What takes long, a lease that has to end, is not asked for fifty times a second meanwhile.
            await asyncio.sleep(every_s)
            every_s = min(0.1, every_s * 1.2)


@pytest.fixture(scope="session", autouse=True)
def collected() -> Iterator[None]:
    """gRPC's polling thread complains when the interpreter ends while servers and channels wait to be collected."""
    yield
    gc.collect()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(tmp_path / "data", stack, None)


@pytest.fixture(params=["sqlite", "postgresql"])
async def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world over each database."""
    url = None if request.param == "sqlite" else request.getfixturevalue("migrated_url")
    async with AsyncExitStack() as stack:
        yield World(tmp_path / "data", stack, url)


def require_postgresql() -> tuple[str, str]:
    """PostgreSQL's initdb and server; skips where there are none, naming why."""
    initdb, server = shutil.which("initdb"), shutil.which("postgres")
    if initdb is None or server is None:
        pytest.skip("no PostgreSQL on this machine (initdb and postgres on PATH)")
    return initdb, server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[tuple[Path, str]]:
    """A PostgreSQL on a unix socket in a folder of its own; its folder and superuser."""
    initdb, server = require_postgresql()
    folder = Path(tempfile.mkdtemp(prefix="speakerd-pg-"))
    # PostgreSQL refuses to run as root.
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    as_user = {"user": user.pw_uid, "group": user.pw_gid} if os.geteuid() == 0 else {}
    os.chown(folder, user.pw_uid, user.pw_gid)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C"}
    data = folder / "data"
    subprocess.run(
        [initdb, "-D", str(data), "-U", "speakerd", "-A", "trust", "--no-sync", "-E", "UTF8"],
        check=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        **as_user,
    )
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    process = subprocess.Popen(
        [server, "-D", str(data), *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_user,
    )
    try:
        yield folder, "speakerd"
    finally:
        process.send_signal(signal.SIGINT)  # on SIGTERM it would wait for its clients
        process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_server: tuple[Path, str]) -> Iterator[str]:
    """An empty database."""
    with new_database(postgresql_server) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_database(postgresql_server: tuple[Path, str]) -> Iterator[str]:
    """A database as migrations leave it, to copy; its name."""
    with new_database(postgresql_server) as url:

        async def migrate() -> None:
            await (await open_database(url, SystemClock(), lease_s=0.0)).close()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, migrate()).result()
        yield make_url(url).database or ""


@pytest.fixture
def migrated_url(postgresql_server: tuple[Path, str], migrated_database: str) -> Iterator[str]:
    """A new database that is migrated already."""
    with new_database(postgresql_server, template=migrated_database) as url:
        name = make_url(url).database
        # What a migration draws by lot is drawn anew.
        _administer(*postgresql_server, "UPDATE fleet_head SET epoch = md5(random()::text)", database=name or "")
        yield url


@contextmanager
def new_database(server: tuple[Path, str], template: str = "template1") -> Iterator[str]:
    """A database for a while; its URL."""
    folder, user = server
    name = f"t{secrets.token_hex(6)}"
    _administer(folder, user, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield f"postgresql+asyncpg://{user}@/{name}?host={folder}"
    finally:
        _administer(folder, user, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(folder: Path, user: str, statement: str, database: str = "postgres") -> None:
    async def run() -> None:
        connection = None
        async with asyncio.timeout(20):
            while connection is None:
                try:
                    connection = await asyncpg.connect(host=str(folder), user=user, database=database)
                except (OSError, asyncpg.CannotConnectNowError):
                    await asyncio.sleep(0.1)
        await connection.execute(statement)
        await connection.close()

    # In a thread, because the test's own event loop may be running.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run()).result()

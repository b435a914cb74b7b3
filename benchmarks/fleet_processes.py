"""A fleet of real processes for measurements: PostgreSQL, Redis, control planes and nodes with the null engine.

Everything is a child of this process, in a folder of its own, on loopback; what was started is stopped.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from controlplane.embedded_redis import find_server

ROOT = Path(__file__).resolve().parent.parent
READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that said that it is ready, and where."""

    process: asyncio.subprocess.Process
    grpc: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs."""

    data: Path
    planes: tuple[Daemon, ...]
    nodes: tuple[Daemon, ...]
    redis_url: str

    @property
    def token(self) -> str:
        """The administrator's key."""
        return (self.data / "admin.key").read_text().strip()

    @property
    def fleet_key(self) -> str:
        """The key that nodes take commands with."""
        return (self.data / "fleet.key").read_text().strip()


@asynccontextmanager
async def running_fleet(
    *, planes: int, nodes: int, streams_max: int = 400, bundles: Sequence[str] = ("null@1",)
) -> AsyncIterator[Fleet]:
    """Start everything, nodes at the control planes and with the bundles in turn; yield once all serve."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speakerd-fleet-")))
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        database_url = await stack.enter_async_context(postgresql())
        redis_url = await stack.enter_async_context(redis_server(folder / "redis"))
        data = folder / "data"
        controlplanes = []
        for number in range(planes):
            arguments = ["controlplane", "--data", str(data), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
            arguments += ["--database-url", database_url, "--redis-url", redis_url, "--drain-s", "1"]
            controlplanes.append(
                await stack.enter_async_context(_daemon(arguments, logs / f"controlplane-{number}.log"))
            )
        started = [
            stack.enter_async_context(
                _daemon(
                    [
                        *("node", "--device", "null", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
                        *("--bundle", bundles[number % len(bundles)]),
                        *("--node-id", f"node-{number}", "--streams-max", str(streams_max), "--drain-s", "1"),
                        *("--controlplane", controlplanes[number % planes].grpc),
                        *("--fleet-key-file", str(data / "fleet.key")),
                    ],
                    logs / f"node-{number}.log",
                )
            )
            for number in range(nodes)
        ]
        daemons = [await start for start in started]
        yield Fleet(data, tuple(controlplanes), tuple(daemons), redis_url)


def loaded_libraries(daemon: Daemon) -> str:
    """The files that a process has mapped: what it has loaded, whoever asked for it."""
    return Path(f"/proc/{daemon.process.pid}/maps").read_text()


@asynccontextmanager
async def _daemon(arguments: Sequence[str], log: Path) -> AsyncIterator[Daemon]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "speakerd", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            cwd=ROOT,
            env=environment,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = (await process.stdout.readline()).decode().split()
        if line[:1] != ["ready"]:
            raise RuntimeError(f"{arguments[0]} did not start: {log.read_text()[-2000:]}")
        yield Daemon(process, dict(part.split("=", 1) for part in line[1:])["grpc"])
    finally:
        await end(process)


@asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[str]:
    """An empty Redis in a folder that is made; its url."""
    folder.mkdir(parents=True)
    path = folder / "redis.sock"
    process = await asyncio.create_subprocess_exec(
        *(str(find_server()), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(READY_S):
            while not path.exists():
                await asyncio.sleep(0.02)
        yield f"unix://{path}"
    finally:
        await end(process)


@asynccontextmanager
async def postgresql() -> AsyncIterator[str]:
    """An empty PostgreSQL, as durable as in production; the url of its database."""
    initdb, server = shutil.which("initdb"), shutil.which("postgres")
    if initdb is None or server is None:
        raise RuntimeError("no PostgreSQL on this machine (initdb and postgres on PATH)")
    folder = Path(tempfile.mkdtemp(prefix="speakerd-pg-"))
    # PostgreSQL refuses to run as root.
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    as_user = {"user": user.pw_uid, "group": user.pw_gid} if os.geteuid() == 0 else {}
    os.chown(folder, user.pw_uid, user.pw_gid)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C"}
    data = folder / "data"
    quiet = asyncio.subprocess.DEVNULL
    made = await asyncio.create_subprocess_exec(
        *(initdb, "-D", str(data), "-U", "speakerd", "-A", "trust", "--no-sync", "-E", "UTF8"),
        cwd=folder,
        env=environment,
        stdout=quiet,
        **as_user,  # type: ignore[arg-type]
    )
    if await made.wait() != 0:
        raise RuntimeError("initdb failed")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    # Durable, as in production: what a commit costs belongs to what is measured.
    process = await asyncio.create_subprocess_exec(
        *(server, "-D", str(data), "-c", "listen_addresses=127.0.0.1", "-c", f"port={port}"),
        *("-c", f"unix_socket_directories={folder}"),
        cwd=folder,
        env=environment,
        stdout=quiet,
        stderr=quiet,
        **as_user,  # type: ignore[arg-type]
    )
    try:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    connection = await asyncpg.connect(
                        host="127.0.0.1", port=port, user="speakerd", database="postgres"
                    )
                    break
                except (OSError, asyncpg.CannotConnectNowError):
                    await asyncio.sleep(0.1)
        await connection.close()
        yield f"postgresql+asyncpg://speakerd@127.0.0.1:{port}/postgres"
    finally:
        await end(process, signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


async def end(process: asyncio.subprocess.Process, number: signal.Signals = signal.SIGTERM) -> None:
    """End a process with a signal, and by force where that does not end it."""
    if process.returncode is None:
        process.send_signal(number)
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

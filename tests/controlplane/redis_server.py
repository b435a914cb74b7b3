"""Real Redis servers and a real Sentinel for tests, each a child process on loopback."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from controlplane.embedded_redis import find_server

SERVICE = "speakerd"


@dataclass(slots=True)
class Server:
    """One server on a port of its own."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@asynccontextmanager
async def redis_server(folder: Path, *arguments: str) -> AsyncIterator[Server]:
    """A server that answers."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), "--daemonize", "no"]
    async with _running(find_server(), [*common, *arguments], port) as server:
        yield server


@dataclass(slots=True)
class Sentinels:
    """A master, a replica of it, and a Sentinel that watches both."""

    master: Server
    replica: Server
    sentinel: Server

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{SERVICE}?db=0"


@asynccontextmanager
async def sentinels(folder: Path) -> AsyncIterator[Sentinels]:
    """All three, once the Sentinel knows the replica."""
    async with AsyncExitStack() as stack:
        master = await stack.enter_async_context(redis_server(folder / "master"))
        replica = await stack.enter_async_context(
            redis_server(folder / "replica", "--replicaof", "127.0.0.1", str(master.port))
        )
        port = free_port()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 400\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        sentinel = await stack.enter_async_context(_running(find_server(), [str(config), "--sentinel"], port))
        client = Redis.from_url(sentinel.url)
        async with asyncio.timeout(20):
            while not await client.sentinel_slaves(SERVICE):
                await asyncio.sleep(0.1)
        await client.aclose()
        yield Sentinels(master, replica, sentinel)


@asynccontextmanager
async def _running(binary: Path, arguments: list[str], port: int) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        str(binary), *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    client = Redis.from_url(f"redis://127.0.0.1:{port}")
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    await client.ping()
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(0.02)
        await client.aclose()
        yield Server(process, port)
    finally:
        await client.aclose()
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()

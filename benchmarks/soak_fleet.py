"""The fleet of a soak: real daemons on fixed ports that are restarted under load, and what each of them takes.

In: a folder. Out: two nodes with the null engine and two control planes over PostgreSQL and Redis; samples of their
memory, descriptors and threads, of Redis's keys, of the database and of the data folder. What always holds: each life
of a process is known by its beginning and its end, and so is every time at which one was away.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis

from benchmarks.fleet_processes import ROOT, end, postgresql, redis_server

READY_S = 240.0
END_S = 120.0
AWAY_AFTER_S = 5.0
"""So long after a daemon is back, its callers may still meet what its absence left behind."""
MIB = 1 << 20


@dataclass(slots=True)
class Life:
    """One process of a daemon. Times on the monotonic clock; ended_s: None while it runs. how: what ended it.

    is_ready: it said so.
    """

    name: str
    number: int
    pid: int
    began_s: float
    is_ready: bool = False
    ended_s: float | None = None
    how: str = ""
    exit_code: int | None = None


@dataclass(slots=True)
class Away:
    """A time at which a daemon was not there, until its callers can be expected to have noticed that it is again."""

    name: str
    began_s: float
    ended_s: float = float("inf")


@dataclass(slots=True)
class Member:
    """A daemon that is restarted."""

    name: str
    arguments: Sequence[str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    lives: list[Life] = field(default_factory=list)
    ready: dict[str, str] = field(default_factory=dict)

    async def start(self) -> None:
        """Run it until it says that it is ready."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as file:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "speakerd", *self.arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                env=environment,
            )
        assert self.process.stdout is not None
        self.lives.append(Life(self.name, len(self.lives) + 1, self.process.pid, time.monotonic()))
        async with asyncio.timeout(READY_S):
            line = (await self.process.stdout.readline()).decode().split()
        if line[:1] != ["ready"]:
            raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[-2000:]}")
        self.ready = dict(part.split("=", 1) for part in line[1:])
        self.lives[-1].is_ready = True

    @property
    def has_died(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.returncode is not None and self.lives[-1].ended_s is None

    async def stop(self, number: signal.Signals) -> int:
        """End it; its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(END_S):
            code = await self.process.wait()
        self.lives[-1].ended_s, self.lives[-1].how, self.lives[-1].exit_code = time.monotonic(), number.name, code
        return code


@dataclass(slots=True)
class SoakFleet:
    """What runs."""

    data: Path
    redis_url: str
    database_url: str
    nodes: list[Member]
    planes: list[Member]
    redis: Redis
    aways: list[Away] = field(default_factory=list)

    @property
    def token(self) -> str:
        """The administrator's key."""
        return (self.data / "admin.key").read_text().strip()

    @property
    def fleet_key(self) -> str:
        """The key that nodes take commands with."""
        return (self.data / "fleet.key").read_text().strip()

    @property
    def members(self) -> list[Member]:
        """All daemons."""
        return [*self.nodes, *self.planes]

    async def restart(self, member: Member, number: signal.Signals) -> int:
        """End a daemon and start it again; the exit code of the one that ended."""
        away = Away(member.name, time.monotonic())
        self.aways.append(away)
        try:
            code = await member.stop(number)
            await member.start()
        finally:
            away.ended_s = time.monotonic() + AWAY_AFTER_S
        return code

    def was_away(self, began_s: float, ended_s: float) -> bool:
        """Whether some daemon was away at any moment between two."""
        return any(away.began_s <= ended_s and began_s <= away.ended_s for away in self.aways)

    def sample(self) -> dict[str, dict[str, float]]:
        """What each daemon takes now; of one that is starting nothing is said, for all that it does is grow."""
        found = {}
        for member in self.members:
            if member.process is not None and member.process.returncode is None and member.lives[-1].is_ready:
                taken = taken_by(member.process.pid)
                if taken is not None:
                    found[member.name] = {**taken, "life": len(member.lives)}
        return found

    async def redis_sample(self) -> dict[str, Any]:
        """Keys, by kind, and memory."""
        info: Any = await self.redis.info("memory")
        kinds: Counter[str] = Counter()
        async for key in self.redis.scan_iter(count=1_000):
            kinds[":".join(key.decode().split(":")[:3])] += 1
        return {"keys": kinds.total(), "mib": info["used_memory"] / MIB, "kinds": dict(kinds)}

    async def stored(self) -> dict[str, Any]:
        """What is kept: bytes of the database, rows of each table, bytes of each part of the data folder."""
        url = self.database_url.replace("postgresql+asyncpg", "postgresql")
        connection = await asyncpg.connect(url)
        try:
            size = await connection.fetchval("SELECT pg_database_size(current_database())")
            names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            rows = {}
            for (name,) in names:
                rows[name] = await connection.fetchval(f'SELECT count(*) FROM "{name}"')
        finally:
            await connection.close()
        return {"sql_mib": size / MIB, "rows": rows, "data_kib": folder_kib(self.data)}


def taken_by(pid: int) -> dict[str, float] | None:
    """Memory (MiB), descriptors, threads, children and CPU seconds of a process; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in lines:
        return None  # it has ended, and nobody has asked how
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return {
        "rss_mib": int(lines["VmRSS"].split()[0]) / 1024,
        "fds": fds,
        "threads": int(lines["Threads"]),
        "children": len(children),
        "cpu_s": cpu_s,
    }


def folder_kib(folder: Path) -> dict[str, float]:
    """Bytes of each entry of a folder, with all that is below it."""
    found: dict[str, float] = {}
    for entry in sorted(folder.iterdir()):
        files = [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file()]
        total = 0
        for file in files:
            try:
                total += file.stat().st_size
            except FileNotFoundError:
                continue
        found[entry.name] = round(total / 1024, 1)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    found = [socket.socket() for _ in range(count)]
    try:
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]
    finally:
        for one in found:
            one.close()


@asynccontextmanager
async def soak_fleet(folder: Path, *, webhook_port: int, streams_max: int = 64) -> AsyncIterator[SoakFleet]:
    """Start everything; yield once all serve; end it all."""
    async with AsyncExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        database_url = await stack.enter_async_context(postgresql())
        redis_url = await stack.enter_async_context(redis_server(folder / "redis"))
        data, ports = folder / "data", free_ports(4)
        config = folder / "speakerd.toml"
        config.write_text(
            "[controlplane]\n"
            'fetch_networks = ["127.0.0.0/8"]\n'
            f"fetch_ports = [{webhook_port}, 443]\n"
            "fetch_plain_http = true\n"
            'http_rate_limits = { "pyannoteai.read" = 0, "pyannoteai.submit" = 0 }\n'
        )
        planes = [
            Member(
                f"controlplane-{letter}",
                [
                    *("controlplane", "--config", str(config), "--data", str(data)),
                    *("--grpc", f"127.0.0.1:{grpc}", "--http", f"127.0.0.1:{http}"),
                    *("--database-url", database_url, "--redis-url", redis_url, "--drain-s", "2"),
                ],
                folder / f"controlplane-{letter}.log",
            )
            for letter, grpc, http in (("a", *ports[:2]), ("b", *ports[2:]))
        ]
        nodes = [
            Member(
                f"node-{letter}",
                [
                    *("node", "--device", "null", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
                    *("--node-id", f"node-{letter}", "--streams-max", str(streams_max), "--drain-s", "10"),
                    *("--controlplane", f"127.0.0.1:{grpc}", "--fleet-key-file", str(data / "fleet.key")),
                ],
                folder / f"node-{letter}.log",
            )
            for letter, grpc in (("a", ports[0]), ("b", ports[2]))
        ]
        redis = Redis.from_url(redis_url)
        stack.push_async_callback(redis.aclose)
        fleet = SoakFleet(data, redis_url, database_url, nodes, planes, redis)
        try:
            for member in [*planes, *nodes]:
                await member.start()
            yield fleet
        finally:
            for member in fleet.members[::-1]:
                if member.process is not None:
                    await end(member.process)

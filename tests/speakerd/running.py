"""`speakerd up` as a real process, and voices that its null engine tells apart."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile

RATE = 16_000
READY_S = 120.0
ADA = (300.0, 900.0, 2100.0)
BOB = (500.0, 1500.0, 3300.0)


def tones(seconds: float, *frequencies: float) -> np.ndarray:
    """A voice to the null engine: (N,) float32. It pauses for 0.15 s in every second, as hum does not."""
    at = np.arange(round(seconds * RATE)) / RATE
    mixed = np.sum([np.sin(2 * np.pi * frequency * at) for frequency in frequencies], axis=0)
    room = np.random.default_rng(0).normal(0, 1e-4, len(at))
    return (0.3 * mixed / len(frequencies) * (at % 1.0 < 0.85) + room).astype(np.float32)


def write_voice(path: Path, seconds: float, *voices: tuple[float, ...]) -> Path:
    """A recording of voices, one after another, `seconds` each."""
    soundfile.write(path, np.concatenate([tones(seconds, *voice) for voice in voices]), RATE)
    return path


class RunningUp:
    """A `speakerd up` that is ready."""

    def __init__(self, data: Path, *flags: str, **variables: str) -> None:
        self.data = data
        command = [sys.executable, "-m", "speakerd", "up", "--data", str(data), "--device", "null", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment(), **variables}
        )
        self.ready = self._first_line()
        self.family = [
            member for member in psutil.Process(self.process.pid).children(recursive=True) if member.is_running()
        ]

    def _first_line(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout=READY_S):
                self.process.kill()
        line = self.process.stdout.readline().strip()
        assert line.startswith("ready "), (line, self.process.communicate()[1])
        return line

    def daemon(self, name: str) -> psutil.Process:
        """The child that runs `speakerd NAME`."""
        (found,) = [child for child in psutil.Process(self.process.pid).children() if child.cmdline()[5:6] == [name]]
        return found

    def left(self, within_s: float = 10.0) -> list[psutil.Process]:
        """Members of the family that live on after a while."""
        eventually(lambda: not self._living(), within_s)
        return self._living()

    def _living(self) -> list[psutil.Process]:
        # A zombie has ended; how soon it is reaped is for whoever adopted it.
        return [member for member in self.family if member.is_running() and not _is_zombie(member)]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._ended()

    def _ended(self) -> int:
        try:
            code = self.process.wait(timeout=40)
        finally:
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()
        return code


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def speakerd(*arguments: object, data: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-P", "-m", "speakerd", *map(str, arguments)]
    return subprocess.run(
        [*command, "--data", str(data)] if data else command,
        capture_output=True, text=True, timeout=120, env={**environment(), **variables}, check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """As this process's, on one thread, and without settings of whoever runs the tests."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("SPEAKERD_") and name != "REDIS_URL"
    }
    return {**kept, "OMP_NUM_THREADS": "1"}


def eventually(condition: object, within_s: float) -> bool:
    """Whether a condition comes true in time."""
    assert callable(condition)
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.1)
    return False

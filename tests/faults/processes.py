"""Daemons as real processes, for tests that kill, freeze, restart and cut them off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
RATE = 16_000
START_S = 120.0


def tones(seconds: float, *frequencies: float) -> np.ndarray:
    """A voice to the null engine: (N,) float32. It pauses every second, as hum does not, in a quiet room."""
    at = np.arange(round(seconds * RATE)) / RATE
    mixed = np.sum([np.sin(2 * np.pi * frequency * at) for frequency in frequencies], axis=0)
    room = np.random.default_rng(0).normal(0, 1e-4, len(at))
    return (0.3 * mixed / len(frequencies) * (at % 1.0 < 0.7) + room).astype(np.float32)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def voice(number: int) -> tuple[float, float, float]:
    """The tones of one of many people, whom the null engine tells apart."""
    return 220.0 + 250.0 * number, 1_400.0 + 250.0 * ((number * 3) % 8), 3_600.0 + 250.0 * ((number * 5) % 16)


@dataclass
class Daemon:
    """A process, and what it said when it was ready."""

    process: asyncio.subprocess.Process
    ready: dict[str, str]
    log: Path

    @property
    def grpc(self) -> str:
        return self.ready["grpc"]

    async def is_ready(self, within_s: float) -> None:
        """Wait until it says so, and take what it says."""
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), within_s)).decode().split()
        assert line[:1] == ["ready"], self.log.read_text()[-3000:]
        self.ready.update(part.split("=", 1) for part in line[1:])

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, within_s: float = 30.0) -> int:
        return await asyncio.wait_for(self.process.wait(), within_s)

    async def kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
        await self.process.wait()


@dataclass
class Processes:
    """All daemons of one test. netns: in which network namespace each of them runs, by its name."""

    folder: Path
    netns: dict[str, str] = field(default_factory=dict)
    daemons: list[Daemon] = field(default_factory=list)

    async def start(self, name: str, *arguments: str, fault_point: str = "") -> Daemon:
        """Run `speakerd ARGUMENTS…` until it says that it is ready. fault_point: where it is to be killed, if it is."""
        daemon = await self.begin(name, *arguments, fault_point=fault_point)
        await daemon.is_ready(START_S)
        return daemon

    async def begin(self, name: str, *arguments: str, fault_point: str = "") -> Daemon:
        """The same without waiting for it."""
        inside = ["ip", "netns", "exec", self.netns[name]] if name in self.netns else []
        # Most of what is started here are nodes, and the command line around one is a third of its start.
        module = ["node", *arguments[1:]] if arguments[0] == "node" else ["speakerd", *arguments]
        log = self.folder / f"{name}.log"
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *inside,
                sys.executable,
                "-m",
                *module,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env={**environment(), "SPEAKERD_FAULT_POINT": fault_point},
            )
        daemon = Daemon(process, {}, log)
        self.daemons.append(daemon)
        return daemon

    async def close(self) -> None:
        for daemon in self.daemons:
            await daemon.kill()


@contextlib.asynccontextmanager
async def processes(folder: Path, netns: dict[str, str] | None = None) -> AsyncIterator[Processes]:
    """Daemons that end with the context."""
    made = Processes(folder, netns or {})
    try:
        yield made
    finally:
        await made.close()


def plane_arguments(data: Path, grpc: str = "127.0.0.1:0", *more: str) -> list[str]:
    return ["controlplane", "--data", str(data), "--grpc", grpc, "--http", "127.0.0.1:0", "--drain-s", "3", *more]


def node_arguments(node_id: str, plane: str, data: Path, *more: str, device: str = "null") -> list[str]:
    key = ["--fleet-key-file", str(data / "fleet.key")]
    return [
        "node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--node-id", node_id,
        "--controlplane", plane, *key, "--device", device, *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """As this process's, on one thread, and without settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPEAKERD_")}
    kept.pop("REDIS_URL", None)
    return {**kept, "OMP_NUM_THREADS": "1"}


async def until(condition: Callable[[], Any], seconds: float = 15.0, every_s: float = 0.1) -> None:
    """Wait until something holds; awaits it when it is a coroutine."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return
            await asyncio.sleep(every_s)


def chunks(data: bytes, size: int = 3_200) -> Sequence[bytes]:
    """Sound in pieces, 100 ms each of 16-bit samples at 16 kHz."""
    return [data[at : at + size] for at in range(0, len(data), size)]

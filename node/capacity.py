"""How many live streams this machine carries: measured as a node starts, in a second or two.

In: an engine, on the device's thread, and sound like what it will hear. Out: a Capacity. What always holds: measuring
is bounded in time and leaves nothing behind but empty rings of slots that streams will open anew; with less to go by
the answer is smaller. Work on a CPU is counted in processor time, so that a busy moment of the machine does not make a
small node of it for good: what the streams then really wait is watched while they run (node.batcher).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
import wave
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from models.analysis import FloatArray, FrameGrid
from models.online import OnlineDiarization
from models.seams import DueWindow
from node.engine import Engine
from node.source import WINDOWS_A_SLOT
from runtime.errors import InvalidRequest
from runtime.logs import get_logger
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples
from speakerd import __version__

MEASURING_S_MAX = 2.0
ROUNDS = 3
STEPS = 24
BATCHES = (1, 4, 16, 64, 256)
BATCH_S_MAX = 0.1
"""No larger batch is counted on than one that is done within so long."""
STREAMS_MAX = 4096
RATED = 0.8
"""Of the device's time, and of the memory that is free: the rest is for files, enrolments, and the unforeseen."""
RATED_INTERPRETER = 0.85
STEPS_A_STREAM = 7.0
"""What a stream asks of the interpreter in a second, in steps of clustering: messages, results, its two steps."""
STREAM_BYTES_MIN = 2 << 20
SAMPLE = "pyannote/audio/sample/sample.wav"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was measured. streams: that the node carries. window_s: of the device a window, in batches of `batch`.

    step_s: of the interpreter a step. stream_bytes: on the device.
    """

    streams: int
    window_s: float
    batch: int
    step_s: float
    stream_bytes: int


def measured(engine: Engine, cache: Path | None = None) -> Capacity:
    """The capacity of an engine, on the thread that owns its device. cache: a file that remembers, if given."""
    key = f"{__version__} {engine.bundle} {engine.model} {engine.device_name} {_machine()}"
    known = _remembered(cache, key)
    if known is not None:
        return known
    found = measure(engine, _sound(engine))
    get_logger().info("capacity.measured", **asdict(found))
    if cache is not None:
        _remember(cache, key, found)
    return found


def measure(engine: Engine, sound: FloatArray, *, bound_s: float = MEASURING_S_MAX) -> Capacity:
    """Measure with this sound, (N,) at 16 kHz, repeated as needed."""
    until_s = time.monotonic() + bound_s
    grid, now_s = engine.device.grid, time.monotonic if engine.device_name.startswith("cuda") else time.thread_time
    hop_s = seconds_from_samples(grid.hop_samples)
    best_window_s, best_batch, stream_bytes = float("inf"), 1, STREAM_BYTES_MIN
    step_s = 0.0
    for batch in BATCHES:
        free = engine.free_bytes()
        slots = _Slots(engine, sound, batch)
        if engine.device_name.startswith("cuda"):
            # On a host what is free changes by what others do.
            stream_bytes = max(stream_bytes, (free - engine.free_bytes()) // batch)
        batch_s = slots.round_s(now_s)
        for _ in range(ROUNDS - 1):
            batch_s = min(batch_s, slots.round_s(now_s))
        step_s = step_s or _step_s(engine, slots)
        if batch_s <= BATCH_S_MAX or batch == 1:
            best_window_s, best_batch = min((best_window_s, best_batch), (batch_s / batch, batch))
        # The next takes up to four times as long.
        if batch_s > BATCH_S_MAX or time.monotonic() + 5 * slots.took_s > until_s or batch >= engine.windows_a_batch:
            break
    streams = _streams(engine, best_window_s / hop_s, STEPS_A_STREAM * step_s)
    fits = int(RATED * engine.free_bytes() / stream_bytes)
    return Capacity(max(1, min(streams, fits, STREAMS_MAX)), best_window_s, best_batch, step_s, int(stream_bytes))


def _streams(engine: Engine, device_s: float, interpreter_s: float) -> int:
    """How many, of which each asks so much of the device and of the interpreter in a second."""
    by_device, by_interpreter = device_s / RATED, interpreter_s / RATED_INTERPRETER
    if engine.device_name == "null" or (engine.device_name == "cpu" and _num_cores() < 2):
        return int(1 / (by_device + by_interpreter))  # they share a core, or the interpreter
    return int(1 / max(by_device, by_interpreter))


class _Slots:
    """So many slots, filled with the sound of a window each, at other places of it."""

    def __init__(self, engine: Engine, sound: FloatArray, count: int) -> None:
        self._device = engine.device
        grid: FrameGrid = engine.device.grid
        self._began_s = time.monotonic()
        self._sounds = [np.roll(sound, -number * len(sound) // count) for number in range(count)]
        self._end = grid.window_samples
        for slot, own in enumerate(self._sounds):
            self._device.open(slot, grid.window_samples + WINDOWS_A_SLOT * grid.hop_samples)
            self._device.write(slot, np.resize(own, grid.window_samples))
        self.analyses = self._device.analyze([DueWindow(slot, self._end) for slot in range(count)])

    @property
    def took_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    def round_s(self, now_s: Callable[[], float]) -> float:
        """What the next window of all of them takes, together."""
        grid = self._device.grid
        began_s = now_s()
        for slot, own in enumerate(self._sounds):
            self._device.write(slot, np.take(own, np.arange(self._end, self._end + grid.hop_samples), mode="wrap"))
        self._end += grid.hop_samples
        found = self._device.analyze([DueWindow(slot, self._end) for slot in range(len(self._sounds))])
        self.analyses.append(found[0])
        return now_s() - began_s


def _step_s(engine: Engine, slots: _Slots) -> float:
    """What a step of clustering takes, with a few windows to look back at."""
    grid = engine.device.grid
    heard = max(slots.analyses, key=lambda analysis: float(analysis.clean_frames.sum()))
    took: list[float] = []
    for _ in range(ROUNDS):
        online = OnlineDiarization(grid, engine.online, latency_samples=2 * SAMPLE_RATE_HZ)
        began_s = time.thread_time()
        for number in range(STEPS):
            online.step(replace(heard, start_samples=number * grid.hop_samples))
        took.append((time.thread_time() - began_s) / STEPS)
    return min(took)


def _sound(engine: Engine) -> FloatArray:
    """A conversation where there is one; else two voices that any engine hears something in."""
    found = _sample() if engine.device_name != "null" else None
    if found is not None:
        return found
    at = np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    voices = [sum(np.sin(2 * np.pi * pitch * step * at) for step in (1, 3, 7)) for pitch in (300.0, 410.0)]
    mixed: FloatArray = (0.1 * np.where(at % 4.0 < 2.0, *voices) * (at % 1.0 < 0.8)).astype(np.float32)
    return mixed


def _sample() -> FloatArray | None:
    """The conversation that pyannote.audio, one of a node's dependencies, brings with it."""
    try:
        file = importlib.metadata.distribution("pyannote.audio").locate_file(SAMPLE)
        with wave.open(str(file)) as sample:
            if (sample.getframerate(), sample.getnchannels(), sample.getsampwidth()) != (SAMPLE_RATE_HZ, 1, 2):
                return None
            data = np.frombuffer(sample.readframes(sample.getnframes()), "<i2")
    except (importlib.metadata.PackageNotFoundError, OSError, wave.Error):
        return None
    return data.astype(np.float32) / np.float32(32768)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> str:
    return f"{platform.machine()} {platform.processor()} {_num_cores()} cores"


def _remembered(cache: Path | None, key: str) -> Capacity | None:
    if cache is None or not cache.exists():
        return None
    try:
        values = json.loads(cache.read_text()).get(key)
        return None if values is None else Capacity(**values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"capacity file {cache.name} cannot be read: delete it, and it is made anew") from error


def _remember(cache: Path, key: str, found: Capacity) -> None:
    values = {}
    if cache.exists():
        values = json.loads(cache.read_text())
    values[key] = asdict(found)
    try:
        cache.write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise InvalidRequest(f"cannot write the capacity file {cache.name}: {error.strerror}") from None

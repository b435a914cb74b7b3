"""Where the sound of a live stream comes from: a recording, or the microphone.

Out comes PCM in pieces of 100 ms. A recording is decoded by the daemons' own decoder, in its confined child process;
this package knows it by its entry point alone.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from speakerd.cli.group import load_installed
from speakerd.cli.people import missing_files
from speakerd.errors import SpeakerdError
from speakerd.v1 import common_pb2

SAMPLE_RATE_HZ = 16_000
CHUNK_SAMPLES = SAMPLE_RATE_HZ // 10
MICROPHONE_BACKLOG_CHUNKS = 600
SILENT_PEAK = 1e-4  # -80 dBFS: no microphone in a room is as quiet as that


@dataclass(frozen=True, slots=True)
class Recording:
    """A decoded recording: 16 kHz mono, 32-bit little-endian floats."""

    file: Path
    pcm: bytes

    encoding: ClassVar = common_pb2.ENCODING_PCM_F32LE

    def __str__(self) -> str:
        return str(self.file)

    @property
    def stem(self) -> str:
        """What its results are called."""
        return self.file.stem

    @property
    def duration_ms(self) -> int:
        """Length."""
        return len(self.pcm) // 4 * 1000 // SAMPLE_RATE_HZ

    async def chunks(self, *, realtime: bool) -> AsyncGenerator[bytes, None]:
        """Pieces of 100 ms, at the pace of speech or as fast as they are taken."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        size = CHUNK_SAMPLES * 4
        for number, at in enumerate(range(0, len(self.pcm), size)):
            if realtime:
                # A piece can be sent once it has been spoken to its end.
                await asyncio.sleep(began_s + (number + 1) * 0.1 - loop.time())
            yield self.pcm[at : at + size]


def read_recording(file: Path) -> Recording:
    """Decode a recording. Raises SpeakerdError, naming the file and what to mend."""
    decode = load_installed("speakerd.media", "decode", extra="runtime", what_for="reading recordings")
    missing_files([file])
    try:
        samples = decode(file).samples  # (N,) float32
    except Exception as error:
        cause = getattr(error, "cause", None)
        if cause is None:
            raise
        raise SpeakerdError(str(getattr(cause, "value", cause)), f"{file}: {error}") from None
    if not len(samples) or float(abs(samples).max()) < SILENT_PEAK:
        raise SpeakerdError("bad_audio", f"{file}: is silent throughout: check what was recorded, and at what level")
    return Recording(file, samples.astype("<f4").tobytes())


class Microphone:
    """The default input device, 16-bit mono, until it is told to stop."""

    encoding: ClassVar = common_pb2.ENCODING_PCM_S16LE
    duration_ms: ClassVar[None] = None  # nobody knows

    def __init__(self, stem: str, stop: asyncio.Event) -> None:
        self.stem = stem
        self._stop = stop
        self._device = _sounddevice()

    def __str__(self) -> str:
        return "microphone"

    async def chunks(self, *, realtime: bool) -> AsyncGenerator[bytes, None]:
        """Pieces of 100 ms as they are spoken. Raises SpeakerdError when there is no device to hear with."""
        del realtime  # a microphone has one pace
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[bytes | None] = asyncio.Queue()

        def on_sound(data: Any, _frames: int, _time: Any, _status: Any) -> None:
            loop.call_soon_threadsafe(_put, heard, bytes(data))

        stopped = asyncio.create_task(self._stop.wait())
        stopped.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            with self._device.RawInputStream(
                samplerate=SAMPLE_RATE_HZ, channels=1, dtype="int16", blocksize=CHUNK_SAMPLES, callback=on_sound
            ):
                while (chunk := await heard.get()) is not None:
                    yield chunk
        except self._device.PortAudioError as error:
            raise SpeakerdError("unavailable", f"the microphone cannot be opened: {error}; stream a FILE") from None
        finally:
            stopped.cancel()


def _put(heard: asyncio.Queue[bytes | None], chunk: bytes) -> None:
    if heard.qsize() >= MICROPHONE_BACKLOG_CHUNKS:
        heard.get_nowait()  # a minute behind: the oldest sound is of least use
    heard.put_nowait(chunk)


def _sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")
    except ImportError:
        raise SpeakerdError("unavailable", "--mic needs a package of its own: pip install sounddevice") from None
    except OSError:
        raise SpeakerdError("unavailable", "--mic needs PortAudio: install the system package libportaudio2") from None

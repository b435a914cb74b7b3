"""Sound for live streams: what comes from the microphone, and at what pace a recording is sent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from speakerd.cli import recording
from speakerd.cli.recording import Microphone, Recording
from speakerd.errors import SpeakerdError


class FakeDevice:
    """Speaks five pieces from a thread of its own, as a sound card does."""

    def __init__(self, *, callback: Any, **settings: Any) -> None:
        assert settings == {"samplerate": 16_000, "channels": 1, "dtype": "int16", "blocksize": 1_600}
        self.thread = threading.Thread(target=lambda: [callback(bytes([n]) * 3200, 1600, None, None) for n in range(5)])

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join()


def broken(**_: Any) -> None:
    raise OSError("no such device")


async def test_the_microphone_is_heard_until_it_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recording, "_sounddevice", lambda: SimpleNamespace(RawInputStream=FakeDevice, PortAudioError=OSError)
    )
    stop = asyncio.Event()
    heard = []
    async for chunk in Microphone("mic", stop).chunks(realtime=True):
        heard.append(chunk[0])
        if len(heard) == 5:
            stop.set()
    assert heard == [0, 1, 2, 3, 4]


async def test_a_microphone_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recording, "_sounddevice", lambda: SimpleNamespace(RawInputStream=broken, PortAudioError=OSError)
    )
    with pytest.raises(SpeakerdError, match="cannot be opened: no such device"):
        async for _ in Microphone("mic", asyncio.Event()).chunks(realtime=True):
            pass


async def test_a_recording_is_sent_whole_and_at_the_pace_of_speech_when_that_is_wanted() -> None:
    sound = Recording(Path("a.wav"), bytes(4 * 16_000 // 4))  # 250 ms
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    chunks = [chunk async for chunk in sound.chunks(realtime=True)]
    assert [len(chunk) for chunk in chunks] == [6400, 6400, 3200]
    assert loop.time() - began_s >= 0.25
    assert sound.duration_ms == 250
    minute = Recording(Path("b.wav"), bytes(4 * 16_000 * 60))
    began_s = loop.time()
    assert b"".join([chunk async for chunk in minute.chunks(realtime=False)]) == minute.pcm
    assert loop.time() - began_s < 45


def test_the_client_and_its_command_line_load_nothing_that_they_do_not_declare() -> None:
    check = (
        "import sys, speakerd.cli, speakerd.sync_client;"
        "print(sorted({'numpy', 'torch', 'pydantic', 'runtime', 'models', 'node', 'controlplane'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"

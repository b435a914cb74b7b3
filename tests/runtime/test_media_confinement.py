"""What the decoding child may not do, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soundfile

from runtime.errors import BadAudio, SpeakerdError, TooLarge
from runtime.media import MediaLimits, SourceFormat, adecode, adecode_stream, decode

ROOT = Path(__file__).resolve().parents[2]
BOMB_S = 3_600


def wav(seconds: float = 2.0) -> bytes:
    out = io.BytesIO()
    samples = 0.3 * np.random.default_rng(1).standard_normal(round(16_000 * seconds))
    soundfile.write(out, samples, 16_000, format="WAV", subtype="PCM_16")
    return out.getvalue()


@pytest.fixture(scope="session")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of silence in less than a megabyte."""
    path = tmp_path_factory.mktemp("bomb") / "silence.flac"
    with av.open(str(path), "w") as muxer:
        stream = muxer.add_stream("flac", rate=16_000, layout="mono")
        second = np.zeros((1, 16_000), dtype="i2")
        for position in range(BOMB_S):
            frame = av.AudioFrame.from_ndarray(second, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 16_000 * position
            for packet in stream.encode(frame):
                muxer.mux(packet)
        for packet in stream.encode(None):
            muxer.mux(packet)
    return path


def children() -> list[psutil.Process]:
    """The decoders that run: other tests' servers may be children of this process too."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any("media_child" in argument for argument in process.cmdline()):
                found.append(process)
    return found


async def count(path: Path, limits: MediaLimits) -> int:
    return sum([len(block) async for block in adecode_stream(path, limits=limits)])


async def test_a_bomb_is_stopped_at_the_limit_while_it_is_decoded(bomb: Path) -> None:
    assert bomb.stat().st_size < 1_000_000
    started = time.monotonic()
    with pytest.raises(TooLarge, match="longer than 60 s, the most that is taken here"):
        await count(bomb, MediaLimits(seconds_max=60))
    with pytest.raises(TooLarge, match="longer than 60 s"):
        decode(bomb, limits=MediaLimits(seconds_max=60))
    assert time.monotonic() - started < 10
    assert children() == []


async def test_an_hour_is_read_in_blocks_without_ever_lying_whole_in_memory(bomb: Path) -> None:
    whole_bytes = BOMB_S * 16_000 * 4
    process = psutil.Process()
    await adecode(wav())
    before = process.memory_info().rss
    highest, samples, longest = before, 0, 0
    async with aclosing(adecode_stream(bomb)) as stream:
        async for block in stream:
            samples += len(block)
            longest = max(longest, len(block))
            highest = max(highest, process.memory_info().rss)
    assert samples == BOMB_S * 16_000
    assert longest == 16_000
    assert highest - before < whole_bytes / 10


async def test_a_decoder_that_uses_up_its_processor_time_is_stopped(bomb: Path) -> None:
    with pytest.raises(BadAudio, match=r"more than 0\.2 s of processor time and was stopped after \d+\.\d s of sound"):
        await count(bomb, MediaLimits(cpu_s_max=0.2))


async def test_a_decoder_that_is_waited_for_too_long_is_killed(bomb: Path) -> None:
    limits = MediaLimits(wait_s_max=0.02)
    with pytest.raises(BadAudio, match=r"took more than 0\.02 s"):
        await count(bomb, limits)
    with pytest.raises(BadAudio, match=r"took more than 0\.02 s"):
        decode(bomb, limits=limits)
    assert children() == []


async def test_a_slow_consumer_does_not_count_as_waiting(bomb: Path) -> None:
    limits = MediaLimits(wait_s_max=2.0, seconds_max=5_000)
    blocks = 0
    async with aclosing(adecode_stream(bomb, limits=limits)) as stream:
        async for _ in stream:
            blocks += 1
            if blocks == 1:
                await asyncio.sleep(2.2)
            if blocks == 50:
                break
    assert blocks == 50


async def test_a_cancelled_decoding_leaves_no_child(bomb: Path) -> None:
    task = asyncio.create_task(adecode(bomb))
    while not children():
        await asyncio.sleep(0.005)
    (child,) = children()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not child.is_running()


async def test_a_consumer_that_stops_early_leaves_no_child(bomb: Path) -> None:
    async with aclosing(adecode_stream(bomb)) as stream:
        async for _ in stream:
            assert len(children()) == 1
            break
    assert children() == []


async def test_the_loop_goes_on_while_a_file_is_decoded(bomb: Path) -> None:
    async def longest_pause_s() -> float:
        longest, last = 0.0, time.monotonic()
        while True:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                return longest
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    watch = asyncio.create_task(longest_pause_s())
    await count(bomb, MediaLimits())
    watch.cancel()
    # Decoding takes about a second; what the loop itself does for it are pieces of a few milliseconds.
    assert await watch < 0.25


async def test_chunks_are_taken_as_they_come_and_counted() -> None:
    data = wav()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 7_001):
            await asyncio.sleep(0)
            yield data[at : at + 7_001]

    seen: list[SourceFormat] = []
    blocks = [block async for block in adecode_stream(chunks(), on_source=seen.append)]
    assert np.array_equal(np.concatenate(blocks), decode(data).samples)
    assert seen == [SourceFormat("wav", "pcm_s16le", 16_000, 1)]

    with pytest.raises(TooLarge, match="too large"):
        await adecode(chunks(), limits=MediaLimits(bytes_max=20_000))


async def test_many_files_are_decoded_side_by_side() -> None:
    data = wav()
    results = await asyncio.gather(*(adecode(data) for _ in range(6)))
    assert all(np.array_equal(result.samples, results[0].samples) for result in results)
    assert children() == []


PROBE = """
import json, os, resource, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from runtime.media_child.confine import confine, shut
confine(os.getppid(), 1 << 30, 5)
shut(os.getppid())

def tried(act):
    try:
        act()
    except (OSError, RuntimeError) as error:
        return type(error).__name__
    return "done"

print(json.dumps({
    "open": tried(lambda: open(sys.executable, "rb")),
    "socket": tried(socket.socket),
    "thread": tried(lambda: threading.Thread(target=print).start()),
    "fork": tried(lambda: os._exit(0) if os.fork() == 0 else None),
    "limits": [resource.getrlimit(getattr(resource, f"RLIMIT_{which}")) for which in ("AS", "CPU", "CORE", "FSIZE")],
    "environment": [name for name in os.environ if not name.endswith("_NUM_THREADS") and name != "LC_CTYPE"],
}))
"""


def test_the_child_can_open_nothing_and_start_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", PROBE, str(ROOT)], env={}, stdout=subprocess.PIPE, check=True, timeout=30
    )
    tried = json.loads(done.stdout)
    assert tried["open"] == "OSError"
    assert tried["socket"] == "OSError"
    assert tried["thread"] != "done"
    assert tried["fork"] != "done"
    # The kernel stops a decoder that has been taken over, and looks at no clock of its own any more.
    assert tried["limits"] == [[1 << 30, 1 << 30], [5, 6], [0, 0], [0, 0]]
    assert tried["environment"] == []


def test_the_child_imports_neither_torch_nor_grpc_nor_asyncio() -> None:
    listing = (
        "import sys; sys.path.append(sys.argv[1]); import runtime.media_child.__main__, runtime.media_child.decode;"
        "print([m for m in ('torch', 'grpc', 'asyncio', 'runtime.media', 'speakerd') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", listing, str(ROOT)], capture_output=True, check=True, timeout=30)
    assert done.stdout.strip() == b"[]"


ORPHAN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-c",
    "import os, sys, time; sys.path.append(sys.argv[1]);"
    "from runtime.media_child.confine import confine; confine(os.getppid(), 1 << 30, 5);"
    "from runtime.media_child.confine import shut; shut(os.getppid());"
    "print('confined', flush=True); time.sleep(60)", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_the_child_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN, str(ROOT)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def until(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return False


async def test_a_decoder_that_cannot_start_says_so_and_blames_no_file() -> None:
    with pytest.raises(SpeakerdError, match="the decoder") as failed:
        await adecode(wav(), limits=MediaLimits(memory_bytes_max=60 << 20))
    assert not isinstance(failed.value, BadAudio | TooLarge)

"""Untrusted recordings become float32 mono at 16 kHz, in a confined child process.

In: bytes, a path, or chunks as they arrive, in any common format. Out: samples, in blocks or whole, and what the
file was. What always holds: no byte of the file is interpreted in this process; a long file never lies whole in
memory when it is read in blocks; and the child is gone when the call returns, raises or is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runtime
from runtime.media.limits import MediaLimits
from runtime.media.report import FloatArray, ReportReader, SourceFormat
from runtime.media.spool import spooled, spooled_chunks
from runtime.units import seconds_from_samples

READ_BYTES = 256 * 1024
DEFAULT_LIMITS = MediaLimits()
# The child finds our package by the place of this one, as it runs without PYTHONPATH and without a working directory.
_START = (
    "import sys; sys.path.append(sys.argv[5]); from runtime.media_child.__main__ import main; "
    "main(*map(int, sys.argv[1:3]), *map(float, sys.argv[3:5]), sys.argv[6] == 'live')"
)


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """A recording: `samples` float32 (N,), mono, 16 kHz, finite; and what the file was."""

    samples: FloatArray
    source: SourceFormat

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return seconds_from_samples(len(self.samples))


def decode_stream(
    data: bytes | Path,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
    on_source: Callable[[SourceFormat], None] | None = None,
) -> Generator[FloatArray, None, None]:
    """`adecode_stream`, blocking. Use `contextlib.closing` when you may stop before the end."""
    reader = ReportReader(limits)
    told = False
    for block in _blocks(data, limits, reader):
        if on_source is not None and not told and reader.source is not None:
            on_source(reader.source)
            told = True
        yield block


def decode(data: bytes | Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> DecodedAudio:
    """Decodes a recording, blocking. See `adecode` for the errors."""
    reader = ReportReader(limits)
    return _collected(list(_blocks(data, limits, reader)), reader)


async def adecode(data: bytes | Path | AsyncIterable[bytes], *, limits: MediaLimits = DEFAULT_LIMITS) -> DecodedAudio:
    """Decodes a recording without holding the loop up. When cancelled, the child is killed.

    Raises BadAudio (empty, cut short, damaged, NaN, 0 Hz, ...), UnsupportedMedia (not audio that we read), TooLarge
    (bytes, seconds or memory over the limits) and InvalidRequest (no such file). Silence is no error here.
    """
    reader = ReportReader(limits)
    async with aclosing(_ablocks(data, limits, reader)) as stream:
        blocks = [block async for block in stream]
    return _collected(blocks, reader)


async def adecode_stream(
    source: bytes | Path | AsyncIterable[bytes],
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
    on_source: Callable[[SourceFormat], None] | None = None,
) -> AsyncGenerator[FloatArray, None]:
    """Yields the recording in blocks, float32 (N,), each a second long but the last; errors as `adecode`.

    That a file is cut short shows at its end, after its blocks. The decoder waits while the consumer does. `on_source`
    is called before the first block. Use `contextlib.aclosing` when you may stop before the end.
    """
    reader = ReportReader(limits)
    told = False
    async with aclosing(_ablocks(source, limits, reader)) as stream:
        async for block in stream:
            if on_source is not None and not told and reader.source is not None:
                on_source(reader.source)
                told = True
            yield block


def _collected(blocks: list[FloatArray], reader: ReportReader) -> DecodedAudio:
    assert reader.source is not None, "the report ended well without saying what the file was"
    samples = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.float32)
    return DecodedAudio(samples, reader.source)


def command(limits: MediaLimits, kind: str = "file") -> list[str]:
    """How the child is started. kind: of its input, "file", or "live" for a pipe that is written as it is read.

    -I: no environment, no user site. -B: the child can write no files, and caches of bytecode would be cut off.
    """
    numbers = [os.getpid(), limits.memory_bytes_max, limits.cpu_s_max, limits.seconds_max]
    root = str(Path(runtime.__file__).resolve().parent.parent)
    return [sys.executable, "-I", "-B", "-c", _START, *map(str, numbers), root, kind]


def _blocks(data: bytes | Path, limits: MediaLimits, reader: ReportReader) -> Iterator[FloatArray]:
    with (
        spooled(data, limits) as fd,
        subprocess.Popen(
            command(limits), stdin=fd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/"
        ) as child,
        selectors.DefaultSelector() as selector,
    ):
        assert child.stdout is not None
        selector.register(child.stdout, selectors.EVENT_READ)
        waited_s = 0.0
        try:
            while not reader.ended:
                asked = time.monotonic()
                if not selector.select(max(0.0, limits.wait_s_max - waited_s)):
                    raise reader.timed_out()
                chunk = os.read(child.stdout.fileno(), READ_BYTES)
                waited_s += time.monotonic() - asked
                if not chunk:
                    break
                yield from reader.feed(chunk)
            if not reader.ended:
                child.wait()
        finally:
            # After its last line the child has nothing left to do.
            child.kill()
    reader.close(child.returncode)


async def _ablocks(
    source: bytes | Path | AsyncIterable[bytes], limits: MediaLimits, reader: ReportReader
) -> AsyncGenerator[FloatArray, None]:
    async with AsyncExitStack() as stack:
        if isinstance(source, bytes | Path):
            fd = stack.enter_context(spooled(source, limits))
        else:
            fd = await stack.enter_async_context(spooled_chunks(source, limits))
        child = await asyncio.create_subprocess_exec(
            *command(limits),
            stdin=fd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            limit=READ_BYTES,
        )
        assert child.stdout is not None
        waited_s = 0.0
        try:
            while not reader.ended:
                asked = time.monotonic()
                try:
                    async with asyncio.timeout(limits.wait_s_max - waited_s):
                        chunk = await child.stdout.read(READ_BYTES)
                except TimeoutError:
                    raise reader.timed_out() from None
                waited_s += time.monotonic() - asked
                if not chunk:
                    break
                for block in reader.feed(chunk):
                    yield block
            if not reader.ended:
                await child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            # Reading to the end lets the loop close the pipe; a dead child has left little, and it comes at once.
            await child.communicate()
        assert child.returncode is not None
    reader.close(child.returncode)

"""A recording that is still being made becomes float32 mono at 16 kHz as its bytes come, in a confined child process.

In: chunks of an encoded stream in any common format. Out: samples, as soon as they can be decoded. What always holds:
no byte is interpreted in this process; nothing is kept of what was decoded; who sends faster than samples are taken
waits; a decoder that neither takes nor gives anything is stopped; the child is gone when this returns, raises or is
cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing

from runtime.errors import BadAudio, TooLarge
from runtime.media.decoding import READ_BYTES, command
from runtime.media.limits import LIVE, MIB, MediaLimits
from runtime.media.report import FloatArray, ReportReader, SourceFormat


async def adecode_live(
    chunks: AsyncIterable[bytes],
    *,
    limits: MediaLimits = LIVE,
    on_source: Callable[[SourceFormat], None] | None = None,
) -> AsyncGenerator[FloatArray, None]:
    """Yields samples in blocks, float32 (N,), at most a second long, while chunks come; errors as `adecode`.

    The stream is whole where `chunks` end: it is cut short only if it declared more. `on_source` is called before the
    first block. What `chunks` raises is raised here. Use `contextlib.aclosing` when you may stop before the end.
    """
    reader = ReportReader(limits)
    told = False
    async with aclosing(_Decoding(chunks, limits, reader).blocks()) as stream:
        async for block in stream:
            if on_source is not None and not told and reader.source is not None:
                on_source(reader.source)
                told = True
            yield block


class _Decoding:
    """One child, fed by a task of its own."""

    def __init__(self, chunks: AsyncIterable[bytes], limits: MediaLimits, reader: ReportReader) -> None:
        self._chunks = chunks
        self._limits = limits
        self._reader = reader
        self._turns = 0  # how often the consumer took something, or came back for more
        self._is_waiting = False  # for the decoder; else for the consumer

    async def blocks(self) -> AsyncGenerator[FloatArray, None]:
        child = await asyncio.create_subprocess_exec(
            *command(self._limits, "live"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            limit=READ_BYTES,
        )
        assert child.stdin is not None and child.stdout is not None
        feeding = asyncio.create_task(self._feed(child.stdin), name="decoder-feed")
        reading: asyncio.Task[bytes] | None = None
        try:
            while not self._reader.ended:
                reading = reading or asyncio.create_task(child.stdout.read(READ_BYTES), name="decoder-read")
                self._is_waiting = True
                watched: set[asyncio.Task[None] | asyncio.Task[bytes]] = {reading}
                if not feeding.done():
                    watched.add(feeding)
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    feeding.result()
                if not reading.done():
                    continue
                self._is_waiting = False
                data, reading = reading.result(), None
                if not data:
                    break
                for block in self._reader.feed(data):
                    self._turns += 1
                    yield block
            if not self._reader.ended:
                await child.wait()
        finally:
            tasks = [task for task in (feeding, reading) if task is not None]
            for task in tasks:
                task.cancel()
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await asyncio.gather(*tasks, return_exceptions=True)
            child.stdin.close()
            await child.wait()
        assert child.returncode is not None
        self._reader.close(child.returncode)

    async def _feed(self, pipe: asyncio.StreamWriter) -> None:
        """Write the chunks, as fast as they are taken. A decoder that has ended takes none, and has said why."""
        num_bytes = 0
        with contextlib.suppress(ConnectionError):
            async for chunk in self._chunks:
                num_bytes += len(chunk)
                if num_bytes > self._limits.bytes_max:
                    raise TooLarge(
                        f"the stream is over {self._limits.bytes_max / MIB:g} MiB: open a new one now and then"
                    )
                pipe.write(chunk)
                await self._taken(pipe)
            if not num_bytes:
                raise BadAudio("the audio is empty: send a recording")
            pipe.close()

    async def _taken(self, pipe: asyncio.StreamWriter) -> None:
        """Wait until the decoder has room. Raises BadAudio when it neither takes nor gives anything."""
        while True:
            turns = self._turns
            try:
                async with asyncio.timeout(self._limits.wait_s_max):
                    await pipe.drain()
            except TimeoutError:
                if turns == self._turns and self._is_waiting:
                    raise self._reader.timed_out() from None
            else:
                return

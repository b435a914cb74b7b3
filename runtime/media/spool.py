"""Turns what a caller has into a seekable file descriptor that a child can read.

In: bytes, a path, or chunks as they arrive. Out: a read descriptor, closed at the end of the context. Bytes go into
memory that has no name and cannot be changed any more; chunks go into a file without a name, on disk, so that
an upload never lies whole in memory; a path is opened here, once, and never given to the child. Size is checked here.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from runtime.errors import BadAudio, InvalidRequest, TooLarge
from runtime.media.limits import MIB, MediaLimits


@contextmanager
def spooled(source: bytes | Path, limits: MediaLimits) -> Iterator[int]:
    """A descriptor of the recording, at its start.

    Raises BadAudio when it is empty, TooLarge over `bytes_max`, InvalidRequest when a path is no readable file.
    """
    if isinstance(source, Path):
        fd = _open(source)
    else:
        _check_size(len(source), limits)
        fd = _nameless(source)
    try:
        _check_size(os.fstat(fd).st_size, limits)
        yield fd
    finally:
        os.close(fd)


@asynccontextmanager
async def spooled_chunks(chunks: AsyncIterable[bytes], limits: MediaLimits) -> AsyncIterator[int]:
    """As `spooled`, of chunks as they arrive; stops taking them once they pass `bytes_max`."""
    # A write of one chunk goes to the page cache, and does not hold the loop up.
    with tempfile.TemporaryFile(buffering=0) as file:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > limits.bytes_max:
                raise _too_large("more than is taken", limits)
            _write(file.fileno(), chunk)
        _check_size(size, limits)
        file.seek(0)
        yield file.fileno()


def _open(path: Path) -> int:
    try:
        # Without O_NONBLOCK a named pipe would hold us until somebody writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise InvalidRequest(f"the audio file cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidRequest("the audio is not a regular file: give the path of a recording")
    return fd


def _nameless(data: bytes) -> int:
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile(buffering=0) as file:
            _write(file.fileno(), data)
            file.seek(0)
            return os.dup(file.fileno())
    fd = os.memfd_create("speakerd-audio", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    _write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _check_size(size: int, limits: MediaLimits) -> None:
    if size == 0:
        raise BadAudio("the audio is empty: send a recording")
    if size > limits.bytes_max:
        raise _too_large(f"{size / MIB:.1f} MiB", limits)


def _too_large(size: str, limits: MediaLimits) -> TooLarge:
    return TooLarge(
        f"the recording is too large ({size}): at most {limits.bytes_max / MIB:g} MiB are taken here; "
        "send a shorter recording, or a compressed one (flac, ogg, mp3)"
    )

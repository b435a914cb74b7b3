"""Tarballs of bundles, unpacked without trust: only the files that a bundle is made of, and nothing elsewhere.

In comes a tarball, compressed or not; out come those of its files that a pyannote pipeline is made of, in a folder.
What always holds: names that lead out of the folder, links and devices are refused; the numbers of entries and of bytes
that come out are bounded, whatever the headers say; entries of other names are passed over and not written.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from runtime.errors import InvalidRequest, TooLarge

WANTED = frozenset({"config.yaml", "pytorch_model.bin", "plda.npz", "xvec_transform.npz"})
ENTRIES_MAX = 10_000
UNPACKED_BYTES_MAX = 4 << 30
"""Of all entries together, also of those that are passed over: a bomb need not be written to do harm."""
DEPTH_MAX = 16
CHUNK_BYTES = 1 << 20


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tarball's files into an empty folder. InvalidRequest or TooLarge, naming what is wrong with it."""
    with _opened(archive) as stream:
        left = UNPACKED_BYTES_MAX
        try:
            for number, entry in enumerate(stream):
                if number >= ENTRIES_MAX:
                    raise TooLarge(f"{archive.name} holds more than {ENTRIES_MAX} files")
                left -= entry.size
                if left < 0:
                    raise TooLarge(f"{archive.name} holds more than {UNPACKED_BYTES_MAX >> 30} GiB")
                _take(stream, entry, folder, archive.name)
        except (tarfile.TarError, EOFError, OSError, zlib.error, LZMAError) as error:
            raise InvalidRequest(f"{archive.name} is damaged: {error}") from error


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        # As a stream: nothing is sought, so that a header cannot point anywhere.
        with tarfile.open(archive, "r|*") as stream:
            yield stream
    except tarfile.ReadError as error:
        raise InvalidRequest(f"{archive.name} is no tarball: {error}") from error


def _take(stream: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path, archive: str) -> None:
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or "\0" in entry.name:
        raise InvalidRequest(f"{archive} is refused: {entry.name[:200]!r} leads out of it")
    if entry.issym() or entry.islnk():
        raise InvalidRequest(
            f"{archive} is refused: {entry.name[:200]!r} is a link; pack the files themselves (tar --dereference)"
        )
    if entry.isdir():
        return
    if not entry.isreg():
        raise InvalidRequest(f"{archive} is refused: {entry.name[:200]!r} is no file")
    if len(path.parts) > DEPTH_MAX:
        raise InvalidRequest(f"{archive} is refused: {entry.name[:200]!r} lies too deep")
    if path.name not in WANTED:
        return
    source = stream.extractfile(entry)
    assert source is not None, "a regular entry has content"
    target = folder.joinpath(*(part for part in path.parts if part != "."))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise InvalidRequest(f"{archive} is refused: it holds {entry.name[:200]!r} twice")
    with target.open("xb") as out:
        _copy(source, out, entry.size)


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> None:
    left = size
    while left > 0:
        chunk = source.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise tarfile.ReadError("a file is cut short")
        out.write(chunk)
        left -= len(chunk)

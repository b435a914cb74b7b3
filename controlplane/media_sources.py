"""Where a recording comes from: the request itself, a url, the blob store, or a drive of the platform.

In: a source. Out: its bytes, within a limit. What always holds: urls go through the guard; a drive is asked through an
adapter that the operator has named, and sees the reference alone; nothing is kept.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from controlplane.blobs import Blobs
from controlplane.guarded_http import GuardedHttp
from runtime.errors import BadAudio, InvalidRequest, NotFound, TooLarge

FETCH_S_MAX = 60.0
REFERENCE_CHARS_MAX = 1_024
DRIVES = "speakerd.drives"
"""Entry points that make a Drive of the control plane's settings."""
FILE_ID = "file_id"
KINDS = (FILE_ID, "mcp_uri", "share_url")
"""How a file on a drive may be named."""


@dataclass(frozen=True, slots=True)
class Url:
    """A recording at a url."""

    url: str


@dataclass(frozen=True, slots=True)
class InStore:
    """A recording in our own store, as it came, by its key there."""

    key: str


@dataclass(frozen=True, slots=True)
class DriveReference:
    """A recording on a drive. kind: how the drive is asked (file_id, mcp_uri, share_url)."""

    kind: str
    value: str


class FileMissing(BadAudio):
    """A reference leads nowhere: the request is wrong, and not where it was sent to."""


Source = bytes | Url | InStore | DriveReference


class DriveSettings(Protocol):
    """What is set of a drive."""

    @property
    def drive(self) -> str | None:
        """The installed adapter; None: none."""
        ...

    @property
    def drive_folder(self) -> Path | None:
        """The folder that is the drive, where no adapter is named."""
        ...


class Drive(Protocol):
    """A drive of the platform's."""

    async def read(self, reference: DriveReference, *, bytes_max: int) -> bytes:
        """The file's content. Raises FileMissing, TooLarge, InvalidRequest for a kind that it does not know."""
        ...


class NoDrive:
    """What answers while no drive is configured."""

    async def read(self, reference: DriveReference, *, bytes_max: int) -> bytes:
        """Raises InvalidRequest."""
        raise InvalidRequest("no drive is configured here: send the recording itself, or a url")


class FolderDrive:
    """A folder as a drive: file_id is a path in it, mcp_uri and share_url are URIs whose path is one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def __repr__(self) -> str:
        return "FolderDrive()"

    async def read(self, reference: DriveReference, *, bytes_max: int) -> bytes:
        """The file's content; nothing outside of the folder is read, links included."""
        if reference.kind not in KINDS:
            raise InvalidRequest(f"a file on the drive is named by one of {', '.join(KINDS)}")
        if len(reference.value) > REFERENCE_CHARS_MAX or "\0" in reference.value:
            raise InvalidRequest(f"{reference.kind}: at most {REFERENCE_CHARS_MAX} characters")
        name = reference.value if reference.kind == FILE_ID else _path_of(reference.value)
        return await asyncio.to_thread(self._read, name, bytes_max)

    def _read(self, name: str, bytes_max: int) -> bytes:
        try:
            path = (self._folder / name).resolve(strict=True)
            if not path.is_relative_to(self._folder) or not path.is_file():
                raise FileMissing("the drive has no such file")
            if path.stat().st_size > bytes_max:
                raise TooLarge(f"the file is larger than {bytes_max >> 20} MiB")
            with path.open("rb") as file:
                data = file.read(bytes_max + 1)
        except OSError:
            raise FileMissing("the drive has no such file") from None
        if len(data) > bytes_max:
            raise TooLarge(f"the file is larger than {bytes_max >> 20} MiB")
        return data


def _path_of(uri: str) -> str:
    try:
        return unquote(urlsplit(uri).path).lstrip("/").replace("\0", "")
    except ValueError:
        raise InvalidRequest("the reference is no URI") from None


def open_drive(settings: DriveSettings) -> Drive:
    """The drive that the settings name: a folder, an installed adapter, or none. Raises InvalidRequest."""
    if settings.drive is not None:
        for point in entry_points(group=DRIVES, name=settings.drive):
            drive: Drive = point.load()(settings)
            return drive
        raise InvalidRequest(f"drive: no installed package gives {settings.drive!r} in the group {DRIVES}")
    return NoDrive() if settings.drive_folder is None else FolderDrive(settings.drive_folder)


class MediaSources:
    """Reads recordings from wherever they are."""

    def __init__(self, http: GuardedHttp, blobs: Blobs, drive: Drive) -> None:
        self._http = http
        self._blobs = blobs
        self._drive = drive

    def __repr__(self) -> str:
        return f"MediaSources({self._drive!r})"

    async def read(self, source: Source, *, bytes_max: int) -> bytes:
        """The bytes of a recording. Raises what the source raises: NotFound, TooLarge, InvalidRequest, Unavailable."""
        match source:
            case bytes():
                if len(source) > bytes_max:
                    raise TooLarge(f"the recording is larger than {bytes_max >> 20} MiB")
                return source
            case Url(url):
                return await self._http.get(url, bytes_max=bytes_max, seconds_max=FETCH_S_MAX)
            case InStore(key):
                data = await self._blobs.get(key)
                if data is None:
                    raise NotFound("the recording is not in the store any more")
                if len(data) > bytes_max:
                    raise TooLarge(f"the recording is larger than {bytes_max >> 20} MiB")
                return data
            case DriveReference():
                return await self._drive.read(source, bytes_max=bytes_max)

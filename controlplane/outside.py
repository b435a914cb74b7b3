"""What has to outlive the database, and is therefore kept beside it: small objects, each written once.

In: a path, or the URL of an object store (s3://, gs://, az://). Out: put, get, names. What always holds: an object that
`put` returned from is durable and never overwritten; two writers of one name do not both succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path
from typing import Protocol

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from runtime.errors import Conflict, InvalidRequest, Unavailable

PUT_S = 20.0
"""How long an object store may take over one object: one that hangs is as good as away."""


class Outside(Protocol):
    """A store of small objects."""

    async def put(self, name: str, content: bytes) -> None:
        """Write durably. Raises Conflict when the name is taken, Unavailable when the store is away or full."""
        ...

    async def get(self, name: str) -> bytes:
        """Raises Unavailable when it cannot be read."""
        ...

    async def names(self) -> list[str]:
        """Every name, sorted. Raises Unavailable."""
        ...


def open_outside(where: str) -> Outside:
    """A folder, or an object store by its URL. Raises InvalidRequest for what is neither."""
    return RemoteObjects(where) if is_url(where) else Folder(Path(where).expanduser())


def is_url(where: str) -> bool:
    """Whether this names an object store rather than a path."""
    return "://" in where


class Folder:
    """Files in a folder, for their owner alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return "Folder()"

    async def put(self, name: str, content: bytes) -> None:
        """Written whole, flushed to the disk, and only then given its name."""
        await asyncio.to_thread(self._put, name, content)

    async def get(self, name: str) -> bytes:
        """The content of a file."""
        try:
            return await asyncio.to_thread((self._folder / name).read_bytes)
        except OSError as error:
            raise Unavailable(f"cannot read {name}: {error.strerror}") from None

    async def names(self) -> list[str]:
        """Files that are complete."""
        try:
            return await asyncio.to_thread(self._names)
        except OSError as error:
            raise Unavailable(f"cannot read the folder {self._folder}: {error.strerror}") from None

    def _names(self) -> list[str]:
        if not self._folder.exists():
            return []
        return sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def _put(self, name: str, content: bytes) -> None:
        temporary = self._folder / f".{name}.{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _give_name(temporary, self._folder / name)
            fsync_folder(self._folder)
        except FileExistsError:
            raise Conflict(f"{name} is there already") from None
        except OSError as error:
            raise Unavailable(f"cannot write {name}: {error.strerror}", retry_after_s=1.0) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class RemoteObjects:
    """Objects in a store that obstore knows by URL; credentials come from its own environment variables."""

    def __init__(self, url: str) -> None:
        try:
            self._store = from_url(url)
        except (BaseError, ValueError) as error:
            raise InvalidRequest(f"cannot open the object store {url.partition('?')[0]!r}: {error}") from None

    def __repr__(self) -> str:
        return "RemoteObjects()"

    async def put(self, name: str, content: bytes) -> None:
        """Put on condition that there is no such object."""
        try:
            async with asyncio.timeout(PUT_S):
                await self._store.put_async(name, content, mode="create")
        except AlreadyExistsError:
            raise Conflict(f"{name} is there already") from None
        except (BaseError, OSError) as error:
            raise Unavailable("the object store is away or full; try again", retry_after_s=1.0) from error

    async def get(self, name: str) -> bytes:
        """The content of an object."""
        try:
            return bytes(await (await self._store.get_async(name)).bytes_async())
        except (BaseError, OSError) as error:
            raise Unavailable("the object store is away; try again", retry_after_s=1.0) from error

    async def names(self) -> list[str]:
        """Every object."""
        try:
            return sorted([entry["path"] async for batch in self._store.list() for entry in batch])
        except (BaseError, OSError) as error:
            raise Unavailable("the object store is away; try again", retry_after_s=1.0) from error


def _give_name(temporary: Path, path: Path) -> None:
    try:
        # Unlike a rename, a link never takes the place of what is there.
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError from None
        temporary.replace(path)  # a file system without links


def fsync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)

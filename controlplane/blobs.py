"""Recordings of enrolments, as ciphertext, in an object store: a folder by default.

What comes in is encrypted already; what goes out is ciphertext. Keys are random, so that a blob does not say whose it
is; deleting one that is not there is no error, for an erasure may be tried again. A store that is away, refuses or
does not answer is Unavailable (TimeoutError is an OSError).
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore

from runtime.errors import Unavailable

BOUND_S = 20.0
"""How long a store may take over one recording: one that hangs is as good as away."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as the store lists it. written_at_s: Unix time."""

    key: str
    size_bytes: int
    written_at_s: float


class Blobs:
    """An object store."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store = LocalStore(str(folder))

    def __repr__(self) -> str:
        return "Blobs()"

    async def put(self, ciphertext: bytes) -> str:
        """Store, and return the key. Raises Unavailable when the store is away or full."""
        key = f"samples/{secrets.token_hex(16)}"
        try:
            async with asyncio.timeout(BOUND_S):
                await self._store.put_async(key, ciphertext, mode="create")
        except (BaseError, OSError) as error:
            raise Unavailable("the recordings' store is away or full; try again", retry_after_s=1.0) from error
        return key

    async def get(self, key: str) -> bytes | None:
        """The ciphertext, or None when there is none under this key."""
        try:
            async with asyncio.timeout(BOUND_S):
                result = await self._store.get_async(key)
                return bytes(await result.bytes_async())
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise Unavailable("the recordings' store is away; try again", retry_after_s=1.0) from error

    async def delete(self, key: str) -> None:
        """Delete. Raises Unavailable when the store is away; absent is fine."""
        try:
            async with asyncio.timeout(BOUND_S):
                await self._store.delete_async(key)
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise Unavailable("the recordings' store is away; try again", retry_after_s=1.0) from error

    async def list(self) -> list[StoredBlob]:
        """Every blob. Raises Unavailable when the store is away."""
        found: list[StoredBlob] = []
        try:
            async for batch in self._store.list("samples/"):
                for entry in batch:
                    written: datetime = entry["last_modified"]
                    found.append(StoredBlob(entry["path"], int(entry["size"]), written.astimezone(UTC).timestamp()))
        except (BaseError, OSError) as error:
            raise Unavailable("the recordings' store is away; try again", retry_after_s=1.0) from error
        return found

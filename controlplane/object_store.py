"""Large objects in a folder or an object store, written and read as streams.

In: chunks. Out: chunks. What always holds: an object is there whole or not at all; every outage is Unavailable; an
object that is not there is None, and deleting it no error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from controlplane.outside import is_url
from runtime.errors import InvalidRequest, Unavailable

CHUNK_BYTES = 1 << 20
_AWAY = "the media store is away or full; try again"


class ObjectStore:
    """A folder, or an object store by its URL, whose credentials come from its own environment variables."""

    def __init__(self, where: str) -> None:
        """Raises InvalidRequest for what is neither."""
        self._is_remote = is_url(where)
        try:
            if self._is_remote:
                self._store: Any = from_url(where)
            else:
                folder = Path(where).expanduser()
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._store = LocalStore(str(folder))
        except (BaseError, ValueError, OSError) as error:
            raise InvalidRequest(f"cannot open the object store {where.partition('?')[0]!r}: {error}") from None

    def __repr__(self) -> str:
        return f"ObjectStore(remote={self._is_remote})"

    @property
    def can_sign(self) -> bool:
        """Whether it gives out URLs of its own."""
        return self._is_remote

    async def put(self, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Write a stream. What `chunks` raises goes on, and nothing is left. Raises Unavailable."""
        failed: list[BaseException] = []

        async def guarded() -> AsyncIterator[bytes]:
            # The store wraps whatever a stream raises in errors of its own.
            try:
                async for chunk in chunks:
                    yield chunk
            except BaseException as error:
                failed.append(error)
                raise

        try:
            await obstore.put_async(self._store, name, guarded())
        except (BaseError, OSError) as error:
            if failed:
                raise failed[0] from None
            raise Unavailable(_AWAY, retry_after_s=1.0) from error
        except Exception:
            if failed:
                raise failed[0] from None
            raise

    async def get(self, name: str) -> AsyncIterator[bytes] | None:
        """The stream of an object. Raises Unavailable, at once and on the way."""
        try:
            found = await obstore.get_async(self._store, name)
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise Unavailable(_AWAY, retry_after_s=1.0) from error
        return _streamed(found)

    async def size(self, name: str) -> int | None:
        """Bytes of an object. Raises Unavailable."""
        try:
            return int((await obstore.head_async(self._store, name))["size"])
        except (NotFoundError, FileNotFoundError):
            return None
        except (BaseError, OSError) as error:
            raise Unavailable(_AWAY, retry_after_s=1.0) from error

    async def delete(self, name: str) -> None:
        """Delete. Raises Unavailable; absent is fine."""
        try:
            await obstore.delete_async(self._store, name)
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise Unavailable(_AWAY, retry_after_s=1.0) from error

    async def sign(self, method: Literal["GET", "PUT"], name: str, *, seconds: float) -> str:
        """A URL at the store itself, good for a while. Raises Unavailable."""
        try:
            return str(await obstore.sign_async(self._store, method, name, timedelta(seconds=seconds)))
        except (BaseError, OSError) as error:
            raise Unavailable(_AWAY, retry_after_s=1.0) from error


async def _streamed(found: Any) -> AsyncIterator[bytes]:
    try:
        async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(chunk)
    except (BaseError, OSError) as error:
        raise Unavailable(_AWAY, retry_after_s=1.0) from error

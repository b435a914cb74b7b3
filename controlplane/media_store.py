"""The tenant's media store: recordings by key, for a day.

In: chunks, under a key of the caller's or for a job. Out: chunks. What always holds: a recording is ciphertext under a
key of its own, made from the tenant's, and never lies whole in memory; a key names what was put under it last, and a
job keeps the recording that it was made with; no tenant sees another's, nor whether there is one.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.accounts import require_open
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import media, tenants
from controlplane.job_spec import require_media_key
from controlplane.media_frames import open_frames, seal_frames
from controlplane.media_tokens import GET, PUT, MediaTokens
from controlplane.object_store import ObjectStore
from controlplane.places import Places
from controlplane.policy import Principal
from controlplane.quotas import require_room
from controlplane.tenant_keys import TenantKeys
from controlplane.tenant_seals import MEDIA, TenantSeals, make_seals, require_seals
from runtime.clock import Clock
from runtime.errors import BadAudio, InvalidRequest, NotFound, Overloaded, SpeakerdError, TooLarge, Unavailable

MEDIA_PATH = "/v1/media/objects/"
"""Where the edge serves signed urls: PUT and GET of this and the token."""
BYTES_MAX = 1 << 30
KEPT_S = 24 * 3600.0
URL_S = 3600.0
"""How long a signed url is good."""
UPLOADS_MAX = 64
ARRIVING, KEPT, GOING = "arriving", "kept", "going"
ARRIVING_S_MAX = 6 * 3600.0
"""How long a recording may take to arrive; what is left of one that did not is deleted then."""
CANDIDATES_MAX = 20
NO_SUCH_MEDIA = "there is no recording under this key: upload it first; recordings are kept for 24 h"


@dataclass(frozen=True, slots=True)
class Presigned:
    """A url that needs no key of the API."""

    url: str
    expires_at_s: float

    def __repr__(self) -> str:
        return "Presigned(…)"


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """A recording that is kept."""

    key: str
    size_bytes: int
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class OpenMedia:
    """A recording, to be read once. Close `chunks` when you may stop before its end."""

    size_bytes: int
    chunks: AsyncGenerator[bytes, None]


class MediaStore:
    """Recordings by tenant and key."""

    def __init__(
        self,
        *,
        database: Database,
        tenant_keys: TenantKeys,
        store: ObjectStore,
        tokens: MediaTokens,
        clock: Clock,
        is_direct: bool = False,
    ) -> None:
        """is_direct: signed urls are the object store's own, and what comes that way is kept as it came."""
        if is_direct and not store.can_sign:
            raise InvalidRequest("media_direct: name an object store in media_url; a folder signs no urls")
        self._database = database
        self._tenant_keys = tenant_keys
        self._store = store
        self._tokens = tokens
        self._clock = clock
        self._is_direct = is_direct
        self._uploads = Places("uploads of recordings", UPLOADS_MAX, retry_after_s=5.0)

    def __repr__(self) -> str:
        return f"MediaStore({self._store!r}, uploads={self._uploads.num_taken})"

    async def presign_put(self, principal: Principal, key: str, *, base_url: str) -> Presigned:
        """Where to PUT a recording. base_url: of the edge, as the caller sees it. Raises InvalidRequest."""
        require_media_key(key)
        expires_at_s = self._clock.wall_s() + URL_S
        if self._is_direct:
            media_id, _ = await self._begin(principal, key, is_plain=True, more_bytes=1)
            return Presigned(await self._store.sign("PUT", _name(media_id), seconds=URL_S), expires_at_s)
        token = self._tokens.seal(PUT, principal, key, expires_at_s)
        return Presigned(f"{base_url.rstrip('/')}{MEDIA_PATH}{token}", expires_at_s)

    async def presign_get(self, principal: Principal, key: str, *, base_url: str) -> Presigned:
        """Where to GET it; whether it is there shows then. Raises InvalidRequest."""
        require_media_key(key)
        expires_at_s = self._clock.wall_s() + URL_S
        if self._is_direct:
            async with self._database.read() as connection:
                found = await self._under_key(connection, principal.tenant_id, key)
            for row in found[:1]:
                if row.is_plain:
                    url = await self._store.sign("GET", _name(row.media_id), seconds=URL_S)
                    return Presigned(url, expires_at_s)
        token = self._tokens.seal(GET, principal, key, expires_at_s)
        return Presigned(f"{base_url.rstrip('/')}{MEDIA_PATH}{token}", expires_at_s)

    async def put_signed(self, token: str, chunks: AsyncIterator[bytes], content_length: int | None) -> MediaInfo:
        """What was PUT to a signed url. Raises Denied for the url, and as `put`."""
        principal, key = self._tokens.open(PUT, token)
        return await self.put(principal, key, chunks, content_length)

    async def open_signed(self, token: str) -> OpenMedia:
        """What a signed url gives. Raises Denied for the url, NotFound."""
        principal, key = self._tokens.open(GET, token)
        return await self.open(principal, key)

    async def put(
        self, principal: Principal, key: str, chunks: AsyncIterator[bytes], content_length: int | None = None
    ) -> MediaInfo:
        """Keep a recording under a key, in place of what was there. chunks: not empty in all.

        Raises InvalidRequest, BadAudio for 0 bytes, TooLarge, Overloaded, Unavailable.
        """
        require_media_key(key)
        _, size_bytes, expires_at_s = await self._keep(principal, key, chunks, content_length)
        return MediaInfo(key, size_bytes, expires_at_s)

    async def keep(self, principal: Principal, chunks: AsyncIterator[bytes], content_length: int | None = None) -> str:
        """Keep a recording for a job, under no key: its media id. Raises as `put`."""
        media_id, _, _ = await self._keep(principal, None, chunks, content_length)
        return media_id

    async def open(self, principal: Principal, key: str) -> OpenMedia:
        """The recording under a key. Raises InvalidRequest, NotFound, Unavailable."""
        require_media_key(key)
        return await self.open_id(principal.tenant_id, await self.find(principal, key))

    async def find(self, principal: Principal, key: str) -> str:
        """The media id of what lies under a key now. Raises NotFound."""
        async with self._database.read() as connection:
            rows = await self._under_key(connection, principal.tenant_id, key)
        for row in rows:
            if row.state == KEPT or await self._has_come(row):
                return str(row.media_id)
        raise NotFound(NO_SUCH_MEDIA)

    async def open_id(self, tenant_id: str, media_id: str) -> OpenMedia:
        """A recording by its id. Raises NotFound, Unavailable."""
        query = select(media).where(media.c.media_id == media_id, media.c.tenant_id == tenant_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            if row is None or row.state == GOING:
                raise NotFound(NO_SUCH_MEDIA)
            seals = await require_seals(connection, self._tenant_keys, tenant_id)
        stored = await self._store.get(_name(media_id))
        if stored is None:
            raise NotFound(NO_SUCH_MEDIA)
        if row.is_plain:
            return OpenMedia(int(row.size_bytes), _bounded(stored, BYTES_MAX))
        return OpenMedia(int(row.size_bytes), open_frames(seals.derived(MEDIA, media_id), stored))

    async def _keep(
        self, principal: Principal, key: str | None, chunks: AsyncIterator[bytes], content_length: int | None
    ) -> tuple[str, int, float]:
        if content_length is not None and content_length > BYTES_MAX:
            raise _too_large()
        with self._uploads.taken(principal.tenant_id):
            media_id, seals = await self._begin(principal, None, is_plain=False, more_bytes=content_length or 1)
            size_bytes = 0

            async def counted() -> AsyncIterator[bytes]:
                nonlocal size_bytes
                async for chunk in _bounded(chunks, BYTES_MAX):
                    size_bytes += len(chunk)
                    yield chunk
                if size_bytes == 0:
                    raise BadAudio("the recording is empty (0 bytes): send the file's content")
                if content_length is not None and size_bytes != content_length:
                    raise InvalidRequest("the recording ended before its Content-Length: send it again")

            await self._store.put(_name(media_id), seal_frames(seals.derived(MEDIA, media_id), counted()))
            try:
                return media_id, size_bytes, await self._commit(principal, key, media_id, size_bytes)
            except SpeakerdError:
                await self._take_back(media_id)
                raise

    async def _take_back(self, media_id: str) -> None:
        """Free the room of what was not committed. An error may hide a commit that succeeded: that one stays."""
        with contextlib.suppress(Unavailable):
            async with self._database.write() as connection:
                taken = await connection.execute(
                    update(media).where(media.c.media_id == media_id, media.c.state == ARRIVING).values(state=GOING)
                )
            if taken.rowcount == 1:
                # Where this fails, the chore deletes it.
                await self.delete_blob(media_id)

    async def _begin(
        self, principal: Principal, key: str | None, *, is_plain: bool, more_bytes: int
    ) -> tuple[str, TenantSeals]:
        """A row for a recording that is about to come, before any of it is stored: so that nothing is ever lost."""
        media_id, now_s = secrets.token_hex(16), self._clock.wall_s()
        async with self._database.write() as connection:
            await locked_head(connection)
            await require_open(connection, principal)
            await require_room(connection, principal.tenant_id, more_voices=0, more_bytes=more_bytes)
            seals = await make_seals(connection, self._tenant_keys, principal.tenant_id)
            await connection.execute(
                insert(media).values(
                    media_id=media_id,
                    tenant_id=principal.tenant_id,
                    key_index=None if key is None else seals.index(MEDIA, key),
                    state=ARRIVING,
                    is_plain=is_plain,
                    created_at_s=now_s,
                    expires_at_s=now_s + (KEPT_S if is_plain else ARRIVING_S_MAX),
                )
            )
        return media_id, seals

    async def _commit(self, principal: Principal, key: str | None, media_id: str, size_bytes: int) -> float:
        """It is there whole: from here on its key names it. When it expires."""
        expires_at_s = self._clock.wall_s() + KEPT_S
        async with self._database.write() as connection:
            await locked_head(connection)
            await require_open(connection, principal)
            await require_room(connection, principal.tenant_id, more_voices=0, more_bytes=size_bytes)
            index = None
            if key is not None:
                seals = await make_seals(connection, self._tenant_keys, principal.tenant_id)
                index = seals.index(MEDIA, key)
                # Jobs that were made with it keep it; the chore deletes it once nothing does.
                await connection.execute(
                    update(media)
                    .where(media.c.tenant_id == principal.tenant_id, media.c.key_index == index)
                    .values(key_index=None, expires_at_s=self._clock.wall_s())
                )
            kept = await connection.execute(
                update(media)
                .where(media.c.media_id == media_id, media.c.state == ARRIVING)
                .values(state=KEPT, key_index=index, size_bytes=size_bytes, expires_at_s=expires_at_s)
            )
            if kept.rowcount != 1:
                raise Overloaded("the recording took too long to arrive: send it again", retry_after_s=1.0)
        return expires_at_s

    async def _under_key(self, connection: AsyncConnection, tenant_id: str, key: str) -> list[Row[Any]]:
        """What may lie under a key, newest first."""
        seals = await require_seals(connection, self._tenant_keys, tenant_id)
        query = (
            select(media)
            .join(tenants, tenants.c.tenant_id == media.c.tenant_id)
            .where(
                tenants.c.closed_at_s.is_(None),
                media.c.tenant_id == tenant_id,
                media.c.key_index == seals.index(MEDIA, key),
                media.c.state != GOING,
                media.c.expires_at_s > self._clock.wall_s(),
            )
            .order_by(media.c.created_at_s.desc())
            .limit(CANDIDATES_MAX)
        )
        return list((await connection.execute(query)).all())

    async def _has_come(self, row: Row[Any]) -> bool:
        """Whether what was to be sent straight to the store is there; then it is kept."""
        size_bytes = await self._store.size(_name(row.media_id)) if row.is_plain else None
        if size_bytes is None:
            return False
        if size_bytes > BYTES_MAX:
            raise _too_large()
        async with self._database.write() as connection:
            await connection.execute(
                update(media)
                .where(media.c.media_id == row.media_id, media.c.state == ARRIVING)
                .values(state=KEPT, size_bytes=size_bytes)
            )
        return True

    async def delete_blob(self, media_id: str) -> None:
        """Delete what a row names. Raises Unavailable."""
        await self._store.delete(_name(media_id))


async def _bounded(chunks: AsyncIterator[bytes], bytes_max: int) -> AsyncGenerator[bytes, None]:
    total_bytes = 0
    async for chunk in chunks:
        total_bytes += len(chunk)
        if total_bytes > bytes_max:
            raise _too_large()
        yield chunk


def _too_large() -> TooLarge:
    return TooLarge(f"a recording is at most {BYTES_MAX >> 30} GiB: send it in parts, or compressed (flac, ogg, mp3)")


def _name(media_id: str) -> str:
    return f"media/{media_id}"

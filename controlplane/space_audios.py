"""Audios in a space: said first and sent later, or both at once; kept as ciphertext under a key of their own.

In: a caller, a space, a recording. Out: views. What always holds: what is refused leaves nothing behind; an audio of an
identity goes with the identity; the file of one that a voiceprint holds may go, and what it gave stays written down.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.accounts import require_open
from controlplane.database.engine import locked_head
from controlplane.database.spaces_schema import (
    space_audios,
    space_identities,
    space_members,
    space_verifications,
    space_voiceprints,
)
from controlplane.intake import CONTAINER, Clip, Sound
from controlplane.listings import Listing, Page
from controlplane.policy import Principal
from controlplane.quotas import require_room
from controlplane.space_access import Space, find_audio, find_identity, page_of, require_alias, require_handle
from controlplane.space_ground import AudioView, Reference, SpaceGround
from controlplane.space_identities import identity_reference
from controlplane.space_library import adopt
from controlplane.space_models import AUDIO_MS_MAX, Heard
from controlplane.space_rows import alias_of, delete_audios, empty_audio, make_key, new_id, open_keys, sealed_alias
from controlplane.spaces import Spaces
from runtime.errors import BadAudio, Conflict, InvalidRequest, SpeakerdError, TooLarge, Unavailable

AWAITING = "avaitingFile"
AVAILABLE = "available"
NOT_AVAILABLE = "notAvailable"
# What an audio has to be is asked when it is added to a voiceprint: here it has to be sound at all.
_ANYTHING = {
    "duration_s_fail_below": 0.0,
    "duration_s_warn_below": 0.0,
    "duration_s_fail_above": 600.0,
    "snr_db_fail_below": -1_000.0,
    "activity_fail_below": 0.0,
    "clipped_fail_above": 1.0,
}


@dataclass(frozen=True, slots=True)
class NewAudio:
    """What an audio is to be. handle "": its id; identity None: nobody's yet; data None: it comes later."""

    handle: str = ""
    alias: str = ""
    identity: str | None = None
    data: bytes | None = None


class Audios:
    """The use cases."""

    def __init__(self, ground: SpaceGround, spaces: Spaces) -> None:
        self._ground = ground
        self._spaces = spaces
        self._limits = ground.preflight_limits.model_copy(update=_ANYTHING)

    def __repr__(self) -> str:
        return "Audios()"

    async def create(self, principal: Principal, owner: str, space: str, new: NewAudio) -> AudioView:
        """A new audio, with its file or waiting for it. Raises NotFound, Denied, Conflict, and what decoding raises."""
        if new.handle:
            require_handle(new.handle)
        require_alias(new.alias)
        found = await self._spaces.find(principal, owner, space, writes=True)
        if found.is_library and new.identity is not None:
            await adopt(self._ground.database, found, new.identity)
        if new.identity is not None:
            async with self._ground.database.read() as connection:
                await find_identity(connection, found, new.identity)
        measured = None if new.data is None else await self._measured(new.data)
        audio_id, now_s = new_id(), self._ground.clock.wall_s()
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            await require_open(connection, principal)
            identity = None if new.identity is None else await find_identity(connection, found, new.identity)
            taken = select(space_audios.c.audio_id).where(
                *_of_space(found), space_audios.c.handle == (new.handle or audio_id)
            )
            if (await connection.execute(taken)).one_or_none() is not None:
                raise Conflict("the space has an audio of this handle")
            key = await make_key(connection, self._ground.keys, found.tenant_id, audio_id, now_s)
            await connection.execute(
                insert(space_audios).values(
                    tenant_id=found.tenant_id,
                    audio_id=audio_id,
                    space_id=found.space_id,
                    handle=new.handle or audio_id,
                    alias_ciphertext=sealed_alias(key, new.alias),
                    state=AWAITING,
                    identity_id=None if identity is None else identity.identity_id,
                    blob_bytes=0,
                    created_at_s=now_s,
                )
            )
        if new.data is not None and measured is not None:
            try:
                await self._store(found, audio_id, new.data, measured)
            except SpeakerdError:
                await self._take_back(found, audio_id)
                raise
        return await self.get(principal, owner, space, audio_id)

    async def upload(self, principal: Principal, owner: str, space: str, audio: str, data: bytes) -> AudioView:
        """The file of an audio that waits for it. Raises Conflict when it has one."""
        found = await self._spaces.find(principal, owner, space, writes=True)
        async with self._ground.database.read() as connection:
            row = await find_audio(connection, found, audio)
        if row.state != AWAITING:
            raise Conflict("the audio has its file already: make another audio")
        await self._store(found, row.audio_id, data, await self._measured(data))
        return await self.get(principal, owner, space, row.audio_id)

    async def get(self, principal: Principal, owner: str, space: str, audio: str) -> AudioView:
        """An audio. Raises NotFound."""
        found = await self._spaces.find(principal, owner, space)
        async with self._ground.database.read() as connection:
            return await self._view(connection, await find_audio(connection, found, audio))

    async def listed(self, principal: Principal, owner: str, space: str, listing: Listing) -> Page[AudioView]:
        """A page of a space's audios, sought by handle. Raises NotFound, InvalidRequest."""
        found = await self._spaces.find(principal, owner, space)
        async with self._ground.database.read() as connection:
            page = await page_of(connection, space_audios, _of_space(found), listing, id_column="audio_id")
            return Page(tuple([await self._view(connection, row) for row in page.items]), page.total)

    async def delete(self, principal: Principal, owner: str, space: str, audio: str) -> None:
        """Delete an audio; of one that a voiceprint holds, its file. Raises NotFound, Denied."""
        found = await self._spaces.find(principal, owner, space, writes=True)
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            row = await find_audio(connection, found, audio)
            held = select(space_members.c.voiceprint_id).where(
                space_members.c.tenant_id == row.tenant_id, space_members.c.audio_id == row.audio_id
            )
            if (await connection.execute(held.limit(1))).one_or_none() is None:
                await delete_audios(connection, row.tenant_id, [row.audio_id])
            elif row.state == NOT_AVAILABLE:
                raise Conflict("the audio's file is gone already, and a voiceprint was made of it")
            else:
                await empty_audio(connection, row.tenant_id, row.audio_id)
        if row.blob_key is not None:
            await self._ground.blobs.delete(row.blob_key)

    async def hear(self, space: Space, row: Row[Any]) -> Heard:
        """What is in an audio, asking a node where none has listened. Raises Conflict without a file, Unavailable."""
        if row.state != AVAILABLE:
            raise Conflict(f"the audio has no file ({row.state}): upload it first")
        if row.voice_ms is None and row.duration_ms <= AUDIO_MS_MAX:
            sound = await self.sound([await self.clip(row)])
            heard = await self._listened(sound)
            if heard is None:
                raise Unavailable("no node is online to listen to the audio; try again", retry_after_s=5.0)
            async with self._ground.database.write() as connection:
                await connection.execute(
                    update(space_audios)
                    .where(space_audios.c.tenant_id == space.tenant_id, space_audios.c.audio_id == row.audio_id)
                    .values(voice_ms=heard[0], num_speakers=heard[1])
                )
            return Heard(row.duration_ms, *heard, row.sample_rate_hz)
        return Heard(row.duration_ms, row.voice_ms or 0, row.num_speakers or 0, row.sample_rate_hz)

    async def clip(self, row: Row[Any], *, is_consent: bool = False) -> Clip:
        """An audio's file, opened. Raises Conflict when it is gone."""
        async with self._ground.database.read() as connection:
            keys = await open_keys(connection, self._ground.keys, row.tenant_id, [row.audio_id])
        ciphertext = None if row.blob_key is None else await self._ground.blobs.get(row.blob_key)
        if ciphertext is None:
            raise Conflict("the audio's file is gone: upload another audio")
        return Clip(keys[row.audio_id].decrypt(ciphertext, "audio"), CONTAINER, is_consent=is_consent)

    async def sound(self, clips: list[Clip]) -> Sound:
        """Clips decoded. Raises BadAudio and its like."""
        return await self._ground.intake.listen(clips, self._limits)

    async def _measured(self, data: bytes) -> dict[str, Any]:
        """The columns of an audio whose file this is. Raises what decoding raises."""
        sound = await self.sound([Clip(data, CONTAINER)])
        measured: dict[str, Any] = {
            "duration_ms": sound.preflight.duration_ms,
            "sample_rate_hz": sound.preflight.sample_rate_hz,
        }
        if measured["duration_ms"] <= AUDIO_MS_MAX:
            heard = await self._listened(sound)
            if heard is not None:
                measured |= {"voice_ms": heard[0], "num_speakers": heard[1]}
        return measured

    async def _listened(self, sound: Sound) -> tuple[int, int] | None:
        """Clean speech in milliseconds, and how many speak. None while no node can listen."""
        try:
            analysis = await self._ground.intake.analyze(sound)
        except (BadAudio, InvalidRequest, TooLarge):
            return (0, 0)
        return None if analysis is None else (analysis.net_speech_ms, analysis.num_speakers)

    async def _store(self, space: Space, audio_id: str, data: bytes, measured: dict[str, Any]) -> None:
        ground = self._ground
        async with ground.database.read() as connection:
            keys = await open_keys(connection, ground.keys, space.tenant_id, [audio_id])
        ciphertext = keys[audio_id].encrypt(data, "audio")
        blob_key = await ground.blobs.put(ciphertext)
        try:
            async with ground.database.write() as connection:
                await locked_head(connection)
                await require_room(connection, space.tenant_id, more_voices=0, more_bytes=len(ciphertext))
                changed = await connection.execute(
                    update(space_audios)
                    .where(
                        space_audios.c.tenant_id == space.tenant_id,
                        space_audios.c.audio_id == audio_id,
                        space_audios.c.state == AWAITING,
                    )
                    .values(
                        state=AVAILABLE,
                        blob_key=blob_key,
                        blob_bytes=len(ciphertext),
                        uploaded_at_s=ground.clock.wall_s(),
                        **measured,
                    )
                )
                _require_changed(changed.rowcount)
        except Exception:
            await self._discard(blob_key)
            raise

    async def _discard(self, blob_key: str) -> None:
        """Free the room of what was not committed. Asks first: an error may hide a commit that succeeded."""
        with contextlib.suppress(Unavailable):
            async with self._ground.database.read() as connection:
                query = select(space_audios.c.audio_id).where(space_audios.c.blob_key == blob_key)
                is_named = (await connection.execute(query)).one_or_none() is not None
            if not is_named:
                await self._ground.blobs.delete(blob_key)

    async def _take_back(self, space: Space, audio_id: str) -> None:
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            await delete_audios(connection, space.tenant_id, [audio_id])

    async def _view(self, connection: AsyncConnection, row: Row[Any]) -> AudioView:
        ground = self._ground
        alias = None
        if row.alias_ciphertext is not None:
            keys = await open_keys(connection, ground.keys, row.tenant_id, [row.audio_id])
            alias = alias_of(keys[row.audio_id], row.alias_ciphertext)
        identity = None
        if row.identity_id is not None:
            query = select(space_identities).where(
                space_identities.c.tenant_id == row.tenant_id, space_identities.c.identity_id == row.identity_id
            )
            found = (await connection.execute(query)).one_or_none()
            identity = None if found is None else await identity_reference(connection, ground, found)
        return AudioView(
            audio_id=row.audio_id,
            handle=row.handle,
            alias=alias,
            state=row.state,
            duration_ms=row.duration_ms,
            voice_ms=row.voice_ms,
            sample_rate_hz=row.sample_rate_hz,
            identity=identity,
            voiceprints=await _voiceprints_of(connection, row),
            num_verifications=await _verifications_of(connection, row),
            created_at_s=row.created_at_s,
            uploaded_at_s=row.uploaded_at_s,
        )


def audio_reference(row: Row[Any], alias: str | None = None) -> Reference:
    """An audio as others refer to it."""
    return Reference(row.audio_id, row.handle, alias)


def _require_changed(num_rows: int) -> None:
    if num_rows != 1:
        raise Conflict("the audio got its file, or was deleted, in the meantime")


async def _voiceprints_of(connection: AsyncConnection, row: Row[Any]) -> tuple[Reference, ...]:
    query = (
        select(space_voiceprints.c.voiceprint_id, space_voiceprints.c.handle)
        .join(
            space_members,
            (space_members.c.tenant_id == space_voiceprints.c.tenant_id)
            & (space_members.c.voiceprint_id == space_voiceprints.c.voiceprint_id),
        )
        .where(space_members.c.tenant_id == row.tenant_id, space_members.c.audio_id == row.audio_id)
        .order_by(space_voiceprints.c.created_at_s, space_voiceprints.c.voiceprint_id)
    )
    return tuple(Reference(one.voiceprint_id, one.handle, None) for one in await connection.execute(query))


async def _verifications_of(connection: AsyncConnection, row: Row[Any]) -> int:
    query = (
        select(func.count())
        .select_from(space_verifications)
        .where(space_verifications.c.tenant_id == row.tenant_id, space_verifications.c.audio_id == row.audio_id)
    )
    return int((await connection.execute(query)).scalar_one())


def _of_space(space: Space) -> tuple[Any, Any]:
    return (space_audios.c.tenant_id == space.tenant_id, space_audios.c.space_id == space.space_id)

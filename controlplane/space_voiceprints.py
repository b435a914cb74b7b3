"""Voiceprints of identities: named, filled with audios, computed once, and frozen from then on.

In: a caller, an identity, audios. Out: views. What always holds: an audio that the model's requirements refuse is
refused as it is added; what is computed is, in one transaction, the identity's voice in the fleet, a voiceprint sealed
under a key of its own, and a usage record that outlives both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.accounts import require_open
from controlplane.database.engine import locked_head
from controlplane.database.spaces_schema import (
    space_audios,
    space_members,
    space_voiceprints,
)
from controlplane.intake import TOTAL_BYTES_MAX
from controlplane.listings import Listing, Page, paged
from controlplane.policy import Principal
from controlplane.space_access import (
    find_audio,
    find_identity,
    find_space,
    find_voiceprint,
    require_alias,
    require_handle,
)
from controlplane.space_audios import AVAILABLE, Audios
from controlplane.space_computing import Computing
from controlplane.space_ground import SpaceGround, VoiceprintView
from controlplane.space_identities import identity_reference
from controlplane.space_library import LIBRARY_IS_SHOWN, adopt
from controlplane.space_models import MIN_AUDIOS_MAX, model_of, require_fit
from controlplane.space_rows import (
    delete_voiceprint,
    make_key,
    new_id,
    sealed_alias,
)
from controlplane.space_voiceprint_rows import FROZEN, Found, Path, members_of, voiceprint_view
from controlplane.spaces import Spaces
from runtime.errors import Conflict, InvalidRequest, NotFound

VOICEPRINTS_MAX = 50
"""Of one identity."""
AUDIOS_MAX = 10
TOTAL_MS_MAX = 240_000
"""What a node listens to in one call; of one voiceprint."""


@dataclass(frozen=True, slots=True)
class NewVoiceprint:
    """What a voiceprint is to be. handle "": its id."""

    identity: str
    model_handle: str
    model_version: str
    handle: str = ""
    alias: str = ""
    min_audios: int = 1


class Voiceprints:
    """The use cases."""

    def __init__(self, ground: SpaceGround, spaces: Spaces, audios: Audios) -> None:
        self._ground = ground
        self._spaces = spaces
        self._audios = audios
        self._computing = Computing(ground, audios)

    def __repr__(self) -> str:
        return "Voiceprints()"

    async def create(self, principal: Principal, owner: str, space: str, new: NewVoiceprint) -> VoiceprintView:
        """A new voiceprint, of which nothing is computed. Raises NotFound, Denied, Conflict, InvalidRequest."""
        if new.handle:
            require_handle(new.handle)
        require_alias(new.alias)
        if not 1 <= new.min_audios <= MIN_AUDIOS_MAX:
            raise InvalidRequest(f"minAudios: 1 to {MIN_AUDIOS_MAX}")
        model = model_of(new.model_handle, new.model_version)
        found = await self._spaces.find(principal, owner, space, writes=True)
        if found.is_library:
            raise Conflict(LIBRARY_IS_SHOWN)
        ground, voiceprint_id = self._ground, new_id()
        handle, now_s = new.handle or voiceprint_id, ground.clock.wall_s()
        async with ground.database.write() as connection:
            await locked_head(connection)
            await require_open(connection, principal)
            identity = await find_identity(connection, found, new.identity)
            mine = _of_identity(identity)
            taken = select(space_voiceprints.c.voiceprint_id).where(*mine, space_voiceprints.c.handle == handle)
            if (await connection.execute(taken)).one_or_none() is not None:
                raise Conflict("the identity has a voiceprint of this handle")
            number = await connection.execute(select(func.count()).select_from(space_voiceprints).where(*mine))
            if number.scalar_one() >= VOICEPRINTS_MAX:
                raise Conflict(f"an identity has at most {VOICEPRINTS_MAX} voiceprints")
            key = await make_key(connection, ground.keys, found.tenant_id, voiceprint_id, now_s)
            await connection.execute(
                insert(space_voiceprints).values(
                    tenant_id=found.tenant_id,
                    voiceprint_id=voiceprint_id,
                    space_id=found.space_id,
                    identity_id=identity.identity_id,
                    handle=handle,
                    alias_ciphertext=sealed_alias(key, new.alias),
                    model_handle=model.handle,
                    model_version=model.version,
                    min_audios=new.min_audios,
                    created_at_s=now_s,
                )
            )
        return await self.get(principal, Path(owner, space, new.identity, voiceprint_id))

    async def find(self, principal: Principal, path: Path, *, writes: bool = False) -> Found:
        """Where a voiceprint lies. Raises NotFound, Denied."""
        found = await self._spaces.find(principal, path.owner, path.space, writes=writes)
        if found.is_library:
            await adopt(self._ground.database, found, path.identity)
        async with self._ground.database.read() as connection:
            of = await find_identity(connection, found, path.identity)
            return Found(found, of, await find_voiceprint(connection, of, path.voiceprint))

    async def get(self, principal: Principal, path: Path) -> VoiceprintView:
        """A voiceprint. Raises NotFound."""
        found = await self.find(principal, path)
        async with self._ground.database.read() as connection:
            reference = await identity_reference(connection, self._ground, found.identity)
            return await voiceprint_view(connection, self._ground, found.row, reference)

    async def listed(
        self, principal: Principal, owner: str, space: str, identity: str, listing: Listing
    ) -> Page[VoiceprintView]:
        """A page of an identity's voiceprints. Raises NotFound, InvalidRequest."""
        found = await self._spaces.find(principal, owner, space)
        if found.is_library:
            await adopt(self._ground.database, found, identity)
        async with self._ground.database.read() as connection:
            of = await find_identity(connection, found, identity)
            reference = await identity_reference(connection, self._ground, of)
            query = select(space_voiceprints).where(*_of_identity(of)).order_by(space_voiceprints.c.voiceprint_id)
            rows = (await connection.execute(query)).all()
            views = [await voiceprint_view(connection, self._ground, row, reference) for row in rows]
        return paged(
            views,
            listing,
            keys={
                "createdAt": lambda view: view.created_at_s,
                "computedAt": lambda view: view.computed_at_s or 0.0,
                "handle": lambda view: view.handle,
                "totalDuration": lambda view: view.total_ms,
            },
            created_at_s=lambda view: view.created_at_s,
            words=lambda view: (view.handle, view.alias or ""),
        )

    async def delete(self, principal: Principal, path: Path) -> None:
        """Delete a voiceprint that was not computed; one that was goes with its identity. Raises NotFound, Conflict."""
        await self._open(principal, path)
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            found = await self._locked(connection, principal, path)
            if found.is_computed:
                raise Conflict(FROZEN)
            await delete_voiceprint(connection, found.row.tenant_id, found.row.voiceprint_id)

    async def add(self, principal: Principal, path: Path, audio: str) -> VoiceprintView:
        """Add an audio. Raises AudioUnfit for one that the model refuses, NotFound, Conflict, Unavailable."""
        found = await self._open(principal, path)
        async with self._ground.database.read() as connection:
            row = await find_audio(connection, found.space, audio)
        _require_own(found.identity, row)
        model = model_of(found.row.model_handle, found.row.model_version)
        heard = await self._audios.hear(found.space, row)
        require_fit(model, heard, int(found.row.min_audios))
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            found = await self._locked(connection, principal, path)
            if found.is_computed:
                raise Conflict(FROZEN)
            row = await find_audio(connection, found.space, row.audio_id)
            _require_own(found.identity, row)
            if row.state != AVAILABLE:
                raise Conflict("the audio's file is gone: upload another audio")
            members = await members_of(connection, found.row)
            if any(member.audio_id == row.audio_id for member in members):
                raise Conflict("the voiceprint has this audio already")
            total_ms = heard.duration_ms + sum(int(member.duration_ms) for member in members)
            if len(members) >= AUDIOS_MAX or total_ms > TOTAL_MS_MAX:
                raise Conflict(f"a voiceprint has at most {AUDIOS_MAX} audios and {TOTAL_MS_MAX / 1000:g} s in all")
            if int(row.blob_bytes) + sum(int(member.blob_bytes) for member in members) > TOTAL_BYTES_MAX:
                raise Conflict(f"a voiceprint's audios have at most {TOTAL_BYTES_MAX >> 20} MiB in all")
            await connection.execute(
                insert(space_members).values(
                    tenant_id=row.tenant_id,
                    voiceprint_id=found.row.voiceprint_id,
                    audio_id=row.audio_id,
                    position=1 + max((int(member.position) for member in members), default=0),
                    duration_ms=heard.duration_ms,
                    voice_ms=heard.voice_ms,
                    left_out=False,
                    added_at_s=self._ground.clock.wall_s(),
                )
            )
            # Whose it is said to be: it goes with that person.
            await connection.execute(
                update(space_audios)
                .where(space_audios.c.tenant_id == row.tenant_id, space_audios.c.audio_id == row.audio_id)
                .values(identity_id=found.identity.identity_id)
            )
        return await self.get(principal, path)

    async def remove(self, principal: Principal, path: Path, audio: str) -> VoiceprintView:
        """Take an audio out of a voiceprint that is not computed. Raises NotFound, Conflict."""
        await self._open(principal, path)
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            found = await self._locked(connection, principal, path)
            if found.is_computed:
                raise Conflict(FROZEN)
            row = await find_audio(connection, found.space, audio)
            gone = await connection.execute(
                delete(space_members).where(
                    space_members.c.tenant_id == row.tenant_id,
                    space_members.c.voiceprint_id == found.row.voiceprint_id,
                    space_members.c.audio_id == row.audio_id,
                )
            )
            if gone.rowcount == 0:
                raise NotFound("the voiceprint has no such audio")
        return await self.get(principal, path)

    async def compute(self, principal: Principal, path: Path) -> VoiceprintView:
        """Compute a voiceprint, once: the identity is a voice of the fleet from then on.

        Raises NotFound, Conflict where it cannot be computed (yet, or again), SpeakerChecksFailed where the audios are
        not of one person, Unavailable while no node is online.
        """
        await self._computing.compute(principal, await self._open(principal, path))
        return await self.get(principal, path)

    async def _open(self, principal: Principal, path: Path) -> Found:
        """A voiceprint that may still be changed."""
        found = await self.find(principal, path, writes=True)
        if found.is_computed:
            raise Conflict(FROZEN)
        return found

    async def _locked(
        self,
        connection: AsyncConnection,
        principal: Principal,
        path: Path,
    ) -> Found:
        """The same again, within a transaction that holds the head."""
        found = await find_space(connection, principal, path.owner, path.space, writes=True)
        of = await find_identity(connection, found, path.identity)
        return Found(found, of, await find_voiceprint(connection, of, path.voiceprint))


def _require_own(identity: Row[Any], audio: Row[Any]) -> None:
    if audio.identity_id is not None and audio.identity_id != identity.identity_id:
        raise Conflict("the audio is of another identity")


def _of_identity(identity: Row[Any]) -> tuple[Any, Any]:
    return (
        space_voiceprints.c.tenant_id == identity.tenant_id,
        space_voiceprints.c.identity_id == identity.identity_id,
    )

"""Spaces, and whom their owners let in.

In: a caller, an owner, references. Out: views. What always holds: another's space and one that never was look the same;
a space that is deleted erases every identity in it, with proof and audit.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.accounts import require_open, user_row
from controlplane.database.engine import locked_head
from controlplane.database.spaces_schema import (
    space_audios,
    space_collaborators,
    space_identities,
    space_keys,
    space_verifications,
    spaces,
)
from controlplane.erasure_rows import Asking, Erasure
from controlplane.keys import VoiceAddress
from controlplane.listings import Listing, Page, paged
from controlplane.policy import Principal
from controlplane.space_access import (
    LIBRARY,
    NO_SUCH_SPACE,
    ORGANISATION,
    Space,
    find_space,
    is_there,
    may_own,
    of_space,
    owner_of,
    require_alias,
    require_handle,
    visible_spaces,
)
from controlplane.space_ground import Collaborator, SpaceGround, SpaceView
from controlplane.space_library import LIBRARY_IS_SHOWN, ensure_library
from controlplane.space_rows import (
    alias_of,
    delete_audios,
    delete_identity,
    make_key,
    new_id,
    open_keys,
    sealed_alias,
)
from runtime.errors import Conflict, Denied, InvalidRequest, NotFound

SPACES_MAX = 1_000
"""Of one owner."""
COLLABORATORS_MAX = 200


class Spaces:
    """The use cases."""

    def __init__(self, ground: SpaceGround) -> None:
        self._ground = ground

    def __repr__(self) -> str:
        return "Spaces()"

    async def create(self, principal: Principal, owner: str, handle: str, alias: str) -> SpaceView:
        """A new space. Raises NotFound for an owner that is not the caller's, Conflict, InvalidRequest."""
        require_handle(handle)
        require_alias(alias)
        owner_user_id = owner_of(principal, owner)
        if handle == LIBRARY:
            raise Conflict(f"every owner has a space {LIBRARY!r}: {LIBRARY_IS_SHOWN}")
        now_s = self._ground.clock.wall_s()
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            await require_open(connection, principal)
            await self._require_owner(connection, principal, owner_user_id)
            mine = (spaces.c.tenant_id == principal.tenant_id, spaces.c.owner_user_id == owner_user_id)
            if await is_there(connection, select(spaces.c.space_id).where(*mine, spaces.c.handle == handle)):
                raise Conflict("the owner has a space of this handle")
            number = await connection.execute(select(func.count()).select_from(spaces).where(*mine))
            if number.scalar_one() >= SPACES_MAX:
                raise Conflict(f"an owner has at most {SPACES_MAX} spaces")
            space_id = new_id()
            key = await make_key(connection, self._ground.keys, principal.tenant_id, space_id, now_s)
            await connection.execute(
                insert(spaces).values(
                    tenant_id=principal.tenant_id,
                    space_id=space_id,
                    owner_user_id=owner_user_id,
                    handle=handle,
                    alias_ciphertext=sealed_alias(key, alias),
                    created_at_s=now_s,
                )
            )
        return SpaceView(space_id, handle, alias or None, owner, owner_user_id == ORGANISATION, now_s)

    async def listed(self, principal: Principal, owner: str, listing: Listing) -> Page[SpaceView]:
        """The owner's spaces that the caller may see. Raises NotFound when there can be none."""
        owner_user_id = owner_of(principal, owner)
        await ensure_library(self._ground.database, principal, owner, self._ground.clock.wall_s())
        query = select(spaces).where(visible_spaces(principal), spaces.c.owner_user_id == owner_user_id)
        async with self._ground.database.read() as connection:
            if owner_user_id != principal.user_id:
                # One that was let in sees the owner, and nobody else does.
                found = (await connection.execute(query.limit(1))).one_or_none()
                if found is None:
                    await self._require_owner(connection, principal, owner_user_id)
            rows = (await connection.execute(query.limit(SPACES_MAX + 1))).all()
            views = [await self._view(connection, row, owner) for row in rows]
        return paged(
            views,
            listing,
            keys={"createdAt": lambda view: view.created_at_s, "handle": lambda view: view.handle},
            created_at_s=lambda view: view.created_at_s,
            words=lambda view: (view.handle, view.alias or ""),
        )

    async def get(self, principal: Principal, owner: str, space: str) -> SpaceView:
        """A space. Raises NotFound."""
        found = await self.find(principal, owner, space)
        async with self._ground.database.read() as connection:
            row = (await connection.execute(select(spaces).where(*of_space(spaces, found)))).one_or_none()
            if row is None:
                raise NotFound(NO_SUCH_SPACE)
            return await self._view(connection, row, owner)

    async def find(self, principal: Principal, owner: str, space: str, *, writes: bool = False) -> Space:
        """Where a space lies. Raises NotFound, and Denied for a collaborator who may only read."""
        if space == LIBRARY:
            await ensure_library(self._ground.database, principal, owner, self._ground.clock.wall_s())
        async with self._ground.database.read() as connection:
            return await find_space(connection, principal, owner, space, writes=writes)

    async def delete(self, principal: Principal, owner: str, space: str) -> list[Erasure]:
        """Delete a space: every identity in it is erased, and the rest goes with it. Raises NotFound, Conflict."""
        found = await self.find(principal, owner, space, writes=True)
        if not may_own(principal, found.owner_user_id):
            raise Denied("a space is its owner's to delete")
        if found.is_library:
            raise Conflict(LIBRARY_IS_SHOWN)
        return await self.clear(found, Asking(key_id=principal.key_id))

    async def clear(self, space: Space, asking: Asking) -> list[Erasure]:
        """Erase every identity of a space, then delete it. Repeating it goes on where it stopped.

        The voices that a library shows were enrolled elsewhere, and are no part of it.
        """
        erased: list[Erasure] = []
        ground = self._ground
        while not space.is_library:
            async with ground.database.read() as connection:
                query = select(space_identities.c.voice_id).where(*of_space(space_identities, space)).limit(1)
                voice_id = (await connection.execute(query)).scalar_one_or_none()
            if voice_id is None:
                break
            erased.append(await ground.erase(VoiceAddress(space.tenant_id, voice_id), asking))
        async with ground.database.write() as connection:
            await locked_head(connection)
            shown = select(space_identities.c.identity_id).where(*of_space(space_identities, space))
            for row in (await connection.execute(shown)).all():
                if not space.is_library:
                    raise Conflict("an identity was made in the space in the meantime: try again")
                await delete_identity(connection, space.tenant_id, row.identity_id, ())
            stored = select(space_audios.c.audio_id, space_audios.c.blob_key).where(*of_space(space_audios, space))
            audios = (await connection.execute(stored)).all()
            await delete_audios(connection, space.tenant_id, [row.audio_id for row in audios])
            for table in (space_verifications, space_collaborators, spaces):
                await connection.execute(delete(table).where(*of_space(table, space)))
            await connection.execute(
                delete(space_keys).where(
                    space_keys.c.tenant_id == space.tenant_id, space_keys.c.thing_id == space.space_id
                )
            )
        for row in audios:
            if row.blob_key is not None:
                await ground.blobs.delete(row.blob_key)
        return erased

    async def let_in(
        self, principal: Principal, owner: str, space: str, user_id: str, *, may_write: bool
    ) -> Collaborator:
        """Let a user of the tenant into a user's space. Repeating it changes what they may. Raises NotFound, Denied."""
        found = await self._own(principal, owner, space)
        now_s = self._ground.clock.wall_s()
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            user = await user_row(connection, principal.tenant_id, user_id)
            if user is None or user.closed_at_s is not None:
                raise NotFound("no such user")
            mine = of_space(space_collaborators, found)
            await connection.execute(delete(space_collaborators).where(*mine, space_collaborators.c.user_id == user_id))
            number = await connection.execute(select(func.count()).select_from(space_collaborators).where(*mine))
            if number.scalar_one() >= COLLABORATORS_MAX:
                raise Conflict(f"a space has at most {COLLABORATORS_MAX} collaborators")
            await connection.execute(
                insert(space_collaborators).values(
                    tenant_id=found.tenant_id,
                    space_id=found.space_id,
                    user_id=user_id,
                    may_write=may_write,
                    created_at_s=now_s,
                )
            )
        return Collaborator(user_id, may_write, now_s)

    async def shut_out(self, principal: Principal, owner: str, space: str, user_id: str) -> None:
        """Let a user in no more. Raises NotFound, Denied."""
        found = await self._own(principal, owner, space)
        async with self._ground.database.write() as connection:
            gone = await connection.execute(
                delete(space_collaborators).where(
                    *of_space(space_collaborators, found), space_collaborators.c.user_id == user_id
                )
            )
            if gone.rowcount == 0:
                raise NotFound("no such collaborator")

    async def collaborators(self, principal: Principal, owner: str, space: str) -> list[Collaborator]:
        """Whom the owner let in. Raises NotFound."""
        found = await self.find(principal, owner, space)
        async with self._ground.database.read() as connection:
            query = select(space_collaborators).where(*of_space(space_collaborators, found))
            rows = (await connection.execute(query.order_by(space_collaborators.c.user_id))).all()
        return [Collaborator(row.user_id, bool(row.may_write), row.created_at_s) for row in rows]

    async def _own(self, principal: Principal, owner: str, space: str) -> Space:
        found = await self.find(principal, owner, space)
        if found.owner_user_id == ORGANISATION:
            raise InvalidRequest("everybody of the organisation is in its spaces: there are no collaborators")
        if not may_own(principal, found.owner_user_id):
            raise Denied("collaborators are the owner's to choose")
        return found

    async def _require_owner(self, connection: AsyncConnection, principal: Principal, owner_user_id: str) -> None:
        if not may_own(principal, owner_user_id):
            raise NotFound("no such owner")
        if owner_user_id != ORGANISATION:
            user = await user_row(connection, principal.tenant_id, owner_user_id)
            if user is None or user.closed_at_s is not None:
                raise NotFound("no such owner")

    async def _view(self, connection: AsyncConnection, row: Row[Any], owner: str) -> SpaceView:
        alias = None
        if row.alias_ciphertext is not None:
            keys = await open_keys(connection, self._ground.keys, row.tenant_id, [row.space_id])
            alias = alias_of(keys[row.space_id], row.alias_ciphertext)
        is_organisation = row.owner_user_id == ORGANISATION
        return SpaceView(row.space_id, row.handle, alias, owner, is_organisation, row.created_at_s)

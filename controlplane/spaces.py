"""Spaces, whom their owners let in, and the identities in them.

In: a caller, an owner, references. Out: views. What always holds: what is said of an identity is sealed under its own
key; erasing one erases its voice with proof and audit, wherever it was enrolled and whatever else holds it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.accounts import require_open, user_row
from controlplane.agreements import Consent
from controlplane.database.engine import locked_head
from controlplane.database.schema import data_keys, voices
from controlplane.database.spaces_schema import (
    space_audios,
    space_collaborators,
    space_identities,
    space_keys,
    space_verifications,
    space_voiceprints,
    spaces,
)
from controlplane.enrolment_request import require_consent, require_label
from controlplane.enrolment_store import new_voice_id
from controlplane.erasure_rows import Asking, Erasure
from controlplane.holdings import LIVE_STATES
from controlplane.keys import VoiceAddress
from controlplane.listings import Listing, Page, paged
from controlplane.policy import Principal
from controlplane.space_access import (
    LIBRARY,
    NO_SUCH_IDENTITY,
    NO_SUCH_SPACE,
    ORGANISATION,
    Space,
    find_identity,
    find_space,
    may_own,
    owner_of,
    page_of,
    require_alias,
    require_handle,
    visible_spaces,
)
from controlplane.space_ground import Collaborator, IdentityView, Reference, SpaceGround, SpaceView
from controlplane.space_library import adopt, ensure_library
from controlplane.space_rows import (
    Said,
    alias_of,
    delete_audios,
    delete_identity,
    make_key,
    new_id,
    open_keys,
    said_of,
    sealed_alias,
)
from controlplane.space_rows import sealed_said as seal
from controlplane.space_tombstones import ensure_voice
from runtime.errors import Conflict, Denied, InvalidRequest, NotFound

SPACES_MAX = 1_000
"""Of one owner."""
COLLABORATORS_MAX = 200
PROOF_WAIT_S = 2.5
"""How long the answer to an erasure waits for its proof; the erasure goes on without it."""
LIBRARY_IS_SHOWN = "this space shows voices that were enrolled elsewhere: enrol there, or use a space of your own"


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
            if await _exists(connection, select(spaces.c.space_id).where(*mine, spaces.c.handle == handle)):
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
            row = (await connection.execute(select(spaces).where(*_of_space(spaces, found)))).one_or_none()
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
                query = select(space_identities.c.voice_id).where(*_of_space(space_identities, space)).limit(1)
                voice_id = (await connection.execute(query)).scalar_one_or_none()
            if voice_id is None:
                break
            erased.append(await self._erase(VoiceAddress(space.tenant_id, voice_id), asking, 0.0))
        async with ground.database.write() as connection:
            await locked_head(connection)
            shown = select(space_identities.c.identity_id).where(*_of_space(space_identities, space))
            for row in (await connection.execute(shown)).all():
                if not space.is_library:
                    raise Conflict("an identity was made in the space in the meantime: try again")
                await delete_identity(connection, space.tenant_id, row.identity_id, ())
            stored = select(space_audios.c.audio_id, space_audios.c.blob_key).where(*_of_space(space_audios, space))
            audios = (await connection.execute(stored)).all()
            await delete_audios(connection, space.tenant_id, [row.audio_id for row in audios])
            for table in (space_verifications, space_collaborators, spaces):
                await connection.execute(delete(table).where(*_of_space(table, space)))
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
            mine = _of_space(space_collaborators, found)
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
                    *_of_space(space_collaborators, found), space_collaborators.c.user_id == user_id
                )
            )
            if gone.rowcount == 0:
                raise NotFound("no such collaborator")

    async def collaborators(self, principal: Principal, owner: str, space: str) -> list[Collaborator]:
        """Whom the owner let in. Raises NotFound."""
        found = await self.find(principal, owner, space)
        async with self._ground.database.read() as connection:
            query = select(space_collaborators).where(*_of_space(space_collaborators, found))
            rows = (await connection.execute(query.order_by(space_collaborators.c.user_id))).all()
        return [Collaborator(row.user_id, bool(row.may_write), row.created_at_s) for row in rows]

    async def create_identity(
        self, principal: Principal, owner: str, space: str, *, handle: str, alias: str, consent: Consent
    ) -> IdentityView:
        """A new identity. handle "": its id. Raises NotFound, Denied, Conflict, InvalidRequest."""
        if handle:
            require_handle(handle)
        require_alias(alias)
        require_label(alias or handle or "identity")
        require_consent(consent, whole=consent != Consent())
        found = await self.find(principal, owner, space, writes=True)
        if found.is_library:
            raise Conflict(LIBRARY_IS_SHOWN)
        identity_id, now_s = new_id(), self._ground.clock.wall_s()
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            await require_open(connection, principal)
            found = await find_space(connection, principal, owner, space, writes=True)
            taken = select(space_identities.c.identity_id).where(
                *_of_space(space_identities, found), space_identities.c.handle == handle
            )
            if handle and await _exists(connection, taken):
                raise Conflict("the space has an identity of this handle")
            key = await make_key(connection, self._ground.keys, found.tenant_id, identity_id, now_s)
            await connection.execute(
                insert(space_identities).values(
                    tenant_id=found.tenant_id,
                    identity_id=identity_id,
                    space_id=found.space_id,
                    handle=handle or identity_id,
                    said_ciphertext=seal(key, Said(alias, consent)),
                    voice_id=new_voice_id(),
                    created_at_s=now_s,
                )
            )
        return IdentityView(identity_id, handle or identity_id, alias or None, None, (), now_s)

    async def get_identity(self, principal: Principal, owner: str, space: str, identity: str) -> IdentityView:
        """An identity. Raises NotFound."""
        found = await self.find(principal, owner, space)
        if found.is_library:
            await adopt(self._ground.database, found, identity)
        async with self._ground.database.read() as connection:
            return await self._identity_view(connection, await find_identity(connection, found, identity))

    async def identities(self, principal: Principal, owner: str, space: str, listing: Listing) -> Page[IdentityView]:
        """A page of a space's identities, sought by handle. Raises NotFound, InvalidRequest."""
        found = await self.find(principal, owner, space)
        if found.is_library:
            await adopt(self._ground.database, found, None)
        async with self._ground.database.read() as connection:
            where = _of_space(space_identities, found)
            page = await page_of(connection, space_identities, where, listing, id_column="identity_id")
            return Page(tuple([await self._identity_view(connection, row) for row in page.items]), page.total)

    async def erase_identity(self, principal: Principal, owner: str, space: str, identity: str) -> Erasure:
        """Erase an identity and the voice that it is. Raises NotFound, Denied, Unavailable."""
        found = await self.find(principal, owner, space, writes=True)
        if found.is_library:
            await adopt(self._ground.database, found, identity)
        async with self._ground.database.read() as connection:
            row = await find_identity(connection, found, identity)
        asking = Asking(key_id=principal.key_id)
        if found.is_library:
            # It was enrolled elsewhere, where not everybody who sees it may erase it.
            return await self._ground.erasures.erase(principal, row.voice_id, asking=asking, wait_s_max=PROOF_WAIT_S)
        return await self._erase(VoiceAddress(row.tenant_id, row.voice_id), asking, PROOF_WAIT_S)

    async def _erase(self, voice: VoiceAddress, asking: Asking, wait_s_max: float) -> Erasure:
        async def before(connection: AsyncConnection) -> None:
            await ensure_voice(connection, self._ground.keys, voice, self._ground.clock.wall_s())

        return await self._ground.erasures.erase_voice(voice, asking, before=before, wait_s_max=wait_s_max)

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

    async def _identity_view(self, connection: AsyncConnection, row: Row[Any]) -> IdentityView:
        query = (
            select(space_voiceprints)
            .where(space_voiceprints.c.tenant_id == row.tenant_id, space_voiceprints.c.identity_id == row.identity_id)
            .order_by(space_voiceprints.c.created_at_s, space_voiceprints.c.voiceprint_id)
        )
        prints = (await connection.execute(query)).all()
        reference = await identity_reference(connection, self._ground, row)
        state = select(voices.c.state).where(voices.c.tenant_id == row.tenant_id, voices.c.voice_id == row.voice_id)
        is_voice = (await connection.execute(state)).scalar_one_or_none() in LIVE_STATES
        sealed = [one.voiceprint_id for one in prints if one.alias_ciphertext is not None]
        keys = await open_keys(connection, self._ground.keys, row.tenant_id, sealed) if sealed else {}
        return IdentityView(
            row.identity_id,
            row.handle,
            reference.alias,
            row.voice_id if is_voice else None,
            tuple(
                Reference(
                    one.voiceprint_id,
                    one.handle,
                    alias_of(keys[one.voiceprint_id], one.alias_ciphertext) if one.voiceprint_id in keys else None,
                )
                for one in prints
            ),
            row.created_at_s,
        )


async def identity_reference(connection: AsyncConnection, ground: SpaceGround, row: Row[Any]) -> Reference:
    """An identity as others refer to it. Of a voice that was enrolled elsewhere, the label is the alias."""
    if row.said_ciphertext is None:
        return Reference(row.identity_id, row.handle, await _label_of(connection, ground, row))
    keys = await open_keys(connection, ground.keys, row.tenant_id, [row.identity_id])
    return Reference(row.identity_id, row.handle, said_of(keys[row.identity_id], row.said_ciphertext).alias or None)


async def _label_of(connection: AsyncConnection, ground: SpaceGround, row: Row[Any]) -> str | None:
    query = (
        select(voices.c.label_ciphertext, data_keys.c.wrapped)
        .join(data_keys, (data_keys.c.tenant_id == voices.c.tenant_id) & (data_keys.c.voice_id == voices.c.voice_id))
        .where(voices.c.tenant_id == row.tenant_id, voices.c.voice_id == row.voice_id)
    )
    voice = (await connection.execute(query)).one_or_none()
    if voice is None or voice.label_ciphertext is None:
        raise NotFound(NO_SUCH_IDENTITY)  # erased, or being so
    key = ground.keys.open(VoiceAddress(row.tenant_id, row.voice_id), bytes(voice.wrapped))
    return key.decrypt(bytes(voice.label_ciphertext), "label").decode()


async def _exists(connection: AsyncConnection, query: Any) -> bool:
    return (await connection.execute(query.limit(1))).one_or_none() is not None


def _of_space(table: Any, space: Space) -> tuple[Any, Any]:
    return (table.c.tenant_id == space.tenant_id, table.c.space_id == space.space_id)

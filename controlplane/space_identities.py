"""The identities in a space: persons, each a voice of the core.

In: a caller, a space, references. Out: views. What always holds: what is said of an identity is sealed under its own
key; erasing one erases its voice with proof and audit, wherever it was enrolled and whatever else holds it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.accounts import require_open
from controlplane.agreements import Consent
from controlplane.database.engine import locked_head
from controlplane.database.schema import data_keys, voices
from controlplane.database.spaces_schema import space_identities, space_voiceprints
from controlplane.enrolment_request import require_consent, require_label
from controlplane.enrolment_store import new_voice_id
from controlplane.erasure_rows import Asking, Erasure
from controlplane.holdings import LIVE_STATES
from controlplane.keys import VoiceAddress
from controlplane.listings import Listing, Page
from controlplane.policy import Principal
from controlplane.space_access import (
    NO_SUCH_IDENTITY,
    find_identity,
    find_space,
    is_there,
    of_space,
    page_of,
    require_alias,
    require_handle,
)
from controlplane.space_ground import IdentityView, Reference, SpaceGround
from controlplane.space_library import LIBRARY_IS_SHOWN, adopt
from controlplane.space_rows import Said, alias_of, make_key, new_id, open_keys, said_of, sealed_said
from controlplane.spaces import Spaces
from runtime.errors import Conflict, NotFound

PROOF_WAIT_S = 2.5
"""How long the answer to an erasure waits for its proof; the erasure goes on without it."""


class Identities:
    """The use cases."""

    def __init__(self, ground: SpaceGround, spaces: Spaces) -> None:
        self._ground = ground
        self._spaces = spaces

    def __repr__(self) -> str:
        return "Identities()"

    async def create(
        self, principal: Principal, owner: str, space: str, *, handle: str, alias: str, consent: Consent
    ) -> IdentityView:
        """A new identity. handle "": its id. Raises NotFound, Denied, Conflict, InvalidRequest."""
        if handle:
            require_handle(handle)
        require_alias(alias)
        require_label(alias or handle or "identity")
        require_consent(consent, whole=consent != Consent())
        found = await self._spaces.find(principal, owner, space, writes=True)
        if found.is_library:
            raise Conflict(LIBRARY_IS_SHOWN)
        identity_id, now_s = new_id(), self._ground.clock.wall_s()
        async with self._ground.database.write() as connection:
            await locked_head(connection)
            await require_open(connection, principal)
            found = await find_space(connection, principal, owner, space, writes=True)
            taken = select(space_identities.c.identity_id).where(
                *of_space(space_identities, found), space_identities.c.handle == handle
            )
            if handle and await is_there(connection, taken):
                raise Conflict("the space has an identity of this handle")
            key = await make_key(connection, self._ground.keys, found.tenant_id, identity_id, now_s)
            await connection.execute(
                insert(space_identities).values(
                    tenant_id=found.tenant_id,
                    identity_id=identity_id,
                    space_id=found.space_id,
                    handle=handle or identity_id,
                    said_ciphertext=sealed_said(key, Said(alias, consent)),
                    voice_id=new_voice_id(),
                    created_at_s=now_s,
                )
            )
        return IdentityView(identity_id, handle or identity_id, alias or None, None, (), now_s)

    async def get(self, principal: Principal, owner: str, space: str, identity: str) -> IdentityView:
        """An identity. Raises NotFound."""
        found = await self._spaces.find(principal, owner, space)
        if found.is_library:
            await adopt(self._ground.database, found, identity)
        async with self._ground.database.read() as connection:
            return await self._view(connection, await find_identity(connection, found, identity))

    async def listed(self, principal: Principal, owner: str, space: str, listing: Listing) -> Page[IdentityView]:
        """A page of a space's identities, sought by handle. Raises NotFound, InvalidRequest."""
        found = await self._spaces.find(principal, owner, space)
        if found.is_library:
            await adopt(self._ground.database, found, None)
        async with self._ground.database.read() as connection:
            where = of_space(space_identities, found)
            page = await page_of(connection, space_identities, where, listing, id_column="identity_id")
            return Page(tuple([await self._view(connection, row) for row in page.items]), page.total)

    async def erase(self, principal: Principal, owner: str, space: str, identity: str) -> Erasure:
        """Erase an identity and the voice that it is. Raises NotFound, Denied, Unavailable."""
        found = await self._spaces.find(principal, owner, space, writes=True)
        if found.is_library:
            await adopt(self._ground.database, found, identity)
        async with self._ground.database.read() as connection:
            row = await find_identity(connection, found, identity)
        asking = Asking(key_id=principal.key_id)
        if found.is_library:
            # It was enrolled elsewhere, where not everybody who sees it may erase it.
            return await self._ground.erasures.erase(principal, row.voice_id, asking=asking, wait_s_max=PROOF_WAIT_S)
        voice = VoiceAddress(row.tenant_id, row.voice_id)
        return await self._ground.erase(voice, asking, wait_s_max=PROOF_WAIT_S)

    async def _view(self, connection: AsyncConnection, row: Row[Any]) -> IdentityView:
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

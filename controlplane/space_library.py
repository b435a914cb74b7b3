"""The space `voices` of an owner: the voices that were enrolled by other ways, as identities.

In: an owner's library and a reference (`v-…`, the voice's id with a hyphen). Out: rows of an identity and of its
voiceprint `main`, made when they are first asked for. What always holds: a row comes into being only for a voice that
lives and that is the owner's; it goes with the voice, as those of every identity do.
"""

from __future__ import annotations

import re

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import voices
from controlplane.database.spaces_schema import space_identities, space_voiceprints, spaces
from controlplane.holdings import LIVE_STATES
from controlplane.policy import Principal, VoiceScope
from controlplane.space_access import LIBRARY, ORGANISATION, Space, may_own, owner_of
from controlplane.space_rows import new_id

MAIN = "main"
LIBRARY_IS_SHOWN = "this space shows voices that were enrolled elsewhere: enrol there, or use a space of your own"
ADOPTED_MAX = 500
"""Voices that become identities at one look at the list."""
_REFERENCE = re.compile(r"v-[0-9a-f]{20}")


async def ensure_library(database: Database, principal: Principal, owner: str, now_s: float) -> None:
    """See that an owner's library is there; nothing for an owner whom the caller may not act for."""
    owner_user_id = owner_of(principal, owner)
    if owner_user_id not in (ORGANISATION, principal.user_id) or not may_own(principal, owner_user_id):
        return
    mine = (
        spaces.c.tenant_id == principal.tenant_id,
        spaces.c.owner_user_id == owner_user_id,
        spaces.c.handle == LIBRARY,
    )
    async with database.read() as connection:
        if (await connection.execute(select(spaces.c.space_id).where(*mine))).one_or_none() is not None:
            return
    async with database.write() as connection:
        await locked_head(connection)
        if (await connection.execute(select(spaces.c.space_id).where(*mine))).one_or_none() is None:
            await connection.execute(
                insert(spaces).values(
                    tenant_id=principal.tenant_id,
                    space_id=new_id(),
                    owner_user_id=owner_user_id,
                    handle=LIBRARY,
                    created_at_s=now_s,
                )
            )


async def adopt(database: Database, space: Space, reference: str | None) -> None:
    """Make identities of the owner's voices: of one, if it is referred to, or of all that are none yet."""
    if reference is not None and _REFERENCE.fullmatch(reference) is None:
        return
    async with database.read() as connection:
        if not await _unadopted(connection, space, reference):
            return
    async with database.write() as connection:
        await locked_head(connection)
        for voice_id, created_at_s, updated_at_s in await _unadopted(connection, space, reference):
            identity_id = new_id()
            await connection.execute(
                insert(space_identities).values(
                    tenant_id=space.tenant_id,
                    identity_id=identity_id,
                    space_id=space.space_id,
                    handle=voice_id.replace("_", "-"),
                    voice_id=voice_id,
                    created_at_s=created_at_s,
                )
            )
            await connection.execute(
                insert(space_voiceprints).values(
                    tenant_id=space.tenant_id,
                    voiceprint_id=new_id(),
                    space_id=space.space_id,
                    identity_id=identity_id,
                    handle=MAIN,
                    model_handle="default",
                    model_version="v1",
                    min_audios=1,
                    created_at_s=created_at_s,
                    computed_at_s=updated_at_s,
                )
            )


async def _unadopted(
    connection: AsyncConnection, space: Space, reference: str | None
) -> list[tuple[str, float, float]]:
    """Voices of the space's owner that have a voiceprint and are no identity yet."""
    scope = VoiceScope.TENANT if space.owner_user_id == ORGANISATION else VoiceScope.USER
    query = (
        select(voices.c.voice_id, voices.c.created_at_s, voices.c.updated_at_s)
        .join(
            space_identities,
            (space_identities.c.tenant_id == voices.c.tenant_id) & (space_identities.c.voice_id == voices.c.voice_id),
            isouter=True,
        )
        .where(
            voices.c.tenant_id == space.tenant_id,
            voices.c.scope == scope.value,
            voices.c.state.in_(LIVE_STATES),
            voices.c.revision > 0,
            space_identities.c.identity_id.is_(None),
        )
        .order_by(voices.c.created_at_s, voices.c.voice_id)
        .limit(ADOPTED_MAX)
    )
    if scope is VoiceScope.USER:
        query = query.where(voices.c.owner_user_id == space.owner_user_id)
    if reference is not None:
        query = query.where(voices.c.voice_id == reference.replace("-", "_"))
    return [(row.voice_id, row.created_at_s, row.updated_at_s) for row in await connection.execute(query)]

"""All use cases of spaces, built together, and the chore that looks after what their owners left."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, or_, select

from controlplane.chores import Chore
from controlplane.database.schema import tenants, users
from controlplane.database.spaces_schema import spaces
from controlplane.erasure_rows import Asking
from controlplane.space_access import ORGANISATION, Space
from controlplane.space_audios import Audios
from controlplane.space_ground import SpaceGround
from controlplane.space_identities import Identities
from controlplane.space_records import Records
from controlplane.space_verifications import Verifications
from controlplane.space_voiceprints import Voiceprints
from controlplane.spaces import Spaces

PAGE_SPACES = 50
CHORE = "spaces"


@dataclass(frozen=True, slots=True)
class SpaceCases:
    """All of them."""

    spaces: Spaces
    identities: Identities
    audios: Audios
    voiceprints: Voiceprints
    verifications: Verifications
    records: Records
    chore: Chore


def build_spaces(ground: SpaceGround, *, chore_s: float) -> SpaceCases:
    """Build them."""
    own = Spaces(ground)
    audios = Audios(ground, own)
    prints = Voiceprints(ground, own, audios)

    async def clear() -> int:
        return await clear_ownerless(ground, own)

    return SpaceCases(
        spaces=own,
        identities=Identities(ground, own),
        audios=audios,
        voiceprints=prints,
        verifications=Verifications(ground, audios, prints),
        records=Records(ground.database),
        chore=Chore(CHORE, chore_s, clear),
    )


async def clear_ownerless(ground: SpaceGround, own: Spaces) -> int:
    """Erase what is in the spaces of tenants and users that were closed; how many spaces."""
    closed_user = and_(
        spaces.c.owner_user_id != ORGANISATION,
        users.c.closed_at_s.is_not(None),
    )
    query = (
        select(spaces)
        .join(tenants, tenants.c.tenant_id == spaces.c.tenant_id)
        .join(
            users,
            and_(users.c.tenant_id == spaces.c.tenant_id, users.c.user_id == spaces.c.owner_user_id),
            isouter=True,
        )
        .where(or_(tenants.c.closed_at_s.is_not(None), closed_user))
        .limit(PAGE_SPACES)
    )
    async with ground.database.read() as connection:
        rows = (await connection.execute(query)).all()
    for row in rows:
        space = Space(row.tenant_id, row.space_id, row.owner_user_id, "", row.handle, row.created_at_s)
        await own.clear(space, Asking(trigger="platform_decision", source="worker"))
    return len(rows)

"""An identity of which nothing was computed has no voice yet; to be erased like any other it is given one.

Each function is a step of the caller's transaction, which holds the head.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import voices
from controlplane.database.spaces_schema import space_identities, spaces
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.policy import VoiceFacts, VoiceScope
from controlplane.space_access import ORGANISATION
from controlplane.voice_rows import Said, insert_voice
from runtime.errors import NotFound

NO_SUCH_VOICE = "no such voice"


async def ensure_voice(connection: AsyncConnection, keys: KeyRing, voice: VoiceAddress, now_s: float) -> None:
    """See that the voice of an identity is there. Raises NotFound where neither is."""
    query = select(voices.c.voice_id).where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
    if (await connection.execute(query)).one_or_none() is not None:
        return
    owner = (
        select(spaces.c.owner_user_id)
        .join(
            space_identities,
            (space_identities.c.tenant_id == spaces.c.tenant_id) & (space_identities.c.space_id == spaces.c.space_id),
        )
        .where(space_identities.c.tenant_id == voice.tenant_id, space_identities.c.voice_id == voice.voice_id)
    )
    owner_user_id = (await connection.execute(owner)).scalar_one_or_none()
    if owner_user_id is None:
        raise NotFound(NO_SUCH_VOICE)
    key, wrapped = keys.make(voice)
    await insert_voice(
        connection,
        voice,
        facts=facts_of_identity(voice.tenant_id, owner_user_id),
        said=Said("", None, None),
        key=key,
        wrapped=wrapped,
        kek_id=keys.kek_id,
        now_s=now_s,
    )


async def voiceless_identities(connection: AsyncConnection, tenant_ids: set[str]) -> list[VoiceAddress]:
    """The voices that identities would be, and are not yet."""
    query = (
        select(space_identities.c.tenant_id, space_identities.c.voice_id)
        .join(
            voices,
            (voices.c.tenant_id == space_identities.c.tenant_id) & (voices.c.voice_id == space_identities.c.voice_id),
            isouter=True,
        )
        .where(space_identities.c.tenant_id.in_(tenant_ids), voices.c.voice_id.is_(None))
    )
    return [VoiceAddress(row.tenant_id, row.voice_id) for row in await connection.execute(query)]


def facts_of_identity(tenant_id: str, owner_user_id: str) -> VoiceFacts:
    """What the voice of an identity is: the organisation's, or a user's alone."""
    if owner_user_id == ORGANISATION:
        return VoiceFacts(tenant_id, VoiceScope.TENANT)
    return VoiceFacts(tenant_id, VoiceScope.USER, owner_user_id)

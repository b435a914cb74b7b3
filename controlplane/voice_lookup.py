"""Finding voices that a caller may see: the policy in SQL.

What always holds: a voice that is not there and one that is not for the caller are looked for by the same one
statement, and answered with the same words.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import voices
from controlplane.keys import VoiceAddress
from controlplane.policy import (
    GLOBAL_TENANT,
    Principal,
    Right,
    Verdict,
    VoiceFacts,
    VoiceScope,
    decide,
)
from runtime.errors import Denied, NotFound

NO_SUCH_VOICE = "no such voice"


def visible_to(principal: Principal) -> ColumnElement[bool]:
    """The voices that a caller may see: decide(..., Right.SEE) as a condition on `voices`."""
    own = true() if principal.is_admin else or_(voices.c.scope != VoiceScope.USER.value, _is_owners(principal))
    return or_(and_(voices.c.tenant_id == principal.tenant_id, own), _is_global())


def usable_by(principal: Principal) -> ColumnElement[bool]:
    """The voices that a caller's streams are matched against: decide(..., Right.USE)."""
    own = or_(voices.c.scope == VoiceScope.TENANT.value, _is_owners(principal))
    return or_(and_(voices.c.tenant_id == principal.tenant_id, own), _is_global())


def facts_of(row: Any) -> VoiceFacts:
    """What the policy asks of a row of `voices`."""
    return VoiceFacts(row.tenant_id, VoiceScope(row.scope), row.owner_user_id)


async def find_voice(connection: AsyncConnection, principal: Principal, voice_id: str, right: Right) -> VoiceAddress:
    """Where a voice lies, if the caller has the right. Raises NotFound, or Denied where it may only be seen."""
    query = select(voices.c.tenant_id, voices.c.scope, voices.c.owner_user_id).where(
        voices.c.voice_id == voice_id, visible_to(principal)
    )
    # A voice id is random, and yet the caller's own comes first should two tenants ever have the same one.
    rows = (await connection.execute(query)).all()
    row = min(rows, key=lambda row: bool(row.tenant_id == GLOBAL_TENANT), default=None)
    if row is None:
        raise NotFound(NO_SUCH_VOICE)
    require(decide(principal, facts_of(row), right))
    return VoiceAddress(row.tenant_id, voice_id)


def require(verdict: Verdict) -> None:
    """Raises what a verdict other than ALLOWED means."""
    if verdict is Verdict.HIDDEN:
        raise NotFound(NO_SUCH_VOICE)
    if verdict is Verdict.DENIED:
        raise Denied("this voice is for its owner, or an administrator, to change")


def _is_owners(principal: Principal) -> ColumnElement[bool]:
    # `= NULL` would be unknown rather than false, which is the same here; a caller without a user owns nothing.
    return voices.c.owner_user_id == (principal.user_id or "")


def _is_global() -> ColumnElement[bool]:
    return and_(voices.c.tenant_id == GLOBAL_TENANT, voices.c.scope == VoiceScope.GLOBAL.value)

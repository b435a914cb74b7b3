"""Spaces, and what lies in them, as a caller may reach them.

In: a caller, an owner, references (a handle, or an id). Out: rows. What always holds: another's space and one that
never was are looked for by the same one statement, and answered alike; what lies in a space is found through it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, and_, case, func, or_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.spaces_schema import (
    space_audios,
    space_collaborators,
    space_identities,
    space_voiceprints,
    spaces,
)
from controlplane.listings import Listing, Page
from controlplane.policy import Principal
from runtime.errors import Denied, InvalidRequest, NotFound

NO_SUCH_SPACE = "no such space"
NO_SUCH_IDENTITY = "no such identity"
NO_SUCH_AUDIO = "no such audio"
NO_SUCH_VOICEPRINT = "no such voiceprint"
ALIAS_CHARS_MAX = 100
ORGANISATION = ""
"""Owner of a space that is the organisation's: of the tenant as a whole."""
LIBRARY = "voices"
"""Handle of the space in which an owner sees the voices that were enrolled elsewhere."""
_HANDLE = re.compile(r"[a-z0-9-]{1,50}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Space:
    """A space. owner_user_id ORGANISATION: the tenant's; owner: as paths name it. created_at_s: Unix time.

    may_match: an administrator looks after another user's space, and matches against nobody in it.
    """

    tenant_id: str
    space_id: str
    owner_user_id: str
    owner: str
    handle: str
    created_at_s: float
    may_match: bool = True

    @property
    def is_library(self) -> bool:
        """Whether it shows the voices that were enrolled elsewhere."""
        return self.handle == LIBRARY


def require_handle(handle: str, field: str = "handle") -> None:
    """Raises InvalidRequest. Those that look like an id are for ids."""
    if _HANDLE.fullmatch(handle) is None:
        raise InvalidRequest(f"{field}: 1 to 50 lower-case letters, digits and hyphens")
    if _UUID.fullmatch(handle) is not None:
        raise InvalidRequest(f"{field}: it looks like an id; choose another")


def require_alias(alias: str) -> None:
    """Raises InvalidRequest."""
    if len(alias) > ALIAS_CHARS_MAX or any(ord(character) < 32 for character in alias):
        raise InvalidRequest(f"alias: at most {ALIAS_CHARS_MAX} characters, no control characters")


def owner_of(principal: Principal, owner: str) -> str:
    """The column `owner_user_id` that an owner of a path means. An organisation goes before a user of the same id."""
    return ORGANISATION if owner == principal.tenant_id else owner


def may_own(principal: Principal, owner_user_id: str) -> bool:
    """Whether a caller may make spaces for an owner."""
    return owner_user_id in (ORGANISATION, principal.user_id) or principal.is_admin


def visible_spaces(principal: Principal) -> ColumnElement[bool]:
    """The spaces that a caller may see: the organisation's, their own, and those that they were let into."""
    own: ColumnElement[bool] = spaces.c.owner_user_id == ORGANISATION
    if principal.user_id is not None:
        is_in = select(space_collaborators.c.user_id).where(_collaborates(principal.user_id)).correlate(spaces).exists()
        own = or_(own, spaces.c.owner_user_id == principal.user_id, is_in)
    return and_(spaces.c.tenant_id == principal.tenant_id, true() if principal.is_admin else own)


async def find_space(
    connection: AsyncConnection, principal: Principal, owner: str, reference: str, *, writes: bool = False
) -> Space:
    """A space. Raises NotFound, and Denied for a collaborator who may only read."""
    query = (
        select(spaces, space_collaborators.c.may_write)
        .join(space_collaborators, _collaborates(principal.user_id or ""), isouter=True)
        .where(
            visible_spaces(principal),
            spaces.c.owner_user_id == owner_of(principal, owner),
            _referenced(spaces, "space_id", reference),
        )
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound(NO_SUCH_SPACE)
    if writes and not may_own(principal, row.owner_user_id) and not row.may_write:
        raise Denied("this space is for its owner, and collaborators who may write, to change")
    may_match = row.owner_user_id in (ORGANISATION, principal.user_id) or row.may_write is not None
    return Space(row.tenant_id, row.space_id, row.owner_user_id, owner, row.handle, row.created_at_s, may_match)


async def find_identity(connection: AsyncConnection, space: Space, reference: str) -> Row[Any]:
    """A row of `space_identities`. Raises NotFound."""
    return await _found(
        connection, space, space_identities, id_column="identity_id", reference=reference, absent=NO_SUCH_IDENTITY
    )


async def find_audio(connection: AsyncConnection, space: Space, reference: str) -> Row[Any]:
    """A row of `space_audios`. Raises NotFound."""
    return await _found(
        connection, space, space_audios, id_column="audio_id", reference=reference, absent=NO_SUCH_AUDIO
    )


async def find_voiceprint(connection: AsyncConnection, identity: Row[Any], reference: str) -> Row[Any]:
    """A row of `space_voiceprints`, of an identity. Raises NotFound."""
    query = select(space_voiceprints).where(
        space_voiceprints.c.tenant_id == identity.tenant_id,
        space_voiceprints.c.identity_id == identity.identity_id,
        _referenced(space_voiceprints, "voiceprint_id", reference),
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound(NO_SUCH_VOICEPRINT)
    return row


async def _found(
    connection: AsyncConnection, space: Space, table: Table, *, id_column: str, reference: str, absent: str
) -> Row[Any]:
    query = (
        select(table)
        .where(
            table.c.tenant_id == space.tenant_id,
            table.c.space_id == space.space_id,
            _referenced(table, id_column, reference),
        )
        .order_by(case((table.c.handle == reference, 0), else_=1))
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound(absent)
    return row


def _referenced(table: Table, id_column: str, reference: str) -> ColumnElement[bool]:
    return or_(table.c.handle == reference, table.c[id_column] == reference)


def _collaborates(user_id: str) -> ColumnElement[bool]:
    return and_(
        space_collaborators.c.tenant_id == spaces.c.tenant_id,
        space_collaborators.c.space_id == spaces.c.space_id,
        space_collaborators.c.user_id == user_id,
    )


async def is_there(connection: AsyncConnection, query: Any) -> bool:
    """Whether a query finds anything."""
    return (await connection.execute(query.limit(1))).one_or_none() is not None


def of_space(table: Any, space: Space) -> tuple[Any, Any]:
    """The condition that a row of a table lies in a space."""
    return (table.c.tenant_id == space.tenant_id, table.c.space_id == space.space_id)


async def page_of(
    connection: AsyncConnection, table: Table, where: Sequence[ColumnElement[bool]], listing: Listing, *, id_column: str
) -> Page[Row[Any]]:
    """A page of rows of a table, in the order that they were made unless another is asked for; sought by handle."""
    fields = {"createdAt": table.c.created_at_s, "handle": table.c.handle}
    listing.require_valid(tuple(fields))
    query = select(table).where(*where)
    if listing.after_s is not None:
        query = query.where(table.c.created_at_s > listing.after_s)
    if listing.before_s is not None:
        query = query.where(table.c.created_at_s < listing.before_s)
    if listing.search:
        query = query.where(table.c.handle.contains(listing.search.casefold(), autoescape=True))
    total = (await connection.execute(select(func.count()).select_from(query.subquery()))).scalar_one()
    column = fields[listing.field or "createdAt"]
    order = column.desc() if listing.is_descending else column.asc()
    rows = await connection.execute(
        query.order_by(order, table.c[id_column]).offset(listing.offset).limit(listing.page_size)
    )
    return Page(tuple(rows.all()), int(total))

"""What was used in spaces: a row a use, with ids alone, which stays when all that it records is erased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.spaces_schema import space_records
from controlplane.listings import Listing, Page
from controlplane.policy import Principal
from controlplane.space_access import ORGANISATION, Space
from controlplane.space_ground import RecordView
from controlplane.space_rows import new_id
from runtime.errors import Denied, NotFound


@dataclass(frozen=True, slots=True)
class Use:
    """What was used. kind: voiceprint (one was computed), or verification. Durations are milliseconds."""

    kind: str
    space: Space
    identity_id: str
    voiceprint_id: str
    model: str
    num_audios: int
    duration_ms: int
    voice_ms: int


class Records:
    """Lists what was used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __repr__(self) -> str:
        return "Records()"

    async def of_organisation(self, principal: Principal, org: str, kind: str, listing: Listing) -> Page[RecordView]:
        """A page of what was used in an organisation's spaces. Raises NotFound, InvalidRequest."""
        if org != principal.tenant_id:
            raise NotFound("no such organisation")
        return await self._page(principal.tenant_id, ORGANISATION, kind, listing)

    async def of_user(self, principal: Principal, kind: str, listing: Listing) -> Page[RecordView]:
        """A page of what was used in the caller's own spaces. Raises Denied for a key that stands for no user."""
        if principal.user_id is None:
            raise Denied("this API key stands for no user, whose records these are: ask for the organisation's")
        return await self._page(principal.tenant_id, principal.user_id, kind, listing)

    async def _page(self, tenant_id: str, owner_user_id: str, kind: str, listing: Listing) -> Page[RecordView]:
        fields = {"createdAt": space_records.c.at_s, "voiceDuration": space_records.c.voice_ms}
        listing.require_valid(tuple(fields))
        where: list[ColumnElement[bool]] = [
            space_records.c.tenant_id == tenant_id,
            space_records.c.owner_user_id == owner_user_id,
            space_records.c.kind == kind,
        ]
        if listing.after_s is not None:
            where.append(space_records.c.at_s > listing.after_s)
        if listing.before_s is not None:
            where.append(space_records.c.at_s < listing.before_s)
        # The newest first: what was just used is what one comes to look for.
        column = fields[listing.field or "createdAt"]
        is_descending = listing.is_descending if listing.sort else True
        query = (
            select(space_records)
            .where(*where)
            .order_by(column.desc() if is_descending else column.asc(), space_records.c.record_id)
            .offset(listing.offset)
            .limit(listing.page_size)
        )
        async with self._database.read() as connection:
            total = await connection.execute(select(func.count()).select_from(space_records).where(*where))
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return Page(tuple(_view(row) for row in rows), int(total.scalar_one()))


async def record(connection: AsyncConnection, use: Use, *, at_s: float, key_id: str) -> None:
    """Count within the caller's transaction."""
    await connection.execute(
        insert(space_records).values(
            tenant_id=use.space.tenant_id,
            record_id=new_id(),
            owner_user_id=use.space.owner_user_id,
            kind=use.kind,
            space_id=use.space.space_id,
            identity_id=use.identity_id,
            voiceprint_id=use.voiceprint_id,
            model=use.model,
            num_audios=use.num_audios,
            duration_ms=use.duration_ms,
            voice_ms=use.voice_ms,
            at_s=at_s,
            key_id=key_id,
        )
    )


def _view(row: Row[Any]) -> RecordView:
    return RecordView(
        row.record_id,
        row.kind,
        row.space_id,
        row.identity_id,
        row.voiceprint_id,
        row.model,
        int(row.num_audios),
        int(row.duration_ms),
        int(row.voice_ms),
        row.at_s,
    )

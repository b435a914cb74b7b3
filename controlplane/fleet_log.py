"""The one log of the fleet: every change to what nodes should hold, under a revision that rises by one.

Appending locks the head row until the transaction ends, so that revisions become visible in their own order: whoever
has applied up to r has missed nothing at or below r.
"""

from __future__ import annotations

from enum import Enum

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import locked_head
from controlplane.database.schema import fleet_head, fleet_log
from controlplane.keys import VoiceAddress


class Change(Enum):
    """What an entry asks of a node."""

    ENROLL = "enroll"
    EVICT = "evict"


async def append(
    connection: AsyncConnection, change: Change, voice: VoiceAddress, generation: int, *, now_lease_s: float
) -> int:
    """Append an entry within the caller's transaction, and return its revision."""
    revision = (await locked_head(connection))[0] + 1
    await connection.execute(
        insert(fleet_log).values(
            revision=revision,
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=generation,
            kind=change.value,
            at_lease_s=now_lease_s,
        )
    )
    await connection.execute(update(fleet_head).values(revision=revision))
    return revision


async def head(connection: AsyncConnection) -> int:
    """The last revision; 0 when nothing has happened yet."""
    return int((await connection.execute(select(fleet_head.c.revision))).scalar_one())


async def floor(connection: AsyncConnection) -> int:
    """The last revision that was trimmed from the log; 0 while it is whole."""
    first = (await connection.execute(select(func.min(fleet_log.c.revision)))).scalar_one_or_none()
    return int(first) - 1 if first is not None else await head(connection)


async def oldest_unapplied_eviction_s(connection: AsyncConnection, cursor: int) -> float | None:
    """When (lease clock) the first eviction after a cursor was asked for, or None."""
    query = (
        select(fleet_log.c.at_lease_s)
        .where(fleet_log.c.revision > cursor, fleet_log.c.kind == Change.EVICT.value)
        .order_by(fleet_log.c.revision)
        .limit(1)
    )
    found: float | None = (await connection.execute(query)).scalar_one_or_none()
    return found

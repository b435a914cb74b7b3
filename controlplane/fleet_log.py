"""The one log of the fleet: every change to what nodes should hold, under a revision that rises by one.

Appending locks the head row until the transaction ends, so that revisions become visible in their own order: whoever
has applied up to r has missed nothing at or below r.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import locked_head
from controlplane.database.schema import fleet_head, fleet_log, voiceprints, voices
from controlplane.keys import VoiceAddress

SEPARATOR = "\n"
"""Between the models of an entry: no model's id holds it."""


class Change(Enum):
    """What an entry asks of a node."""

    ENROLL = "enroll"
    EVICT = "evict"


async def append(
    connection: AsyncConnection, change: Change, voice: VoiceAddress, generation: int, *, now_lease_s: float
) -> int:
    """Append an entry within the caller's transaction, and return its revision.

    The voiceprints of the generation are in their table by now, or are not to be held: nodes of a model that gets one
    later are told by an entry of its own.
    """
    revision = (await locked_head(connection))[0] + 1
    of_voice = (voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
    told = (
        await connection.execute(
            select(voices.c.told_generation, voices.c.told_models, voices.c.first_revision).where(*of_voice)
        )
    ).one_or_none()
    models = ""
    if change is Change.ENROLL:
        found = await connection.execute(
            select(voiceprints.c.model)
            .where(
                voiceprints.c.tenant_id == voice.tenant_id,
                voiceprints.c.voice_id == voice.voice_id,
                voiceprints.c.generation == generation,
            )
            .order_by(voiceprints.c.model)
        )
        models = SEPARATOR.join(row.model for row in found)
    await connection.execute(
        insert(fleet_log).values(
            revision=revision,
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=generation,
            kind=change.value,
            at_lease_s=now_lease_s,
            models=models,
            was_generation=told.told_generation if told else 0,
            was_models=told.told_models if told else "",
        )
    )
    values: dict[str, Any] = {"told_generation": generation if models else 0, "told_models": models}
    if told is not None and not told.first_revision and change is Change.ENROLL:
        values |= {"first_revision": revision, "first_at_lease_s": now_lease_s}
    await connection.execute(update(voices).where(*of_voice).values(**values))
    await connection.execute(update(fleet_head).values(revision=revision))
    return revision


async def trim(connection: AsyncConnection, *, below: int, entries_max: int) -> int:
    """Drop the oldest entries up to a revision, some at a time; how many. Whoever is behind them reads a snapshot."""
    first = (await connection.execute(select(func.min(fleet_log.c.revision)))).scalar_one_or_none()
    if first is None or int(first) > below:
        return 0
    last = min(below, int(first) + entries_max - 1)
    dropped = await connection.execute(delete(fleet_log).where(fleet_log.c.revision <= last))
    return dropped.rowcount


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

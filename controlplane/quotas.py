"""What a tenant may have at most, and what it has.

In: a tenant. Out: nothing, or TooMuch of something, named. Asked within the transaction that would add to it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.schema import media, samples, tenants, voices
from controlplane.database.spaces_schema import space_audios
from runtime.clock import Clock
from runtime.errors import Overloaded

KEPT_S = 1.0
KEPT_MAX = 10_000
GONE = ("erasing", "erased", "failed")


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits of a tenant. None: no limit."""

    voices_max: int | None = None
    streams_max: int | None = None
    jobs_max: int | None = None
    storage_bytes_max: int | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """What a tenant has now."""

    voices: int
    storage_bytes: int


async def quotas_of(connection: AsyncConnection, tenant_id: str) -> Quotas:
    """A tenant's limits; none for one that is not there."""
    query = select(tenants.c.voices_max, tenants.c.streams_max, tenants.c.jobs_max, tenants.c.storage_bytes_max).where(
        tenants.c.tenant_id == tenant_id
    )
    row = (await connection.execute(query)).one_or_none()
    return Quotas() if row is None else Quotas(*row)


async def jobs_max(database: Database, tenant_id: str) -> int | None:
    """How many recordings a tenant may have under way; None: no limit."""
    async with database.read() as connection:
        return (await quotas_of(connection, tenant_id)).jobs_max


async def streams_max(database: Database, tenant_id: str) -> int | None:
    """How many streams a tenant may have at once; None: no limit."""
    async with database.read() as connection:
        return (await quotas_of(connection, tenant_id)).streams_max


class StreamQuotas:
    """How many streams tenants may have at once, as it was a moment ago: placing asks the database once a second."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, int | None]] = OrderedDict()

    def __repr__(self) -> str:
        return f"StreamQuotas({len(self._kept)} kept)"

    async def of(self, tenant_id: str) -> int | None:
        """A tenant's limit; None: none."""
        kept = self._kept.get(tenant_id)
        now_s = self._clock.monotonic_s()
        if kept is not None and now_s - kept[0] < KEPT_S:
            return kept[1]
        found = await streams_max(self._database, tenant_id)
        self._kept.pop(tenant_id, None)
        self._kept[tenant_id] = (now_s, found)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return found


async def used_by(connection: AsyncConnection, tenant_id: str) -> Used:
    """What a tenant has: voices that are not gone, and bytes of recordings, of its media store and its spaces too."""
    num_voices = await connection.execute(
        select(func.count()).select_from(voices).where(voices.c.tenant_id == tenant_id, voices.c.state.not_in(GONE))
    )
    stored = await connection.execute(
        select(func.coalesce(func.sum(samples.c.blob_bytes), 0)).where(samples.c.tenant_id == tenant_id)
    )
    uploaded = await connection.execute(
        select(func.coalesce(func.sum(media.c.size_bytes), 0)).where(media.c.tenant_id == tenant_id)
    )
    in_spaces = await connection.execute(
        select(func.coalesce(func.sum(space_audios.c.blob_bytes), 0)).where(space_audios.c.tenant_id == tenant_id)
    )
    num_bytes = int(stored.scalar_one()) + int(uploaded.scalar_one()) + int(in_spaces.scalar_one())
    return Used(int(num_voices.scalar_one()), num_bytes)


async def require_room(connection: AsyncConnection, tenant_id: str, *, more_voices: int, more_bytes: int) -> None:
    """Raises Overloaded when a tenant would have more than it may. Hold the head: two cannot both be the last."""
    limits = await quotas_of(connection, tenant_id)
    if limits.voices_max is None and limits.storage_bytes_max is None:
        return
    used = await used_by(connection, tenant_id)
    if limits.voices_max is not None and more_voices and used.voices + more_voices > limits.voices_max:
        raise Overloaded(f"the tenant's quota of {limits.voices_max} voices is used up: erase some, or ask for more")
    if limits.storage_bytes_max is not None and used.storage_bytes + more_bytes > limits.storage_bytes_max:
        raise Overloaded(
            f"the tenant's quota of {limits.storage_bytes_max} bytes of recordings is used up: erase voices, or ask "
            "for more"
        )

"""Blobs that no row names: left behind when the process died between storing a recording and committing its voice, or
when the store was away as a recording that was replaced, or failed its checks, was to be deleted.

The key of the former was never stored; the latter lie under a key that lives, and so have to go. Done at every start,
and now and then after it.
"""

from __future__ import annotations

from sqlalchemy import select

from controlplane.blobs import Blobs
from controlplane.database.engine import Database
from controlplane.database.schema import samples
from controlplane.database.spaces_schema import space_audios
from runtime.clock import Clock
from runtime.errors import Unavailable
from runtime.logs import get_logger

AGE_S_MIN = 3600.0
"""Younger ones may belong to an enrolment that another control plane is about to commit."""


async def sweep_orphans(database: Database, blobs: Blobs, clock: Clock) -> int:
    """Delete them, and return how many. A store that is away is left for the next time."""
    try:
        old = [blob.key for blob in await blobs.list() if blob.written_at_s < clock.wall_s() - AGE_S_MIN]
        if not old:
            return 0
        async with database.read() as connection:
            named = {row.blob_key for row in await connection.execute(select(samples.c.blob_key))}
            in_spaces = select(space_audios.c.blob_key).where(space_audios.c.blob_key.is_not(None))
            named |= {row.blob_key for row in await connection.execute(in_spaces)}
        orphans = [key for key in old if key not in named]
        for key in orphans:
            await blobs.delete(key)
    except Unavailable as error:
        get_logger().warning("blobs.not_swept", reason=str(error))
        return 0
    return len(orphans)

"""Whether the deployment's key is the one that the database was sealed with, asked before anything is served."""

from __future__ import annotations

from sqlalchemy import select

from controlplane.database.engine import Database
from controlplane.database.schema import data_keys
from controlplane.keys import KeyRing, VoiceAddress
from runtime.errors import InvalidRequest, SpeakerdError


async def require_matching_key(database: Database, keys: KeyRing) -> None:
    """Open one voice's key. Raises InvalidRequest when it does not open: under another key, all voices are lost."""
    async with database.read() as connection:
        row = (await connection.execute(select(data_keys).order_by(data_keys.c.created_at_s).limit(1))).one_or_none()
    if row is None:
        return
    try:
        keys.open(VoiceAddress(row.tenant_id, row.voice_id), bytes(row.wrapped))
    except SpeakerdError:
        raise InvalidRequest(
            "kek.key does not open the voices of this database: put back the kek.key that belongs to it, "
            "or name the database that belongs to the key"
        ) from None

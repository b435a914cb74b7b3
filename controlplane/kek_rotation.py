"""One key-encryption key takes the place of another, while everything goes on.

In: the ring and its source. Out: every data key and secret wrapped by the first key of the ring. What always holds: the
old key opens what it wrapped until the last of it is wrapped anew; a rotation that breaks off is finished by the next
one; recordings and voiceprints are not touched, for they lie under the voices' own keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Table, select, tuple_, update

from controlplane import audit
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import data_keys, wrapped_secrets
from controlplane.database.spaces_schema import space_keys
from controlplane.kek import KekSource
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.policy import Principal
from runtime.clock import Clock
from runtime.errors import Conflict, Denied

BATCH_KEYS = 200
KEYS: tuple[tuple[Table, str], ...] = ((data_keys, "voice_id"), (space_keys, "thing_id"))
"""Tables of wrapped keys, and the column that says of what beside the tenant."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation did."""

    kek_id: str
    num_rewrapped: int
    old_key_dropped: bool


class KekRotation:
    """The use case."""

    def __init__(self, *, database: Database, keys: KeyRing, source: KekSource, clock: Clock) -> None:
        self._database = database
        self._keys = keys
        self._source = source
        self._clock = clock

    def __repr__(self) -> str:
        return f"KekRotation({self._source!r})"

    async def rotate(self, principal: Principal) -> Rotated:
        """Rotate. Raises Denied, and Conflict where the new key has to be handed to the control planes first."""
        if not principal.is_super:
            raise Denied("this is for administrators of the platform (scope platform:admin)")
        keys = self._source.load()
        if len(keys) == 1:
            if not self._database.is_sqlite:
                raise Conflict(
                    "several control planes may share this database: put the new key before the old one in the file "
                    "of key-encryption keys of each of them, start them again, and rotate then"
                )
            # Nothing is wrapped by the new key until it is safe on disk.
            keys = self._source.add_new()
        self._keys.replace(*keys)
        num_rewrapped = await self._rewrap_secrets()
        for table, thing in KEYS:
            num_rewrapped += await self._rewrap_keys(table, thing)
        dropped = self._database.is_sqlite
        if dropped:
            self._keys.replace(*self._source.drop_old())
        async with self._database.write() as connection:
            facts: dict[str, str | int] = {
                "key_id": principal.key_id,
                "kek_id": self._keys.kek_id,
                "num_rewrapped": num_rewrapped,
            }
            await audit.append(connection, "kek.rotated", at_s=self._clock.wall_s(), facts=facts)
        # What the old key had wrapped lies in SQLite's log until that is cut.
        await self._database.truncate_log()
        return Rotated(self._keys.kek_id, num_rewrapped, dropped)

    async def _rewrap_secrets(self) -> int:
        async with self._database.write() as connection:
            await locked_head(connection)
            query = select(wrapped_secrets).where(wrapped_secrets.c.kek_id != self._keys.kek_id)
            rows = (await connection.execute(query)).all()
            for row in rows:
                secret = self._keys.open_secret(row.name, bytes(row.wrapped))
                await connection.execute(
                    update(wrapped_secrets)
                    .where(wrapped_secrets.c.name == row.name)
                    .values(wrapped=self._keys.wrap_secret(row.name, secret), kek_id=self._keys.kek_id)
                )
        return len(rows)

    async def _rewrap_keys(self, table: Table, thing: str) -> int:
        done, after = 0, ("", "")
        while True:
            async with self._database.write() as connection:
                # Whoever erases a voice holds the head too, so that no key comes back that was destroyed meanwhile.
                await locked_head(connection)
                place = tuple_(table.c.tenant_id, table.c[thing])
                query = (
                    select(table.c.tenant_id, table.c[thing].label("thing_id"), table.c.wrapped)
                    .where(table.c.kek_id != self._keys.kek_id, place > tuple_(*after))
                    .order_by(table.c.tenant_id, table.c[thing])
                    .limit(BATCH_KEYS)
                )
                rows = (await connection.execute(query)).all()
                for row in rows:
                    wrapped = self._keys.rewrap(VoiceAddress(row.tenant_id, row.thing_id), bytes(row.wrapped))
                    await connection.execute(
                        update(table)
                        .where(table.c.tenant_id == row.tenant_id, table.c[thing] == row.thing_id)
                        .values(wrapped=wrapped, kek_id=self._keys.kek_id)
                    )
            done += len(rows)
            if len(rows) < BATCH_KEYS:
                return done
            after = (rows[-1].tenant_id, rows[-1].thing_id)

"""Leases in SQL: the rows that `controlplane.lease_rules` decides on, each a step of its caller's transaction.

A row is an incarnation. It counts as a holder until it is fenced, also after its node has come back under a new one: an
erasure waits for every holder, because a process that is silent is not a process that is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Row, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import fleet_log, holdings
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import erasures, fleet_head, node_leases, voiceprints, voices
from controlplane.fleet_rows import FleetRows, Head
from controlplane.holdings import SealedHolding
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import NODE, RELAY, Lease, NodeReport

__all__ = ["NODE", "RELAY", "Lease", "NodeReport", "SqlRows", "SqlTables", "holders", "look_up", "residual_nodes"]

FENCED_KEPT = 1_000
"""Incarnations that said that they forgot everything are kept for a while, and then no more than so many."""
UNWIPED_KEPT = 10_000
"""Of those that never said so: they are what residual nodes are told by."""


class SqlTables:
    """Transactions of the database, as rows of the fleet."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"SqlTables({self._database!r})"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[FleetRows]:
        """One consistent state."""
        async with self._database.read() as connection:
            yield SqlRows(self._database, connection, writes=False)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[FleetRows]:
        """A transaction."""
        async with self._database.write() as connection:
            yield SqlRows(self._database, connection, writes=True)


class SqlRows:
    """The rows of one transaction."""

    def __init__(self, database: Database, connection: AsyncConnection, *, writes: bool) -> None:
        self._database = database
        self._connection = connection
        self._writes = writes

    def __repr__(self) -> str:
        return f"SqlRows(writes={self._writes})"

    async def find(self, incarnation: int) -> Lease | None:
        """An incarnation that is not fenced."""
        query = select(node_leases).where(node_leases.c.incarnation == incarnation, node_leases.c.fenced.is_(False))
        row = (await self._connection.execute(query.with_for_update() if self._writes else query)).one_or_none()
        return None if row is None else _lease(row)

    async def holders(self) -> list[Lease]:
        """Every incarnation that is not fenced.

        Whoever writes has them locked: a renewal that is under way is waited for and seen, one that comes later sees
        the fence. Without the lock a lease could be given out and fenced in the same moment.
        """
        return await holders(self._connection, locked=self._writes)

    async def of_node(self, node_id: str) -> list[Lease]:
        """Every incarnation of a node id that is kept."""
        query = select(node_leases).where(node_leases.c.node_id == node_id).order_by(node_leases.c.incarnation)
        return [
            _lease(row) for row in await self._connection.execute(query.with_for_update() if self._writes else query)
        ]

    async def add(self, lease: Lease) -> None:
        """A new incarnation; those that were fenced long ago make room."""
        await self._connection.execute(update(fleet_head).values(incarnation=lease.incarnation))
        await self._connection.execute(insert(node_leases).values(incarnation=lease.incarnation, **_values(lease)))
        await _trim(self._connection)

    async def put(self, lease: Lease) -> None:
        """Write a row."""
        await self._connection.execute(
            update(node_leases).where(node_leases.c.incarnation == lease.incarnation).values(**_values(lease))
        )

    async def find_all(self, incarnations: Collection[int]) -> list[Lease]:
        """Those of some incarnations that are not fenced."""
        query = (
            select(node_leases)
            .where(node_leases.c.incarnation.in_(incarnations), node_leases.c.fenced.is_(False))
            .order_by(node_leases.c.incarnation)
        )
        return [
            _lease(row) for row in await self._connection.execute(query.with_for_update() if self._writes else query)
        ]

    async def put_all(self, leases: Sequence[Lease]) -> None:
        """Write rows, with one statement."""
        if not leases:
            return
        rows = [_values(lease) for lease in leases]
        one = update(node_leases).where(node_leases.c.incarnation == bindparam("of_incarnation"))
        statement = one.values({name: bindparam(f"its_{name}") for name in rows[0]})
        await self._connection.execute(
            statement,
            [
                {"of_incarnation": lease.incarnation, **{f"its_{name}": value for name, value in row.items()}}
                for lease, row in zip(leases, rows, strict=True)
            ],
        )

    async def now_s(self) -> float:
        """Now, on the database's clock."""
        return await self._database.lease_now_s(self._connection)

    async def head(self) -> Head:
        """The last of everything."""
        row = (await self._connection.execute(select(fleet_head))).one()
        return Head(int(row.revision), int(row.incarnation), row.epoch)

    async def locked_head(self) -> Head:
        """The same, locked."""
        await locked_head(self._connection)
        return await self.head()

    async def floor(self) -> int:
        """The last revision that was trimmed from the log."""
        return await fleet_log.floor(self._connection)

    async def unapplied_since_s(self, cursor: int) -> float | None:
        """When the first eviction after a cursor was asked for."""
        return await fleet_log.oldest_unapplied_eviction_s(self._connection, cursor)

    async def held_after(self, model: str, after: VoiceAddress | None, limit: int) -> list[SealedHolding]:
        """A page of what a node of a model should hold."""
        return await holdings.held_after(self._connection, model, after, limit)

    async def changes_after(self, cursor: int, model: str, limit: int) -> list[SealedHolding]:
        """The next entries of the log."""
        return await holdings.changes_after(self._connection, cursor, model, limit)

    async def oldest_unproven(self) -> int | None:
        """The first revision whose erasure is not proven yet."""
        query = select(func.min(erasures.c.revision)).where(erasures.c.state == "erasing")
        first = (await self._connection.execute(query)).scalar_one_or_none()
        return None if first is None else int(first)

    async def settle_pending(self, model: str, cursor: int, now_wall_s: float) -> int:
        """Voices that a node of this model holds, as its cursor says, are pending no more."""
        return await settle_pending(self._connection, model, cursor, now_wall_s)


async def holders(connection: AsyncConnection, *, locked: bool = False) -> list[Lease]:
    """Every incarnation that is not fenced, oldest first."""
    query = select(node_leases).where(node_leases.c.fenced.is_(False)).order_by(node_leases.c.incarnation)
    return [_lease(row) for row in await connection.execute(query.with_for_update() if locked else query)]


async def look_up(connection: AsyncConnection, incarnation: int) -> Lease | None:
    """An incarnation that is not fenced, for reading alone."""
    query = select(node_leases).where(node_leases.c.incarnation == incarnation, node_leases.c.fenced.is_(False))
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _lease(row)


async def residual_nodes(connection: AsyncConnection, first_revision: int, first_at_lease_s: float) -> list[str]:
    """Nodes that may hold what was enrolled at a revision, were fenced, and never said that they wiped it.

    first_at_lease_s: when that was. A node may have read the log and gone silent before it said how far it is, so that
    whoever had a lease then, or later, counts too.
    """
    query = (
        select(node_leases.c.node_id)
        .where(
            node_leases.c.kind == NODE,
            node_leases.c.fenced.is_(True),
            node_leases.c.wiped.is_(False),
            or_(node_leases.c.cursor >= first_revision, node_leases.c.deadline_lease_s >= first_at_lease_s),
        )
        .distinct()
        .order_by(node_leases.c.node_id)
    )
    return [row.node_id for row in await connection.execute(query)]


async def settle_pending(connection: AsyncConnection, model: str, cursor: int, now_wall_s: float) -> int:
    """Voices that a node of this model holds, as its cursor says, are pending no more. Returns how many."""
    held = exists().where(
        voiceprints.c.tenant_id == voices.c.tenant_id,
        voiceprints.c.voice_id == voices.c.voice_id,
        voiceprints.c.generation == voices.c.generation,
        voiceprints.c.model == model,
    )
    settled = await connection.execute(
        update(voices)
        .where(voices.c.state == "pending", voices.c.revision > 0, voices.c.revision <= cursor, held)
        .values(state="ready", state_reason="", updated_at_s=now_wall_s)
    )
    return settled.rowcount


async def _trim(connection: AsyncConnection) -> None:
    """What was fenced long ago has nothing to say any more; what may still hold voices in memory is kept longer."""
    for wiped, kept in ((True, FENCED_KEPT), (False, UNWIPED_KEPT)):
        of_kind = (node_leases.c.fenced.is_(True), node_leases.c.wiped.is_(wiped))
        oldest_kept = (
            select(node_leases.c.incarnation)
            .where(*of_kind)
            .order_by(node_leases.c.incarnation.desc())
            .offset(kept)
            .limit(1)
        )
        last = (await connection.execute(oldest_kept)).scalar_one_or_none()
        if last is not None:
            await connection.execute(delete(node_leases).where(*of_kind, node_leases.c.incarnation <= last))


def _values(lease: Lease) -> dict[str, Any]:
    return {
        "kind": lease.kind,
        "node_id": lease.node_id,
        "process_id": lease.process_id,
        "deadline_lease_s": lease.deadline_s,
        "joined_revision": lease.joined_revision,
        "cursor": lease.cursor,
        "num_voices": lease.num_voices,
        "voices_digest": lease.voices_digest,
        "address": lease.address,
        "model": lease.model,
        "state": lease.state,
        "superseded": lease.superseded,
        "fenced": lease.fenced,
        "wiped": lease.wiped,
        "renewals": lease.renewals,
        "relied_s": lease.relied_s,
        "held_revision": lease.held_revision,
    }


def _lease(row: Row[Any]) -> Lease:
    return Lease(
        incarnation=int(row.incarnation),
        node_id=row.node_id,
        process_id=row.process_id,
        deadline_s=float(row.deadline_lease_s),
        joined_revision=int(row.joined_revision),
        cursor=int(row.cursor),
        num_voices=int(row.num_voices),
        address=row.address,
        model=row.model,
        state=row.state,
        superseded=bool(row.superseded),
        kind=row.kind,
        renewals=int(row.renewals),
        relied_s=float(row.relied_s),
        held_revision=int(row.held_revision),
        voices_digest=bytes(row.voices_digest),
        fenced=bool(row.fenced),
        wiped=bool(row.wiped),
    )

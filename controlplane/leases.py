"""Leases: who may hold voices, until when, and who never again. Each function is a step of its caller's transaction.

A row is an incarnation. It counts as a holder until it is fenced, also after its node has come back under a new one: an
erasure waits for every holder, because a process that is silent is not a process that is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, exists, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import locked_head
from controlplane.database.schema import fleet_head, node_leases, voiceprints, voices


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself as it renews. incarnation 0: it wants a new one and holds nothing."""

    node_id: str
    process_id: str
    incarnation: int
    cursor: int
    num_voices: int
    voices_digest: bytes
    address: str
    model: str
    state: str


@dataclass(frozen=True, slots=True)
class Lease:
    """A holder. deadline_s: on the database's lease clock."""

    incarnation: int
    node_id: str
    process_id: str
    deadline_s: float
    joined_revision: int
    cursor: int
    num_voices: int
    address: str
    model: str
    state: str
    superseded: bool

    def has_applied(self, revision: int) -> bool:
        """Whether it is past a revision: it applied it, or joined, holding nothing, after it."""
        return max(self.cursor, self.joined_revision) >= revision

    def serves(self, now_s: float) -> bool:
        """Whether work may be sent to it."""
        return self.state == "serving" and not self.superseded and self.deadline_s >= now_s


async def holders(connection: AsyncConnection, *, locked: bool = False) -> list[Lease]:
    """Every incarnation that is not fenced, oldest first.

    locked: whoever decides to fence says so. A renewal that is under way is waited for and seen, one that comes later
    sees the fence; without the lock a lease could be given out and fenced in the same moment.
    """
    query = select(node_leases).where(node_leases.c.fenced.is_(False)).order_by(node_leases.c.incarnation)
    return [_lease(row) for row in await connection.execute(query.with_for_update() if locked else query)]


async def find(connection: AsyncConnection, incarnation: int) -> Lease | None:
    """An incarnation that is not fenced, locked for the transaction where the database can."""
    query = select(node_leases).where(node_leases.c.incarnation == incarnation, node_leases.c.fenced.is_(False))
    row = (await connection.execute(query.with_for_update())).one_or_none()
    return None if row is None else _lease(row)


async def look_up(connection: AsyncConnection, incarnation: int) -> Lease | None:
    """An incarnation that is not fenced, for reading alone."""
    query = select(node_leases).where(node_leases.c.incarnation == incarnation, node_leases.c.fenced.is_(False))
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _lease(row)


async def grant(connection: AsyncConnection, report: NodeReport, deadline_s: float) -> Lease:
    """A new incarnation. What was held under this node id before is superseded: it may not renew.

    The same process says that it forgot it; another process's memory is taken for gone, as nobody was found at its
    address. The old lease is waited for all the same: this request may be an old one that was long under way, and its
    sender may since have been given the incarnation that it supersedes, and rely on it until it renews.
    """
    revision, last = await locked_head(connection)
    await connection.execute(
        update(node_leases)
        .where(node_leases.c.node_id == report.node_id, node_leases.c.fenced.is_(False))
        .values(superseded=True, wiped=True)
    )
    await connection.execute(update(fleet_head).values(incarnation=last + 1))
    await connection.execute(
        insert(node_leases).values(
            incarnation=last + 1,
            kind="node",
            node_id=report.node_id,
            process_id=report.process_id,
            deadline_lease_s=deadline_s,
            joined_revision=revision,
            cursor=0,
            num_voices=0,
            voices_digest=bytes(32),
            address=report.address,
            model=report.model,
            state=report.state,
            superseded=False,
            fenced=False,
            wiped=False,
            renewals=0,
        )
    )
    return Lease(
        incarnation=last + 1,
        node_id=report.node_id,
        process_id=report.process_id,
        deadline_s=deadline_s,
        joined_revision=revision,
        cursor=0,
        num_voices=0,
        address=report.address,
        model=report.model,
        state=report.state,
        superseded=False,
    )


async def prolong(connection: AsyncConnection, report: NodeReport, deadline_s: float | None) -> None:
    """Write down what a node reports; its deadline moves unless None."""
    values: dict[str, Any] = {
        "cursor": report.cursor,
        "num_voices": report.num_voices,
        "voices_digest": report.voices_digest,
        "address": report.address,
        "model": report.model,
        "state": report.state,
    }
    if deadline_s is not None:
        values["deadline_lease_s"] = deadline_s
    await connection.execute(
        update(node_leases).where(node_leases.c.incarnation == report.incarnation).values(**values)
    )


async def acknowledge(connection: AsyncConnection, incarnation: int, cursor: int) -> None:
    """A node has applied all up to a revision. Acknowledgements may arrive late: the cursor never goes back."""
    await connection.execute(
        update(node_leases)
        .where(node_leases.c.incarnation == incarnation, node_leases.c.fenced.is_(False), node_leases.c.cursor < cursor)
        .values(cursor=cursor)
    )


async def fence(connection: AsyncConnection, incarnation: int, *, wiped: bool = False) -> None:
    """From now on this incarnation may never renew."""
    values = {"fenced": True, "wiped": True} if wiped else {"fenced": True}
    await connection.execute(update(node_leases).where(node_leases.c.incarnation == incarnation).values(**values))


async def fence_expired(connection: AsyncConnection, now_s: float) -> list[str]:
    """Fence every holder whose deadline has passed; their node ids."""
    expired = [lease for lease in await holders(connection, locked=True) if lease.deadline_s < now_s]
    for lease in expired:
        await fence(connection, lease.incarnation)
    return [lease.node_id for lease in expired]


async def was_superseded(connection: AsyncConnection, node_id: str, process_id: str) -> bool:
    """Whether this process once held the node id and lost it to another."""
    query = select(node_leases.c.incarnation).where(
        node_leases.c.node_id == node_id, node_leases.c.process_id == process_id, node_leases.c.superseded.is_(True)
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def residual_nodes(connection: AsyncConnection, first_revision: int, first_at_lease_s: float) -> list[str]:
    """Nodes that may hold what was enrolled at a revision, were fenced, and never said that they wiped it.

    first_at_lease_s: when that was. A node may have read the log and gone silent before it said how far it is, so that
    whoever had a lease then, or later, counts too.
    """
    query = (
        select(node_leases.c.node_id)
        .where(
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
    )

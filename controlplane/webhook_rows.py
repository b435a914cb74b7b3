"""The life of a delivery in SQL: each function is one step.

waiting → delivered | given_up. What always holds: a delivery comes with the end of its job, in one transaction, once a
job; an attempt is somebody's for a bounded time, and what a later claimer has taken over an earlier one changes no
more. So a job's end is told at least once as long as anybody lives, and not twice without need.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import webhook_deliveries as table

WAITING, DELIVERED, GIVEN_UP = "waiting", "delivered", "given_up"
RETRY_S: tuple[float, ...] = (0.0, 60.0, 300.0)
"""How long after a failed attempt the next one is due."""
CLAIM_S = 60.0
"""How long an attempt is its claimer's: well over what one takes at most."""


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery that is to be tried now."""

    job_id: str
    tenant_id: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A delivery that is ours for now. number: 0 is the first attempt. reason: why the one before failed."""

    job_id: str
    tenant_id: str
    url_ciphertext: bytes
    status_only: bool
    number: int
    reason: str
    claimed_until_lease_s: float


async def add(
    connection: AsyncConnection,
    *,
    job_id: str,
    tenant_id: str,
    url_ciphertext: bytes,
    status_only: bool,
    now_lease_s: float,
    now_s: float,
) -> None:
    """A job has ended: tell of it, from now on."""
    await connection.execute(
        insert(table).values(
            job_id=job_id,
            tenant_id=tenant_id,
            url_ciphertext=url_ciphertext,
            status_only=status_only,
            state=WAITING,
            due_lease_s=now_lease_s,
            created_at_s=now_s,
        )
    )


async def due(
    connection: AsyncConnection, now_lease_s: float, limit: int, *, without: Collection[str] = ()
) -> list[Due]:
    """What is to be tried now and is nobody's, the longest due first. without: tenants whose turn it is not."""
    query = (
        select(table.c.job_id, table.c.tenant_id)
        .where(_is_free(now_lease_s), table.c.tenant_id.not_in(without))
        .order_by(table.c.due_lease_s)
        .limit(limit)
    )
    return [Due(row.job_id, row.tenant_id) for row in await connection.execute(query)]


async def claim(connection: AsyncConnection, job_id: str, now_lease_s: float) -> Attempt | None:
    """Take a delivery; None: another has."""
    until_s = now_lease_s + CLAIM_S
    taken = await connection.execute(
        update(table).where(table.c.job_id == job_id, _is_free(now_lease_s)).values(claimed_until_lease_s=until_s)
    )
    if taken.rowcount != 1:
        return None
    row = (await connection.execute(select(table).where(table.c.job_id == job_id))).one()
    return Attempt(
        job_id=row.job_id,
        tenant_id=row.tenant_id,
        url_ciphertext=bytes(row.url_ciphertext),
        status_only=bool(row.status_only),
        number=int(row.attempts),
        reason=row.reason,
        claimed_until_lease_s=row.claimed_until_lease_s,
    )


async def delivered(connection: AsyncConnection, attempt: Attempt, now_s: float) -> bool:
    """It has arrived. False: it was not ours any more."""
    return await _settle(connection, attempt, state=DELIVERED, attempts=attempt.number + 1, ended_at_s=now_s)


async def failed(
    connection: AsyncConnection, attempt: Attempt, reason: str, *, now_lease_s: float, now_s: float
) -> bool:
    """It has not. Whether it will be tried again."""
    common = {"attempts": attempt.number + 1, "reason": reason}
    if attempt.number >= len(RETRY_S):
        await _settle(connection, attempt, state=GIVEN_UP, ended_at_s=now_s, **common)
        return False
    return await _settle(connection, attempt, due_lease_s=now_lease_s + RETRY_S[attempt.number], **common)


async def postponed(connection: AsyncConnection, attempt: Attempt, *, due_lease_s: float) -> bool:
    """Nothing was tried: it is due again at a time."""
    return await _settle(connection, attempt, due_lease_s=due_lease_s)


async def given_up(connection: AsyncConnection, attempt: Attempt, now_s: float) -> bool:
    """There is nothing to tell any more."""
    return await _settle(connection, attempt, state=GIVEN_UP, ended_at_s=now_s)


async def forget(connection: AsyncConnection, before_s: float) -> int:
    """Delete deliveries that ended before a time."""
    return (await connection.execute(delete(table).where(table.c.ended_at_s < before_s))).rowcount


async def _settle(connection: AsyncConnection, attempt: Attempt, **values: object) -> bool:
    ours = and_(
        table.c.job_id == attempt.job_id,
        table.c.state == WAITING,
        table.c.claimed_until_lease_s == attempt.claimed_until_lease_s,
    )
    changed = await connection.execute(update(table).where(ours).values(claimed_until_lease_s=0.0, **values))
    return changed.rowcount == 1


def _is_free(now_lease_s: float) -> ColumnElement[bool]:
    # A time much further ahead than any that is set is one of an earlier boot's clock. Much: whoever set it may have
    # looked at the clock a moment after us.
    is_due = or_(table.c.due_lease_s <= now_lease_s, table.c.due_lease_s > now_lease_s + 2 * max(RETRY_S))
    claimed = table.c.claimed_until_lease_s
    is_nobodys = or_(claimed <= now_lease_s, claimed > now_lease_s + 2 * CLAIM_S)
    return and_(table.c.state == WAITING, is_due, is_nobodys)

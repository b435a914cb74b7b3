"""The life of a job in SQL: each function is one step, in its caller's transaction.

created → running → succeeded | failed, canceled from either, and back to created when a worker is lost or may try
again. What always holds: whoever runs a job holds its attempt number, which grows with each claim; a step of an
earlier attempt, or on a job that has ended, changes nothing and says so; so a job ends once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import job_results, jobs, tenants
from controlplane.job_spec import JobKind, JobState, Webhook

WAITING = (JobState.PENDING.value, JobState.CREATED.value)
LIVE = (*WAITING, JobState.RUNNING.value)
RUNNING = JobState.RUNNING.value
CREATED = JobState.CREATED.value
LEASE_S_MAX = 600.0
"""What lies further ahead than this was counted on another clock: of an earlier boot, or before one was set back."""


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has just ended, as the hooks of its end are told."""

    job_id: str
    tenant_id: str
    state: JobState
    webhook: Webhook | None
    ended_at_s: float


EndHook = Callable[[AsyncConnection, EndedJob], Awaitable[None]]
"""Called within the transaction in which a job ends."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is this worker's for now."""

    job_id: str
    tenant_id: str
    user_id: str | None
    key_id: str
    kind: JobKind
    attempt: int
    failures: int
    media_id: str | None
    spec_ciphertext: bytes
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits for its turn."""

    job_id: str
    tenant_id: str
    priority: int


async def claim(
    connection: AsyncConnection, job_id: str, *, worker_id: str, now_lease_s: float, lease_s: float, now_s: float
) -> Claim | None:
    """Take a job that waits. None: it is not to be had."""
    free = and_(jobs.c.state == CREATED, _is_due(now_lease_s))
    taken = await connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job_id, free, jobs.c.spec_ciphertext.is_not(None))
        .values(
            state=RUNNING,
            attempt=jobs.c.attempt + 1,
            worker_id=worker_id,
            until_lease_s=now_lease_s + lease_s,
            updated_at_s=now_s,
            processed_ms=0,
        )
    )
    if taken.rowcount != 1:
        return None
    row = (await connection.execute(select(jobs).where(jobs.c.job_id == job_id))).one()
    return Claim(
        job_id=row.job_id,
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        key_id=row.key_id,
        kind=JobKind(row.kind),
        attempt=int(row.attempt),
        failures=int(row.failures),
        media_id=row.media_id,
        spec_ciphertext=bytes(row.spec_ciphertext),
        priority=int(row.priority),
    )


def _mine(claimed: Claim) -> Any:
    return and_(jobs.c.job_id == claimed.job_id, jobs.c.attempt == claimed.attempt, jobs.c.state == RUNNING)


async def renew(
    connection: AsyncConnection,
    claimed: Claim,
    *,
    until_lease_s: float,
    now_s: float,
    processed_ms: int,
    duration_ms: int,
) -> bool:
    """Say that it is being worked on, and how far it is. False: it is not this worker's any more."""
    changed = await connection.execute(
        update(jobs)
        .where(_mine(claimed))
        .values(until_lease_s=until_lease_s, updated_at_s=now_s, processed_ms=processed_ms, duration_ms=duration_ms)
    )
    return changed.rowcount == 1


async def note_media(connection: AsyncConnection, claimed: Claim, media_id: str) -> bool:
    """Its recording was fetched: another attempt need not. False: it is not this worker's any more."""
    changed = await connection.execute(update(jobs).where(_mine(claimed)).values(media_id=media_id))
    return changed.rowcount == 1


async def put_back(
    connection: AsyncConnection, claimed: Claim, *, failures: int, not_before_lease_s: float, now_s: float
) -> bool:
    """Let it wait for another attempt. False: it is not this worker's any more."""
    changed = await connection.execute(
        update(jobs)
        .where(_mine(claimed))
        .values(
            state=CREATED,
            failures=failures,
            not_before_lease_s=not_before_lease_s,
            worker_id="",
            updated_at_s=now_s,
            processed_ms=0,
        )
    )
    return changed.rowcount == 1


async def succeed(
    connection: AsyncConnection,
    claimed: Claim,
    *,
    result: bytes,
    warning: str | None,
    duration_ms: int,
    now_s: float,
    expires_at_s: float,
) -> bool:
    """It is done. False, and nothing is stored: it is not this worker's any more."""
    changed = await connection.execute(
        update(jobs)
        .where(_mine(claimed))
        .values(
            state=JobState.SUCCEEDED.value,
            warning=warning,
            processed_ms=duration_ms,
            duration_ms=duration_ms,
            updated_at_s=now_s,
            ended_at_s=now_s,
            expires_at_s=expires_at_s,
        )
    )
    if changed.rowcount != 1:
        return False
    await connection.execute(insert(job_results).values(job_id=claimed.job_id, ciphertext=result))
    return True


async def fail(connection: AsyncConnection, claimed: Claim, *, error: str, now_s: float, expires_at_s: float) -> bool:
    """It cannot be done. False: it is not this worker's any more."""
    ended = _ended(JobState.FAILED, now_s, expires_at_s) | {"error": error}
    changed = await connection.execute(update(jobs).where(_mine(claimed)).values(**ended))
    return changed.rowcount == 1


async def end_waiting(
    connection: AsyncConnection, job_id: str, state: JobState, *, error: str | None, now_s: float, expires_at_s: float
) -> bool:
    """End a job whatever it does: it is canceled, or waited for too long. False: it had ended already."""
    ended = _ended(state, now_s, expires_at_s) | {"error": error}
    changed = await connection.execute(
        update(jobs).where(jobs.c.job_id == job_id, jobs.c.state.in_(LIVE)).values(**ended)
    )
    return changed.rowcount == 1


async def lost(connection: AsyncConnection, *, now_lease_s: float, limit: int) -> Sequence[Any]:
    """Running jobs whose workers have not been heard for longer than their lease."""
    query = (
        select(jobs.c.job_id, jobs.c.tenant_id, jobs.c.kind, jobs.c.attempt, jobs.c.failures, jobs.c.priority)
        .where(
            jobs.c.state == RUNNING,
            or_(jobs.c.until_lease_s < now_lease_s, jobs.c.until_lease_s > now_lease_s + LEASE_S_MAX),
        )
        # Two that do this at once do it in one order, and so do not wait for each other in a circle.
        .order_by(jobs.c.job_id)
        .limit(limit)
    )
    return (await connection.execute(query)).all()


async def give_up(connection: AsyncConnection, row: Any, *, error: str, now_s: float, expires_at_s: float) -> bool:
    """End a job of a lost worker, which was tried often enough. False: somebody was faster."""
    ended = _ended(JobState.FAILED, now_s, expires_at_s) | {"error": error}
    changed = await connection.execute(
        update(jobs)
        .where(jobs.c.job_id == row.job_id, jobs.c.attempt == row.attempt, jobs.c.state == RUNNING)
        .values(**ended)
    )
    return changed.rowcount == 1


async def recover(connection: AsyncConnection, row: Any, *, now_s: float) -> bool:
    """Let a job of a lost worker wait again, one failure more. False: somebody was faster."""
    changed = await connection.execute(
        update(jobs)
        .where(jobs.c.job_id == row.job_id, jobs.c.attempt == row.attempt, jobs.c.state == RUNNING)
        .values(state=CREATED, attempt=row.attempt + 1, failures=row.failures + 1, worker_id="", updated_at_s=now_s)
    )
    return changed.rowcount == 1


async def waiting(connection: AsyncConnection, *, now_lease_s: float, limit: int) -> list[Waiting]:
    """Jobs that may be claimed now, each tenant's in their order."""
    place = func.row_number().over(
        partition_by=jobs.c.tenant_id, order_by=(jobs.c.priority, jobs.c.created_at_s, jobs.c.job_id)
    )
    ordered = (
        select(jobs.c.job_id, jobs.c.tenant_id, jobs.c.priority, place.label("place"))
        .join(tenants, tenants.c.tenant_id == jobs.c.tenant_id)
        .where(jobs.c.state == CREATED, _is_due(now_lease_s))
        .subquery()
    )
    # A page holds the first of every tenant before the second of any: a long queue hides nobody's.
    query = select(ordered).order_by(ordered.c.place, ordered.c.tenant_id).limit(limit)
    return [Waiting(row.job_id, row.tenant_id, int(row.priority)) for row in await connection.execute(query)]


async def running_by_tenant(connection: AsyncConnection) -> dict[str, int]:
    """How many jobs of each tenant are being worked on, anywhere."""
    query = select(jobs.c.tenant_id, func.count()).where(jobs.c.state == RUNNING).group_by(jobs.c.tenant_id)
    return {row[0]: int(row[1]) for row in await connection.execute(query)}


async def forget_content(connection: AsyncConnection, job_ids: list[str]) -> None:
    """Delete what jobs were asked and what they gave; that they were stays for a while."""
    await connection.execute(delete(job_results).where(job_results.c.job_id.in_(job_ids)))
    await connection.execute(
        update(jobs)
        .where(jobs.c.job_id.in_(job_ids))
        .values(spec_ciphertext=None, idempotency_index=None, media_id=None, warning=None)
    )


def _is_due(now_lease_s: float) -> Any:
    return or_(jobs.c.not_before_lease_s <= now_lease_s, jobs.c.not_before_lease_s > now_lease_s + LEASE_S_MAX)


def _ended(state: JobState, now_s: float, expires_at_s: float) -> dict[str, Any]:
    return {
        "state": state.value,
        "updated_at_s": now_s,
        "ended_at_s": now_s,
        "expires_at_s": expires_at_s,
        "worker_id": "",
    }

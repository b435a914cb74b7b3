"""Claiming: which job a worker gets next, and what becomes of those whose workers are lost.

In: jobs that wait in SQL and whose turn it is in Redis. Out: claims. What always holds: SQL gives a job to one worker;
Redis, or SQL while Redis is away, says only which one to ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import job_rows
from controlplane.database.engine import Database
from controlplane.job_queue import JobQueue, Taken, next_of
from controlplane.job_rows import Claim, Waiting
from controlplane.job_spec import JobKind, JobState, Priority
from controlplane.jobs import Jobs
from controlplane.quotas import quotas_of
from runtime.clock import Clock
from runtime.logs import get_logger

LEASE_S = 15.0
"""How long a job stays with a worker that is not heard."""
ROWS_MAX = 2_000
"""Jobs that wait of which Redis is told at once."""
OURS = "the job failed for a reason of ours, each of the times that it was tried; try again later"


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Settings. places: jobs at once. attempts: tries of one job. result_s: how long a result is kept."""

    places: int = 4
    attempts: int = 5
    result_s: float = 24 * 3600.0


class JobClaims:
    """The claims of one worker."""

    def __init__(
        self,
        *,
        database: Database,
        queue: JobQueue,
        jobs: Jobs,
        clock: Clock,
        limits: WorkerLimits,
        worker_id: str,
    ) -> None:
        self._database = database
        self._queue = queue
        self._jobs = jobs
        self._clock = clock
        self._limits = limits
        self._worker_id = worker_id
        self._served: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"JobClaims({self._worker_id})"

    async def sweep(self) -> int:
        """Put back jobs of lost workers, and queue in Redis what waits in SQL; how many were not queued."""
        now_s = self._clock.wall_s()
        given_up: list[tuple[str, JobKind]] = []
        async with self._database.write() as connection:
            now_lease_s = await self._database.lease_now_s(connection)
            for row in await job_rows.lost(connection, now_lease_s=now_lease_s, limit=ROWS_MAX):
                if row.failures + 1 < self._limits.attempts:
                    if await job_rows.recover(connection, row, now_s=now_s):
                        get_logger().warning("jobs.worker_lost", job_id=row.job_id, attempt=row.attempt)
                    continue
                expires_at_s = now_s + self._limits.result_s
                if await job_rows.give_up(connection, row, error=OURS, now_s=now_s, expires_at_s=expires_at_s):
                    await self._jobs.ended(connection, row.job_id, JobState.FAILED, now_s)
                    given_up.append((row.job_id, JobKind(row.kind)))
        for job_id, kind in given_up:
            self._jobs.count_ended(kind, JobState.FAILED)
            get_logger().info("job.ended", job_id=job_id, state=JobState.FAILED.value)
        async with self._database.read() as connection:
            now_lease_s = await self._database.lease_now_s(connection)
            waiting = await job_rows.waiting(connection, now_lease_s=now_lease_s, limit=ROWS_MAX)
        return await self._queue.enqueue(waiting) if waiting else 0

    async def next(self, lowest: Priority, here: Mapping[str, int], short_here: Mapping[str, int]) -> Claim | None:
        """The next job by turns, claimed; None: there is none for us.

        here: recordings of each tenant that run here. short_here: voiceprints of each that do.
        """
        while True:
            async with self._database.read() as connection:
                now_lease_s = await self._database.lease_now_s(connection)
                running = await job_rows.running_by_tenant(connection)
                full = {
                    tenant_id
                    for tenant_id in running
                    # As many voiceprints as recordings have places leave those of voiceprints to others.
                    if short_here.get(tenant_id, 0) >= self._limits.places
                    or await self._is_full(connection, tenant_id, running, here)
                }
                waiting: list[Waiting] = []
                if not self._queue.is_up:
                    waiting = await job_rows.waiting(connection, now_lease_s=now_lease_s, limit=ROWS_MAX)
            taken = await self._queue.take(running, full, lowest)
            if taken is not None:
                job_id = taken.job_id
            else:
                following = next_of(waiting, running, full, self._served, lowest)
                if following is None:
                    return None
                job_id = following.job_id
                self._served[following.tenant_id] = self._clock.monotonic_s()
            claimed = await self._claim(job_id, taken)
            if claimed is not None or taken is None:
                return claimed

    async def _is_full(
        self, connection: AsyncConnection, tenant_id: str, running: Mapping[str, int], here: Mapping[str, int]
    ) -> bool:
        # Nobody gets the last place of a worker to himself: a day's recording would keep everybody else out of it.
        if self._limits.places > 1 and here.get(tenant_id, 0) >= self._limits.places - 1:
            return True
        most = (await quotas_of(connection, tenant_id)).jobs_max
        return most is not None and running[tenant_id] >= most

    async def _claim(self, job_id: str, taken: Taken | None) -> Claim | None:
        async with self._database.write() as connection:
            claimed = await job_rows.claim(
                connection,
                job_id,
                worker_id=self._worker_id,
                now_lease_s=await self._database.lease_now_s(connection),
                lease_s=LEASE_S,
                now_s=self._clock.wall_s(),
            )
        if taken is not None:
            await self._queue.done(taken)
        return claimed

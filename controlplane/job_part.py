"""Jobs and media of one process, built together; the worker where the process has that role."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import update

from controlplane import job_rows
from controlplane.chores import Chores
from controlplane.config import ControlPlaneSettings
from controlplane.database.engine import Database
from controlplane.database.schema import jobs as jobs_table
from controlplane.derived_keys import media_url_key
from controlplane.fleet import Fleet
from controlplane.guarded_http import GuardedHttp
from controlplane.job_chores import JobChores
from controlplane.job_claims import WorkerLimits
from controlplane.job_leaving import JobLeaving
from controlplane.job_news import JobNews
from controlplane.job_queue import JobQueue
from controlplane.job_run import JobRunner
from controlplane.job_worker import JobWorker, new_worker_id
from controlplane.jobs import JobLimits, Jobs
from controlplane.keys import KeyRing
from controlplane.media_store import MediaStore
from controlplane.media_tokens import MediaTokens
from controlplane.metrics import Metrics
from controlplane.nodes import Nodes
from controlplane.object_store import ObjectStore
from controlplane.registry import Registry
from controlplane.registry_schema import JOB_NEWS
from controlplane.relay_guard import RelayGuard
from controlplane.tenant_keys import TenantKeys
from controlplane.wakes import listen
from runtime.clock import Clock

WORKER = "worker"


@dataclass(frozen=True, slots=True)
class JobGround:
    """What jobs stand on."""

    settings: ControlPlaneSettings
    database: Database
    keys: KeyRing
    tenant_keys: TenantKeys
    fleet: Fleet
    nodes: Nodes
    registry: Registry
    guard: RelayGuard
    redis_url: str
    clock: Clock
    metrics: Metrics


class JobPart:
    """What of jobs runs in this process."""

    def __init__(self, ground: JobGround) -> None:
        settings, clock = ground.settings, ground.clock
        self._ground = ground
        self._tasks: list[asyncio.Task[None]] = []
        worker_id = new_worker_id()
        http = GuardedHttp(settings.url_policy())
        self._queue = JobQueue(ground.redis_url, worker_id, clock, ground.metrics)
        self._news = JobNews()
        self.media = MediaStore(
            database=ground.database,
            tenant_keys=ground.tenant_keys,
            store=ObjectStore(settings.resolved_media()),
            tokens=MediaTokens(media_url_key(ground.keys), clock),
            clock=clock,
            is_direct=settings.media_direct,
        )
        self.jobs = Jobs(
            database=ground.database,
            tenant_keys=ground.tenant_keys,
            media=self.media,
            queue=self._queue,
            news=self._news,
            fleet=ground.fleet,
            leaving=JobLeaving(ground.database, ground.keys, ground.guard),
            check_url=http.judge,
            clock=clock,
            limits=JobLimits(result_s=settings.result_s),
        )
        self.jobs.count_ended = lambda kind, state: ground.metrics.jobs_ended.labels(kind.value, state.value).inc()
        self.worker = JobWorker(
            database=ground.database,
            tenant_keys=ground.tenant_keys,
            queue=self._queue,
            news=self._news,
            jobs=self.jobs,
            runner=JobRunner(
                media=self.media,
                http=http,
                fleet=ground.fleet,
                nodes=ground.nodes,
                registry=ground.registry,
                voiceprint_s_max=settings.voiceprint_s_max,
            ),
            clock=clock,
            metrics=ground.metrics,
            limits=WorkerLimits(settings.jobs_at_once, settings.job_attempts, settings.result_s),
            worker_id=worker_id,
        )
        upkeep = JobChores(
            database=ground.database,
            jobs=self.jobs,
            media=self.media,
            clock=clock,
            result_s=settings.result_s,
        )
        self.chores = Chores(ground.database, clock, upkeep.chores(settings.chore_s))

    def __repr__(self) -> str:
        return f"JobPart({self.worker!r})"

    async def start(self, spawn: Callable[..., asyncio.Task[None]]) -> None:
        """Begin to hear of jobs, and to work where this process is a worker."""
        await _forget_workers_of_before(self._ground.database)
        self._tasks.append(spawn("jobs.news", listen(self._ground.redis_url, self._news.hear, channel_name=JOB_NEWS)))
        if WORKER in self._ground.settings.roles:
            self._tasks += [spawn("jobs.work", self.worker.run()), spawn("jobs.chores", self.chores.run())]

    async def drain(self, deadline_s: float) -> None:
        """Claim no more, and let those that run end."""
        await self.worker.drain(deadline_s)

    async def stop(self) -> None:
        """Put back what runs, and let go of Redis."""
        await self.worker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._queue.close()


async def _forget_workers_of_before(database: Database) -> None:
    """On a database that belongs to one process at a time, workers of an earlier process are gone with it."""
    if not database.is_sqlite:
        return
    async with database.write() as connection:
        await connection.execute(
            update(jobs_table).where(jobs_table.c.state == job_rows.RUNNING).values(until_lease_s=-1.0)
        )
        await connection.execute(
            update(jobs_table).where(jobs_table.c.state == job_rows.CREATED).values(not_before_lease_s=0.0)
        )

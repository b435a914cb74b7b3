"""The worker: claims jobs when it has a place free, runs them, and says how they ended.

In: jobs that wait, by turns. Out: jobs that ended. What always holds: a job is worked on under a lease in SQL that is
renewed while it runs, and ends by the one transaction in which its attempt number still holds; whose lease ran out,
or whose job was canceled, stops and writes nothing; a job that broke its worker is tried again so many times and no
more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import Counter

from controlplane import job_rows
from controlplane.database.engine import Database
from controlplane.job_claims import LEASE_S, OURS, JobClaims, WorkerLimits
from controlplane.job_codec import decode_spec
from controlplane.job_news import JobNews
from controlplane.job_queue import JobQueue
from controlplane.job_record import pack
from controlplane.job_rows import Claim
from controlplane.job_run import Done, JobRunner, NoNode, Progress
from controlplane.job_spec import JobSpec, JobState, Priority
from controlplane.jobs import Jobs
from controlplane.metrics import Metrics
from controlplane.pulse import Pulse, wait_for_any, wait_s
from controlplane.tenant_keys import TenantKeys
from controlplane.tenant_seals import JOBS, RESULTS, TenantSeals, find_seals
from runtime.clock import Clock
from runtime.errors import Cause, SpeakerdError, Unavailable
from runtime.logs import get_logger

BEAT_S = 2.0
SWEEP_S = 5.0
"""How often SQL is gone through for jobs that Redis does not know of, and for those of lost workers."""
ROOM_S = 1.0
"""How often it is looked whether nodes have room again."""
SHORT_PLACES = 2
"""Places for jobs that make voiceprints, beside those for recordings: they take seconds and would wait for hours."""
BACKOFF_S_MAX = 300.0
WAIT_S = (1.0, 4.0)
"""How long a job that found no node waits, at least and at most."""
STOP_S = 8.0
TRANSIENT = frozenset({Cause.UNAVAILABLE, Cause.TIMEOUT, Cause.STALE, Cause.INTERNAL, Cause.OVERLOADED})


class JobWorker:
    """One worker of this process."""

    def __init__(
        self,
        *,
        database: Database,
        tenant_keys: TenantKeys,
        queue: JobQueue,
        news: JobNews,
        jobs: Jobs,
        runner: JobRunner,
        clock: Clock,
        metrics: Metrics,
        limits: WorkerLimits,
        worker_id: str = "",
    ) -> None:
        self._database = database
        self._tenant_keys = tenant_keys
        self._queue = queue
        self._news = news
        self._jobs = jobs
        self._runner = runner
        self._clock = clock
        self._metrics = metrics
        self._limits = limits
        self._id = worker_id or new_worker_id()
        self._claims = JobClaims(
            database=database, queue=queue, jobs=jobs, clock=clock, limits=limits, worker_id=self._id
        )
        self._running: dict[str, asyncio.Task[None]] = {}
        self._of_tenant: Counter[str] = Counter()
        self._short_of_tenant: Counter[str] = Counter()
        self._num_short = 0
        self._free = Pulse()
        self._is_draining = False

    def __repr__(self) -> str:
        return f"JobWorker({self._id}, running={len(self._running)})"

    @property
    def num_running(self) -> int:
        """Jobs that are being worked on here."""
        return len(self._running)

    async def run(self) -> None:
        """Work for ever."""
        sweep_s = self._clock.monotonic_s()
        while not self._is_draining:
            woken, freed = self._news.new.next(), self._free.next()
            try:
                if sweep_s <= self._clock.monotonic_s():
                    sweep_s = self._clock.monotonic_s() + SWEEP_S
                    await self._claims.sweep()
                while not self._is_draining and (lowest := self._lowest(await self._runner.room())) is not None:
                    claimed = await self._claims.next(lowest, self._of_tenant, self._short_of_tenant)
                    if claimed is None:
                        break
                    self._begin(claimed)
            except Unavailable as error:
                get_logger().warning("jobs.not_claimed", reason=str(error))
                await asyncio.sleep(1.0)
                continue
            await wait_for_any((woken, freed), min(ROOM_S, sweep_s - self._clock.monotonic_s()))

    async def drain(self, deadline_s: float) -> None:
        """Claim no more, and let those that run end; what has not is another worker's."""
        self._is_draining = True
        self._free.beat()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=deadline_s)

    async def stop(self) -> None:
        """Put back what runs."""
        self._is_draining = True
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=STOP_S)

    def _lowest(self, room: int | None) -> Priority | None:
        """Down to which priority a job may be claimed now; None: none at all. room: places of nodes that are free."""
        if room is None:
            return None
        # Voiceprints beyond their own places take those of recordings, so that no more is begun than there are places.
        recordings = len(self._running) - min(self._num_short, SHORT_PLACES)
        begun = recordings - self._runner.num_under_way
        if recordings < self._limits.places and room > begun:
            return Priority.LOW
        return Priority.SHORT if self._num_short < SHORT_PLACES else None

    def _begin(self, claimed: Claim) -> None:
        is_short = claimed.priority == Priority.SHORT
        self._num_short += is_short
        counted = self._short_of_tenant if is_short else self._of_tenant
        counted[claimed.tenant_id] += 1
        task = asyncio.create_task(self._serve(claimed), name=f"job.{claimed.job_id}")
        self._running[claimed.job_id] = task
        self._metrics.jobs_running.set(len(self._running))

        def ended(task: asyncio.Task[None]) -> None:
            self._running.pop(claimed.job_id, None)
            self._num_short -= is_short
            counted[claimed.tenant_id] -= 1
            if not counted[claimed.tenant_id]:
                del counted[claimed.tenant_id]
            self._metrics.jobs_running.set(len(self._running))
            if not task.cancelled() and (error := task.exception()) is not None:
                get_logger().error("jobs.run_broke", job_id=claimed.job_id, error_type=type(error).__name__)
            self._free.beat()

        task.add_done_callback(ended)

    async def _serve(self, claimed: Claim) -> None:
        """Run a job under its lease, and write down how it ended."""
        began_s = self._clock.monotonic_s()
        get_logger().info(
            "job.begun",
            job_id=claimed.job_id,
            tenant_id=claimed.tenant_id,
            kind=claimed.kind.value,
            attempt=claimed.attempt,
        )
        progress = Progress(media_id=claimed.media_id)
        await self._tell(f"changed {claimed.job_id}")
        work = asyncio.create_task(self._work(claimed, progress), name="job.work")
        beating = asyncio.create_task(self._beat(claimed, progress), name="job.beat")
        try:
            await asyncio.wait((work, beating), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _stopped(work, beating)
            await self._let_go(claimed)
            raise
        if not work.done():
            # Canceled, or somebody else's by now.
            await _stopped(work, beating)
            beating.result()
            return
        # Not before it is written down how it ended: until then the lease has to hold.
        try:
            await self._conclude(claimed, work, began_s)
        finally:
            await _stopped(beating)
        await self._tell(f"changed {claimed.job_id}")

    async def _work(self, claimed: Claim, progress: Progress) -> tuple[Done, bytes]:
        async with self._database.read() as connection:
            seals = await find_seals(connection, self._tenant_keys, claimed.tenant_id)
        if seals is None:
            raise Unavailable("the tenant is closed")
        spec = await asyncio.to_thread(_opened, seals, claimed)
        done = await self._runner.run(claimed, spec, seals, progress)
        sealed = await asyncio.to_thread(lambda: seals.seal(RESULTS, pack(done.record), claimed.job_id))
        return done, sealed

    async def _beat(self, claimed: Claim, progress: Progress) -> None:
        """Renew the lease until the job is not this worker's any more."""
        noted = claimed.media_id
        heard_s = self._clock.monotonic_s()
        with self._news.of(claimed.job_id) as pulse:
            while True:
                news = pulse.next()
                try:
                    async with self._database.write() as connection:
                        now_lease_s = await self._database.lease_now_s(connection)
                        is_ours = await job_rows.renew(
                            connection,
                            claimed,
                            until_lease_s=now_lease_s + LEASE_S,
                            now_s=self._clock.wall_s(),
                            processed_ms=progress.processed_ms,
                            duration_ms=max(progress.duration_ms, progress.processed_ms),
                        )
                        if is_ours and progress.media_id != noted and progress.media_id is not None:
                            await job_rows.note_media(connection, claimed, progress.media_id)
                            noted = progress.media_id
                    if not is_ours:
                        return
                    heard_s = self._clock.monotonic_s()
                except Unavailable:
                    # The database is away: go on for as long as the lease lasts, and no longer.
                    if self._clock.monotonic_s() - heard_s > LEASE_S:
                        return
                await wait_s(news, BEAT_S)

    async def _conclude(self, claimed: Claim, work: asyncio.Task[tuple[Done, bytes]], began_s: float) -> None:
        error = work.exception()
        for _ in range(int(LEASE_S)):
            try:
                if error is None:
                    await self._succeeded(claimed, *work.result(), took_s=self._clock.monotonic_s() - began_s)
                else:
                    await self._failed(claimed, error)
            except Unavailable:
                await asyncio.sleep(1.0)
            else:
                return

    async def _succeeded(self, claimed: Claim, done: Done, sealed: bytes, *, took_s: float) -> None:
        now_s = self._clock.wall_s()
        async with self._database.write() as connection:
            is_ours = await job_rows.succeed(
                connection,
                claimed,
                result=sealed,
                warning="; ".join(done.warnings) or None,
                duration_ms=done.duration_ms,
                now_s=now_s,
                expires_at_s=now_s + self._limits.result_s,
            )
            if is_ours:
                await self._jobs.ended(connection, claimed.job_id, JobState.SUCCEEDED, now_s)
        if is_ours:
            self._metrics.jobs_ended.labels(claimed.kind.value, "succeeded").inc()
            self._metrics.job_seconds.labels(claimed.kind.value).observe(took_s)
            get_logger().info("job.ended", job_id=claimed.job_id, state="succeeded")

    async def _failed(self, claimed: Claim, error: BaseException) -> None:
        cause = error.cause if isinstance(error, SpeakerdError) else Cause.INTERNAL
        if cause is Cause.INTERNAL:
            get_logger().error("jobs.broke", job_id=claimed.job_id, error_type=type(error).__name__)
        now_s, failures = self._clock.wall_s(), claimed.failures + (0 if isinstance(error, NoNode) else 1)
        async with self._database.write() as connection:
            now_lease_s = await self._database.lease_now_s(connection)
            if cause in TRANSIENT and failures < self._limits.attempts:
                is_waiting = failures == claimed.failures
                delay_s = random.uniform(*WAIT_S) if is_waiting else min(BACKOFF_S_MAX, 2.0**failures)  # noqa: S311
                await job_rows.put_back(
                    connection,
                    claimed,
                    failures=failures,
                    not_before_lease_s=now_lease_s + delay_s,
                    now_s=now_s,
                )
                self._metrics.jobs_put_back.labels(cause.value).inc()
                get_logger().info("job.put_back", job_id=claimed.job_id, cause=cause.value)
                return
            text = OURS if cause is Cause.INTERNAL else str(error)
            is_ours = await job_rows.fail(
                connection, claimed, error=text, now_s=now_s, expires_at_s=now_s + self._limits.result_s
            )
            if is_ours:
                await self._jobs.ended(connection, claimed.job_id, JobState.FAILED, now_s)
        if is_ours:
            self._metrics.jobs_ended.labels(claimed.kind.value, "failed").inc()
            get_logger().info("job.ended", job_id=claimed.job_id, state="failed", cause=cause.value)

    async def _let_go(self, claimed: Claim) -> None:
        """This process stops: the job waits for another, at no cost to it."""
        with contextlib.suppress(Unavailable):
            async with self._database.write() as connection:
                await job_rows.put_back(
                    connection,
                    claimed,
                    failures=claimed.failures,
                    not_before_lease_s=0.0,
                    now_s=self._clock.wall_s(),
                )

    async def _tell(self, news: str) -> None:
        self._news.hear(news)
        await self._queue.publish(news)


def new_worker_id() -> str:
    """A name for a worker, another one for each process."""
    return f"worker-{secrets.token_hex(6)}"


def _opened(seals: TenantSeals, claimed: Claim) -> JobSpec:
    return decode_spec(seals.open(JOBS, claimed.spec_ciphertext, claimed.job_id))


async def _stopped(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

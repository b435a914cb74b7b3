"""What becomes of jobs and recordings in time: results expire, jobs that waited too long fail, recordings are deleted.

Each function does its work once and says how much it did; done again, it does nothing twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, delete, exists, or_, select, update

from controlplane import job_rows
from controlplane.chores import Chore
from controlplane.database.engine import Database
from controlplane.database.schema import job_results, jobs, media, tenants
from controlplane.job_spec import JobKind, JobState
from controlplane.jobs import Jobs
from controlplane.media_store import GOING, MediaStore
from runtime.clock import Clock
from runtime.logs import get_logger

WAIT_S_MAX = 24 * 3600.0
ROW_S = 7 * 24 * 3600.0
"""How long it is remembered that there was a job, after its end."""
PAGE_ROWS = 200
TOO_LONG = "no node had room for it within 24 h; try again"


class JobChores:
    """The chores."""

    def __init__(self, *, database: Database, jobs: Jobs, media: MediaStore, clock: Clock, result_s: float) -> None:
        self._database = database
        self._jobs = jobs
        self._media = media
        self._clock = clock
        self._result_s = result_s

    def __repr__(self) -> str:
        return "JobChores()"

    def chores(self, interval_s: float) -> Sequence[Chore]:
        """All of them."""
        return (
            Chore("jobs.overdue", interval_s, self.end_overdue),
            Chore("jobs.expired", interval_s, self.forget_expired),
            Chore("media.expired", interval_s, self.delete_media),
        )

    async def end_overdue(self) -> int:
        """Fail what waited for too long; cancel what is of closed tenants."""
        now_s = self._clock.wall_s()
        closed = exists().where(tenants.c.tenant_id == jobs.c.tenant_id, tenants.c.closed_at_s.is_not(None))
        overdue = and_(jobs.c.state.in_(job_rows.WAITING), jobs.c.created_at_s < now_s - WAIT_S_MAX)
        query = (
            select(jobs.c.job_id, jobs.c.kind, closed.label("is_closed"))
            .where(or_(overdue, and_(jobs.c.state.in_(job_rows.LIVE), closed)))
            .limit(PAGE_ROWS)
        )
        written: list[tuple[str, JobKind, JobState]] = []
        async with self._database.write() as connection:
            for row in (await connection.execute(query)).all():
                state = JobState.CANCELED if row.is_closed else JobState.FAILED
                error = None if row.is_closed else TOO_LONG
                ended = await job_rows.end_waiting(
                    connection, row.job_id, state, error=error, now_s=now_s, expires_at_s=now_s + self._result_s
                )
                if ended:
                    await self._jobs.ended(connection, row.job_id, state, now_s)
                    written.append((row.job_id, JobKind(row.kind), state))
        for job_id, kind, state in written:
            self._jobs.count_ended(kind, state)
            get_logger().info("job.ended", job_id=job_id, state=state.value)
        return len(written)

    async def forget_expired(self) -> int:
        """Delete requests and results whose time is up, and after a week that there was a job."""
        now_s = self._clock.wall_s()
        query = (
            select(jobs.c.job_id)
            .where(jobs.c.expires_at_s <= now_s, jobs.c.spec_ciphertext.is_not(None))
            .limit(PAGE_ROWS)
        )
        old = jobs.c.ended_at_s < now_s - ROW_S
        async with self._database.write() as connection:
            expired = [row.job_id for row in await connection.execute(query)]
            if expired:
                await job_rows.forget_content(connection, expired)
            await connection.execute(
                delete(job_results).where(job_results.c.job_id.in_(select(jobs.c.job_id).where(old)))
            )
            await connection.execute(delete(jobs).where(old))
        return len(expired)

    async def delete_media(self) -> int:
        """Delete recordings whose time is up and that no job is going to need."""
        now_s = self._clock.wall_s()
        needed = exists().where(jobs.c.media_id == media.c.media_id, jobs.c.state.in_(job_rows.LIVE))
        async with self._database.write() as connection:
            await connection.execute(
                update(media).where(media.c.expires_at_s <= now_s, media.c.state != GOING, ~needed).values(state=GOING)
            )
            query = select(media.c.media_id).where(media.c.state == GOING).limit(PAGE_ROWS)
            going = [row.media_id for row in await connection.execute(query)]
        for media_id in going:
            await self._media.delete_blob(media_id)
            async with self._database.write() as connection:
                await connection.execute(delete(media).where(media.c.media_id == media_id))
        return len(going)

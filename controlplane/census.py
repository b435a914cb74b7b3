"""Counts what lies in the database and moves by itself: jobs, webhooks, residual erasures, the head of the audit.

In: the database, now and then. Out: gauges. What always holds: what is counted is little and indexed (what has ended is
not looked at); a database that is away is a census left out, and the numbers of the last one stay.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import and_, func, select

from controlplane import job_rows, webhook_rows
from controlplane.database.engine import Database
from controlplane.database.schema import audit, erasures, jobs, webhook_deliveries
from controlplane.metrics import LIVE_JOB_STATES, Metrics
from runtime.clock import Clock
from runtime.errors import Unavailable
from runtime.logs import get_logger


class Census:
    """A worker. every_s: how often it counts."""

    def __init__(self, database: Database, clock: Clock, metrics: Metrics, *, every_s: float) -> None:
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._every_s = every_s

    def __repr__(self) -> str:
        return f"Census(every {self._every_s:g} s)"

    async def run(self) -> None:
        """Count for ever."""
        while True:
            try:
                await self.count()
            except Unavailable as error:
                get_logger().warning("census.left_out", reason=str(error))
            await asyncio.sleep(self._every_s)

    async def count(self) -> None:
        """Count once. Raises Unavailable."""
        of_jobs = (
            select(jobs.c.state, func.count(), func.min(jobs.c.created_at_s))
            .where(jobs.c.state.in_(job_rows.LIVE))
            .group_by(jobs.c.state)
        )
        of_webhooks = select(func.count(), func.min(webhook_deliveries.c.created_at_s)).where(
            webhook_deliveries.c.state == webhook_rows.WAITING
        )
        # What is open and erased waits for its residual machines, or for its recordings' store.
        of_erasures = select(func.count(), func.min(erasures.c.erased_at_s)).where(
            and_(erasures.c.is_open.is_(True), erasures.c.state == "erased", erasures.c.residual_node_ids != "[]")
        )
        async with self._database.read() as connection:
            states = {row[0]: (int(row[1]), row[2]) for row in (await connection.execute(of_jobs)).all()}
            webhooks = (await connection.execute(of_webhooks)).one()
            residual = (await connection.execute(of_erasures)).one()
            audited = (await connection.execute(select(func.max(audit.c.sequence)))).scalar_one()
        metrics = self._metrics
        for state in LIVE_JOB_STATES:
            metrics.jobs.labels(state).set(states.get(state, (0, None))[0])
        metrics.job_oldest_waiting_seconds.set(self._age_s(states.get(job_rows.CREATED, (0, None))[1]))
        metrics.webhooks_pending.set(int(webhooks[0]))
        metrics.webhook_oldest_pending_seconds.set(self._age_s(webhooks[1]))
        metrics.erasures_residual.set(int(residual[0]))
        metrics.erasure_oldest_residual_seconds.set(self._age_s(residual[1]))
        if audited is not None:
            metrics.audit_head.set(int(audited))

    def _age_s(self, since_s: float | None) -> float:
        return 0.0 if since_s is None else max(0.0, self._clock.wall_s() - float(since_s))

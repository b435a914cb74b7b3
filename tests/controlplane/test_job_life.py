"""The life of a job in SQL: whatever workers, callers and time do in whatever order, a job ends once."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from sqlalchemy import insert, select

from controlplane import job_rows
from controlplane.database.engine import Database, open_database
from controlplane.database.schema import job_results, jobs, tenants
from controlplane.job_rows import Claim
from controlplane.job_spec import JobState
from runtime.clock import SystemClock

LEASE_S = 10.0
TENANTS = ("a", "b", "c")


_template: list[bytes] = []


async def opened(folder: Path) -> Database:
    """A database of its own; the migrations are run for the first alone."""
    path = folder / "x.db"
    if _template:
        path.write_bytes(_template[0])
    database = await open_database(f"sqlite+aiosqlite:///{path}", SystemClock(), lease_s=10.0)
    if not _template:
        await database.truncate_log()
        _template.append(path.read_bytes())
    return database


class JobLife(RuleBasedStateMachine):
    """Three tenants' jobs, several workers that may forget, freeze and come back, and a clock that is ours."""

    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.now_s = 1_000.0
        self.jobs: list[str] = []
        # What the model knows: who holds a job now, and how each ended.
        self.holder: dict[str, int] = {}
        self.until_s: dict[str, float] = {}
        self.ends: dict[str, list[str]] = {}

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.runner.run(self.database.close())
        self.runner.close()
        self.folder.cleanup()

    @initialize()
    def open(self) -> None:
        self.database: Database = self.runner.run(opened(Path(self.folder.name)))

        async def fill() -> None:
            async with self.database.write() as connection:
                for tenant_id in TENANTS:
                    await connection.execute(insert(tenants).values(tenant_id=tenant_id, created_at_s=0.0))

        self.runner.run(fill())

    def write(self, step: Any, *arguments: Any, **named: Any) -> Any:
        async def run() -> Any:
            async with self.database.write() as connection:
                return await step(connection, *arguments, **named)

        return self.runner.run(run())

    @rule(tenant=st.sampled_from(TENANTS))
    def create(self, tenant: str) -> None:
        job_id = f"j{len(self.jobs)}"

        async def add(connection: Any) -> None:
            await connection.execute(
                insert(jobs).values(
                    job_id=job_id,
                    tenant_id=tenant,
                    key_id="k",
                    kind="diarize",
                    state="created",
                    priority=1,
                    spec_ciphertext=b"s",
                    request_digest=b"d",
                    created_at_s=self.now_s,
                    updated_at_s=self.now_s,
                )
            )

        self.write(add)
        self.jobs.append(job_id)
        self.ends[job_id] = []

    @rule(seconds=st.sampled_from((0.5, LEASE_S / 2, LEASE_S + 1)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(target=claims, data=st.data())
    def claim(self, data: st.DataObject) -> Any:
        if not self.jobs:
            return multiple()
        job_id = data.draw(st.sampled_from(self.jobs))
        was_free = job_id not in self.holder and not self.ends[job_id]
        claimed: Claim | None = self.write(
            job_rows.claim, job_id, worker_id="w", now_lease_s=self.now_s, lease_s=LEASE_S, now_s=self.now_s
        )
        if claimed is None:
            return multiple()
        assert was_free, "a job was given to two"
        self.holder[job_id] = claimed.attempt
        self.until_s[job_id] = self.now_s + LEASE_S
        return claimed

    def holds(self, claimed: Claim) -> bool:
        return self.holder.get(claimed.job_id) == claimed.attempt

    @rule(claimed=claims)
    def renew(self, claimed: Claim) -> None:
        is_ours = self.write(
            job_rows.renew,
            claimed,
            until_lease_s=self.now_s + LEASE_S,
            now_s=self.now_s,
            processed_ms=5,
            duration_ms=10,
        )
        assert is_ours == self.holds(claimed)
        if is_ours:
            self.until_s[claimed.job_id] = self.now_s + LEASE_S

    def ended(self, job_id: str, state: str, *, did: bool, could: bool) -> None:
        assert did == could, (state, did, could)
        if did:
            self.ends[job_id].append(state)
            self.holder.pop(job_id, None)

    @rule(claimed=claims)
    def succeed(self, claimed: Claim) -> None:
        did = self.write(
            job_rows.succeed,
            claimed,
            result=b"r",
            warning=None,
            duration_ms=10,
            now_s=self.now_s,
            expires_at_s=self.now_s + 99,
        )
        self.ended(claimed.job_id, "succeeded", did=did, could=self.holds(claimed))

    @rule(claimed=claims)
    def fail(self, claimed: Claim) -> None:
        did = self.write(job_rows.fail, claimed, error="e", now_s=self.now_s, expires_at_s=self.now_s + 99)
        self.ended(claimed.job_id, "failed", did=did, could=self.holds(claimed))

    @rule(claimed=claims)
    def put_back(self, claimed: Claim) -> None:
        did = self.write(
            job_rows.put_back, claimed, failures=claimed.failures + 1, not_before_lease_s=0.0, now_s=self.now_s
        )
        assert did == self.holds(claimed)
        if did:
            del self.holder[claimed.job_id]

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.jobs:
            job_id = data.draw(st.sampled_from(self.jobs))
            did = self.write(
                job_rows.end_waiting,
                job_id,
                JobState.CANCELED,
                error=None,
                now_s=self.now_s,
                expires_at_s=self.now_s + 99,
            )
            self.ended(job_id, "canceled", did=did, could=not self.ends[job_id])

    @rule()
    def recover_lost(self) -> None:
        async def sweep(connection: Any) -> list[str]:
            rows = await job_rows.lost(connection, now_lease_s=self.now_s, limit=100)
            return [row.job_id for row in rows if await job_rows.recover(connection, row, now_s=self.now_s)]

        recovered = self.write(sweep)
        assert set(recovered) == {job_id for job_id in self.holder if self.until_s[job_id] < self.now_s}
        for job_id in recovered:
            del self.holder[job_id]

    @invariant()
    def what_is_stored_is_what_happened(self) -> None:
        if not self.jobs:
            return

        async def look() -> tuple[dict[str, str], set[str], list[Any], dict[str, int]]:
            async with self.database.read() as connection:
                states = {row.job_id: row.state for row in await connection.execute(select(jobs))}
                results = {row.job_id for row in await connection.execute(select(job_results.c.job_id))}
                waiting = await job_rows.waiting(connection, now_lease_s=self.now_s, limit=100)
                return states, results, waiting, await job_rows.running_by_tenant(connection)

        states, results, waiting, running = self.runner.run(look())
        for job_id in self.jobs:
            assert len(self.ends[job_id]) <= 1
            expected = (self.ends[job_id] or ["running" if job_id in self.holder else "created"])[0]
            assert states[job_id] == expected
            assert (job_id in results) == (expected == "succeeded")
        assert sum(running.values()) == len(self.holder)
        assert {job.job_id for job in waiting} == {job_id for job_id, state in states.items() if state == "created"}
        # The first of each tenant comes before the second of any.
        firsts = [job.tenant_id for job in waiting][: len({job.tenant_id for job in waiting})]
        assert len(set(firsts)) == len(firsts)


TestJobLife = JobLife.TestCase
TestJobLife.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

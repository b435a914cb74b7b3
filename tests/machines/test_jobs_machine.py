"""Jobs, over their rows: created, claimed, left behind by dead workers, put back, canceled, finished, in any order.

A job is one attempt's at a time, ends once, has a result exactly if it succeeded, and is never lost while it lives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, invariant, rule, run_state_machine_as_test
from sqlalchemy import insert, select

from controlplane import job_rows
from controlplane.database.engine import Database, open_database
from controlplane.database.schema import job_results, jobs, tenants
from controlplane.job_rows import Claim
from controlplane.job_spec import JobState
from runtime.clock import SteppedClock
from tests.machines.looping import LoopingMachine, bounded

LEASE_S = 30.0
ATTEMPTS = 3
ENDED = {"succeeded", "failed", "canceled"}


@dataclass
class Known:
    """What must be true of a job. holder: the attempt whose word counts."""

    state: str = "created"
    holder: int | None = None
    until_s: float = 0.0
    due_s: float = 0.0
    attempts: set[int] = field(default_factory=set)
    failures: int = 0
    has_result: bool = False


class Jobs(LoopingMachine):
    created = Bundle("created")
    claims = Bundle("claims")

    async def open(self) -> None:
        self.clock = SteppedClock()
        self.database: Database = await open_database(
            f"sqlite+aiosqlite:///{self.folder}/speakerd.db", self.clock, lease_s=1.0
        )
        self.known: dict[str, Known] = {}
        async with self.database.write() as connection:
            await connection.execute(insert(tenants).values(tenant_id="a", created_at_s=0.0))

    async def close(self) -> None:
        await self.database.close()

    @property
    def now_s(self) -> float:
        return self.clock.lease_now_s()

    @rule(target=created)
    def create(self) -> str:
        job_id = f"j{len(self.known)}"

        async def write() -> None:
            async with self.database.write() as connection:
                await connection.execute(
                    insert(jobs).values(
                        job_id=job_id, tenant_id="a", key_id="k", kind="diarize", state="created", priority=0,
                        spec_ciphertext=b"x", request_digest=b"d", created_at_s=self.now_s, updated_at_s=self.now_s,
                    )
                )  # fmt: skip

        self.run(write())
        self.known[job_id] = Known()
        return job_id

    @rule(seconds=st.sampled_from([1.0, 20.0, LEASE_S + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.step(seconds)

    @rule(target=claims, job_id=created, worker=st.sampled_from(["w1", "w2"]))
    def claim(self, job_id: str, worker: str) -> Claim | None:
        async def write() -> Claim | None:
            async with self.database.write() as connection:
                return await job_rows.claim(
                    connection, job_id, worker_id=worker, now_lease_s=self.now_s, lease_s=LEASE_S, now_s=self.now_s
                )

        got, known = self.run(write()), self.known[job_id]
        assert (got is not None) == (known.state == "created" and known.due_s <= self.now_s)
        if got is not None:
            assert got.attempt not in known.attempts, "two claims are the same attempt"
            known.attempts.add(got.attempt)
            known.state, known.holder, known.until_s = "running", got.attempt, self.now_s + LEASE_S
        return got

    def _holds(self, claim: Claim) -> bool:
        known = self.known[claim.job_id]
        return known.state == "running" and known.holder == claim.attempt

    @rule(claim=claims)
    def renew(self, claim: Claim | None) -> None:
        if claim is None:
            return

        async def write() -> bool:
            async with self.database.write() as connection:
                return await job_rows.renew(
                    connection,
                    claim,
                    until_lease_s=self.now_s + LEASE_S,
                    now_s=self.now_s,
                    processed_ms=1,
                    duration_ms=2,
                )

        assert self.run(write()) == self._holds(claim)
        if self._holds(claim):
            self.known[claim.job_id].until_s = self.now_s + LEASE_S

    @rule(claim=claims, wait_s=st.sampled_from([0.0, 15.0]))
    def put_back(self, claim: Claim | None, wait_s: float) -> None:
        if claim is None:
            return

        async def write() -> bool:
            async with self.database.write() as connection:
                return await job_rows.put_back(
                    connection,
                    claim,
                    failures=claim.failures + 1,
                    not_before_lease_s=self.now_s + wait_s,
                    now_s=self.now_s,
                )

        held = self._holds(claim)
        assert self.run(write()) == held
        if held:
            known = self.known[claim.job_id]
            known.state, known.holder, known.due_s = "created", None, self.now_s + wait_s
            known.failures = claim.failures + 1

    @rule(claim=consumes(claims), well=st.booleans())
    def finish(self, claim: Claim | None, well: bool) -> None:
        if claim is None:
            return

        async def write() -> bool:
            async with self.database.write() as connection:
                if not well:
                    return await job_rows.fail(connection, claim, error="e", now_s=self.now_s, expires_at_s=1e9)
                return await job_rows.succeed(
                    connection, claim, result=b"r", warning=None, duration_ms=5, now_s=self.now_s, expires_at_s=1e9
                )

        held = self._holds(claim)
        assert self.run(write()) == held
        if held:
            known = self.known[claim.job_id]
            known.state, known.holder = ("succeeded" if well else "failed"), None
            known.has_result = well

    @rule(job_id=created)
    def cancel(self, job_id: str) -> None:
        async def write() -> bool:
            async with self.database.write() as connection:
                return await job_rows.end_waiting(
                    connection, job_id, JobState.CANCELED, error=None, now_s=self.now_s, expires_at_s=1e9
                )

        known = self.known[job_id]
        assert self.run(write()) == (known.state not in ENDED)
        if known.state not in ENDED:
            known.state, known.holder = "canceled", None

    @rule()
    def sweep(self) -> None:
        """Jobs of workers that were not heard for longer than their lease wait again, or are given up; no others."""

        async def write() -> dict[str, bool]:
            done = {}
            async with self.database.write() as connection:
                for row in await job_rows.lost(connection, now_lease_s=self.now_s, limit=100):
                    if row.failures + 1 < ATTEMPTS:
                        done[row.job_id] = await job_rows.recover(connection, row, now_s=self.now_s)
                    else:
                        done[row.job_id] = await job_rows.give_up(
                            connection, row, error="e", now_s=self.now_s, expires_at_s=1e9
                        )
            return done

        lost = {one for one, known in self.known.items() if known.state == "running" and known.until_s < self.now_s}
        assert self.run(write()) == dict.fromkeys(lost, True)
        for job_id in lost:
            known = self.known[job_id]
            known.failures += 1
            known.state, known.holder = ("created" if known.failures < ATTEMPTS else "failed"), None

    @invariant()
    def rows_say_what_is_known(self) -> None:
        async def read() -> tuple[dict[str, str], set[str], set[str]]:
            async with self.database.read() as connection:
                rows = (await connection.execute(select(jobs.c.job_id, jobs.c.state))).all()
                results = (await connection.execute(select(job_results.c.job_id))).scalars().all()
                waiting = await job_rows.waiting(connection, now_lease_s=self.now_s, limit=100)
            return {row.job_id: row.state for row in rows}, set(results), {one.job_id for one in waiting}

        states, results, waiting = self.run(read())
        assert states == {job_id: known.state for job_id, known in self.known.items()}
        assert results == {job_id for job_id, known in self.known.items() if known.has_result}
        assert waiting == {
            job_id for job_id, known in self.known.items() if known.state == "created" and known.due_s <= self.now_s
        }


def test_a_job_is_one_attempts_at_a_time_and_ends_once() -> None:
    run_state_machine_as_test(Jobs, settings=bounded(6, 30))


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_a_job_is_one_attempts_at_a_time_and_ends_once_however_long_one_looks() -> None:
    run_state_machine_as_test(Jobs, settings=bounded(300, 60))

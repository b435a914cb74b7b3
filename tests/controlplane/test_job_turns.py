"""Whose turn it is: 200 jobs of three tenants and mixed lengths, and what Redis does when workers die between steps."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from controlplane import job_queue
from controlplane.app import ControlPlane
from controlplane.job_queue import JobQueue, next_of
from controlplane.job_record import JobRecord
from controlplane.job_rows import Claim, Waiting
from controlplane.job_run import Done, Progress
from controlplane.job_spec import JobKind, JobSpec, JobState, MediaKey, Priority
from controlplane.metrics import declare
from controlplane.policy import Principal
from runtime.clock import SystemClock
from speakerd.v1 import node_pb2
from tests.controlplane.conftest import World, until
from tests.controlplane.job_driving import chunks
from tests.controlplane.people import make_tenant
from tests.controlplane.redis_server import redis_server


class Stage:
    """A worker whose jobs last as long as they were told, in steps of a clock that the test turns."""

    def __init__(self, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, length: dict[str, int]) -> None:
        self.length = length
        self.started: list[str] = []
        self.running: dict[str, int] = {}
        self.most_of: Counter[str] = Counter()
        self.turned = asyncio.Condition()
        self.plane = plane
        monkeypatch.setattr(plane.core.job_part.worker, "_runner", self)

    async def run(self, claimed: Claim, spec: JobSpec, seals: Any, progress: Progress) -> Done:
        self.started.append(claimed.job_id)
        self.running[claimed.job_id] = self.length[claimed.job_id]
        try:
            async with self.turned:
                await self.turned.wait_for(lambda: self.running[claimed.job_id] <= 0)
        finally:
            del self.running[claimed.job_id]
        return Done(JobRecord(node_pb2.FileResult(duration_ms=1)), 1)

    @property
    def num_under_way(self) -> int:
        return len(self.running)

    async def room(self) -> int:
        return 1_000

    async def turn(self) -> None:
        """A step of time: jobs that run get one nearer to their end."""
        for job_id in self.running:
            self.running[job_id] -= 1
        async with self.turned:
            self.turned.notify_all()


async def test_two_hundred_jobs_of_three_tenants_and_none_starves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = 4
    plane = await world.plane(jobs_at_once=places)
    core = plane.core
    length: dict[str, int] = {}
    stage = Stage(plane, monkeypatch, length)
    tenant_of: dict[str, str] = {}
    generator = random.Random(7)
    # One tenant has far more than its share, and long ones, and comes first.
    wanted = ["greedy"] * 140 + ["middle"] * 40 + ["small"] * 20
    for tenant_id in ("greedy", "middle", "small"):
        await make_tenant(plane, tenant_id)
        await core.media.put(Principal(tenant_id, "k", frozenset()), "talk", chunks(b"x"))
    monkeypatch.setattr(core.job_part.worker, "_is_draining", True)
    for tenant_id in wanted:
        spec = JobSpec(JobKind.DIARIZE, MediaKey("talk"))
        job = await core.jobs.create(Principal(tenant_id, "k", frozenset()), spec)
        tenant_of[job.job_id] = tenant_id
        length[job.job_id] = generator.choice((1, 2, 8)) if tenant_id == "greedy" else generator.choice((1, 2, 4))
    monkeypatch.setattr(core.job_part.worker, "_is_draining", False)
    working = asyncio.create_task(core.job_part.worker.run())
    try:
        done: Counter[str] = Counter()
        waited: Counter[str] = Counter()
        while len(stage.started) < len(wanted) or stage.running:
            left = Counter(wanted) - Counter(tenant_of[job_id] for job_id in stage.started)
            full = min(places, len(stage.running) + sum(left.values()))
            # Whoever waits has its places: all but one are anybody's, and the last is never one tenant's alone.
            if len(+left) == 1:
                (only,) = +left
                others = sum(tenant_of[job_id] != only for job_id in stage.running)
                full = min(full, others + places - 1)
            await until(lambda full=full: len(stage.running) >= full, 60)
            now = Counter(tenant_of[job_id] for job_id in stage.running)
            for tenant_id in left:
                waited[tenant_id] = 0 if now[tenant_id] else waited[tenant_id] + 1
                # While it has jobs that wait, no tenant is without a place for longer than one job of another lasts.
                assert waited[tenant_id] <= 8, (tenant_id, now)
            assert max(now.values()) < places
            ending = [job_id for job_id, steps in stage.running.items() if steps <= 1]
            done.update(tenant_of[job_id] for job_id in ending)
            if sum(done.values()) >= 60 and "half" not in done:
                # Each of the three has had about the same number of turns while all of them had jobs.
                done["half"] = 0
                shares = sorted(done[tenant_id] for tenant_id in ("greedy", "middle", "small"))
                assert shares[0] >= 12, done
            await stage.turn()
            await until(lambda ending=ending: not any(job_id in stage.running for job_id in ending), 60)
        assert len(set(stage.started)) == len(stage.started) == 200

        async def all_ended() -> bool:
            page = await core.jobs.list(Principal("greedy", "k", frozenset()), limit=100, state=JobState.RUNNING)
            return not page.jobs

        await until(all_ended)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await core.job_part.worker.stop()


def waiting(*jobs: tuple[str, str]) -> list[Waiting]:
    return [Waiting(job_id, tenant_id, int(Priority.NORMAL)) for job_id, tenant_id in jobs]


async def test_turns_in_redis_go_to_who_has_least_and_then_to_who_waited_longest(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        queue = JobQueue(server.url, "w1", SystemClock(), declare(CollectorRegistry()))
        try:
            jobs = waiting(("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"))
            assert await queue.enqueue(jobs) == 5
            assert await queue.enqueue(jobs) == 0
            await queue.enqueue([Waiting("a0", "a", int(Priority.HIGH))])
            order = []
            for running, full in (({}, ()), ({"a": 1}, ()), ({"a": 1, "b": 1}, ()), ({"a": 2}, ()), ({}, ("a",))):
                taken = await queue.take(running, full)
                order.append(taken and taken.job_id)
                if taken:
                    await queue.done(taken)
            assert order == ["a0", "b1", "c1", "a1", None]
            assert (await queue.take({}, ())).job_id == "a2"  # type: ignore[union-attr]
        finally:
            await queue.close()


async def test_an_entry_of_a_dead_worker_is_delivered_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with redis_server(tmp_path) as server:
        metrics = declare(CollectorRegistry())
        dead, alive = (JobQueue(server.url, name, SystemClock(), metrics) for name in ("dead", "alive"))
        try:
            await dead.enqueue(waiting(("j", "a")))
            assert await dead.take({}, ()) is not None
            assert await alive.take({}, ()) is None
            monkeypatch.setattr(job_queue, "DELIVERY_S", 0.0)
            taken = await alive.take({}, ())
            assert taken is not None and taken.job_id == "j"
            await alive.done(taken)
            assert await alive.take({}, ()) is None
            assert await alive.enqueue(waiting(("j", "a"))) == 1
        finally:
            await dead.close()
            await alive.close()


def test_without_redis_turns_are_the_same() -> None:
    jobs = waiting(("a1", "a"), ("b1", "b"), ("a2", "a"))
    assert next_of(jobs, {"a": 1}, (), {}).job_id == "b1"  # type: ignore[union-attr]
    assert next_of(jobs, {}, (), {"a": 5.0, "b": 3.0}).job_id == "b1"  # type: ignore[union-attr]
    assert next_of(jobs, {}, ("a", "b"), {}) is None

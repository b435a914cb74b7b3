"""Jobs over processes that are killed: a job whose worker dies is done by another, once; roles may run apart."""

from __future__ import annotations

import io
import signal
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from grpc import aio
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import create_async_engine

from controlplane.database.schema import job_results, jobs
from runtime.grpc_server import open_channel
from speakerd.v1 import jobs_pb2, jobs_pb2_grpc, node_pb2, node_pb2_grpc
from tests.controlplane.job_driving import cancel, create, ended, get, upload
from tests.controlplane.redis_server import redis_server
from tests.faults.processes import Daemon, Processes, node_arguments, plane_arguments, processes, until

RATE_HZ = 8_000
RUNNING, SUCCEEDED, CANCELED = (
    jobs_pb2.Job.STATE_RUNNING,
    jobs_pb2.Job.STATE_SUCCEEDED,
    jobs_pb2.Job.STATE_CANCELED,
)


def hours(length_h: float) -> bytes:
    """A recording of tones, a byte a sample: small for its length, and hours of work for a node."""
    minute = np.arange(60 * RATE_HZ) / RATE_HZ
    tones = np.sin(2 * np.pi * 300 * minute) + np.sin(2 * np.pi * 900 * minute)
    samples = (128 + 40 * tones * (minute % 1.0 < 0.7)).astype(np.uint8).tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(RATE_HZ)
        for _ in range(round(60 * length_h)):
            file.writeframes(samples)
    return buffer.getvalue()


class Caller:
    """An administrator at one of the doors."""

    def __init__(self, channel: aio.Channel, token: str) -> None:
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.jobs = jobs_pb2_grpc.JobsStub(channel)


@asynccontextmanager
async def caller(grpc: str, data: Path) -> AsyncIterator[Caller]:
    channel = open_channel(grpc)
    try:
        yield Caller(channel, (data / "admin.key").read_text().strip())
    finally:
        await channel.close()


@pytest.fixture
async def daemons(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path) as made:
        yield made


async def held_at_work(client: Caller, node: Daemon, job_id: str) -> None:
    """Wait until a job is worked on, and freeze the node so that it does not end."""

    async def is_running() -> bool:
        return (await get(client, job_id)).state == RUNNING  # type: ignore[arg-type]

    await until(is_running, 60)
    node.send(signal.SIGSTOP)
    assert await is_running()


async def files_of(node: Daemon, data: Path) -> int:
    """How many recordings a node works on."""
    channel = open_channel(node.ready["grpc"])
    metadata = (("authorization", f"Bearer {(data / 'fleet.key').read_text().strip()}"),)
    try:
        stub = node_pb2_grpc.NodeStub(channel)
        return int((await stub.Describe(node_pb2.DescribeRequest(), metadata=metadata, timeout=20)).load.files)
    finally:
        await channel.close()


async def test_a_worker_that_is_killed_in_mid_job_leaves_it_to_another_and_it_is_done_once(
    daemons: Processes, tmp_path: Path, postgresql_url: str
) -> None:
    async with redis_server(tmp_path / "redis") as redis:
        data = tmp_path / "data"
        shared = ["--database-url", postgresql_url, "--redis-url", redis.url]
        plane = await daemons.start("plane", *plane_arguments(data, "127.0.0.1:0", *shared, "--roles", "grpc"))
        node = await daemons.start("node", *node_arguments("node-1", plane.grpc, data))
        first = await daemons.start("first", *plane_arguments(data, "127.0.0.1:0", *shared, "--roles", "worker"))
        assert set(first.ready) == {"health", "metrics"} and set(plane.ready) == {"grpc", "metrics"}
        async with caller(plane.grpc, data) as client:
            await upload(client, "day", hours(1))  # type: ignore[arg-type]
            job = await create(client, media_key="day")  # type: ignore[arg-type]
            await held_at_work(client, node, job.job_id)
            await first.kill()
            node.send(signal.SIGCONT)
            await daemons.start("second", *plane_arguments(data, "127.0.0.1:0", *shared, "--roles", "worker"))
            done = await ended(client, job.job_id, 150)  # type: ignore[arg-type]
        assert done.state == SUCCEEDED and done.result.duration_ms == 3_600_000
        engine = create_async_engine(postgresql_url)
        async with engine.connect() as connection:
            row = (await connection.execute(select(jobs.c.attempt, jobs.c.failures))).one()
            results = await connection.execute(select(func.count()).select_from(job_results))
            assert results.scalar_one() == 1
        await engine.dispose()
        # Claimed, put back by whoever noticed, and claimed again.
        assert (row.attempt, row.failures) == (3, 1)


@pytest.mark.deep
async def test_a_control_plane_that_is_killed_in_mid_job_goes_on_with_it_when_it_is_back(
    daemons: Processes, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    plane = await daemons.start("plane", *plane_arguments(data))
    node = await daemons.start("node", *node_arguments("node-1", plane.grpc, data))
    async with caller(plane.grpc, data) as client:
        await upload(client, "day", hours(1))  # type: ignore[arg-type]
        job = await create(client, media_key="day")  # type: ignore[arg-type]
        await held_at_work(client, node, job.job_id)
        await plane.kill()
        node.send(signal.SIGCONT)
    plane = await daemons.start("plane", *plane_arguments(data, plane.grpc))
    async with caller(plane.grpc, data) as client:
        done = await ended(client, job.job_id, 150)  # type: ignore[arg-type]
        assert done.state == SUCCEEDED and done.result.duration_ms == 3_600_000
        # And one that is canceled in the middle ends there, on the node too.
        second = await create(client, media_key="day")  # type: ignore[arg-type]

        async def is_heard() -> bool:
            return await files_of(node, data) == 1

        async def is_let_go() -> bool:
            return await files_of(node, data) == 0

        await until(is_heard, 60)
        assert (await cancel(client, second.job_id)).state == CANCELED  # type: ignore[arg-type]
        await until(is_let_go, 10)
        assert (await get(client, second.job_id)).state == CANCELED  # type: ignore[arg-type]

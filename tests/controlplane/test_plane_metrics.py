"""What a control plane counts of what goes wrong or waits: each is done here, and read off its metrics."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import httpx
import pytest
from grpc import aio
from prometheus_client import CollectorRegistry
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from controlplane import job_worker
from controlplane.app import ControlPlane
from controlplane.database.schema import jobs
from controlplane.metrics import declare
from controlplane.registry import Registry
from runtime.clock import SystemClock
from runtime.errors import Unavailable
from speakerd.v1 import jobs_pb2, people_pb2, streams_pb2
from tests.controlplane.conftest import WAIT_MS, World, speech, until, wav
from tests.controlplane.job_driving import cancel, create, ended, upload
from tests.controlplane.redis_server import free_port


def of(plane: ControlPlane, name: str, **labels: str) -> float:
    """A metric as it is exposed."""
    return plane.metrics.registry.get_sample_value(f"speakerd_cp_{name}", labels) or 0.0


async def moves(plane: ControlPlane, name: str, **labels: str) -> None:
    await until(lambda: of(plane, name, **labels) > 0)


async def test_a_silent_node_is_seen_behind_then_fenced_and_its_erasure_open_then_residual(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane, "node-1")
    silent = await world.node(plane, "node-2")
    voice_id = (await client.enrol("Alice")).voice.voice_id
    silent.freeze()
    async with asyncio.TaskGroup() as tasks:
        names = ("cursor_lag_revisions", "erasures_pending", "erasure_oldest_pending_seconds", "lease_age_seconds")
        for name in names:
            tasks.create_task(moves(plane, name))
        erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert erasure.state == people_pb2.Erasure.STATE_ERASED and "node-2" in erasure.residual_node_ids
    assert of(plane, "nodes_fenced_total") >= 1
    assert of(plane, "erasure_seconds_count") == 1
    await moves(plane, "erasures_residual")
    await moves(plane, "erasure_oldest_residual_seconds")
    await until(lambda: of(plane, "erasures_pending") == 0 == of(plane, "erasure_oldest_pending_seconds"))
    silent.thaw()


async def test_a_journal_that_takes_nothing_is_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id

    async def full(_records: Any) -> None:
        raise Unavailable("no space left")

    monkeypatch.setattr(plane.core.erasures._work._journal, "append", full)
    with pytest.raises(aio.AioRpcError, match="UNAVAILABLE"):
        await client.erase(voice_id)
    assert of(plane, "erasure_journal_failures_total") >= 1


async def test_jobs_are_counted_where_they_wait_where_they_run_as_they_are_repeated_and_as_they_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "SWEEP_S", 0.2)
    monkeypatch.setattr(job_worker, "BACKOFF_S_MAX", 0.1)
    plane = await world.plane()
    client = await world.client(plane)
    await upload(client, "talk", wav(speech(seconds=1)))
    waits, unwanted = await create(client, media_key="talk"), await create(client, media_key="talk")
    await until(lambda: of(plane, "jobs", state="created") == 2)
    await moves(plane, "job_oldest_waiting_seconds")
    await cancel(client, unwanted.job_id)
    assert of(plane, "jobs_ended_total", kind="diarize", state="canceled") == 1
    node = await world.node(plane)
    node.file_refusals.append(Unavailable("stopping"))
    node.answers.clear()
    await moves(plane, "jobs_put_back_total", cause="unavailable")
    await until(lambda: of(plane, "jobs", state="running") == 1 == of(plane, "jobs_running"))
    node.answers.set()
    assert (await ended(client, waits.job_id)).state == jobs_pb2.Job.STATE_SUCCEEDED
    await until(lambda: of(plane, "jobs_ended_total", kind="diarize", state="succeeded") == 1)
    assert of(plane, "job_seconds_count", kind="diarize") == 1
    await until(lambda: of(plane, "jobs", state="created") == 0 == of(plane, "jobs_running"))


async def test_a_job_that_took_worker_after_worker_with_it_is_counted_among_those_that_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "SWEEP_S", 0.2)
    plane = await world.plane()
    client = await world.client(plane)
    await upload(client, "talk", wav(speech(seconds=1)))
    job = await create(client, media_key="talk")
    async with plane.core.database.write() as connection:
        of_lost = {"state": "running", "worker_id": "gone", "until_lease_s": 0.0, "failures": 100}
        await connection.execute(update(jobs).where(jobs.c.job_id == job.job_id).values(**of_lost))
    assert (await ended(client, job.job_id)).state == jobs_pb2.Job.STATE_FAILED
    await until(lambda: of(plane, "jobs_ended_total", kind="diarize", state="failed") == 1)


async def test_an_end_that_is_still_to_be_told_is_counted_with_its_age(world: World) -> None:
    # Without the HTTP part, which knows the words, nobody tells.
    plane = await world.plane(fetch_networks=("127.0.0.0/8",), fetch_ports=(free_port(),), fetch_plain_http=True)
    client = await world.client(plane)
    await world.node(plane)
    await upload(client, "talk", wav(speech(seconds=1)))
    hook = jobs_pb2.JobWebhook(url=f"http://127.0.0.1:{plane.settings.fetch_ports[0]}/hook")
    made = await create(client, media_key="talk", webhook=hook)
    assert (await ended(client, made.job_id)).state == jobs_pb2.Job.STATE_SUCCEEDED
    await moves(plane, "webhooks_pending")
    await moves(plane, "webhook_oldest_pending_seconds")


async def test_recordings_are_counted_by_what_was_found_of_them(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await client.enrol("Alice")
    assert of(plane, "preflights_total", outcome="passed") + of(plane, "preflights_total", outcome="warned") == 1
    assert of(plane, "speaker_checks_total", outcome="no_node") == 1
    node = await world.node(plane)
    await client.enrol("Bob", seed=1)
    node.num_speakers = 2
    for refused in (
        {"seed": 2},
        {"data": b"\0\0" * 64_000},
        {"data": (speech(3)[:1600] * 30_000).astype("<i2").tobytes()},
    ):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            await client.enrol("Carol", **refused)  # type: ignore[arg-type]
    assert of(plane, "speaker_checks_total", outcome="several_speakers") == 1
    refusals = {
        sample.labels["outcome"]: sample.value
        for family in plane.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "speakerd_cp_preflights_total" and sample.value
    }
    # Alice's waited for a node: as one is there it is looked at once more, when that comes to it.
    fit = refusals.pop("passed", 0) + refusals.pop("warned", 0)
    assert fit in {3, 4}
    assert sum(refusals.values()) == 2, refusals


async def test_a_stream_that_names_nodes_to_avoid_is_counted_as_one_that_broke_off(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane)
    await node.beat_once()
    request = streams_pb2.PlaceStreamRequest(avoid_node_ids=["node-9"])
    await client.streams.PlaceStream(request, metadata=client.metadata, timeout=30)
    assert of(plane, "route_failovers_total") == 1
    assert of(plane, "route_seconds_count") == 1


async def test_a_redis_that_is_away_is_counted_and_shown() -> None:
    metrics = declare(CollectorRegistry())
    registry = Registry(f"redis://127.0.0.1:{free_port()}", SystemClock(), metrics)
    await registry.known(fresh=True)
    await registry.close()
    assert metrics.registry.get_sample_value("speakerd_cp_redis_errors_total") == 1
    assert metrics.registry.get_sample_value("speakerd_cp_redis_up") == 0


async def test_a_database_that_is_away_is_counted_and_a_callers_mistake_is_not(world: World) -> None:
    plane = await world.plane()
    before = of(plane, "database_transaction_seconds_count", kind="write")
    with pytest.raises(Unavailable):
        async with plane.core.database.write():
            raise OperationalError("SELECT 1", {}, sqlite3.OperationalError("disk I/O error"))
    assert of(plane, "database_errors_total") == 1
    assert of(plane, "database_transaction_seconds_count", kind="write") > before
    with pytest.raises(KeyError):
        async with plane.core.database.read():
            raise KeyError("ours")
    assert of(plane, "database_errors_total") == 1


async def test_metrics_have_a_port_of_their_own_and_then_callers_see_none(world: World) -> None:
    from edge.app import application
    from tests.edge.test_app import over

    plane = await world.plane(metrics="127.0.0.1:0")
    async with httpx.AsyncClient(base_url=f"http://{plane.metrics_address}") as operators:
        assert "speakerd_cp_build_info" in (await operators.get("/metrics")).text
        assert (await operators.get("/health/started")).status_code == 200
    async with over(application(plane)) as callers:
        assert (await callers.get("/metrics")).status_code == 404

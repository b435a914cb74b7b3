"""The daemon as it is run: `python -m controlplane`, real signals, a real node with the null engine."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import structlog
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from controlplane.commands import register
from runtime.grpc_server import open_channel
from runtime.tickets import verify_ticket
from speakerd.v1 import node_pb2, node_pb2_grpc, people_pb2, streams_pb2
from tests.controlplane.conftest import WAIT_MS, Client, until

ROOT = Path(__file__).resolve().parent.parent.parent
RATE_HZ = 16_000


def tones(seconds: float, *frequencies: float) -> bytes:
    """A voice to the null engine, as 16-bit samples."""
    at = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    mixed = np.sum([np.sin(2 * np.pi * frequency * at) for frequency in frequencies], axis=0)
    room = np.random.default_rng(0).normal(0, 1e-4, len(at))
    return ((0.3 * mixed / len(frequencies) * (at % 1.0 < 0.85) + room) * 32767).astype("<i2").tobytes()


ADA = (300.0, 900.0, 2100.0)


class Daemon:
    """A process and what it said when it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, str]) -> None:
        self.process = process
        self.ready = ready
        self.grpc_address = ready["grpc"]

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def running(*arguments: str, log: Path) -> AsyncIterator[Daemon]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            cwd=ROOT,
            env=environment,
            umask=0o022,
        )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode().split()
        assert line and line[0] == "ready", log.read_text()
        yield Daemon(process, dict(part.split("=", 1) for part in line[1:]))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def plane_arguments(data: Path, grpc: str = "127.0.0.1:0") -> list[str]:
    return ["controlplane", "--data", str(data), "--grpc", grpc, "--http", "127.0.0.1:0", "--drain-s", "3"]


@asynccontextmanager
async def admin(daemon: Daemon, data: Path) -> AsyncIterator[Client]:
    client = Client(daemon, (data / "admin.key").read_text().strip())  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.channel.close()


async def test_it_says_where_it_serves_keeps_its_keys_private_and_ends_cleanly(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)  # as a mounted volume may be
    async with running(*plane_arguments(data), log=tmp_path / "log") as daemon:
        for name in ("admin.key", "fleet.key", "kek.key", "ticket.key"):
            assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
        assert (data / "admin.key").read_text().startswith("sk_")
        children = psutil.Process(daemon.process.pid).children()
        assert [child.name() for child in children] == ["redis-server"]
        async with httpx.AsyncClient(base_url=daemon.ready["http"]) as http:
            ready = await http.get("/health/ready")
            assert (ready.status_code, ready.json()["nodes_serving"]) == (200, 0)
            assert "speakerd_cp_redis_up" in (await http.get("/metrics")).text
        async with admin(daemon, data) as client:
            await client.enrol("Zaphod Canary", data=tones(3, *ADA))
        inside = list(data.rglob("*"))
        assert {"speakerd.db", "speakerd.db-wal", "samples", "redis.sock"} <= {path.name for path in inside}
        assert [path for path in inside if path.stat().st_mode & 0o077] == []
        assert await daemon.end(signal.SIGTERM) == 0
        await until(lambda: not any(child.is_running() for child in children))
    logged = (tmp_path / "log").read_text()
    assert "daemon.stopped" in logged
    for secret in (
        "Zaphod",
        "Alice Fullname",
        *((data / name).read_text().strip() for name in ("admin.key", "kek.key")),
    ):
        assert secret not in logged


async def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(*plane_arguments(data), log=tmp_path / "log") as daemon:
        async with admin(daemon, data) as client:
            first = await client.enrol("Ada", data=tones(3, *ADA))
            erased = await client.enrol("Bob", data=tones(3, 500.0, 1500.0))
            erasure = await client.erase(erased.voice.voice_id)
        await daemon.end(signal.SIGKILL)
    async with running(*plane_arguments(data), log=tmp_path / "log") as daemon, admin(daemon, data) as client:
        assert (await client.get(first.voice.voice_id)).state == people_pb2.Voice.STATE_PENDING

        async def proven() -> bool:
            request = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
            answer = await client.people.GetErasure(request, metadata=client.metadata)
            return answer.state == people_pb2.Erasure.STATE_ERASED

        await until(proven)
        assert [voice.label for voice in (await client.list()).voices] == ["Ada"]


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """The command configures the process's logging, onto a stream that ends with the test."""
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--grpc", "0.0.0.0:0"], "--insecure"),
        (["--http", "0.0.0.0:0"], "--insecure"),
        (["--grpc", "here"], "HOST:PORT"),
        (["--database-url", "mysql://x/y"], "database_url"),
        (["--drain-s", "-1"], "drain_s"),
    ],
)
def test_a_mistake_in_the_settings_is_named(tmp_path: Path, flags: list[str], says: str) -> None:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, [*plane_arguments(tmp_path / "data")[1:], *flags])
    assert result.exit_code == 2
    assert says in result.stderr
    assert "ready" not in result.stdout


@pytest.mark.usefixtures("logging_restored")
def test_a_data_folder_that_another_process_has_is_refused_with_a_reason(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "speakerd.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = CliRunner().invoke(app, plane_arguments(tmp_path / "data")[1:])
    assert result.exit_code == 2
    assert "another control plane" in result.stderr


async def test_with_a_real_node_a_voice_is_enrolled_placed_kept_over_a_kill_and_erased(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    async with running(*plane_arguments(data), log=log) as daemon:
        address = daemon.grpc_address
        node_arguments = ["node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--node-id", "n1"]
        node_arguments += ["--controlplane", address, "--fleet-key-file", str(data / "fleet.key"), "--device", "null"]
        async with running(*node_arguments, log=tmp_path / "node.log") as node:
            async with admin(daemon, data) as client:

                async def placed() -> bool:
                    found = await client.people.GetWarm(
                        people_pb2.GetWarmRequest(voice_id=voice_id), metadata=client.metadata
                    )
                    return list(found.warm_node_ids) == ["n1"]

                answer = await client.enrol("Ada", data=tones(4, *ADA))
                voice_id = answer.voice.voice_id
                await until(placed)
                assert (await client.get(voice_id)).state == people_pb2.Voice.STATE_READY
                stream = await client.streams.PlaceStream(streams_pb2.PlaceStreamRequest(), metadata=client.metadata)
                assert (stream.node_id, stream.address) == ("n1", node.grpc_address)
                assert await labels(stream, tones(6, *ADA)) == {"Ada"}
            await daemon.end(signal.SIGKILL)
            async with running(*plane_arguments(data, address), log=log) as again, admin(again, data) as client:
                await until(placed, 60)
                await until(functools.partial(is_ready, again.grpc_address), 60)
                erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
                assert erasure.state == people_pb2.Erasure.STATE_ERASED
                # A machine that stalled beyond the lease adds the incarnation that lapsed.
                assert ("n1", True) in [(outcome.node_id, outcome.ok) for outcome in erasure.nodes]
                stream = await client.streams.PlaceStream(streams_pb2.PlaceStreamRequest(), metadata=client.metadata)
                assert await labels(stream, tones(6, *ADA)) == {"spk_0"}
                assert await node.end(signal.SIGTERM) == 0
                assert await again.end(signal.SIGTERM) == 0


async def is_ready(address: str) -> bool:
    """Whether a daemon's health says so: a control plane that has just started has heard of no node yet."""
    async with open_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="ready"))
    return answer.status == health_pb2.HealthCheckResponse.SERVING


async def labels(stream: streams_pb2.PlaceStreamResponse, sound: bytes) -> set[str]:
    """The labels that a stream ends with, on the node and with the ticket that placement gave."""
    with pytest.raises(Exception, match="signed"):
        verify_ticket(stream.ticket, [], node_id=stream.node_id, now_s=0)

    async def requests() -> AsyncIterator[node_pb2.DiarizeRequest]:
        yield node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(ticket=stream.ticket, stream_id=stream.stream_id))
        for start in range(0, len(sound), 32_000):
            yield node_pb2.DiarizeRequest(audio=sound[start : start + 32_000])
        yield node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish())

    async with open_channel(stream.address) as channel:
        call = node_pb2_grpc.NodeStub(channel).Diarize(requests(), timeout=30)
        return {
            speaker.label async for answer in call if answer.HasField("closed") for speaker in answer.closed.speakers
        }

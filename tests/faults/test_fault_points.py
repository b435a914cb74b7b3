"""kill -9 of the control plane at each step of enrolment and erasure: after a restart both finish, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from grpc import aio

from controlplane import fault_points
from speakerd.v1 import audit_pb2, audit_pb2_grpc, people_pb2
from tests.controlplane.conftest import Client, until
from tests.controlplane.test_daemon import ROOT, Daemon
from tests.faults.figures import Figures

RATE_HZ = 16_000
HEARTBEAT_S = 1.0
READY = people_pb2.Voice.STATE_READY
# Leases that outlast a restart on a busy machine: the node that acknowledges is to be the one that held the voice.
TIMES = {"renew_s": 0.3, "node_lease_s": 40.0, "lease_s": 44.0, "hold_s": 20.0, "reconcile_s": 0.3}
BEFORE_COMMIT = ("erase.logged", "erase.destroyed", "erase.recorded", "erase.audited")


def voice_of(label: str) -> bytes:
    """A voice to the null engine, another one for each label: a chord with pauses, in a quiet room; 16-bit samples."""
    generator = np.random.default_rng(zlib.crc32(label.encode()))
    at = np.arange(3 * RATE_HZ) / RATE_HZ
    bands = generator.choice(np.arange(1, 60), 6, replace=False)
    weights = generator.uniform(0.4, 1.0, 6)
    parts = [
        weight * np.sin(2 * np.pi * (125.0 * band + 62.5) * at) for band, weight in zip(bands, weights, strict=True)
    ]
    sound = 0.05 * np.sum(parts, axis=0) * (at % 1.0 < 0.7) + 2e-4 * generator.standard_normal(len(at))
    return (sound * 32767).astype("<i2").tobytes()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Fleet:
    """One data folder, one address, one node with the null engine; control planes come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.address = f"127.0.0.1:{free_port()}"
        self.node: Daemon | None = None

    @contextlib.asynccontextmanager
    async def plane(self, fault_point: str = "") -> AsyncIterator[tuple[Daemon, Client]]:
        """A control plane, armed or not, and its administrator. Ends cleanly if it lives."""
        more = {f"SPEAKERD_{name.upper()}": str(value) for name, value in TIMES.items()}
        more["SPEAKERD_FAULT_POINT"] = fault_point
        arguments = ("controlplane", "--data", str(self.data), "--grpc", self.address, "--http", "127.0.0.1:0")
        daemon = await self._start("plane", (*arguments, "--drain-s", "1"), more)
        client = Client(daemon, (self.data / "admin.key").read_text().strip())  # type: ignore[arg-type]
        try:
            yield daemon, client
        finally:
            await client.channel.close()
            if daemon.process.returncode is None:
                daemon.process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(daemon.process.wait(), 20)

    async def without_node(self) -> None:
        """Let the node end, having said so."""
        if self.node is not None:
            self.node.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(self.node.process.wait(), 30)
            self.node = None

    async def close(self) -> None:
        if self.node is not None and self.node.process.returncode is None:
            self.node.process.kill()
            await self.node.process.wait()

    async def with_node(self) -> None:
        """See that the node runs."""
        if self.node is None:
            self.node = await self._start_node()

    async def _start_node(self) -> Daemon:
        key = ("--fleet-key-file", str(self.data / "fleet.key"))
        listen = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--node-id", "n1")
        return await self._start(
            "node", ("node", *listen, "--controlplane", self.address, *key, "--device", "null"), {}
        )

    async def _start(self, name: str, arguments: Sequence[str], more: dict[str, str]) -> Daemon:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SPEAKERD_")}
        kept.pop("REDIS_URL", None)
        log = self.folder / f"{name}.log"
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=errors,
                cwd=ROOT, env={**kept, "OMP_NUM_THREADS": "1", **more},
            )  # fmt: skip
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode().split()
        assert line and line[0] == "ready", log.read_text()[-3000:]
        return Daemon(process, dict(part.split("=", 1) for part in line[1:]))


@contextlib.asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[Fleet]:
    made = Fleet(folder)
    try:
        yield made
    finally:
        await made.close()


async def died(daemon: Daemon, point: str) -> None:
    """The control plane was killed where it was armed."""
    try:
        await asyncio.wait_for(daemon.process.wait(), 40)
    except TimeoutError:
        raise AssertionError(f"{point} was not reached") from None
    assert daemon.process.returncode == -signal.SIGKILL, point


async def voice_called(client: Client, label: str) -> list[people_pb2.Voice]:
    return list((await client.list(label=label)).voices)


async def is_warm(client: Client, voice_id: str) -> bool:
    request = people_pb2.GetWarmRequest(voice_id=voice_id)
    return list((await client.people.GetWarm(request, metadata=client.metadata)).warm_node_ids) == ["n1"]


async def whole(client: Client) -> audit_pb2.AuditVerdict:
    stub = audit_pb2_grpc.AuditStub(client.channel)
    found = await stub.VerifyAudit(audit_pb2.VerifyAuditRequest(), metadata=client.metadata, timeout=30)
    assert list(found.problems) == []
    return found


async def warm(client: Client, voice_id: str) -> None:
    """Wait until the node holds a voice and is sent streams for it."""

    async def held() -> bool:
        return (await client.get(voice_id)).state == READY and await is_warm(client, voice_id)

    await until(held, 60)


async def enrolled(client: Client, label: str) -> str:
    """Enrol, again if need be: the same request gives the same voice."""

    async def answered() -> bool:
        try:
            answer = await client.enrol(label, data=voice_of(label), key=label)
        except aio.AioRpcError:
            return False
        found.append(answer.voice.voice_id)
        return True

    found: list[str] = []
    await until(answered, 60)
    return found[-1]


class Scenario:
    """What happens before a control plane is killed, how it comes to be, and what has to hold after a restart."""

    def __init__(self, world: Fleet, point: str) -> None:
        self.world = world
        self.point = point
        self.label = f"At {point}"
        self.rows = 0
        self.known_id = self.voice_id = ""

    async def before(self, client: Client) -> None:
        await self.world.with_node()
        self.known_id = await enrolled(client, "Somebody")
        await warm(client, self.known_id)
        self.rows = (await whole(client)).num_rows

    async def during(self, client: Client) -> None:
        raise NotImplementedError

    async def after(self, client: Client) -> None:
        raise NotImplementedError


class Enrolling(Scenario):
    """Killed there, an enrolment that is asked for again is there once, and the node holds it."""

    async def during(self, client: Client) -> None:
        await warm(client, self.known_id)
        # Pushes go to nodes whose heartbeats, one a second, are heard; others read the log by themselves.
        await asyncio.sleep(2 * HEARTBEAT_S)
        await client.enrol(self.label, data=voice_of(self.label), key=self.label)

    async def after(self, client: Client) -> None:
        voice_id = await enrolled(client, self.label)
        (voice,) = await voice_called(client, self.label)
        assert (voice.voice_id, voice.generation) == (voice_id, 1)
        await warm(client, voice_id)
        assert (await whole(client)).num_rows == self.rows + 1


class Replacing(Scenario):
    """Killed while the recordings of before are deleted, the voice is the new one, and stays so."""

    async def before(self, client: Client) -> None:
        await super().before(client)
        self.voice_id = await enrolled(client, self.label)
        await warm(client, self.voice_id)

    async def during(self, client: Client) -> None:
        await client.enrol("", data=voice_of(self.label), voice_id=self.voice_id)

    async def after(self, client: Client) -> None:
        assert (await client.get(self.voice_id)).generation == 2
        await warm(client, self.voice_id)
        await whole(client)


class Completing(Scenario):
    """Killed while a voice that waited for a node gets its voiceprint, it gets it all the same."""

    async def before(self, client: Client) -> None:
        await self.world.without_node()
        self.voice_id = await enrolled(client, self.label)
        assert (await client.get(self.voice_id)).state == people_pb2.Voice.STATE_PENDING

    async def during(self, client: Client) -> None:
        await self.world.with_node()

    async def after(self, client: Client) -> None:
        await warm(client, self.voice_id)
        assert len(await voice_called(client, self.label)) == 1
        await whole(client)


class Erasing(Scenario):
    """Killed there, an erasure that was committed finishes by itself; one that was not has left the voice whole."""

    async def before(self, client: Client) -> None:
        await self.world.with_node()
        self.voice_id = await enrolled(client, self.label)
        await warm(client, self.voice_id)
        self.rows = (await whole(client)).num_rows

    async def during(self, client: Client) -> None:
        await warm(client, self.voice_id)
        await client.erase(self.voice_id)

    async def after(self, client: Client) -> None:
        if self.point in BEFORE_COMMIT:
            assert (await client.get(self.voice_id)).label == self.label
            await client.erase(self.voice_id)

        async def erased() -> bool:
            return (await client.get(self.voice_id)).state == people_pb2.Voice.STATE_ERASED

        await until(erased, 60)
        listed = await audit_pb2_grpc.AuditStub(client.channel).ListErasures(
            audit_pb2.ListErasuresRequest(page_size=1), metadata=client.metadata
        )
        (erasure,) = listed.erasures
        assert erasure.voice_id == self.voice_id
        assert [(node.node_id, node.ok) for node in erasure.nodes] == [("n1", True)]

        async def closed() -> bool:
            request = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
            answer = await client.people.GetErasure(request, metadata=client.metadata)
            return not answer.blobs_pending and answer.blob_bytes_deleted > 0

        await until(closed, 60)
        # Requested and completed, each once; recordings that were late have a row of their own.
        assert (await whole(client)).num_rows - self.rows in (2, 3)


async def sweep(world: Fleet, points: Sequence[tuple[type[Scenario], str]], figures: Figures) -> None:
    """Kill at each point in turn; what is looked at after one kill is done where the next is prepared."""
    last: Scenario | None = None
    whole_s = dict[str, list[float]]()

    async def look_after(client: Client, scenario: Scenario) -> None:
        began_s = time.monotonic()
        await scenario.after(client)
        whole_s.setdefault(type(scenario).__name__.lower(), []).append(time.monotonic() - began_s)

    for kind, point in points:
        print(point)
        scenario = kind(world, point)
        async with world.plane() as (_, client):
            if last is not None:
                await look_after(client, last)
            await scenario.before(client)
        async with world.plane(point) as (daemon, client):
            with contextlib.suppress(aio.AioRpcError):
                await scenario.during(client)
            await died(daemon, point)
        last = scenario
    assert last is not None
    async with world.plane() as (_, client):
        await look_after(client, last)
    figures.record("points at which it was killed", len(points), "")
    for what, took_s in whole_s.items():
        figures.record(f"killed while {what}: done after the restart", max(took_s))


SWEEP = [
    *((Completing, point) for point in fault_points.COMPLETION),
    *((Enrolling, point) for point in fault_points.ENROLMENT),
    *((Replacing, point) for point in fault_points.REPLACEMENT),
    *((Erasing, point) for point in fault_points.ERASURE),
]
QUICK = ("enrol.audited", "enrol.committed", "erase.journaled", "erase.finishing")


def test_every_point_is_in_the_sweep_and_in_the_code() -> None:
    assert {point for _, point in SWEEP} == fault_points.POINTS
    code = "".join(path.read_text() for path in (ROOT / "controlplane").glob("*.py"))
    for point in fault_points.POINTS:
        assert f'reach("{point}")' in code, point


@pytest.mark.fault("F4", "P5", "P2", "P13")
async def test_a_control_plane_that_is_killed_in_the_middle_finishes_after_a_restart(
    tmp_path: Path, figures: Figures
) -> None:
    async with fleet(tmp_path) as world:
        await sweep(world, [(kind, point) for kind, point in SWEEP if point in QUICK], figures)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.fault("F4", "P5", "P2", "P13")
async def test_a_control_plane_that_is_killed_at_any_step_finishes_after_a_restart(
    tmp_path: Path, figures: Figures
) -> None:
    async with fleet(tmp_path) as world:
        await sweep(world, SWEEP, figures)

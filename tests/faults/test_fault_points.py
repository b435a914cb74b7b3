"""kill -9 of the control plane at each step of enrolment and erasure: after a restart both finish, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from controlplane import fault_points
from speakerd.v1 import audit_pb2, audit_pb2_grpc, people_pb2
from tests.controlplane.conftest import Client, until
from tests.controlplane.test_daemon import ADA, ROOT, Daemon, tones

READY = people_pb2.Voice.STATE_READY
TIMES = {"renew_s": 0.3, "node_lease_s": 4.0, "lease_s": 5.0, "hold_s": 2.0, "reconcile_s": 0.3}
BEFORE_COMMIT = ("erase.logged", "erase.destroyed", "erase.recorded", "erase.audited")


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
            if self.node is None:
                self.node = await self._start_node()
            yield daemon, client
        finally:
            await client.channel.close()
            if daemon.process.returncode is None:
                daemon.process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(daemon.process.wait(), 20)

    async def close(self) -> None:
        if self.node is not None and self.node.process.returncode is None:
            self.node.process.send_signal(signal.SIGCONT)
            self.node.process.kill()
            await self.node.process.wait()

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
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().split()
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
        await asyncio.wait_for(daemon.process.wait(), 20)
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


async def attempt(call: Callable[[], Any]) -> None:
    """A call that the kill may break off."""
    with contextlib.suppress(aio.AioRpcError):
        await call()


async def serving(client: Client, label: str) -> str:
    """A voice that is enrolled and held by the node."""

    async def ready() -> bool:
        try:
            answer = await client.enrol(label, data=tones(3, *ADA), key=f"{label}-key")
        except aio.AioRpcError:
            return False
        found.append(answer.voice.voice_id)
        return True

    found: list[str] = []
    await until(ready, 20)

    async def warm() -> bool:
        return await is_warm(client, found[-1])

    await until(warm, 30)
    return found[-1]


async def enrolment_survives(world: Fleet, point: str) -> None:
    """Killed there, an enrolment that is asked for again is there once, and the node holds it."""
    label = f"At {point} {secrets.token_hex(2)}"
    async with world.plane() as (_, client):
        await serving(client, "Somebody")
        rows = (await whole(client)).num_rows
    async with world.plane(point) as (daemon, client):
        await attempt(lambda: client.enrol(label, data=tones(3, *ADA), key=label))
        await died(daemon, point)
    async with world.plane() as (_, client):
        voice_id = await again(client, label)
        (voice,) = await voice_called(client, label)
        assert (voice.voice_id, voice.generation) == (voice_id, 1)

        async def held() -> bool:
            return (await client.get(voice_id)).state == READY and await is_warm(client, voice_id)

        await until(held, 20)
        assert (await whole(client)).num_rows == rows + 1


async def again(client: Client, label: str) -> str:
    answer = await client.enrol(label, data=tones(3, *ADA), key=label)
    return str(answer.voice.voice_id)


async def replacement_survives(world: Fleet, point: str) -> None:
    """Killed while the recordings of before are deleted, the voice is the new one, and stays so."""
    async with world.plane() as (_, client):
        voice_id = await serving(client, f"At {point}")
        before = (await client.get(voice_id)).generation
    async with world.plane(point) as (daemon, client):
        await until(lambda: is_warm(client, voice_id), 20)
        await attempt(lambda: client.enrol("", data=tones(3, *ADA), voice_id=voice_id))
        await died(daemon, point)
    async with world.plane() as (_, client):
        assert (await client.get(voice_id)).generation == before + 1
        await until(lambda: is_warm(client, voice_id), 20)
        await whole(client)


async def completion_survives(world: Fleet, point: str) -> None:
    """Killed while a voice that waited for a node gets its voiceprint, it gets it all the same."""
    label = f"At {point}"
    async with world.plane() as (_, client):
        await serving(client, "Somebody")
        assert world.node is not None
        world.node.process.send_signal(signal.SIGSTOP)

        async def pending() -> bool:
            try:
                answer = await client.enrol(label, data=tones(3, *ADA), key=label)
            except aio.AioRpcError:
                return False
            return answer.voice.state == people_pb2.Voice.STATE_PENDING

        await until(pending, 20)
    async with world.plane(point) as (daemon, _):
        world.node.process.send_signal(signal.SIGCONT)
        await died(daemon, point)
    async with world.plane() as (_, client):
        (voice,) = await voice_called(client, label)

        async def ready() -> bool:
            return (await client.get(voice.voice_id)).state == READY and await is_warm(client, voice.voice_id)

        await until(ready, 30)
        await whole(client)


async def erasure_survives(world: Fleet, point: str) -> None:
    """Killed there, an erasure that was committed finishes by itself; one that was not has left the voice whole."""
    async with world.plane() as (_, client):
        voice_id = await serving(client, f"At {point}")
        rows = (await whole(client)).num_rows
    async with world.plane(point) as (daemon, client):
        await until(lambda: is_warm(client, voice_id), 20)
        await attempt(lambda: client.erase(voice_id))
        await died(daemon, point)
    async with world.plane() as (_, client):
        if point in BEFORE_COMMIT:
            assert (await client.get(voice_id)).label == f"At {point}"
            await client.erase(voice_id)

        async def erased() -> bool:
            return (await client.get(voice_id)).state == people_pb2.Voice.STATE_ERASED

        await until(erased, 20)
        listed = await audit_pb2_grpc.AuditStub(client.channel).ListErasures(
            audit_pb2.ListErasuresRequest(page_size=1), metadata=client.metadata
        )
        (erasure,) = listed.erasures
        assert erasure.voice_id == voice_id
        assert [(node.node_id, node.ok) for node in erasure.nodes] == [("n1", True)]

        async def closed() -> bool:
            request = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
            answer = await client.people.GetErasure(request, metadata=client.metadata)
            return not answer.blobs_pending and answer.blob_bytes_deleted > 0

        await until(closed, 20)
        # Requested and completed, each once; recordings that were late have a row of their own.
        assert (await whole(client)).num_rows - rows in (2, 3)


SWEEP = [
    *((enrolment_survives, point) for point in fault_points.ENROLMENT),
    *((replacement_survives, point) for point in fault_points.REPLACEMENT),
    *((completion_survives, point) for point in fault_points.COMPLETION),
    *((erasure_survives, point) for point in fault_points.ERASURE),
]
QUICK = ("enrol.audited", "enrol.committed", "erase.audited", "erase.journaled", "erase.finishing")


def test_every_point_is_in_the_sweep_and_in_the_code() -> None:
    assert {point for _, point in SWEEP} == fault_points.POINTS
    code = "".join(path.read_text() for path in (ROOT / "controlplane").glob("*.py"))
    for point in fault_points.POINTS:
        assert f'reach("{point}")' in code, point


async def test_a_control_plane_that_is_killed_in_the_middle_finishes_after_a_restart(tmp_path: Path) -> None:
    async with fleet(tmp_path) as world:
        for survives, point in SWEEP:
            if point in QUICK:
                await survives(world, point)


@pytest.mark.deep
@pytest.mark.timeout(1800)
async def test_a_control_plane_that_is_killed_at_any_step_finishes_after_a_restart(tmp_path: Path) -> None:
    async with fleet(tmp_path) as world:
        for survives, point in SWEEP:
            print(point)
            await survives(world, point)

"""F23: descriptors run out, the device's thread dies, the event loop stands still."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from runtime.health import STALLED_EXIT_CODE
from speakerd.client import Client, StreamOptions
from tests.faults.altered import start_altered
from tests.faults.figures import Figures
from tests.faults.processes import Daemon, Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.streaming import Told, stream

OPTIONS = StreamOptions(latency_ms=1_000)


@asynccontextmanager
async def carried(daemons: Processes, stall_s: float, *, gives_up_s: float) -> AsyncIterator[tuple[Daemon, Told]]:
    """A stream that begins on a node which may stall, beside one that does not, and has to end as if nothing was."""
    data = daemons.folder / "data"
    plane = await daemons.start("plane", *plane_arguments(data))
    env = {"SPEAKERD_TEST_STALL_S": str(stall_s), "SPEAKERD_STALL_S": str(gives_up_s)}
    arguments = node_arguments("stalling", plane.grpc, data, "--late-s", "0")
    node = await start_altered(daemons, "stalling", *arguments, module="tests.faults.stalling_node", env=env)
    sound = pcm(tones(60, *voice(0)))
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        told, done = Told(), asyncio.Event()
        running = asyncio.create_task(stream(client, sound, OPTIONS, told=told, until=done))
        await until(lambda: told.final_ms >= 2_000, 60)
        await daemons.start("n2", *node_arguments("n2", plane.grpc, data, "--late-s", "0"))
        yield node, told
        done.set()
        await running
        told.require_in_order()
        undisturbed = await stream(client, sound[: told.sent], OPTIONS, pace=0)
    assert told.whole() == undisturbed.whole()


@pytest.mark.deep
@pytest.mark.fault("F23", "P6")
async def test_a_node_whose_loop_stands_still_ends_itself_for_its_supervisor_and_its_streams_go_on_elsewhere(
    daemons: Processes, figures: Figures
) -> None:
    async with carried(daemons, 120.0, gives_up_s=3.0) as (node, told):
        began_s = time.monotonic()
        node.send(signal.SIGUSR1)
        assert await node.ended(60) == STALLED_EXIT_CODE
        figures.record("exit code 70 after", round(time.monotonic() - began_s, 1))
        await until(lambda: told.resumed and told.nodes[-1] == "n2", 60)
        at_ms = told.final_ms
        await until(lambda: told.final_ms > at_ms + 2_000, 60)
    assert "daemon.stalled" in node.log.read_text()


@pytest.mark.deep
@pytest.mark.fault("F23", "P6")
async def test_a_stall_of_five_seconds_makes_a_node_unhealthy_and_costs_no_turn(
    daemons: Processes, figures: Figures
) -> None:
    async with carried(daemons, 5.0, gives_up_s=60.0) as (node, told):
        async with httpx.AsyncClient(base_url=f"http://{node.ready['metrics']}", timeout=30) as http:
            assert (await http.get("/health/live")).status_code == 200
            node.send(signal.SIGUSR1)
            began_s = time.monotonic()
            assert (await http.get("/health/live")).status_code == 503
            figures.record("unhealthy after", round(time.monotonic() - began_s, 1))
            await until(lambda: _is_live(http), 60)
        at_ms = told.final_ms
        await until(lambda: told.final_ms > at_ms + 2_000, 60)
        assert node.process.returncode is None


async def _is_live(http: httpx.AsyncClient) -> bool:
    return (await http.get("/health/live")).status_code == 200


@pytest.mark.deep
@pytest.mark.fault("F23", "P6")
async def test_a_node_whose_devices_thread_dies_ends_and_its_streams_go_on_elsewhere(
    daemons: Processes, figures: Figures
) -> None:
    async with carried(daemons, 1.0, gives_up_s=30.0) as (node, told):
        began_s = time.monotonic()
        node.send(signal.SIGUSR2)
        assert await node.ended(60) == 1
        figures.record("exit code 1 after", round(time.monotonic() - began_s, 1))
        await until(lambda: told.resumed and told.nodes[-1] == "n2", 60)
        at_ms = told.final_ms
        await until(lambda: told.final_ms > at_ms + 2_000, 60)
    assert "DeviceLost" in node.log.read_text()


async def answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            return (await http.get("/health/ready")).status_code == 200
    except httpx.TransportError:
        return False  # whoever connects while no descriptor is left is turned away, and comes again


def opened(address: str, count: int, source: str, said: bytes = b"") -> list[socket.socket]:
    """Connections from a loopback address of somebody else's, on which nothing more is said."""
    host, _, port = address.rpartition(":")
    found = []
    for _ in range(count):
        one = socket.socket()
        one.settimeout(10)
        with contextlib.suppress(OSError):
            one.bind((source, 0))
            one.connect((host, int(port)))
            if said:
                one.send(said)
        found.append(one)
    return found


def is_closed(one: socket.socket) -> bool:
    """Whether the other end has let go of it."""
    one.setblocking(False)
    try:
        return not one.recv(1 << 16) or is_closed(one)
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="no `prlimit` on PATH (util-linux)")
@pytest.mark.fault("F23", "P7", "P8")
async def test_who_takes_every_descriptor_of_a_daemon_is_cut_and_everybody_else_is_served(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    data, few = tmp_path / "data", ["prlimit", "--nofile=260:260"]
    plane = await start_altered(daemons, "plane", *plane_arguments(data), before=few)
    node = await start_altered(daemons, "n1", *node_arguments("n1", plane.grpc, data), before=few)
    http_address = plane.ready["http"].removeprefix("http://")
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        told, done = Told(), asyncio.Event()
        sound = pcm(tones(60, *voice(0)))
        running = asyncio.create_task(stream(client, sound, OPTIONS, told=told, until=done))
        await until(lambda: told.final_ms >= 2_000, 60)
        flood = []
        for number, address in enumerate((node.grpc, plane.grpc, http_address)):
            flood += await asyncio.to_thread(opened, address, 400, f"127.0.9.{number + 2}")
        try:
            began_s = time.monotonic()
            late = await stream(client, pcm(tones(4, *voice(1))), OPTIONS, pace=0)
            figures.record("a stream opened, heard and closed in the flood in", round(time.monotonic() - began_s, 1))
            late.require_in_order()
            await until(lambda: answers(plane.ready["http"]), 30)
            figures.record("HTTP answered in the flood after", round(time.monotonic() - began_s, 1))
            at_ms = told.final_ms
            await until(lambda: told.final_ms > at_ms + 2_000, 60)
            done.set()
            await running
            assert not told.resumed and plane.process.returncode is None and node.process.returncode is None
            told.require_in_order()
        finally:
            for one in flood:
                one.close()

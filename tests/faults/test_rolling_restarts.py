"""Everything is restarted in turn, nodes and control planes, while people stream, enrol and erase: nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.fleet_processes import postgresql, redis_server
from speakerd.client import Client, SpeakerdError, StreamOptions
from speakerd.v1 import node_pb2, people_pb2
from tests.controlplane.conftest import require_postgresql
from tests.faults.figures import Figures
from tests.faults.live_sockets import Heard, ask, live
from tests.faults.processes import Daemon, Processes, node_arguments, tones, until, voice
from tests.faults.test_continuity import conversation, enrol_tones, require_same, streaming, wav
from tests.faults.test_fault_points import free_port
from tests.faults.test_live_websocket import conversation as spoken
from tests.faults.test_live_websocket import over_http

NODES = ("n1", "n2", "n3")
STREAMS = 50
SOCKETS = 4
GRACE_S = 10.0


class Pair:
    """Two control planes over one PostgreSQL and one Redis, reached as one name would give both; and three nodes."""

    def __init__(self, daemons: Processes, database_url: str, redis_url: str) -> None:
        self.daemons = daemons
        self.data = daemons.folder / "data"
        self.running: dict[str, Daemon] = {}
        self._ports = {"plane-0": free_port(), "plane-1": free_port()}
        self._shared = ("--database-url", database_url, "--redis-url", redis_url)
        # As a name with two addresses is to gRPC: one is used, the other when that goes away.
        self.address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self._ports.values())

    async def start(self, name: str) -> None:
        drain = ("--drain-s", str(GRACE_S))
        if name in self._ports:
            listen = ("--grpc", f"127.0.0.1:{self._ports[name]}", "--http", "127.0.0.1:0")
            arguments = ["controlplane", "--data", str(self.data), *listen, *self._shared, *drain]
        else:
            flags = ("--streams-max", str(STREAMS + SOCKETS), "--late-s", "0", *drain)
            arguments = node_arguments(name, self.address, self.data, *flags)
        self.running[name] = await self.daemons.start(name, *arguments)

    async def restart(self, name: str) -> float:
        """End it as an orchestrator does, and start it anew; how long the ending took."""
        self.running[name].send(signal.SIGTERM)
        asked_s = time.monotonic()
        assert await self.running[name].ended(60) == 0, self.running[name].log.read_text()[-3000:]
        took_s = time.monotonic() - asked_s
        await self.start(name)
        return took_s

    def key(self) -> str:
        return (self.data / "admin.key").read_text().strip()


@asynccontextmanager
async def pair(daemons: Processes, folder: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        database_url = await stack.enter_async_context(postgresql())
        redis_url = await stack.enter_async_context(redis_server(folder / "redis"))
        made = Pair(daemons, database_url, redis_url)
        # One after the other: the first makes the keys that both have.
        for name in ("plane-0", "plane-1"):
            await made.start(name)
        async with asyncio.TaskGroup() as tasks:
            for name in NODES:
                tasks.create_task(made.start(name))
        try:
            yield made
        finally:
            await daemons.close()


class Callers:
    """People are enrolled and erased all the while; who asks looks after nothing himself."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.errors: list[str] = []
        self.calls = 0
        self.slowest_s = 0.0
        self._task = asyncio.create_task(self._call())

    async def ended(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _call(self) -> None:
        for number in range(1_000):
            label = f"Passer-by {number}"
            begun_s = time.monotonic()
            sound = [wav(tones(4, *voice(3 + number % 12)))]
            try:
                found = (await self._client.enroll(label, sound, idempotency_key=label)).voice
                proof = await self._client.erase(found.voice_id, wait_s=20)
                assert proof.state == people_pb2.Erasure.STATE_ERASED
            except (SpeakerdError, AssertionError) as error:
                self.errors.append(f"{label}: {error}")
            self.calls += 2
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)
            await asyncio.sleep(0.5)


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.fault("F21", "P9", "P6", "P5")
async def test_nodes_and_control_planes_are_restarted_in_turn_under_fifty_streams_and_nobody_notices(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    require_postgresql()
    options = StreamOptions(latency_ms=1_000)
    async with pair(daemons, tmp_path) as made, Client(made.address, made.key()) as client:
        await enrol_tones(client)

        async def all_serve() -> bool:
            nodes = (await client.nodes()).nodes
            return {node.node_id for node in nodes if node.state == node_pb2.NODE_STATE_SERVING} == set(NODES)

        sounds = [conversation(number, 240) for number in range(STREAMS)]
        nodes_s, planes_s = list[float](), list[float]()
        async with streaming(client, sounds, options) as told:
            # Sockets hang on a control plane, which carries them from node to node and cannot hand them on itself.
            async with sockets(made) as heard:
                nodes_s.append(await made.restart("n1"))
                await until(all_serve, 60)
            for one in heard:
                one.require_in_order()
                assert (one.code, one.errors) == (1000, [])
            calling = Callers(client)
            for name in ("plane-0", "n2", "plane-1", "n3"):
                (planes_s if name in made.running and name.startswith("plane") else nodes_s).append(
                    await made.restart(name)
                )
                await until(all_serve, 60)
            await calling.ended()
        assert not calling.errors, calling.errors
        assert all(one.resumed for one in told), "a stream stayed on a node that has ended"
        figures.record("streams", STREAMS, "")
        figures.record("sockets", SOCKETS, "")
        figures.record("times that a stream was handed over", sum(one.drains for one in told), "")
        # On a machine that is busy beyond its means a client takes a node that is slow for lost, and goes on elsewhere.
        lost = sum(max(0, len(one.resumed) - one.drains) for one in told)
        figures.record("times that a stream went on without that", lost, "")
        figures.record("enrolments and erasures meanwhile", calling.calls, "")
        figures.record("errors", len(calling.errors), "")
        figures.record("an enrolment with its erasure takes, at worst", calling.slowest_s)
        figures.record("a node ends after, at worst", max(nodes_s))
        figures.record("a control plane ends after, at worst", max(planes_s))
        await require_same(client, sounds, told, options)


@asynccontextmanager
async def sockets(made: Pair) -> AsyncIterator[list[Heard]]:
    """WebSockets that begin before the context and end after it."""
    done, heard = asyncio.Event(), [Heard() for _ in range(SOCKETS)]
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(over_http(made.running["plane-1"], made.key()))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for number, one in enumerate(heard):
            _, url = await ask(http)
            tasks.create_task(live(url, spoken(number, 120), heard=one, until=done))
        await until(lambda: all(one.events for one in heard), 60)
        yield heard
        done.set()

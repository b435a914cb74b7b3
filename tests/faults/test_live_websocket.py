"""Live sessions over a WebSocket: nodes killed and frozen, the relay cut off, voices erased while they are named."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from runtime.tls import CONTROL_PLANE
from speakerd.client import Client, StreamOptions
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import postgresql_server, postgresql_url
from tests.faults.figures import Figures
from tests.faults.live_sockets import Heard, ask, live
from tests.faults.network import network
from tests.faults.processes import (
    ROOT,
    START_S,
    Daemon,
    Processes,
    environment,
    pcm,
    processes,
    tones,
    until,
    voice,
)
from tests.faults.streaming import stream
from tests.faults.test_continuity import NAMED, Fleet, enrol_tones, fleet, wav
from tests.faults.test_partitions import DAY, ERASED_WITHIN_S, NODES, CutFleet
from tests.faults.test_tls_fleet import tls_flags

__all__ = ["postgresql_server", "postgresql_url"]  # fixtures


def conversation(number: int, seconds: int) -> np.ndarray:
    """Two strangers and somebody who is enrolled, in turns of two to four seconds."""
    generator = np.random.default_rng(number)
    people = [NAMED[number % 3], 3 + number % 5, 9 + number % 3]
    parts, left = [], float(seconds)
    while left > 0:
        length = min(left, float(generator.integers(4, 9)) / 2)
        parts.append(tones(length, *voice(people[int(generator.integers(0, len(people)))])))
        left -= length
    return np.concatenate(parts)


def over_http(plane: Daemon, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=plane.ready["http"], headers={"authorization": f"Bearer {key}"}, timeout=60)


@asynccontextmanager
async def http_of(made: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    async with over_http(made.plane, (made.data / "admin.key").read_text().strip()) as http:
        yield http


async def carriers(client: Client) -> list[str]:
    return [node.node_id for node in (await client.nodes()).nodes if node.load.streams]


@pytest.mark.fault("F1", "P6")
@pytest.mark.fault("F5", "P6")
async def test_a_node_killed_and_one_frozen_cost_a_websocket_no_label_and_nothing_said(
    daemons: Processes, figures: Figures
) -> None:
    sound = conversation(0, 20)
    async with fleet(daemons, "n1", "n2", "n3") as made, made.client() as client, http_of(made) as http:
        await enrol_tones(client)
        session_id, url = await ask(http)
        undisturbed = await live(url, sound, pace=0)
        undisturbed.require_in_order()
        assert (undisturbed.code, undisturbed.errors) == (1000, [])
        assert {"Person 0"} < undisturbed.speakers
        assert all(one.startswith("SPEAKER_") for one in undisturbed.speakers - {"Person 0"})
        ended = (await http.get(f"/v1/live/{session_id}")).json()
        assert ended["status"] == "succeeded" and ended["startedAt"] <= ended["completedAt"]
        # It says what the client of gRPC is told.
        told = await stream(client, pcm(sound), StreamOptions(latency_ms=1_000), pace=0)
        starts = {round(start / 1000, 3) for start, _, _, _ in told.whole()}
        assert {start for start, _, speaker in undisturbed.spans() if speaker == "Person 0"} <= starts

        session_id, url = await ask(http)
        heard = Heard()
        running = asyncio.create_task(live(url, sound, heard=heard))
        await until(lambda: "Person 0" in heard.speakers, 30)
        (killed,) = await carriers(client)
        assert (await http.get(f"/v1/live/{session_id}")).json()["status"] == "running"
        made.nodes[killed].send(signal.SIGKILL)
        killed_s = time.monotonic()

        async def goes_on() -> bool:
            return bool(set(await carriers(client)) - {killed})

        await until(goes_on, 30)
        figures.record("another node is heard to carry it after", time.monotonic() - killed_s, cell="F1")
        (frozen,) = set(await carriers(client)) - {killed}
        said = len(heard.events)
        await until(lambda: len(heard.events) > said + 2, 30)
        made.nodes[frozen].send(signal.SIGSTOP)
        await running
        heard.require_in_order()
        assert (heard.code, heard.errors) == (1000, [])
        assert heard.spans() == undisturbed.spans()
        for cell in ("F1", "F5"):
            figures.record("spans lost, doubled or changed", 0, "", cell=cell)
        # Nothing of the url, which opens a session, is written down.
        logged = (made.daemons.folder / "plane.log").read_text()
        assert session_id not in logged and url.partition("token=")[2] not in logged


class RelayFleet(CutFleet):
    """The same over PostgreSQL, with a second control plane, which relays and reaches the database by the network."""

    async def start_over(self, database_url: str) -> None:
        self.authority.issue_files(CONTROL_PLANE, "cp", [self.net.access("plane")], DAY)
        self.redis_url = f"unix://{self.data}/redis/redis.sock"
        self.plane = await self.daemons.start(
            "plane", "controlplane", "--data", str(self.data), "--http", "127.0.0.1:0",
            "--grpc", f"{self.net.access('plane')}:0", "--fleet-grpc", f"{self.net.fleet('plane')}:0",
            "--database-url", database_url, *tls_flags(self.authority, CONTROL_PLANE, "cp"),
        )  # fmt: skip
        (socket,) = [*self.data.glob("redis/*.sock"), *Path(tempfile.gettempdir()).glob("speakerd-redis-*/redis.sock")][
            :1
        ]
        self.redis_url = f"unix://{socket}"
        async with asyncio.TaskGroup() as tasks:
            for node_id in NODES:
                tasks.create_task(self._add(node_id))
        await self._start_relay(database_url)

    async def _start_relay(self, database_url: str) -> None:
        """On the secrets of the other one, which has made them."""
        data = self.daemons.folder / "relay-data"
        data.mkdir(mode=0o700)
        for name in ("kek.key", "fleet.key", "ticket.key", "audit.key", "admin.key"):
            shutil.copy(self.data / name, data / name)
        self.authority.issue_files(CONTROL_PLANE, "relay", [self.net.access("relay")], DAY)
        self.relay = await self.daemons.start(
            "relay", "controlplane", "--data", str(data), "--insecure",
            "--http", f"{self.net.access('relay')}:0", "--grpc", f"{self.net.access('relay')}:0",
            "--fleet-grpc", f"{self.net.fleet('relay')}:0", *tls_flags(self.authority, CONTROL_PLANE, "relay"),
            "--database-url", await self._forwarded(database_url), "--redis-url", self.redis_url,
            "--erasure-journal", str(self.data / "erasure-journal"),
            "--audit-checkpoints", str(self.data / "audit-checkpoints"),
        )  # fmt: skip

    async def _forwarded(self, database_url: str) -> str:
        """The same database, as it is reached over the fleet's network."""
        where, _, folder = database_url.partition("?host=")
        host = self.net.fleet("plane")
        process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", self.net.netns()["plane"], sys.executable, "-m", "tests.faults.forward",
            f"{host}:0", f"{folder}/.s.PGSQL.5432", stdout=asyncio.subprocess.PIPE, cwd=ROOT, env=environment(),
        )  # fmt: skip
        self.daemons.daemons.append(Daemon(process, {}, self.daemons.folder / "forward.log"))
        assert process.stdout is not None
        port = (await asyncio.wait_for(process.stdout.readline(), START_S)).decode().split("port=")[1].strip()
        user, _, name = where.partition("@/")
        return f"{user}@{host}:{port}/{name}"


@pytest.mark.fault("F7", "P1", "P2")
@pytest.mark.deep
@pytest.mark.usefixtures("needs_netns")
async def test_a_relay_that_is_cut_off_names_nobody_who_is_erased_meanwhile_and_keeps_its_labels(
    postgresql_url: str, tmp_path: Path, figures: Figures
) -> None:
    """Its clients reach it, and it the streams of nodes; not the database, and so no word of the erasure."""
    with network("plane", "relay", *NODES) as net:
        async with processes(tmp_path, net.netns()) as daemons:
            made = RelayFleet(daemons, net)
            await made.start_over(postgresql_url)
            key = (made.data / "admin.key").read_text().strip()
            async with made.client() as client, over_http(made.relay, key) as http:
                await _cut_off_and_erased(made, client, http, figures)


async def _cut_off_and_erased(made: RelayFleet, client: Client, http: httpx.AsyncClient, figures: Figures) -> None:
    ids = []
    for number in range(2):
        answer = await client.enroll(f"Person {number}", [wav(tones(4, *voice(number)))])
        assert answer.voice.state == people_pb2.Voice.STATE_READY
        ids.append(answer.voice.voice_id)
    in_turns = np.concatenate([tones(3, *voice(number)) for number in (0, 1, 5)])
    heard, done = Heard(), asyncio.Event()
    _, url = await ask(http)
    running = asyncio.create_task(live(url, np.tile(in_turns, 30), heard=heard, until=done))
    await until(lambda: {"Person 0", "Person 1"} <= heard.speakers and _strangers(heard, 0, 60), 60)

    made.net.cut("relay")
    asked_s = time.monotonic()
    erasure = await client.erase(ids[0], wait_s=25)
    erased_s = time.monotonic()
    assert erasure.state == people_pb2.Erasure.STATE_ERASED and erased_s - asked_s <= ERASED_WITHIN_S
    figures.record("proven after", erased_s - asked_s)
    # It goes on, under nobody's name.
    said = len(heard.events)
    await until(lambda: len(heard.events) > said + 12, 60)
    assert all(one.startswith("SPEAKER_") for one in heard.said_after(erased_s)), heard.said_after(erased_s)

    # Healed, it names those again who may be named.
    made.net.heal("relay")
    healed_s = time.monotonic()
    await until(lambda: "Person 1" in heard.said_after(erased_s), 90)
    figures.record("names are back, once healed, after", time.monotonic() - healed_s)

    # And the node that carries it dies.
    (victim,) = await carriers(client)
    killed_s = time.monotonic()
    made.nodes[victim].send(signal.SIGKILL)
    await until(lambda: "Person 1" in heard.said_after(killed_s + 1.0), 60)
    said = len(heard.events)
    await until(lambda: len(heard.events) > said + 12, 60)
    done.set()
    await running
    heard.require_in_order()
    assert (heard.code, heard.errors) == (1000, [])
    assert "Person 0" not in heard.said_after(erased_s)
    figures.record("names said after their erasure", 0, "")
    # The stranger is the same one from beginning to end, and the one who was erased has become another.
    end_s = heard.events[-1][1]
    (stranger,) = _strangers(heard, 10, end_s, people=3, at=2)
    (forgotten,) = _labels(heard, end_s - 30, end_s, people=3, at=0)
    assert forgotten.startswith("SPEAKER_") and forgotten != stranger
    assert _labels(heard, end_s - 12, end_s, people=3, at=1) == {"Person 1"}


def _strangers(heard: Heard, from_s: float, to_s: float, *, people: int = 3, at: int = 2) -> set[str]:
    return {one for one in _labels(heard, from_s, to_s, people=people, at=at) if one.startswith("SPEAKER_")}


def _labels(heard: Heard, from_s: float, to_s: float, *, people: int, at: int) -> set[str]:
    """What whoever speaks at a place in the round of three seconds each is called, where they have it to themselves."""
    return {
        speaker
        for kind, at_s, speaker in heard.events
        if kind == "start" and from_s <= at_s < to_s and at + 0.5 < at_s / 3 % people < at + 0.9
    }

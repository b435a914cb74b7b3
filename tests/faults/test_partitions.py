"""A fleet in network namespaces: nodes cut off and frozen while voices are erased, and peers that go silent."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc import aio

from runtime.certificates import Authority
from runtime.tls import CONTROL_PLANE, NODE
from speakerd.channel import open_channel
from speakerd.client import Client, TlsTrust
from speakerd.v1 import node_pb2, node_pb2_grpc, people_pb2
from tests.faults.figures import Figures
from tests.faults.listening import Listening
from tests.faults.network import Network, drops, network
from tests.faults.processes import Daemon, Processes, environment, processes, tones, until, voice
from tests.faults.test_continuity import wav
from tests.faults.test_tls_fleet import DOMAIN, tls_flags

pytestmark = pytest.mark.usefixtures("needs_netns")

DAY = timedelta(days=1)
NODES = ("n1", "n2", "n3")
ERASED_WITHIN_S = 15.0
STALLS_S = 15.0
"""What a machine that stalls may add."""
READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"


class CutFleet:
    """A control plane and three null nodes, each on a host of its own, known to each other by certificates."""

    def __init__(self, daemons: Processes, net: Network, node_ids: Sequence[str] = NODES) -> None:
        self.daemons = daemons
        self.net = net
        self.node_ids = node_ids
        self.data = daemons.folder / "data"
        self.authority = Authority.open_or_make(daemons.folder / "certs", DOMAIN)
        self.nodes: dict[str, Daemon] = {}

    async def start(self) -> None:
        self.authority.issue_files(CONTROL_PLANE, "cp", [self.net.access("plane")], DAY)
        self.plane = await self.daemons.start(
            "plane", "controlplane", "--data", str(self.data), "--http", "127.0.0.1:0",
            "--grpc", f"{self.net.access('plane')}:0", "--fleet-grpc", f"{self.net.fleet('plane')}:0",
            *tls_flags(self.authority, CONTROL_PLANE, "cp"),
        )  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            for node_id in self.node_ids:
                tasks.create_task(self._add(node_id))

    async def _add(self, node_id: str) -> None:
        self.authority.issue_files(NODE, node_id, [], DAY)
        self.nodes[node_id] = await self.daemons.start(
            node_id, "node", "--node-id", node_id, "--device", "null", "--metrics", "127.0.0.1:0",
            "--listen", f"{self.net.fleet(node_id)}:0", "--stream-listen", f"{self.net.access(node_id)}:0",
            "--controlplane", self.plane.ready["fleet"], *tls_flags(self.authority, NODE, node_id),
        )  # fmt: skip

    def client(self) -> Client:
        trust = TlsTrust.from_file(self.authority.folder / "ca.crt")
        return Client(self.plane.grpc, (self.data / "admin.key").read_text().strip(), tls=trust)

    async def verify(self) -> tuple[int, dict[str, object]]:
        """`speakerd audit verify`, as an operator runs it: exit code and verdict."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "speakerd", "audit", "verify", "--server", self.plane.grpc, "--json",
            "--data", str(self.data), "--tls-ca", str(self.authority.folder / "ca.crt"),
            stdout=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, json.loads(said)

    async def gauge(self, node_id: str, name: str) -> float:
        """A gauge of a node, read on its own host: nobody else reaches its metrics."""
        inside = ["ip", "netns", "exec", self.net.netns()[node_id], sys.executable, "-c", READ]
        url = f"http://{self.nodes[node_id].ready['metrics']}/metrics"
        process = await asyncio.create_subprocess_exec(*inside, url, stdout=asyncio.subprocess.PIPE)
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        (value,) = [line.split()[-1] for line in said.decode().splitlines() if line.split(" ")[0].endswith(name)]
        return float(value)

    def logged(self, node_id: str, since: int = 0) -> list[dict[str, object]]:
        lines = (self.daemons.folder / f"{node_id}.log").read_text().splitlines()[since:]
        return [json.loads(line) for line in lines if line.startswith("{")]


@asynccontextmanager
async def cut_fleet(folder: Path, *node_ids: str) -> AsyncIterator[CutFleet]:
    with network("plane", *(node_ids or NODES)) as net:
        async with processes(folder, net.netns()) as daemons:
            fleet = CutFleet(daemons, net, node_ids or NODES)
            await fleet.start()
            yield fleet


async def erase(client: Client, voice_id: str) -> tuple[people_pb2.Erasure, float]:
    """The erasure's end, and how long it took."""
    asked_s = time.monotonic()
    erasure = await client.erase(voice_id, wait_s=25)
    return erasure, time.monotonic() - asked_s


@pytest.mark.fault("F7", "P1", "P2", "P3")
@pytest.mark.fault("F5", "P1", "P2", "P3")
async def test_a_node_that_is_cut_off_and_one_that_is_frozen_name_nobody_who_was_erased(
    tmp_path: Path, figures: Figures
) -> None:
    async with cut_fleet(tmp_path) as fleet, fleet.client() as client:
        ids = [
            (await client.enroll(f"Person {number}", [wav(tones(4, *voice(number)))])).voice.voice_id
            for number in range(3)
        ]
        cut_off, other = Listening(client, 0), Listening(client, 2)
        await cut_off.hears("Person 0")
        victim = cut_off.told.nodes[-1]

        # Cut off from the control plane, and from nobody else: its stream goes on.
        fleet.net.cut(victim)
        cut_s = time.monotonic()
        erasure, took_s = await erase(client, ids[0])
        erased_s = time.monotonic()
        figures.record("proven after", took_s, cell="F7")
        assert erasure.state == people_pb2.Erasure.STATE_ERASED and took_s <= ERASED_WITHIN_S + STALLS_S, took_s
        assert list(erasure.residual_node_ids) == [victim]
        assert {node.node_id: node.ok for node in erasure.nodes} == {node_id: node_id != victim for node_id in NODES}
        await cut_off.hears("spk_0", erased_s)
        assert cut_off.degraded_s and cut_off.degraded_s[0][1] and cut_off.degraded_s[0][0] < erased_s
        figures.record("streams go on without names after", cut_off.degraded_s[0][0] - cut_s, cell="F7")
        assert cut_off.told.nodes == [victim], "it did not have to move"
        assert await fleet.gauge(victim, "voices_warm") == 0, "it holds somebody still"

        # Healed, it holds what it should before it serves again.
        fleet.net.heal(victim)
        healed_s = time.monotonic()
        await until(lambda: [active for _, active in cut_off.degraded_s] == [True, False], 60)
        figures.record("names are back, once healed, after", cut_off.degraded_s[1][0] - healed_s, cell="F7")
        events = [(line["event"], line.get("state")) for line in fleet.logged(victim)]
        lapsed = events.index(("lease.lapsed", None))
        assert ("node.state", "serving") not in events[lapsed : events.index(("node.state", "fenced"), lapsed)]
        await asyncio.sleep(1)
        code, verdict = await fleet.verify()
        assert code == 0 and verdict["ok"], verdict
        assert {node["node_id"]: node["ok"] for node in verdict["nodes"]} == dict.fromkeys(NODES, True)

        # Frozen: its stream moves on; what it held is out of reach of everybody, until it wakes and wipes it.
        frozen = Listening(client, 1)
        await frozen.hears("Person 1")
        victim = frozen.told.nodes[-1]
        fleet.nodes[victim].send(signal.SIGSTOP)
        since = len((tmp_path / f"{victim}.log").read_text().splitlines())
        frozen_s = time.monotonic()
        erasure, took_s = await erase(client, ids[1])
        erased_s = time.monotonic()
        figures.record("proven after", took_s, cell="F5")
        figures.record("the stream goes on elsewhere after", frozen.told.loss(frozen_s)[1], cell="F5")
        assert erasure.state == people_pb2.Erasure.STATE_ERASED and took_s <= ERASED_WITHIN_S + STALLS_S, took_s
        assert list(erasure.residual_node_ids) == [victim]
        await frozen.hears("spk_0", erased_s)
        assert frozen.told.nodes[-1] != victim and len(frozen.told.resumed) == 1
        fleet.nodes[victim].send(signal.SIGCONT)
        await until(lambda: ("node.state", "serving") in _states(fleet.logged(victim, since)), 20)
        woken = _states(fleet.logged(victim, since))
        assert woken.index(("lease.lapsed", None)) < woken.index(("node.state", "serving")), woken
        await asyncio.sleep(1)
        code, verdict = await fleet.verify()
        assert code == 0 and verdict["ok"] and all(node["ok"] for node in verdict["nodes"]), verdict

        for one, name, erased in ((cut_off, "Person 0", None), (frozen, "Person 1", erased_s)):
            one.done.set()
            told = await one.task
            told.require_in_order()
            assert name not in one.said_after(erased or erased_s)
        other.done.set()
        await other.task
        assert "Person 2" in {label for _, label in other.labels}

        # Somebody with the database in his hands: the chain tells.
        with sqlite3.connect(fleet.data / "speakerd.db", timeout=20) as database:
            for (name,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit'"
            ).fetchall():
                database.execute(f"DROP TRIGGER {name}")
            row = database.execute("SELECT max(sequence) FROM audit").fetchone()
            database.execute("UPDATE audit SET body = replace(body, 'user_request', 'platform_decision') "
                             "WHERE sequence < ?", row)  # fmt: skip
        database.close()
        code, verdict = await fleet.verify()
        assert code == 1 and not verdict["ok"] and verdict["problems"]


def _states(lines: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(line["event"], line.get("state")) for line in lines]


@pytest.mark.timeout(600)
@pytest.mark.fault("F8", "P6")
async def test_a_stream_leaves_a_node_to_or_from_which_nothing_gets_through(tmp_path: Path, figures: Figures) -> None:
    if reason := drops():
        pytest.skip(f"no network namespaces: {reason}")
    async with cut_fleet(tmp_path, "n1", "n2") as fleet, fleet.client() as client:
        await client.enroll("Person 0", [wav(tones(4, *voice(0)))])
        one = Listening(client, 0)
        await one.hears("Person 0")
        for way, said in (("both", "neither way"), ("in", "not to the node"), ("out", "not from the node")):
            victim = one.told.nodes[-1]
            with fleet.net.dropping(victim, way):
                cut_s = time.monotonic()
                await until(lambda victim=victim: one.told.nodes[-1] != victim, 60)
                noticed_s, resumed_s = one.told.loss(cut_s)
                figures.record(f"{said}: noticed after", noticed_s)
                figures.record(f"{said}: the stream goes on after", resumed_s)
                await one.hears("Person 0", cut_s + resumed_s)

                # The node, which serves all the while, gives the place of a stream away whose client it has lost.
                async def let_go(victim: str = victim) -> bool:
                    loads = {node.node_id: node.load.streams for node in (await client.nodes()).nodes}
                    return loads[victim] == 0

                await until(let_go, 60)
                figures.record(f"{said}: the node lets go after", time.monotonic() - cut_s)
        one.done.set()
        told = await one.task
        told.require_in_order()
        told.require_all_heard()
        assert len(told.resumed) == 3 and not told.degraded
        figures.record("turns lost or doubled", 0, "")


@pytest.mark.fault("F9", "P6")
async def test_a_peer_that_vanishes_without_a_word_is_noticed_by_gRPC_itself_on_an_idle_stream(
    tmp_path: Path, figures: Figures
) -> None:
    """gRPC's keepalive timeout does nothing: without the ping timeout it takes a minute (grpc/grpc#39239)."""
    with network("node") as net:
        async with processes(tmp_path, net.netns()) as daemons:
            node = await daemons.start(
                "node", "node", "--standalone", "--device", "null", "--insecure", "--metrics", "127.0.0.1:0",
                "--listen", f"{net.access('node')}:0",
            )  # fmt: skip
            async with open_channel(node.grpc) as channel:
                stub = node_pb2_grpc.NodeStub(channel)
                call = stub.Diarize()
                await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen()))
                assert (await call.read()).HasField("opened")
                net.cut("node", "access")
                began_s = time.monotonic()
                with pytest.raises(aio.AioRpcError) as lost:
                    while await call.read() is not aio.EOF:
                        pass
                assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
                noticed_s = time.monotonic() - began_s
                assert 4 < noticed_s < 20
                figures.record("noticed after", noticed_s)
                # And it is reached again as soon as there is a way.
                net.heal("node", "access")
                described = await stub.Describe(node_pb2.DescribeRequest(), wait_for_ready=True, timeout=10)
                assert described.standalone
                await until(lambda: _no_streams(stub), 15)


async def _no_streams(stub: node_pb2_grpc.NodeStub) -> bool:
    return (await stub.Describe(node_pb2.DescribeRequest(), timeout=5)).load.streams == 0

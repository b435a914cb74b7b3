"""`speakerd health`, the live table of the fleet, and completion, as they are typed."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from runtime.grpc_server import GrpcHealth, new_server
from runtime.health import Health
from runtime.metrics import serve_metrics
from speakerd.cli import fleet_view
from speakerd.cli.connection import LOCK_FILE, Endpoints, write_endpoints
from speakerd.v1 import node_pb2, streams_pb2
from tests.speakerd.running import environment, speakerd


async def test_the_exit_code_of_health_is_the_answer_over_http_and_grpc() -> None:
    health = Health()
    is_ready = False
    server = new_server()
    GrpcHealth(health, ["speakerd.v1.Node"]).serve_on(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with serve_metrics(CollectorRegistry(), host="127.0.0.1", port=0, health=health) as http:

        async def asked(*words: str) -> list[int]:
            doors = (("--http", f"127.0.0.1:{http}"), ("--grpc", f"127.0.0.1:{port}"))
            runs = [asyncio.to_thread(speakerd, "health", *words, *door, "--timeout", "20") for door in doors]
            return [ran.returncode for ran in await asyncio.gather(*runs)]

        assert await asked("started") == [1, 1]
        health.started(lambda: is_ready)
        assert await asked("started") == await asked("live") == [0, 0]
        assert await asked() == [1, 1]
        is_ready = True
        assert await asked() == [0, 0]
        told = await asyncio.to_thread(speakerd, "health", "--http", f"127.0.0.1:{http}", "--json")
        assert json.loads(told.stdout) == {"address": f"127.0.0.1:{http}", "ready": True}
    await server.stop(None)
    away = await asyncio.to_thread(speakerd, "health", "--http", f"127.0.0.1:{http}", "--timeout", "5")
    assert away.returncode == 1 and "is the daemon running?" in away.stderr


async def test_an_up_that_loads_its_engine_lives_and_is_neither_started_nor_ready(tmp_path: Path) -> None:
    health = Health()
    health.started(lambda: True)
    with (
        (tmp_path / LOCK_FILE).open("w") as lock,
        serve_metrics(CollectorRegistry(), host="127.0.0.1", port=0, health=health) as http,
    ):
        as_in_an_image = {"SPEAKERD_HTTP": f"0.0.0.0:{http}", "SPEAKERD_DATA": str(tmp_path)}

        async def asked(*words: str) -> int:
            ran = await asyncio.to_thread(speakerd, "health", *words, "--timeout", "20", **as_in_an_image)
            return ran.returncode

        assert await asked() == 0, "no `up` is running there"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [await asked("live"), await asked("started"), await asked("ready")] == [0, 1, 1]
        assert await asked("--http", f"127.0.0.1:{http}") == 0, "whoever names a daemon asks that one alone"
        write_endpoints(tmp_path, Endpoints(http=f"http://127.0.0.1:{http}", grpc="127.0.0.1:1", pid=os.getpid()))
        assert await asked() == 0


def node(node_id: str, **fields: object) -> streams_pb2.NodeStatus:
    load = node_pb2.NodeLoad(streams=3, streams_max=4, voices=120, lag_p99_ms=1_500, queued_windows=9)
    said: dict[str, object] = {"state": node_pb2.NODE_STATE_SERVING, "health": 1, "cursor": 40, "load": load, **fields}
    return streams_pb2.NodeStatus(node_id=node_id, age_ms=400, **said)  # type: ignore[arg-type]


def test_the_table_of_the_fleet_shows_load_voices_what_is_behind_and_lag() -> None:
    fleet = streams_pb2.ListNodesResponse(
        nodes=[node("node-2", state=node_pb2.NODE_STATE_DRAINING, reserved=1), node("node-1", zone="a")], head=42
    )
    drawn = fleet_view._table(fleet)
    rows = {column.header: [str(cell) for cell in column.cells] for column in drawn.columns}
    assert rows["node"] == ["node-1 (a)", "node-2"]
    assert rows["state"] == ["serving", "draining"]
    assert rows["streams"] == ["3/4", "4/4"]
    assert rows["load"] == ["██████░░  75%", "████████ 100%"]
    assert rows["voices warm"] == ["120", "120"] and rows["behind"] == ["2", "2"]
    assert rows["lag p99"] == ["1500 ms", "1500 ms"] and rows["queued"] == ["9", "9"]
    assert "1 of 2 nodes take streams" in str(drawn.title) and "Redis is away" in str(drawn.title)


class Answers:
    """A control plane's client: each call gives the next answer."""

    def __init__(self, answers: Iterator[streams_pb2.ListNodesResponse]) -> None:
        self._answers = answers

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def nodes(self) -> streams_pb2.ListNodesResponse:
        from speakerd.errors import SpeakerdError

        answer = next(self._answers)
        if not answer.head:
            raise SpeakerdError("unavailable", "the server is away")
        return answer

    def open(self) -> Answers:
        return self


async def test_the_live_table_goes_on_over_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    class Screen:
        def __init__(self, table: object, **_: object) -> None:
            pass

        def __enter__(self) -> Screen:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, table: object, *, refresh: bool) -> None:
            drawn.append(str(table.title))  # type: ignore[attr-defined]

    monkeypatch.setattr(fleet_view, "Live", Screen)
    heads = [streams_pb2.ListNodesResponse(head=head, redis_up=True) for head in (7, 0, 8)]
    with pytest.raises((StopIteration, RuntimeError)):
        await fleet_view._follow(Answers(iter(heads)), 0.0)  # type: ignore[arg-type]
    assert ["head of the log 7" in drawn[0], "away" in drawn[1], "head of the log 8" in drawn[2]] == [True] * 3


@pytest.mark.parametrize(
    ("words", "offered"), [("speakerd fle", {"fleet"}), ("speakerd ca", {"calibrate"}), ("speakerd jobs w", {"watch"})]
)
def test_a_shell_is_offered_what_can_follow(words: str, offered: set[str]) -> None:
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_SPEAKERD_COMPLETE": "complete_bash"}
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'speakerd'; from speakerd.cli import main; main()"],
        capture_output=True, text=True, timeout=120, env={**environment(), **variables}, check=False,
    )  # fmt: skip
    assert set(ran.stdout.split()) == offered, ran.stderr


def test_completing_a_command_imports_no_daemon() -> None:
    variables = {"COMP_WORDS": "speakerd ", "COMP_CWORD": "1", "_SPEAKERD_COMPLETE": "complete_bash"}
    program = (
        "import sys; sys.argv[0] = 'speakerd'\nfrom speakerd.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(*{'controlplane', 'node', 'models'} & sys.modules.keys(), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment(), **variables}, check=False,
    )  # fmt: skip
    assert {"node", "controlplane", "up", "health"} <= set(ran.stdout.split())
    assert ran.stderr.strip() == ""

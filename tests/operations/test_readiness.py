"""Every daemon tells whether it is live, started and ready, over gRPC and HTTP: processes, from their first moment."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

from controlplane.readiness import Readiness
from runtime.clock import SteppedClock
from runtime.errors import Unavailable
from speakerd.cli.probes import ask_grpc, ask_http
from speakerd.errors import SpeakerdError
from tests.faults.processes import (
    ROOT,
    environment,
    node_arguments,
    plane_arguments,
    processes,
    until,
)

ASKED_S = 30.0
START_S = 90.0
ATTEMPTS = 3


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Watched:
    """A daemon at addresses that are known before it runs, and what it says of itself from then on, in order."""

    def __init__(self, process: asyncio.subprocess.Process, grpc: str, http: str) -> None:
        self.process = process
        self.grpc, self.http = grpc, http
        self.said: list[tuple[str, dict[str, bool]]] = []

    async def ask(self) -> dict[str, dict[str, bool]]:
        """Both doors' words; a door that does not answer yet says nothing."""
        found: dict[str, dict[str, bool]] = {"grpc": {}, "http": {}}
        for word in ("live", "started", "ready"):
            with contextlib.suppress(SpeakerdError):
                found["http"][word] = await self._holds_over_http(word)
            with contextlib.suppress(SpeakerdError):
                found["grpc"][word] = (await ask_grpc(self.grpc, word, ASKED_S)).holds
        return found

    async def _holds_over_http(self, word: str) -> bool:
        """A loop that a stalled machine kept from turning turns when it is asked again; one that hangs does not."""
        for _ in range(3):
            if (await asyncio.to_thread(ask_http, self.http, word, ASKED_S)).holds:
                return True
            if word != "live":
                return False
        return False

    async def until_ready(self) -> None:
        """Ask again and again until both doors say ready."""

        async def both() -> bool:
            said = await self.ask()
            self.said += list(said.items())
            return all(words.get("ready") for words in said.values())

        await until(both, START_S, every_s=0.02)

    def words(self, door: str, word: str) -> list[bool]:
        """What was said of a word at a door, in order."""
        return [words[word] for at, words in self.said if at == door and word in words]


@contextlib.asynccontextmanager
async def launched(log: Path, grpc: str, http: str, *arguments: str, **variables: str) -> AsyncIterator[Watched]:
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "speakerd", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=errors,
            cwd=ROOT, env={**environment(), **variables},
        )  # fmt: skip
    try:
        yield Watched(process, grpc, http)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def require_words(said: list[bool], what: str) -> None:
    """False first, true in the end, and never back."""
    assert said and not said[0] and said[-1], (what, said)
    assert said == sorted(said), (what, said)


async def test_a_node_is_ready_only_once_it_has_a_lease_and_holds_what_it_should(tmp_path: Path) -> None:
    # Its control plane is not there yet: everything is loaded, and nothing reconciled.
    plane, grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(3))
    arguments = node_arguments("node-1", plane, tmp_path)
    arguments[arguments.index("--listen") + 1] = grpc
    arguments[arguments.index("--metrics") + 1] = http
    (tmp_path / "fleet.key").write_text("a key of sixteen and more\n")
    (tmp_path / "fleet.key").chmod(0o600)
    async with launched(tmp_path / "node.log", grpc, http, *arguments) as node:

        async def started() -> bool:
            said = await node.ask()
            node.said += list(said.items())
            return all(words.get("started") for words in said.values())

        await until(started, START_S, every_s=0.02)
        for _ in range(5):
            said = await node.ask()
            node.said += list(said.items())
            assert said["http"] == said["grpc"] == {"live": True, "started": True, "ready": False}
        async with processes(tmp_path) as run:
            await run.start("plane", *plane_arguments(tmp_path, plane))
            await node.until_ready()
            for door in ("grpc", "http"):
                require_words(node.words(door, "ready"), f"ready over {door}")
                assert all(node.words(door, "live"))


async def test_a_control_plane_of_any_role_is_ready_only_once_it_is_reconciled(tmp_path: Path) -> None:
    async with processes(tmp_path) as run:
        plane = await run.start("plane", *plane_arguments(tmp_path / "used"))
        plane.send(signal.SIGTERM)
        assert await plane.ended() == 0
    async with asyncio.TaskGroup() as group:
        for role in ("grpc", "http", "worker"):
            shutil.copytree(tmp_path / "used", tmp_path / role)
            group.create_task(require_reconciled_before_ready(role, tmp_path / role))


async def require_reconciled_before_ready(role: str, data: Path) -> None:
    """Start a control plane of one role that has to wait for its database: nothing can be reconciled meanwhile."""
    grpc, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    arguments = ["controlplane", "--data", str(data), "--roles", role, "--drain-s", "3"]
    arguments += ["--grpc", grpc, "--http", "127.0.0.1:0", "--metrics", http]
    for _ in range(ATTEMPTS):
        with closing(sqlite3.connect(data / "speakerd.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            async with launched(data / "log", grpc, http, *arguments, SPEAKERD_HEALTH=grpc) as plane:

                async def answers(plane: Watched = plane) -> bool:
                    return has_ended(plane) or all(len(words) == 3 for words in (await plane.ask()).values())

                await until(answers, START_S, every_s=0.02)
                said = await plane.ask()
                if has_ended(plane):
                    continue  # it waits five seconds, and this machine took longer to ask
                unready = {"live": True, "started": False, "ready": False}
                assert said == {"grpc": unready, "http": unready}
                database.execute("ROLLBACK")
                await plane.until_ready()
                for door in ("grpc", "http"):
                    assert all(plane.words(door, "live"))
                plane.process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(plane.process.wait(), 30) == 0
                return
    raise AssertionError("it never waited for long enough to be asked")


def has_ended(daemon: Watched) -> bool:
    return daemon.process.returncode is not None


class Leases:
    """A fleet in SQL: who holds a lease that lasts. Away, where there is no database."""

    def __init__(self) -> None:
        self.found: list[SimpleNamespace] = []
        self.is_away = False

    async def serving(self) -> list[SimpleNamespace]:
        if self.is_away:
            raise Unavailable("the database is away")
        return self.found


class Heard:
    """Heartbeats."""

    def __init__(self) -> None:
        self.found: list[SimpleNamespace] = []

    async def nodes(self) -> list[SimpleNamespace]:
        return self.found


async def test_a_control_plane_that_starts_waits_for_the_nodes_that_hold_leases_and_for_no_more_than_that() -> None:
    clock, leases, heard, log = SteppedClock(), Leases(), Heard(), SimpleNamespace(is_reconciled=False)
    node = SimpleNamespace(node_id="node-1", incarnation=7)

    def started() -> Readiness:
        return Readiness(fleet=leases, reconciled=log, registry=heard, clock=clock, warm_s=10.0)  # type: ignore[arg-type]

    one, other = started(), started()
    leases.found = [node]
    assert (await one.look()).status == "reconciling"
    log.is_reconciled = True
    assert (await one.look()).status == "reconciling" and not one.is_ready()
    heard.found = [SimpleNamespace(node_id="node-1", incarnation=6)]  # what it was before
    assert (await one.look()).status == "reconciling"
    heard.found = [node]
    assert (await one.look()).status == "ready" and one.is_ready()
    heard.found = []  # from now on that is for placement to see, and no reason to refuse
    assert (await one.look()).status == "ready"
    leases.is_away = True
    assert (await one.look()).status == "unavailable" and not one.is_ready()
    leases.is_away = False
    assert (await other.look()).status == "reconciling"
    clock.step(10.0)
    assert (await other.look()).status == "ready"
    other.is_draining = True
    assert not other.is_ready() and (await other.look()).status == "draining"

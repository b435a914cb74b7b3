"""F12: the database stops, is locked or full, while voices are enrolled and erased and streams run."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.v1 import people_pb2
from tests.faults.figures import Figures
from tests.faults.processes import Daemon, Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.ready_voices import enrol
from tests.faults.storage import Postgres, SmallDisk, postgres, small_disk
from tests.faults.streaming import Told, stream
from tests.faults.test_continuity import wav

pytestmark = pytest.mark.timeout(600)  # each waits for bounds of ten seconds, several times over

CLIP = wav(tones(4, *voice(0)))
LEASE_S = 9.0
ANSWERED_WITHIN_S = 45.0
"""Ten for a statement, five for a connection, and what a machine takes that is busy or stalls."""
REFUSALS = ("unavailable",)


@dataclass
class History:
    """What the API said."""

    enrolled: dict[str, str] = field(default_factory=dict)  # voice id by key of idempotency
    erased: dict[str, str] = field(default_factory=dict)  # audit id by voice id
    unknown: list[str] = field(default_factory=list)
    """Keys of enrolments that were refused."""
    causes: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    async def enrol(self, client: Client, key: str) -> None:
        answer = await self._timed(client.enroll(key, [CLIP], idempotency_key=key))
        if answer is None:
            self.unknown.append(key)
        else:
            self.enrolled[key] = answer.voice.voice_id

    async def erase(self, client: Client, voice_id: str) -> None:
        answer = await self._timed(client.erase(voice_id))
        if answer is not None:
            self.erased[voice_id] = answer.audit_id

    async def _timed(self, call: Awaitable[object]) -> object | None:
        began_s = time.monotonic()
        try:
            return await asyncio.wait_for(call, ANSWERED_WITHIN_S)
        except SpeakerdError as error:
            self.causes.append(error.cause)
            return None
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)


class Stage:
    """A control plane over some database, a node, and a client."""

    def __init__(self, daemons: Processes, data: Path, plane: Daemon, client: Client) -> None:
        self.daemons = daemons
        self.data = data
        self.plane = plane
        self.client = client
        self.history = History()

    async def require_consistent(self) -> None:
        """The audit and the voices tell what the API acknowledged, each thing once, and nothing half done."""
        history = self.history
        # Whoever was refused asks again with the same key, and gets the one voice that there is to it.
        for key in history.unknown:
            answer = await self.client.enroll(key, [CLIP], idempotency_key=key)
            history.enrolled[key] = answer.voice.voice_id
        there = {one.voice_id: one.label for one in await self.client.voices()}
        labels = sorted(there.values())
        assert len(labels) == len(set(labels)), "an enrolment happened twice"
        for key, voice_id in history.enrolled.items():
            if voice_id not in history.erased:
                assert there[voice_id] == key
        for voice_id, audit_id in history.erased.items():

            async def is_erased(audit_id: str = audit_id) -> bool:
                erasure = await self.client.erasure(audit_id)
                return erasure.state == people_pb2.Erasure.STATE_ERASED

            await until(is_erased, 60)
            assert voice_id not in there or there[voice_id] == ""
        verdict = await self.client.verify_audit()
        assert verdict.ok, list(verdict.problems)

    async def works(self) -> bool:
        """Whether something can be written."""
        try:
            await self.client.enroll("probe", [CLIP])
        except SpeakerdError:
            return False
        return True


@asynccontextmanager
async def stage(daemons: Processes, data: Path, *more: str) -> AsyncIterator[Stage]:
    plane = await daemons.start("plane", *plane_arguments(data, "127.0.0.1:0", *more))
    await daemons.start("node", *node_arguments("node", plane.grpc, data))
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        made = Stage(daemons, data, plane, client)
        for number in range(4):
            await made.history.enrol(client, f"before-{number}")
        assert len(made.history.enrolled) == 4
        yield made


async def disturb(made: Stage, figures: Figures, what: str) -> None:
    """Ask for all that writes while the database is away: refused within its bound, and nothing half done."""
    history, client = made.history, made.client
    doomed = list(history.enrolled.values())[:2]
    key = (made.data / "admin.key").read_text().strip()
    async with httpx.AsyncClient(base_url=made.plane.ready["http"], timeout=ANSWERED_WITHIN_S) as http:
        ask = http.get("/v1/test", headers={"authorization": f"Bearer {key}"})
        answers = await asyncio.gather(
            *(history.enrol(client, f"during-{number}") for number in range(3)),
            *(history.erase(client, voice_id) for voice_id in doomed),
            ask,
        )
    assert set(history.causes) <= set(REFUSALS), history.causes
    response = answers[-1]
    assert isinstance(response, httpx.Response)
    assert response.status_code in (200, 503), response.text
    figures.record(f"{what}: slowest answer while it lasted", history.slowest_s)


async def recover(made: Stage, figures: Figures, what: str) -> None:
    began_s = time.monotonic()
    await until(made.works, 90)
    figures.record(f"{what}: writes again after", time.monotonic() - began_s)
    await made.require_consistent()
    assert made.plane.process.returncode is None


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk(16) as made:
        yield made


@pytest.mark.fault("F12", "P10", "P5", "P13")
@pytest.mark.parametrize("how", [pytest.param("frozen", marks=pytest.mark.deep), "killed"])
async def test_a_postgresql_that_stops_costs_refusals_and_nothing_else(
    how: str, daemons: Processes, tmp_path: Path, own_postgres: Postgres, figures: Figures
) -> None:
    await own_postgres.answers()
    async with stage(daemons, tmp_path / "data", "--database-url", own_postgres.url) as made:
        (own_postgres.freeze if how == "frozen" else own_postgres.kill)()
        await disturb(made, figures, f"PostgreSQL {how}")
        assert made.history.causes, "nothing was refused"
        (own_postgres.thaw if how == "frozen" else own_postgres.start)()
        await recover(made, figures, f"PostgreSQL {how}")


@pytest.mark.deep
@pytest.mark.fault("F12", "P10", "P13")
async def test_a_full_disk_under_postgresql_refuses_what_writes(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    with small_disk(96) as full, postgres(full.folder) as server:
        await server.answers()
        async with stage(daemons, tmp_path / "data", "--database-url", server.url) as made:
            full.fill()
            # Until its log needs another file, PostgreSQL has room: enrol until it has none.
            for number in range(400):
                await made.history.enrol(made.client, f"filling-{number}")
                if made.history.causes:
                    break
            assert made.history.causes, "the disk was never full"
            full.relieve()
            if server.process.poll() is not None:
                server.start()  # a log that cannot be written ends it: whoever supervises it starts it again
            await recover(made, figures, "PostgreSQL, disk full")


@pytest.mark.fault("F12", "P10", "P5", "P13")
async def test_a_full_disk_under_sqlite_refuses_what_writes(
    daemons: Processes, disk: SmallDisk, figures: Figures
) -> None:
    async with stage(daemons, disk.folder / "data") as made:
        disk.fill()
        await disturb(made, figures, "SQLite, disk full")
        assert made.history.causes, "nothing was refused"
        # What is read, is read still: streams are placed.
        assert len(await made.client.voices()) >= 4
        disk.relieve()
        await recover(made, figures, "SQLite, disk full")


@contextlib.contextmanager
def locked_sqlite(path: Path) -> Iterator[None]:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@asynccontextmanager
async def locked_postgres(server: Postgres) -> AsyncIterator[None]:
    connection = await server.connect()
    async with connection.transaction():
        await connection.execute("SELECT * FROM fleet_head FOR UPDATE")
        yield
    await connection.close()


@pytest.mark.deep
@pytest.mark.fault("F12", "P10", "P5")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_lock_that_is_held_for_ten_seconds_delays_or_refuses(
    kind: str, daemons: Processes, tmp_path: Path, figures: Figures, request: pytest.FixtureRequest
) -> None:
    more: Sequence[str] = ()
    server: Postgres | None = None
    if kind == "postgresql":
        server = request.getfixturevalue("own_postgres")
        await server.answers()
        more = ("--database-url", server.url)
    async with stage(daemons, tmp_path / "data", *more) as made:
        told = Told()
        sound = pcm(tones(24, *voice(0)))
        running = asyncio.create_task(stream(made.client, sound, told=told))
        await until(lambda: told.turns, 60)
        async with contextlib.AsyncExitStack() as stack:
            if server is None:
                stack.enter_context(locked_sqlite(made.data / "speakerd.db"))
            else:
                await stack.enter_async_context(locked_postgres(server))
            await asyncio.gather(disturb(made, figures, f"{kind}, locked"), asyncio.sleep(10))
        await recover(made, figures, f"{kind}, locked")
        # The stream goes on: by name while the node's lease lasts, and without names from its end to its return.
        await running
        told.require_in_order()
        assert not told.resumed
        assert told.sent == len(sound)


@pytest.mark.deep
@pytest.mark.fault("F12", "P10", "P1")
async def test_without_a_database_streams_name_until_leases_lapse_and_then_nobody(
    daemons: Processes, tmp_path: Path, own_postgres: Postgres, figures: Figures
) -> None:
    await own_postgres.answers()
    async with stage(daemons, tmp_path / "data", "--database-url", own_postgres.url) as made:
        await enrol(made.client, "Ada", 5)
        told, done = Told(), asyncio.Event()
        degraded: list[tuple[bool, float]] = []
        sound = pcm(tones(300, *voice(5)))

        def note(event: object) -> None:
            if len(told.degraded) > len(degraded):
                degraded.append((told.degraded[-1], time.monotonic()))

        running = asyncio.create_task(stream(made.client, sound, told=told, until=done, on_event=note))
        await until(lambda: any(turn.label == "Ada" for turn in told.turns), 60)
        own_postgres.freeze()
        stopped_s = time.monotonic()
        await until(lambda: degraded, 30)
        figures.record("PostgreSQL frozen: last name said after", degraded[0][1] - stopped_s)
        assert degraded[0][0] and degraded[0][1] - stopped_s <= LEASE_S + 5
        own_postgres.thaw()
        thawed_s = time.monotonic()
        await until(lambda: told.degraded[-1] is False, 60)
        figures.record("PostgreSQL frozen: names again after", time.monotonic() - thawed_s)
        done.set()
        await running
        told.require_in_order()
        assert not told.resumed
        await made.require_consistent()

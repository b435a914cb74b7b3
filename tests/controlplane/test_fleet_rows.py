"""The tables of the fleet in SQL and in memory: the same calls, the same answers. So the simulator speaks for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import insert, text, update

from controlplane import fleet_log
from controlplane.database.engine import Database, open_database
from controlplane.database.schema import data_keys, erasures, tenants, voiceprints, voices
from controlplane.erasure_rules import ErasureRules
from controlplane.fleet import Acknowledgement, Fleet, SnapshotBegins, SnapshotEnds, SnapshotPage
from controlplane.fleet_log import Change
from controlplane.fleet_rows import FleetTables
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import NODE, RELAY, LeaseRules, LeaseTimes, NodeReport
from controlplane.leases import SqlRows, SqlTables
from controlplane.proving import settle
from runtime.clock import SteppedClock
from runtime.errors import SpeakerdError
from tests.simulator.planes import Redis
from tests.simulator.quiet import Unmeasured
from tests.simulator.tables import MemoryRows, MemoryTables

MODEL = "m@1"
TIMES = LeaseTimes(node_lease_s=9.0, lease_s=10.0, renew_s=2.0, hold_s=4.0)
VOICES = [VoiceAddress("t", f"v{index}") for index in range(4)]
STEPS = 120


class Side:
    """A fleet over one kind of tables. What tenants do to voices is written in each kind's own way."""

    def __init__(self, tables: FleetTables, clock: SteppedClock) -> None:
        self.tables = tables
        self.rules = ErasureRules()
        self.fleet = Fleet(
            rules=LeaseRules(TIMES),
            tables=tables,
            keys=None,  # type: ignore[arg-type]
            registry=Redis(clock.lease_now_s),
            clock=clock,
            metrics=Unmeasured(),  # type: ignore[arg-type]
            probe=_nobody,
            keep_only=_nothing,
            reconcile_s=5.0,
        )

    async def enrol(self, voice: VoiceAddress) -> None: ...
    async def erase(self, voice: VoiceAddress) -> None: ...
    async def complete(self, rows: Any, revision: int) -> None: ...

    async def prove(self) -> list[int]:
        """Complete what can be; the revisions."""
        await self.fleet.holders()
        proven = []
        async with self.tables.read() as rows:
            first = await rows.oldest_unproven()
        if first is not None:
            async with self.tables.write() as rows:
                if await settle(rows, self.rules, self.fleet.watch, first) is not None:
                    await self.complete(rows, first)
                    proven.append(first)
        return proven

    async def synced(self, incarnation: int, cursor: int, model: str) -> list[Any]:
        """What a reader is sent, without the content."""
        sent: list[Any] = []
        async for step in self.fleet.sync(incarnation, cursor, model):
            if isinstance(step, SnapshotBegins | SnapshotEnds):
                sent.append(step)
            else:
                items = step.holdings if isinstance(step, SnapshotPage) else step
                sent += [(item.revision, item.voice, item.generation, item.change) for item in items]
        return sent

    async def view(self) -> list[Any]:
        """Everything that a decision could stand on."""
        async with self.tables.read() as rows:
            head = await rows.head()
            seen: list[Any] = [head.revision, head.incarnation, await rows.floor(), await rows.oldest_unproven()]
            for cursor in range(head.revision + 1):
                seen.append(await rows.unapplied_since_s(cursor))
                seen.append([_shape(sealed) for sealed in await rows.changes_after(cursor, MODEL, 3)])
            after = None
            while page := await rows.held_after(MODEL, after, 2):
                seen.append([_shape(sealed) for sealed in page])
                after = page[-1].voice
            seen.append(await rows.holders())
            for node_id in ("n0", "n1", "relay"):
                seen.append(await rows.of_node(node_id))
        return seen


class InMemory(Side):
    tables: MemoryTables

    async def enrol(self, voice: VoiceAddress) -> None:
        async with self.tables.write() as rows:
            rows.enrol(voice)

    async def erase(self, voice: VoiceAddress) -> None:
        async with self.tables.write() as rows:
            rows.erase(voice)

    async def complete(self, rows: MemoryRows, revision: int) -> None:
        rows.complete(rows.state.erasures[revision])


class InSql(Side):
    """The statements that decide what nodes hold, without sound, consent or keys."""

    def __init__(self, tables: FleetTables, clock: SteppedClock, database: Database) -> None:
        super().__init__(tables, clock)
        self.database = database

    async def enrol(self, voice: VoiceAddress) -> None:
        where = (voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
        async with self.database.write() as connection:
            row = (await connection.execute(voices.select().where(*where))).one_or_none()
            if row is not None and row.state in ("erasing", "erased"):
                return
            generation = 1 if row is None else int(row.generation) + 1
            if row is None:
                await connection.execute(
                    insert(voices).values(
                        tenant_id=voice.tenant_id,
                        voice_id=voice.voice_id,
                        generation=1,
                        state="pending",
                        state_reason="",
                        label_ciphertext=b"label",
                        net_speech_ms=0,
                        model=MODEL,
                        revision=0,
                        created_at_s=0.0,
                        updated_at_s=0.0,
                    )
                )
                await connection.execute(
                    insert(data_keys).values(
                        tenant_id=voice.tenant_id, voice_id=voice.voice_id, wrapped=b"key", created_at_s=0.0
                    )
                )
            await connection.execute(
                voiceprints.delete().where(
                    voiceprints.c.tenant_id == voice.tenant_id, voiceprints.c.voice_id == voice.voice_id
                )
            )
            await connection.execute(
                insert(voiceprints).values(
                    tenant_id=voice.tenant_id,
                    voice_id=voice.voice_id,
                    model=MODEL,
                    generation=generation,
                    net_speech_ms=1_000,
                    ciphertext=b"print",
                )
            )
            now_s = await self.database.lease_now_s(connection)
            revision = await fleet_log.append(connection, Change.ENROLL, voice, generation, now_lease_s=now_s)
            await connection.execute(update(voices).where(*where).values(generation=generation, revision=revision))

    async def erase(self, voice: VoiceAddress) -> None:
        where = (voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
        async with self.database.write() as connection:
            row = (await connection.execute(voices.select().where(*where))).one_or_none()
            if row is None or row.state in ("erasing", "erased"):
                return
            generation = int(row.generation) + 1
            now_s = await self.database.lease_now_s(connection)
            revision = await fleet_log.append(connection, Change.EVICT, voice, generation, now_lease_s=now_s)
            await connection.execute(
                update(voices).where(*where).values(state="erasing", generation=generation, revision=revision)
            )
            await connection.execute(
                insert(erasures).values(
                    audit_id=f"e_{revision}",
                    tenant_id=voice.tenant_id,
                    voice_id=voice.voice_id,
                    generation=generation,
                    revision=revision,
                    trigger_kind="user_request",
                    state="erasing",
                    requested_at_s=0.0,
                    nodes="[]",
                    residual_node_ids="[]",
                    blob_bytes_deleted=0,
                    blobs_pending=False,
                    source="api",
                    trigger_user="",
                    key_id="k",
                    replicas_evicted=0,
                    journaled=False,
                    is_open=True,
                )
            )

    async def complete(self, rows: SqlRows, revision: int) -> None:
        where = erasures.c.revision == revision
        connection = rows._connection
        erased = (await connection.execute(erasures.select().where(where))).one()
        await connection.execute(update(erasures).where(where).values(state="erased"))
        await connection.execute(update(voices).where(voices.c.voice_id == erased.voice_id).values(state="erased"))


def _shape(sealed: Any) -> tuple[Any, ...]:
    """An entry without its content, and whether it has one."""
    if hasattr(sealed, "holding"):
        has_content = sealed.holding.voiceprint is not None
    else:
        has_content = sealed.print_ciphertext is not None and sealed.wrapped_key is not None
    return sealed.revision, sealed.voice, has_content


async def _nobody(_address: str) -> int | None:
    return None


async def _nothing(_addresses: Any) -> None:
    return


@asynccontextmanager
async def both(url: str, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Side, Side]]:
    async def now_s(_database: Database, _connection: Any) -> float:
        return clock.lease_now_s()

    monkeypatch.setattr(Database, "lease_now_s", now_s)
    # Content is not opened here: there is no key to open it with.
    monkeypatch.setattr(Fleet, "_opened", lambda _fleet, page: [_Unopened(sealed) for sealed in page])
    database = await open_database(url, clock, lease_s=TIMES.lease_s)
    try:
        async with database.write() as connection:
            await connection.execute(insert(tenants).values(tenant_id="t", created_at_s=0.0))
            await connection.execute(text("UPDATE fleet_head SET epoch = 'history'"))
        memory = InMemory(MemoryTables(clock.lease_now_s), clock)
        yield InSql(SqlTables(database), clock, database), memory
    finally:
        await database.close()


class _Unopened:
    def __init__(self, sealed: Any) -> None:
        known = getattr(sealed, "holding", sealed)
        self.revision, self.voice = known.revision, known.voice
        self.generation, self.change = known.generation, known.change
        self.voiceprint = self  # every voice of a snapshot has one


class Caller:
    """Draws calls, and makes each on both sides."""

    def __init__(self, random: Random, clock: SteppedClock, sides: tuple[Side, Side]) -> None:
        self.random = random
        self.clock = clock
        self.sides = sides
        # (node id, process id, kind) and where each stands by its own account.
        self.holders = [("n0", "p0", NODE), ("n1", "p1", NODE), ("n1", "p2", NODE), ("relay", "p3", RELAY)]
        self.at: dict[str, tuple[int, int]] = {}

    async def step(self) -> str:
        random = self.random
        kind = random.choice(
            ("renew",) * 4 + ("enrol", "enrol", "erase", "acknowledge", "sync", "wait", "prove", "fence")
        )
        voice = random.choice(VOICES)
        match kind:
            case "enrol":
                await self.same(kind, lambda side: side.enrol(voice))
            case "erase":
                await self.same(kind, lambda side: side.erase(voice))
            case "wait":
                self.clock.step(random.choice((0.5, 2.0, 5.0, 11.0)))
            case "prove":
                await self.same(kind, lambda side: side.prove())
            case "fence":
                await self.same(kind, lambda side: side.fleet._reconcile_once())
            case "renew":
                await self.renew()
            case "acknowledge":
                incarnation, cursor = self.random.randrange(1, 12), self.random.randrange(12)
                told = [Acknowledgement(incarnation, incarnation, cursor)]
                await self.same(kind, lambda side: side.fleet.acknowledged_all(told))
            case "sync":
                node_id, process_id, _ = random.choice(self.holders)
                incarnation, cursor = self.at.get(process_id, (0, 0))
                model = "" if node_id == "relay" else MODEL
                await self.same(kind, lambda side: side.synced(incarnation, cursor, model))
        return kind

    async def renew(self) -> None:
        node_id, process_id, kind = self.random.choice(self.holders)
        incarnation, cursor = self.at.get(process_id, (0, 0))
        state = self.random.choice(("joining", "serving", "serving", "serving", "draining", "fenced"))
        cursor += self.random.randrange(3)
        report = NodeReport(
            node_id, process_id, incarnation, cursor, 0, bytes(32), "a:1", MODEL, state, kind, "history"
        )
        found = await self.same("renew", lambda side: side.fleet.renew(report))
        if isinstance(found, tuple):
            self.at[process_id] = (0, 0)
        else:
            self.at[process_id] = (found.incarnation, min(cursor, found.head) if incarnation else 0)

    async def same(self, what: str, call: Any) -> Any:
        found = [await _answer(call(side)) for side in self.sides]
        assert found[0] == found[1], what
        return found[0]


async def _answer(call: Any) -> Any:
    try:
        return await call
    except SpeakerdError as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_sql_and_memory_give_the_same_answers_to_the_same_calls(
    database: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (
        f"sqlite+aiosqlite:///{tmp_path / 'speakerd.db'}"
        if database == "sqlite"
        else request.getfixturevalue("postgresql_url")
    )
    clock = SteppedClock()
    async with both(url, clock, monkeypatch) as sides:
        caller = Caller(Random(seed), clock, sides)
        told = set()
        for number in range(STEPS):
            told.add(await caller.step())
            if number % 10 == 9:
                assert await sides[0].view() == await sides[1].view(), f"after {number + 1} calls"
        assert len(told) > 6


async def test_incarnations_that_were_fenced_long_ago_make_room_those_that_never_said_that_they_forgot_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.leases.FENCED_KEPT", 2)
    monkeypatch.setattr("controlplane.leases.UNWIPED_KEPT", 3)
    clock = SteppedClock()
    async with both(f"sqlite+aiosqlite:///{tmp_path / 'speakerd.db'}", clock, monkeypatch) as (sql, _):
        for number in range(8):
            joined = NodeReport(f"n{number}", "p", 0, 0, 0, bytes(32), "a:1", MODEL, "joining")
            incarnation = (await sql.fleet.renew(joined)).incarnation
            if number % 2:  # every other one says that it has let go; the others fall silent
                await sql.fleet.renew(replace(joined, incarnation=incarnation, state="fenced"))
        await sql.fleet.holders()
        clock.step(11.0)
        await sql.fleet._reconcile_once()
        await sql.fleet.renew(NodeReport("n9", "p", 0, 0, 0, bytes(32), "a:1", MODEL, "joining"))
        async with sql.tables.read() as rows:
            kept = [lease for number in range(10) for lease in await rows.of_node(f"n{number}")]
    assert [(lease.incarnation, lease.fenced, lease.wiped) for lease in kept] == [
        (3, True, False),
        (5, True, False),
        (6, True, True),
        (7, True, False),
        (8, True, True),
        (9, False, False),
    ]

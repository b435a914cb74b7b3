"""The fleet's tables in memory: the twin of `controlplane.leases.SqlTables`, held to it by a suite that runs both.

A transaction here never waits, so that it is atomic as the database's are; one that raises leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.fleet_log import Change
from controlplane.fleet_rows import Head
from controlplane.holdings import Holding, Print
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import Lease
from runtime.errors import Unavailable

FENCED_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log."""

    revision: int
    change: Change
    voice: VoiceAddress
    generation: int
    at_s: float


@dataclass(frozen=True, slots=True)
class VoiceRow:
    """A voice. state: live, withdrawn (evicted, may be enrolled again), erasing, erased."""

    voice: VoiceAddress
    generation: int
    revision: int
    state: str


@dataclass(frozen=True, slots=True)
class ErasureRow:
    """An erasure."""

    revision: int
    voice: VoiceAddress
    generation: int
    state: str
    audit_id: str = ""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What `SealedHolding` is in SQL: opened by whoever sends it."""

    holding: Holding

    @property
    def revision(self) -> int:
        return self.holding.revision

    @property
    def voice(self) -> VoiceAddress:
        return self.holding.voice

    def open(self, _keys: Any) -> Holding:
        return self.holding


@dataclass
class State:
    """Everything that survives a crash."""

    revision: int = 0
    incarnation: int = 0
    floor: int = 0
    leases: dict[int, Lease] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)
    voices: dict[VoiceAddress, VoiceRow] = field(default_factory=dict)
    erasures: dict[int, ErasureRow] = field(default_factory=dict)

    def copy(self) -> State:
        return State(
            self.revision,
            self.incarnation,
            self.floor,
            dict(self.leases),
            list(self.log),
            dict(self.voices),
            dict(self.erasures),
        )


class MemoryTables:
    """now_s: the database's clock. after_write: called with what a transaction has committed."""

    def __init__(self, now_s: Callable[[], float], *, model: str = "m@1") -> None:
        self.now_s = now_s
        self.model = model
        self.state = State()
        self.history: dict[VoiceAddress, list[Entry]] = {}

    @asynccontextmanager
    async def read(self) -> AsyncIterator[MemoryRows]:
        yield MemoryRows(self, self.state)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[MemoryRows]:
        draft = self.state.copy()
        yield MemoryRows(self, draft)
        self.state = draft


class Reached:
    """The same tables, as a process reaches them: or not, for a while."""

    def __init__(self, tables: MemoryTables, is_away: Callable[[], bool]) -> None:
        self._tables = tables
        self._is_away = is_away

    @asynccontextmanager
    async def read(self) -> AsyncIterator[MemoryRows]:
        self._require()
        async with self._tables.read() as rows:
            yield rows

    @asynccontextmanager
    async def write(self) -> AsyncIterator[MemoryRows]:
        self._require()
        async with self._tables.write() as rows:
            yield rows

    def _require(self) -> None:
        if self._is_away():
            raise Unavailable("the database is away")


class MemoryRows:
    """The rows of one transaction."""

    def __init__(self, tables: MemoryTables, state: State) -> None:
        self._tables = tables
        self.state = state

    # leases

    async def find(self, incarnation: int) -> Lease | None:
        lease = self.state.leases.get(incarnation)
        return None if lease is None or lease.fenced else lease

    async def holders(self) -> list[Lease]:
        return [lease for lease in self.state.leases.values() if not lease.fenced]

    async def of_node(self, node_id: str) -> list[Lease]:
        return [lease for lease in self.state.leases.values() if lease.node_id == node_id]

    async def add(self, lease: Lease) -> None:
        assert lease.incarnation == self.state.incarnation + 1
        self.state.incarnation = lease.incarnation
        self.state.leases[lease.incarnation] = lease

    async def put(self, lease: Lease) -> None:
        assert lease.incarnation in self.state.leases
        self.state.leases[lease.incarnation] = lease

    async def find_all(self, incarnations: Collection[int]) -> list[Lease]:
        found = [await self.find(incarnation) for incarnation in sorted(incarnations)]
        return [lease for lease in found if lease is not None]

    async def put_all(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            await self.put(lease)

    # the log

    async def now_s(self) -> float:
        return self._tables.now_s()

    async def head(self) -> Head:
        return Head(self.state.revision, self.state.incarnation, "history")

    locked_head = head

    async def floor(self) -> int:
        return self.state.floor

    async def unapplied_since_s(self, cursor: int) -> float | None:
        for entry in self.state.log[max(0, cursor - self.state.floor) :]:
            if entry.change is Change.EVICT:
                return entry.at_s
        return None

    # what nodes should hold

    def _living(self) -> list[VoiceRow]:
        return sorted((row for row in self.state.voices.values() if row.state == "live"), key=lambda row: row.revision)

    def _holding(self, row: VoiceRow) -> Sealed:
        made = Print(self._tables.model, b"", 1_000)
        return Sealed(Holding(row.revision, row.voice, row.generation, Change.ENROLL, row.voice.voice_id, made))

    async def held_after(self, model: str, after: VoiceAddress | None, limit: int) -> list[Any]:
        rows = sorted(self._living(), key=lambda row: (row.voice.tenant_id, row.voice.voice_id))
        found = [
            self._holding(row)
            for row in rows
            if after is None or (row.voice.tenant_id, row.voice.voice_id) > (after.tenant_id, after.voice_id)
        ]
        return found[:limit] if model == self._tables.model else []

    async def changes_after(self, cursor: int, model: str, limit: int) -> list[Any]:
        found = []
        for entry in self.state.log[max(0, cursor - self.state.floor) :][:limit]:
            row = self.state.voices[entry.voice]
            if entry.change is Change.ENROLL and row.state == "live" and row.generation == entry.generation:
                found.append(self._holding(row) if model == self._tables.model else _empty(entry))
            else:
                found.append(_empty(entry))
        return found

    async def oldest_unproven(self) -> int | None:
        return min((row.revision for row in self.state.erasures.values() if row.state == "erasing"), default=None)

    async def settle_pending(self, model: str, cursor: int, now_wall_s: float) -> int:
        return 0

    # the use cases' own statements, which the daemons write in SQL

    def append(self, change: Change, voice: VoiceAddress, generation: int) -> int:
        self.state.revision += 1
        entry = Entry(self.state.revision, change, voice, generation, self._tables.now_s())
        self.state.log.append(entry)
        self._tables.history.setdefault(voice, []).append(entry)
        return entry.revision

    def enrol(self, voice: VoiceAddress) -> VoiceRow | None:
        """Anew, or again; None when it is erased."""
        row = self.state.voices.get(voice)
        if row is not None and row.state in ("erasing", "erased"):
            return None
        generation = row.generation + 1 if row else 1
        revision = self.append(Change.ENROLL, voice, generation)
        enrolled = VoiceRow(voice, generation, revision, "live")
        self.state.voices[voice] = enrolled
        return enrolled

    def withdraw(self, voice: VoiceAddress) -> None:
        """Held by nobody for a while, as when a consent is withdrawn."""
        row = self.state.voices.get(voice)
        if row is not None and row.state == "live":
            revision = self.append(Change.EVICT, voice, row.generation + 1)
            self.state.voices[voice] = VoiceRow(voice, row.generation + 1, revision, "withdrawn")

    def erase(self, voice: VoiceAddress) -> ErasureRow | None:
        row = self.state.voices.get(voice)
        if row is None or row.state in ("erasing", "erased"):
            return None
        revision = self.append(Change.EVICT, voice, row.generation + 1)
        self.state.voices[voice] = VoiceRow(voice, row.generation + 1, revision, "erasing")
        erasure = ErasureRow(revision, voice, row.generation + 1, "erasing")
        self.state.erasures[revision] = erasure
        return erasure

    def complete(self, erasure: ErasureRow) -> None:
        self.state.erasures[erasure.revision] = replace(erasure, state="erased")
        self.state.voices[erasure.voice] = replace(self.state.voices[erasure.voice], state="erased")


def _empty(entry: Entry) -> Sealed:
    return Sealed(Holding(entry.revision, entry.voice, entry.generation, entry.change, None, None))

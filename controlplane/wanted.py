"""What a stream should find warm: the last revision of the voices in its scope, and the models that have them all.

In: which voices a caller may match, those asked for, and the head of the fleet log. Out: `Wanted`. It is read from SQL,
and kept for as long as the log does not grow; while it grows, what took long to read is kept for a moment longer, so
that reading never takes more than a twentieth of the time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.schema import voiceprints, voices
from controlplane.holdings import LIVE_STATES
from runtime.clock import Clock
from runtime.errors import NotFound

KEPT_MAX = 10_000
KEPT_S = 5.0
"""However quiet the log: a voice may leave by other ways than the log."""
STALE_S = 15.0
"""For so long it is still answered, while it is read anew beside."""
DUTY = 20.0
NO_SUCH_VOICE = "no such voice"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should be warm. models None: any model, for there is no voice to be warm on."""

    revision: int
    models: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Scope:
    """The voices that a caller's streams are matched against. key: the same for callers who may match the same."""

    key: Hashable
    condition: ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class _Kept:
    head: int
    read_s: float
    took_s: float
    wanted: Wanted


_Key = tuple[Hashable, frozenset[str]]


class Wanting:
    """Reads and keeps it."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._reading: dict[_Key, asyncio.Task[Wanted]] = {}

    def __repr__(self) -> str:
        return f"Wanting({len(self._kept)} kept)"

    async def of(self, scope: Scope, asked: frozenset[str], head: int) -> Wanted:
        """asked: empty for all voices in scope. head: the log as far as is known here. Raises NotFound."""
        key, now_s = (scope.key, asked), self._clock.monotonic_s()
        kept = self._kept.get(key)
        if kept is not None:
            age_s = now_s - kept.read_s
            is_good = kept.head == head or (not asked and age_s < DUTY * kept.took_s)
            if is_good and age_s < KEPT_S:
                return kept.wanted
            if is_good and age_s < STALE_S:
                self._reader(key, scope, head)
                return kept.wanted
        return await asyncio.shield(self._reader(key, scope, head))

    def _reader(self, key: _Key, scope: Scope, head: int) -> asyncio.Task[Wanted]:
        """The one reading of this that is under way: whoever asks the same meanwhile waits for the same answer."""
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read(key, scope, head), name="wanted.read")
            reading.add_done_callback(lambda done: self._have_read(key, done))
        return reading

    def _have_read(self, key: _Key, done: asyncio.Task[Wanted]) -> None:
        self._reading.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            self._kept.pop(key, None)  # whoever asks next waits, and is told why

    async def _read(self, key: _Key, scope: Scope, head: int) -> Wanted:
        began_s = self._clock.monotonic_s()
        async with self._database.read() as connection:
            wanted = await _read(connection, scope.condition, key[1])
        self._kept.pop(key, None)
        self._kept[key] = _Kept(head, began_s, self._clock.monotonic_s() - began_s, wanted)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return wanted


async def _read(connection: AsyncConnection, condition: ColumnElement[bool], asked: frozenset[str]) -> Wanted:
    in_scope = [condition, voices.c.state.in_(LIVE_STATES)]
    if asked:
        in_scope.append(voices.c.voice_id.in_(asked))
        found = await connection.execute(select(func.count(voices.c.voice_id.distinct())).where(*in_scope))
        if found.scalar_one() != len(asked):
            raise NotFound(NO_SUCH_VOICE)
    current = and_(
        voiceprints.c.tenant_id == voices.c.tenant_id,
        voiceprints.c.voice_id == voices.c.voice_id,
        voiceprints.c.generation == voices.c.generation,
    )
    # A voice without any voiceprint yet can be warm nowhere; it does not make every node cold.
    by_model = (
        await connection.execute(
            select(voiceprints.c.model, func.count(), func.max(voices.c.revision))
            .select_from(voices)
            .join(voiceprints, current)
            .where(*in_scope)
            .group_by(voiceprints.c.model)
        )
    ).all()
    if not by_model:
        return Wanted(0, None)
    num_voices = max(int(row[1]) for row in by_model)
    if len(by_model) > 1:
        counted = select(func.count()).select_from(
            select(voices.c.tenant_id, voices.c.voice_id)
            .join(voiceprints, current)
            .where(*in_scope)
            .distinct()
            .subquery()
        )
        num_voices = int((await connection.execute(counted)).scalar_one())
    complete = frozenset(row[0] for row in by_model if int(row[1]) == num_voices)
    return Wanted(max(int(row[2]) for row in by_model), complete)

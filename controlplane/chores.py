"""What has to be done now and then, by one control plane at a time: overdue licences, tombstones, and the like.

In: chores with a name and an interval. Out: their work, counted in the log. What always holds: a chore runs where the
row of its name says so, for as long as that row was taken; who dies leaves it to the next one when its time is up; a
chore is a few transactions that may be done again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import insert, or_, select, update

from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import leaders
from controlplane.pulse import Pulse, wait_s
from runtime.clock import Clock
from runtime.errors import SpeakerdError
from runtime.logs import get_logger

LEAD_INTERVALS = 3.0
"""How many intervals the lead of a chore lasts: one that takes longer than its interval keeps it."""
LEAD_BEYOND_S = 3600.0
"""Beyond its next turn it lasts no longer: who was restarted would find a daily chore led by whom he was for days."""


STOP_S = 5.0
"""How long a stop waits for the chore that is under way."""


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do. run: does it once, and says how much it did. by_all: each control plane does its own."""

    name: str
    interval_s: float
    run: Callable[[], Awaitable[int]]
    by_all: bool = False


class Chores:
    """Runs chores, each at its interval."""

    def __init__(self, database: Database, clock: Clock, chores: Sequence[Chore]) -> None:
        self._database = database
        self._clock = clock
        self._chores = tuple(chores)
        self._holder_id = secrets.token_hex(8)
        self._soon = Pulse()

    def __repr__(self) -> str:
        return f"Chores({[chore.name for chore in self._chores]})"

    async def run(self) -> None:
        """Work for ever."""
        due_s = {chore.name: self._clock.monotonic_s() for chore in self._chores}
        while True:
            now_s = self._clock.monotonic_s()
            for chore in self._chores:
                if due_s[chore.name] <= now_s:
                    due_s[chore.name] = now_s + chore.interval_s
                    await self._to_its_end(chore)
            left_s = min(due_s.values()) - self._clock.monotonic_s() if due_s else 3600.0
            await wait_s(self._soon.next(), left_s)

    async def run_all_once(self) -> dict[str, int]:
        """Each chore now, if it is ours; what each did. For tests, and for operators in a hurry."""
        return {chore.name: await self.run_once(chore) for chore in self._chores}

    async def run_once(self, chore: Chore) -> int:
        """A chore now, if it is ours; how much it did."""
        try:
            if not chore.by_all and not await self._leads(chore):
                return 0
            done = await chore.run()
        except SpeakerdError as error:
            # A database that is away, an erasure that cannot be made durable: it is tried again at the next turn.
            get_logger().warning("chore.not_done", chore=chore.name, cause=error.cause.value)
            return 0
        if done:
            get_logger().info("chore.done", chore=chore.name, count=done)
        return done

    async def _to_its_end(self, chore: Chore) -> None:
        """A chore, which a stop waits for: cut off inside the database's driver it would leave a connection behind."""
        running = asyncio.create_task(self.run_once(chore), name=f"chore.{chore.name}")
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait((running,), timeout=STOP_S)
            raise

    async def _leads(self, chore: Chore) -> bool:
        """Take or keep the lead of a chore."""
        async with self._database.write() as connection:
            now_s = await self._database.lease_now_s(connection)
            until_s = now_s + min(LEAD_INTERVALS * chore.interval_s, chore.interval_s + LEAD_BEYOND_S)
            # A lead of an earlier boot of a single machine may lie far ahead: none is longer than this.
            is_free = or_(
                leaders.c.holder_id == self._holder_id,
                leaders.c.until_lease_s < now_s,
                leaders.c.until_lease_s > until_s,
            )
            taken = await connection.execute(
                update(leaders)
                .where(leaders.c.chore == chore.name, is_free)
                .values(holder_id=self._holder_id, until_lease_s=until_s)
            )
            if taken.rowcount == 1:
                return True
            await locked_head(connection)
            known = await connection.execute(select(leaders.c.chore).where(leaders.c.chore == chore.name))
            if known.one_or_none() is not None:
                return False
            await connection.execute(
                insert(leaders).values(chore=chore.name, holder_id=self._holder_id, until_lease_s=until_s)
            )
            return True

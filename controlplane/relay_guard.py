"""The lease under which results leave through this control plane, and whom they may not name.

A relay holds a lease as nodes do, for as long as something is being relayed: an erasure waits until it has taken the
voice off its lips, or is silent for longer than it may rely on its lease. In: the fleet log, answers to renewals. Out:
whether a voice may be named, asked right before a result is written, without an await in between. What always holds:
without a lease nobody is named; nor in a stream or file that was begun under an earlier lease, for its results may
have waited in a socket while this process slept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import update

from controlplane.database.engine import Database
from controlplane.database.schema import node_leases
from controlplane.fleet import Fleet, SnapshotBegins, SnapshotEnds
from controlplane.fleet_log import Change
from controlplane.lease_rules import RELAY, NodeReport
from controlplane.metrics import Metrics
from controlplane.pulse import wait_s
from controlplane.relay_names import WITHHELD, LiveEvent, MayName, strip_event, strip_result
from runtime.clock import Clock
from runtime.errors import Unavailable
from runtime.lease import HolderState, Lease, LeaseState, Next, Renewal
from runtime.lifecycle import Tasks
from runtime.logs import get_logger
from runtime.membership import LeaseKeeper, Report
from runtime.voice_digest import VoiceDigest
from speakerd.v1 import node_pb2

BEGIN_BOUND_S = 3.0
"""How long the first to be relayed waits for the lease; without it, it goes on without names."""
IDLE_S = 10.0
"""How long the lease is kept after the last has ended."""
LOOK_S = 0.5
"""How often the log is looked at for evictions that another control plane asked for."""
_NOTHING = VoiceDigest().value()


@dataclass(frozen=True, slots=True)
class Answer:
    """A renewal, as the keeper of the lease reads it."""

    renewal: Renewal
    renew_s: float


class Relaying:
    """A stream or file that is being relayed: names leave under the lease that it began with, or not at all."""

    def __init__(self, guard: RelayGuard, incarnation: int) -> None:
        self._guard = guard
        self._incarnation = incarnation

    def __repr__(self) -> str:
        return f"Relaying(incarnation={self._incarnation})"

    def may_name(self, voice_id: str) -> bool:
        """Whether a voice may be named in this stream or file at this moment."""
        return self._guard.names_under(self._incarnation) and not self._guard.denies(voice_id)

    def result(self, result: node_pb2.FileResult) -> node_pb2.FileResult:
        """A recording's result as it may leave now; says so when the lease was lost."""
        is_stripped = strip_result(result, self.may_name)
        if is_stripped and not self._guard.names_under(self._incarnation):
            result.warnings.append(WITHHELD)
            self._guard.withheld("no_lease")
        elif is_stripped:
            self._guard.withheld("erased")
        return result

    @property
    def holds(self) -> bool:
        """Whether the lease that it began with lasts."""
        return self._guard.names_under(self._incarnation)

    def event(self, event: LiveEvent, also: MayName = lambda _: True) -> bool:
        """Make a live stream's message what may leave now, in place; whether anybody was taken out of it.

        also: what has to hold besides for a voice to be named.
        """
        is_stripped = strip_event(event, lambda voice_id: self.may_name(voice_id) and also(voice_id))
        if is_stripped:
            self._guard.withheld("erased" if self.holds else "no_lease")
        return is_stripped


class RelayGuard:
    """The lease of this process, while it relays; the holder of it and the way to who gives it."""

    def __init__(self, *, fleet: Fleet, clock: Clock, metrics: Metrics) -> None:
        self._fleet = fleet
        self._tasks: Tasks | None = None
        self._clock = clock
        self._metrics = metrics
        self._id = f"relay-{secrets.token_hex(6)}"
        self._process_id = secrets.token_hex(16)
        self._lease = Lease(clock)
        self._denied: dict[str, int] = {}
        self.evictions = 0  # how many we were told of: what was written down before one is looked at again
        self._running = 0
        self._keeping: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()
        self._is_named = asyncio.Event()
        self._idle = asyncio.Event()

    def __repr__(self) -> str:
        return f"RelayGuard({self._lease!r}, running={self._running}, denied={len(self._denied)})"

    def start(self, tasks: Tasks) -> None:
        """From here on it may be relayed. tasks: where background work is done."""
        self._tasks = tasks

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[Relaying]:
        """Something is relayed within this block: under a lease when one is to be had in time."""
        self._running += 1
        self._idle.clear()
        try:
            await self._begin()
            yield Relaying(self, self._lease.incarnation if self._lease.allows() else 0)
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()

    def anew(self) -> Relaying | None:
        """To go on under the lease of now with what is heard from now on, within `relaying`; None without a lease."""
        return Relaying(self, self._lease.incarnation) if self._lease.allows() else None

    def names_under(self, incarnation: int) -> bool:
        """Whether anybody may be named under an incarnation at this moment."""
        return incarnation != 0 and incarnation == self._lease.incarnation and self._lease.allows()

    def denies(self, voice_id: str) -> bool:
        """Whether the erasure of a voice was asked for."""
        return voice_id in self._denied

    def withheld(self, reason: str) -> None:
        """Names were withheld; counted."""
        self._metrics.relay_withheld.labels(reason).inc()

    async def close(self) -> None:
        """Give the lease back."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    # The way to who gives the lease: in this process, over SQL.

    async def renew(self, report: Report) -> Answer:
        """Take or prolong it."""
        given = await self._fleet.renew(
            NodeReport(
                node_id=self._id,
                process_id=self._process_id,
                incarnation=report.incarnation,
                cursor=report.cursor,
                num_voices=0,
                voices_digest=_NOTHING,
                address="",
                model="",
                state=report.state.name.lower(),
                kind=RELAY,
                epoch=report.epoch,
            )
        )
        # There is nothing that a relay could hold wrongly.
        renewal = Renewal(given.incarnation, given.lease_s, given.head, resync=False, epoch=given.epoch)
        return Answer(renewal, given.renew_s)

    # What the lease is held for.

    def report(self) -> Report:
        """What to say as it is renewed."""
        lease = self._lease
        state = {LeaseState.SERVING: HolderState.SERVING}.get(lease.state, HolderState.JOINING)
        return Report(lease.incarnation, lease.cursor, 0, _NOTHING, state, lease.epoch)

    async def sync(self, todo: Next) -> None:
        """Read the log to its head: whom it evicts is named no more."""
        if todo is Next.NOTHING:
            return
        if todo is Next.WIPE_AND_SYNC:
            self._lease.restart()
            self._denied.clear()
        incarnation = self._lease.incarnation
        is_whole = True
        async with aclosing(self._fleet.sync(incarnation, self._lease.cursor, "")) as steps:  # type: ignore[type-var]
            async for step in steps:
                self._lease.require(incarnation)
                match step:
                    case SnapshotBegins():
                        is_whole = False
                    case SnapshotEnds(revision):
                        is_whole = True
                        self._lease.applied(incarnation, revision)
                    case list():
                        for entry in step:
                            self._lease.require_next(incarnation, entry.revision)
                            if entry.change is Change.EVICT:
                                self._denied[entry.voice.voice_id] = entry.generation
                                self.evictions += 1
                                get_logger().info(
                                    "voice.withheld", audit_id=entry.audit_id or None, revision=entry.revision
                                )
                            elif entry.generation > self._denied.get(entry.voice.voice_id, entry.generation):
                                self._denied.pop(entry.voice.voice_id)
                            # The cursor tells of an eviction only once it is denied.
                            self._lease.applied(incarnation, entry.revision)
                    case _:
                        pass  # pages of a snapshot are for nodes
        if not is_whole:
            raise Unavailable("the fleet log broke off")
        self._lease.reconciled(incarnation)

    async def wipe(self, reason: str) -> None:
        """The lease is gone: nobody is named until there is another."""
        self._denied.clear()
        self._is_named.clear()

    def answered(self, answer: Answer) -> None:
        """Nothing beyond the lease itself."""

    async def looked(self, told: HolderState | None) -> None:
        """Let those begin who wait for the lease."""
        if self._lease.allows():
            self._is_named.set()

    async def _begin(self) -> None:
        async with self._beginning:
            if self._keeping is None or self._keeping.done():
                self._is_named.clear()
                assert self._tasks is not None, "relaying before the control plane has started"
                self._keeping = self._tasks.spawn("relay.lease", self._keep(self._tasks))
        if not self._lease.allows():
            await wait_s(self._is_named, BEGIN_BOUND_S)

    async def _keep(self, tasks: Tasks) -> None:
        """Hold the lease until nothing has been relayed for a while; then say that it is not needed."""
        self._lease = Lease(self._clock)
        keeper: LeaseKeeper[Answer] = LeaseKeeper(
            name=self._id, link=self, lease=self._lease, holder=self, clock=self._clock
        )
        keeper.start(tasks)
        watching = tasks.spawn(f"{self._id}-evictions", self._watch(keeper))
        try:
            while True:
                await self._idle.wait()
                await asyncio.sleep(IDLE_S)
                if self._idle.is_set():
                    return
        finally:
            watching.cancel()
            await keeper.leave()

    async def _watch(self, keeper: LeaseKeeper[Answer]) -> None:
        # Renewals tell of the head every two seconds; an erasure should not wait for so long.
        while True:
            await wait_s(self._fleet.changed.next(), LOOK_S)
            try:
                if self._lease.incarnation and await self._is_behind():
                    keeper.want(Next.SYNC)
            except Unavailable:
                continue  # the lease runs out by itself while the database is away

    async def _is_behind(self) -> bool:
        return await self._fleet.has_evictions_after(self._lease.cursor)


async def fence_relays_of_before(database: Database) -> None:
    """On a database that belongs to one process at a time, relays of an earlier process are gone with it."""
    if not database.is_sqlite:
        return
    async with database.write() as connection:
        await connection.execute(
            update(node_leases)
            .where(node_leases.c.kind == RELAY, node_leases.c.fenced.is_(False))
            .values(fenced=True, wiped=True)
        )

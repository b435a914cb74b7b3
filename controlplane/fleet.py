"""The fleet's use cases: renewing leases, taking heartbeats, and telling nodes what to hold.

What always holds: what is decided is decided by `controlplane.lease_rules` on the rows of one transaction, over SQL or,
in the simulator, in memory; a lease given out here ends, at the node, before this side stops waiting for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from controlplane.fleet_rows import FleetRows, FleetTables
from controlplane.holdings import Holding, SealedHolding, opened
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.lease_rules import NODE, Lease, LeaseRules, LeaseWatch, NodeReport, Refused, Renewed
from controlplane.metrics import Metrics
from controlplane.node_view import NodeView
from controlplane.pulse import Pulse
from runtime.clock import Clock
from runtime.errors import Conflict, InvalidRequest, Stale, Unavailable
from runtime.logs import get_logger

PAGE_ENTRIES = 1_000
PAGE_VOICES = 4_000
FAR_BEHIND_ENTRIES = 100_000
"""Past so many entries a snapshot is read sooner than the log."""
LOST = "this incarnation has lost its lease: forget every voice and renew with incarnation 0"

Probe = Callable[[str], Awaitable[int | None]]
"""Asks an address which incarnation lives there: None when nobody does, -1 when it does not answer in time."""
KeepOnly = Callable[[set[str]], Awaitable[None]]
"""Lets go of what is kept for addresses other than these."""


class DriftWatch(Protocol):
    """Judges what nodes say they hold."""

    def must_resync(self, report: NodeReport) -> bool:
        """Whether a node has to forget everything and read all anew."""
        ...


class Heartbeats(Protocol):
    """Where load goes."""

    async def heartbeat(self, node: NodeView) -> None:
        """Take a node's heartbeat."""
        ...


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to a renewal. lease_s: 0 means not prolonged. resync: forget everything and sync from 0."""

    incarnation: int
    lease_s: float
    renew_s: float
    head: int
    resync: bool
    epoch: str


@dataclass(frozen=True, slots=True, eq=False)
class Acknowledgement:
    """The node of a lease answered that it is at a cursor, under an incarnation: of that lease, if all is well."""

    lease: int
    incarnation: int
    cursor: int


@dataclass(frozen=True, slots=True)
class SnapshotBegins:
    """Forget everything; what follows is all there is."""

    revision: int


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """Voices to hold, all with a voiceprint of the model."""

    model: str
    holdings: list[Holding]


@dataclass(frozen=True, slots=True)
class SnapshotEnds:
    """The snapshot is complete: the cursor is its revision."""

    revision: int


class Fleet:
    """Leases and the log, over rows; load, over Redis."""

    def __init__(
        self,
        *,
        rules: LeaseRules,
        tables: FleetTables,
        keys: KeyRing,
        registry: Heartbeats,
        clock: Clock,
        metrics: Metrics,
        probe: Probe,
        keep_only: KeepOnly,
        reconcile_s: float,
    ) -> None:
        self._rules = rules
        self._tables = tables
        self._keys = keys
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._probe = probe
        self._keep_only = keep_only
        self._reconcile_s = reconcile_s
        # Given once it is there; until then nobody is told that he holds the wrong voices.
        self.drift: DriftWatch | None = None
        self.watch = LeaseWatch(clock, rules.times)
        self.changed = Pulse()
        self._acknowledging: list[Acknowledgement] = []
        self._acknowledging_in_turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Fleet({self.watch!r})"

    async def renew(self, report: NodeReport) -> Renewal:
        """Take or prolong a lease.

        Raises Stale for an incarnation that is fenced or superseded, Conflict when another living process has the id.
        """
        if not report.node_id or not report.process_id or not (report.address or report.kind != NODE):
            raise InvalidRequest("a renewal says node_id, process_id and address")
        if report.incarnation == 0:
            return await self._join(report)
        async with self._tables.write() as rows:
            now_s = await rows.now_s()
            head = await rows.head()
            lease = await rows.find(report.incarnation)
            applied = max(report.cursor, lease.joined_revision) if lease else 0
            verdict = self._rules.renewal(
                lease,
                report,
                head=head.revision,
                epoch=head.epoch,
                unapplied_since_s=await rows.unapplied_since_s(applied),
                now_s=now_s,
            )
            await self._write_down(rows, lease, verdict)
        if isinstance(verdict, Refused):
            if verdict.fence:
                self._metrics.reconcile_drift.labels("ahead").inc()
            raise Stale(LOST)
        if lease is None or (verdict.lease.cursor, verdict.lease.state) != (lease.cursor, lease.state):
            self.changed.beat()
        times = self._rules.times
        lease_s = 0.0 if verdict.is_held else times.node_lease_s
        resync = self.drift is not None and self.drift.must_resync(report)
        return Renewal(report.incarnation, lease_s, times.renew_s, head.revision, resync, head.epoch)

    async def heartbeat(self, view: NodeView) -> int:
        """Take a node's load for routing. Returns the head of the log."""
        await self._registry.heartbeat(view)
        async with self._tables.read() as rows:
            return (await rows.head()).revision

    async def sync(
        self, incarnation: int, cursor: int, model: str
    ) -> AsyncIterator[SnapshotBegins | SnapshotPage | SnapshotEnds | list[Holding]]:
        """What a node should hold after a cursor: a snapshot first when it has none, then the log up to its head.

        Raises Stale for an incarnation without a lease.
        """
        async with self._tables.read() as rows:
            lease = await rows.find(incarnation)
            if lease is None or lease.superseded:
                raise Stale(LOST)
            head = (await rows.head()).revision
            floor = await rows.floor()
            reads_whole = self._rules.reads_whole(cursor, floor=floor, head=head, far_behind=FAR_BEHIND_ENTRIES)
            if reads_whole and lease.kind != NODE:
                # A relay holds no voices. It begins before the evictions that nodes may not have applied yet, so that
                # it withholds a name which was on its way when the relay joined.
                head = self._rules.relay_begins_at(head, await rows.oldest_unproven())
        if reads_whole:
            yield SnapshotBegins(head)
            if lease.kind == NODE:
                async with aclosing(self._snapshot(model)) as pages:
                    async for page in pages:
                        yield page
            yield SnapshotEnds(head)
            cursor = head
        while True:
            async with self._tables.read() as rows:
                entries = await rows.changes_after(cursor, model, PAGE_ENTRIES)
            if not entries:
                return
            yield await asyncio.to_thread(self._opened, entries)
            cursor = entries[-1].revision

    async def _snapshot(self, model: str) -> AsyncGenerator[SnapshotPage, None]:
        """All that a node of a model should hold, page by page; each is read while the one before is opened and sent.

        Each page is a transaction of its own, so that a slow reader keeps none open. Later pages may be newer than the
        revision that the snapshot is said to be of; the log after it, which follows, says the same again or undoes it.
        """
        reading = asyncio.create_task(self._held_after(model, None), name="snapshot.page")
        try:
            while page := await reading:
                reading = asyncio.create_task(self._held_after(model, page[-1].voice), name="snapshot.page")
                # Opening thousands of ciphertexts takes longer than the event loop may stand still.
                held = [one for one in await asyncio.to_thread(self._opened, page) if one.voiceprint is not None]
                if held:
                    yield SnapshotPage(model, held)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _held_after(self, model: str, after: VoiceAddress | None) -> list[SealedHolding]:
        async with self._tables.read() as rows:
            return await rows.held_after(model, after, PAGE_VOICES)

    async def acknowledged(self, lease: Lease, incarnation: int, cursor: int) -> None:
        """A node answered a command: it is at `cursor` under `incarnation`, which counts only for that incarnation.

        Answers of other nodes that come while one is being written down are written together by the next in line.
        """
        mine = Acknowledgement(lease.incarnation, incarnation, cursor)
        self._acknowledging.append(mine)
        async with self._acknowledging_in_turn:
            if mine not in self._acknowledging:
                return
            batch, self._acknowledging = self._acknowledging, []
            try:
                await self.acknowledged_all(batch)
            except BaseException:
                # The others try again, each for itself, as the next in line.
                self._acknowledging = [*(other for other in batch if other is not mine), *self._acknowledging]
                raise

    async def acknowledged_all(self, acknowledged: Sequence[Acknowledgement]) -> None:
        """Many nodes answered commands."""
        settled: dict[str, int] = {}
        async with self._tables.write() as rows:
            head = (await rows.head()).revision
            found = {row.incarnation: row for row in await rows.find_all({said.lease for said in acknowledged})}
            told: dict[int, Lease] = {}
            for said in acknowledged:
                row = told.get(said.lease, found.get(said.lease))
                moved = self._rules.acknowledgement(row, incarnation=said.incarnation, cursor=said.cursor, head=head)
                if moved is not None:
                    told[said.lease] = moved
            await rows.put_all(list(told.values()))
            for row in told.values():
                settled[row.model] = max(row.cursor, settled.get(row.model, 0))
            for model, cursor in settled.items():
                await rows.settle_pending(model, cursor, self._clock.wall_s())
        if settled:
            self.changed.beat()

    async def holders(self) -> tuple[list[Lease], float]:
        """Every lease holder, and now on the database's clock. What is seen here is what silence is counted from."""
        async with self._tables.read() as rows:
            found, now_s = await rows.holders(), await rows.now_s()
        self.watch.look(found)
        return found, now_s

    async def look(self) -> tuple[int, list[Lease], float]:
        """The head of the log, every lease holder, and now on the database's clock: as of one moment."""
        async with self._tables.read() as rows:
            head, found, now_s = (await rows.head()).revision, await rows.holders(), await rows.now_s()
        self.watch.look(found)
        return head, found, now_s

    async def has_evictions_after(self, cursor: int) -> bool:
        """Whether the log evicts anybody after a revision."""
        async with self._tables.read() as rows:
            return await rows.unapplied_since_s(cursor) is not None

    async def serving(self) -> list[Lease]:
        """The nodes that work may be sent to."""
        found, now_s = await self.holders()
        return [lease for lease in found if lease.serves(now_s)]

    async def reconcile(self) -> None:
        """At its own rhythm: fence who is silent, and let go of what is kept for those who are gone."""
        while True:
            try:
                await self._reconcile_once()
            except Unavailable as error:
                get_logger().warning("fleet.not_reconciled", reason=str(error))
            await asyncio.sleep(self._reconcile_s)

    async def _reconcile_once(self) -> None:
        head, found, now_s = await self.look()
        if any(self.watch.is_silent(lease) for lease in found):
            await self._fence_silent()
        await self._keep_only({lease.address for lease in found})
        self._metrics.head_seq.set(head)
        nodes = [lease for lease in found if lease.kind == NODE]
        for state in ("joining", "serving", "draining"):
            self._metrics.nodes.labels(state).set(sum(lease.state == state for lease in nodes))
        serving = [lease for lease in nodes if lease.serves(now_s)]
        behind = [head - max(lease.cursor, lease.joined_revision) for lease in serving]
        self._metrics.cursor_lag.set(max([0, *behind]))
        # Each renewal sets a deadline of a lease from its coming.
        ages_s = [now_s - (lease.deadline_s - self._rules.times.lease_s) for lease in nodes]
        self._metrics.lease_age_seconds.set(max([0.0, *ages_s]))

    async def _fence_silent(self) -> None:
        async with self._tables.write() as rows:
            silent = [lease for lease in await rows.holders() if self.watch.is_silent(lease)]
            for lease in silent:
                await rows.put(replace(lease, fenced=True))
        if silent:
            self._metrics.nodes_fenced.inc(len(silent))
            get_logger().warning("fleet.fenced", node_ids=[lease.node_id for lease in silent])
            self.changed.beat()

    async def _write_down(self, rows: FleetRows, lease: Lease | None, verdict: Renewed | Refused) -> None:
        if isinstance(verdict, Refused):
            if verdict.fence and lease is not None:
                await rows.put(replace(lease, fenced=True))
            return
        assert lease is not None, "only a row is renewed"
        await rows.put(verdict.lease)
        if verdict.lease.cursor > lease.cursor or verdict.lease.state != lease.state:
            await rows.settle_pending(verdict.lease.model, verdict.lease.cursor, self._clock.wall_s())

    def _opened(self, page: Sequence[SealedHolding]) -> list[Holding]:
        return [opened(sealed, self._keys) for sealed in page]

    async def _join(self, report: NodeReport) -> Renewal:
        times = self._rules.times
        async with self._tables.read() as rows:
            of_node = await rows.of_node(report.node_id)
            others = self._rules.contenders(of_node, report, await rows.now_s())
            lost_before = self._rules.has_lost_name(of_node, report)
        for other in others:
            # A node that was killed may come back at once; one that lives keeps its name.
            if lost_before or await self._probe(other.address) in (other.incarnation, -1):
                raise Conflict(
                    f"another process holds node id {report.node_id!r}: give every node its own --node-id, or wait "
                    f"until its lease runs out ({times.lease_s:g} s)"
                )
        async with self._tables.write() as rows:
            head = await rows.locked_head()
            lease, beside = self._rules.grant(
                report,
                await rows.of_node(report.node_id),
                incarnation=head.incarnation + 1,
                head=head.revision,
                now_s=await rows.now_s(),
            )
            for row in beside:
                await rows.put(row)
            await rows.add(lease)
        get_logger().info("fleet.joined", node_id=report.node_id, incarnation=lease.incarnation, kind=lease.kind)
        self.changed.beat()
        return Renewal(
            lease.incarnation, times.node_lease_s, times.renew_s, lease.joined_revision, resync=False, epoch=head.epoch
        )

"""The fleet's use cases: renewing leases, taking heartbeats, and telling nodes what to hold.

What always holds: a lease given out here ends, at the node, before this side stops waiting for it; an incarnation that
is fenced never renews; and a node that leaves an eviction unapplied for too long is not prolonged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import fleet_log, leases
from controlplane.config import ControlPlaneSettings
from controlplane.database.engine import Database
from controlplane.holdings import Holding, SealedHolding, changes_after, desired_digest, everything
from controlplane.keys import KeyRing
from controlplane.leases import Lease, NodeReport
from controlplane.metrics import Metrics
from controlplane.pulse import Pulse
from controlplane.registry import NodeView, Registry
from runtime.clock import Clock
from runtime.errors import Conflict, InvalidRequest, Stale, Unavailable
from runtime.logs import get_logger

PAGE_ENTRIES = 1_000

Probe = Callable[[str], Awaitable[int | None]]
"""Asks an address which incarnation lives there: None when nobody does, -1 when it does not answer in time."""
KeepOnly = Callable[[set[str]], Awaitable[None]]
"""Lets go of what is kept for addresses other than these."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to a renewal. lease_s: 0 means not prolonged. resync: forget everything and sync from 0."""

    incarnation: int
    lease_s: float
    renew_s: float
    head: int
    resync: bool


@dataclass(frozen=True, slots=True)
class SnapshotBegins:
    """Forget everything; what follows is all there is."""

    revision: int
    num_voices: int


@dataclass(frozen=True, slots=True)
class SnapshotEnds:
    """The snapshot is complete: the cursor is its revision."""

    revision: int


class Fleet:
    """Leases and the log, over SQL; load, over Redis."""

    def __init__(
        self,
        *,
        settings: ControlPlaneSettings,
        database: Database,
        keys: KeyRing,
        registry: Registry,
        clock: Clock,
        metrics: Metrics,
        probe: Probe,
        keep_only: KeepOnly,
    ) -> None:
        self._settings = settings
        self._database = database
        self._keys = keys
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._probe = probe
        self._keep_only = keep_only
        # What a node of a model should hold at a revision: (revision, digest).
        self._desired: dict[str, tuple[int, bytes]] = {}
        self.changed = Pulse()

    def __repr__(self) -> str:
        return "Fleet()"

    async def renew(self, report: NodeReport) -> Renewal:
        """Take or prolong a lease.

        Raises Stale for an incarnation that is fenced or lapsed, Conflict when another living process has the node id.
        """
        if not report.node_id or not report.process_id or not report.address:
            raise InvalidRequest("a renewal says node_id, process_id and address")
        if report.incarnation == 0:
            return await self._join(report)
        async with self._database.write() as connection:
            now_s = await self._database.lease_now_s(connection)
            lease = await leases.find(connection, report.incarnation)
            current = (
                lease is not None
                and lease.node_id == report.node_id
                and lease.process_id == report.process_id
                and not lease.superseded
            )
            head = await fleet_log.head(connection)
            if lease is None or not current or lease.deadline_s < now_s:
                refused = True
            elif report.cursor > head:
                # The log was cut back, as by a restored backup: what the node holds is of another history.
                await leases.fence(connection, report.incarnation)
                refused = True
            else:
                refused = False
                if report.state == "fenced":
                    # It has let go by itself: nobody needs to wait for it.
                    await leases.fence(connection, report.incarnation, wiped=True)
                    lease_s = 0.0
                else:
                    held = await self._held(connection, lease, report, now_s)
                    lease_s = 0.0 if held else self._settings.node_lease_s
                    await leases.prolong(connection, report, None if held else now_s + self._settings.lease_s)
                    if report.cursor > lease.cursor or report.state != lease.state:
                        await leases.settle_pending(connection, report.model, report.cursor, self._clock.wall_s())
        if refused:
            raise Stale("this incarnation has lost its lease: forget every voice and renew with incarnation 0")
        self.changed.beat()
        resync = self._differs(report, head)
        return Renewal(report.incarnation, lease_s, self._settings.renew_s, head, resync)

    async def heartbeat(self, view: NodeView) -> int:
        """Take a node's load for routing. Returns the head of the log."""
        await self._registry.heartbeat(view)
        async with self._database.read() as connection:
            return await fleet_log.head(connection)

    async def sync(
        self, incarnation: int, cursor: int, model: str
    ) -> AsyncIterator[SnapshotBegins | SnapshotEnds | list[Holding]]:
        """What a node should hold after a cursor: a snapshot first when it has none, then the log up to its head.

        Raises Stale for an incarnation without a lease.
        """
        async with self._database.read() as connection:
            lease = await leases.look_up(connection, incarnation)
            if lease is None or lease.superseded:
                raise Stale("this incarnation has lost its lease: renew with incarnation 0, then sync")
            head = await fleet_log.head(connection)
            snapshot = None
            if cursor == 0 or cursor > head:
                snapshot = await everything(connection, model)
        if snapshot is not None:
            yield SnapshotBegins(head, len(snapshot))
            for start in range(0, len(snapshot), PAGE_ENTRIES):
                page = snapshot[start : start + PAGE_ENTRIES]
                # Opening a thousand ciphertexts takes longer than the event loop may stand still.
                yield await asyncio.to_thread(self._opened, page)
            yield SnapshotEnds(head)
            cursor = head
        while True:
            async with self._database.read() as connection:
                page = await changes_after(connection, cursor, model, PAGE_ENTRIES)
            if not page:
                return
            yield await asyncio.to_thread(self._opened, page)
            cursor = page[-1].revision

    async def acknowledged(self, lease: Lease, incarnation: int, cursor: int) -> None:
        """A node answered a command: it is at `cursor` under `incarnation`, which counts only for that incarnation."""
        if incarnation != lease.incarnation:
            return
        async with self._database.write() as connection:
            if cursor > await fleet_log.head(connection):
                return  # of a log that was cut back since; the node's next renewal ends its incarnation
            await leases.acknowledge(connection, incarnation, cursor)
            await leases.settle_pending(connection, lease.model, cursor, self._clock.wall_s())
        self.changed.beat()

    async def holders(self) -> tuple[list[Lease], float]:
        """Every lease holder, and now on the lease clock."""
        async with self._database.read() as connection:
            return await leases.holders(connection), await self._database.lease_now_s(connection)

    async def serving(self) -> list[Lease]:
        """The nodes that work may be sent to."""
        found, now_s = await self.holders()
        return [lease for lease in found if lease.serves(now_s)]

    async def reconcile(self) -> None:
        """Compare desired with observed, at its own rhythm: fence who is silent, and know each model's digest."""
        while True:
            try:
                await self._reconcile_once()
            except Unavailable as error:
                get_logger().warning("fleet.not_reconciled", reason=str(error))
            await asyncio.sleep(self._settings.reconcile_s)

    async def _reconcile_once(self) -> None:
        async with self._database.read() as connection:
            now_s = await self._database.lease_now_s(connection)
            found = await leases.holders(connection)
            head = await fleet_log.head(connection)
            for model in {lease.model for lease in found}:
                if self._desired.get(model, (-1, b""))[0] != head:
                    self._desired[model] = (head, await desired_digest(connection, model))
        self._desired = {model: known for model, known in self._desired.items() if model in {x.model for x in found}}
        if any(lease.deadline_s < now_s for lease in found):
            async with self._database.write() as connection:
                lost = await leases.fence_expired(connection, await self._database.lease_now_s(connection))
            get_logger().warning("fleet.fenced", node_ids=lost)
            self.changed.beat()
        await self._keep_only({lease.address for lease in found})
        self._metrics.head_seq.set(head)
        for state in ("joining", "serving", "draining"):
            self._metrics.nodes.labels(state).set(sum(lease.state == state for lease in found))

    def _opened(self, page: Sequence[SealedHolding]) -> list[Holding]:
        return [sealed.open(self._keys) for sealed in page]

    async def _join(self, report: NodeReport) -> Renewal:
        async with self._database.read() as connection:
            now_s = await self._database.lease_now_s(connection)
            others = [
                lease
                for lease in await leases.holders(connection)
                if lease.node_id == report.node_id
                and lease.process_id != report.process_id
                and not lease.superseded
                and lease.deadline_s >= now_s
            ]
            lost_before = await leases.was_superseded(connection, report.node_id, report.process_id)
        for other in others:
            # A node that was killed may come back at once; one that lives keeps its name.
            if lost_before or await self._probe(other.address) in (other.incarnation, -1):
                raise Conflict(
                    f"another process holds node id {report.node_id!r}: give every node its own --node-id, or wait "
                    f"until its lease runs out ({self._settings.lease_s:g} s)"
                )
        async with self._database.write() as connection:
            now_s = await self._database.lease_now_s(connection)
            lease = await leases.grant(connection, report, now_s + self._settings.lease_s)
        get_logger().info("fleet.joined", node_id=report.node_id, incarnation=lease.incarnation)
        self.changed.beat()
        return Renewal(
            lease.incarnation, self._settings.node_lease_s, self._settings.renew_s, lease.joined_revision, resync=False
        )

    async def _held(self, connection: AsyncConnection, lease: Lease, report: NodeReport, now_s: float) -> bool:
        # The hold rule: it bounds how long an erasure can take whatever a node does.
        applied = max(report.cursor, lease.joined_revision)
        asked_s = await fleet_log.oldest_unapplied_eviction_s(connection, applied)
        # A time in the future was written before the machine started anew: long enough ago.
        return asked_s is not None and not 0.0 <= now_s - asked_s <= self._settings.hold_s

    def _differs(self, report: NodeReport, head: int) -> bool:
        revision, digest = self._desired.get(report.model, (-1, b""))
        if report.state != "serving" or revision != report.cursor or revision != head:
            return False
        if digest == report.voices_digest:
            return False
        self._metrics.reconcile_drift.inc()
        get_logger().warning("fleet.drift", node_id=report.node_id, revision=head)
        return True

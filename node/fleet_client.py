"""A node's membership in its fleet: what a lease is held for here, and the heartbeats beside it.

In: answers of the control plane, and time. Out: calls on the log, the store and the registry of load. What always
holds: every voice is wiped, on the device too, before a new incarnation is asked for; whoever waits for this node to
serve learns of it only once the control plane knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from node.access import Access
from node.checkpoint import CheckpointSeal
from node.fleet_log import FleetLog
from node.fleet_wire import Answer
from node.load import Load, LoadGauge
from node.standing import NodeState, Standing
from node.voice_store import VoiceStore
from runtime.clock import Clock
from runtime.errors import SpeakerdError
from runtime.lease import HolderState, Lease, Next
from runtime.lifecycle import Tasks
from runtime.logs import get_logger
from runtime.membership import LeaseKeeper, Report

HEARTBEAT_S = 1.0
HEARTBEAT_GAP_S = 0.25
"""At least so long from one to the next, however many streams come and go."""


class FleetLink(Protocol):
    """Calls to the control plane."""

    async def renew(self, report: Report) -> Answer:
        """Take or prolong the lease."""
        ...

    async def heartbeat(self, report: Report, load: Load) -> int:
        """Say how loaded this node is; the head of the log."""
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...


class FleetMembership:
    """Keeps one node in its fleet. on_change: called whenever the node begins or ceases to serve."""

    def __init__(
        self,
        control_plane: FleetLink,
        *,
        lease: Lease,
        standing: Standing,
        log: FleetLog,
        store: VoiceStore,
        access: Access,
        load: LoadGauge,
        clock: Clock,
        on_change: Callable[[], Awaitable[None]],
        seal: CheckpointSeal | None = None,
    ) -> None:
        self._control_plane = control_plane
        self._lease = lease
        self._standing = standing
        self._log = log
        self._store = store
        self._access = access
        self._seal = seal
        self._load = load
        self._on_change = on_change
        self._was = NodeState.JOINING
        self._head = 0
        self._keeper = LeaseKeeper[Answer](name="fleet", link=control_plane, lease=lease, holder=self, clock=clock)
        self._beating: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"FleetMembership({self._keeper!r})"

    def start(self, tasks: Tasks) -> None:
        """Begin."""
        self._keeper.start(tasks)
        self._beating = tasks.spawn("fleet-heartbeat", self._beat())

    async def leave(self) -> None:
        """Stop, forget every voice, and say so."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        try:
            await self._keeper.leave()
        finally:
            await self._control_plane.close()

    @property
    def head(self) -> int:
        """The head of the fleet's log, as far as this node has heard."""
        return max(self._head, self._lease.cursor)

    def report(self) -> Report:
        """What the node says of itself."""
        return Report(
            incarnation=self._lease.incarnation,
            cursor=self._lease.cursor,
            num_voices=len(self._store),
            voices_digest=self._store.digest(),
            state=self._standing.state,
            epoch=self._lease.epoch,
        )

    async def sync(self, todo: Next) -> None:
        """Read the fleet's log."""
        await self._log.sync(todo)

    async def wipe(self, reason: str) -> None:
        """Forget every voice."""
        await self._log.wipe(reason)

    def answered(self, answer: Answer) -> None:
        """Take what comes with a lease."""
        self._head = answer.renewal.head
        self._access.trust_tickets_of(answer.ticket_keys)
        if self._seal is not None:
            self._seal.use(answer.checkpoint_keys)

    async def looked(self, told: HolderState | None) -> None:
        """Say that the node serves, or that it no longer does."""
        now = self._standing.state
        if now is self._was or (now is NodeState.SERVING and told is not now):
            return  # a node serves when the control plane knows it, so that streams find it at once
        get_logger().info("node.state", state=now.name.lower(), incarnation=self._lease.incarnation)
        self._was = now
        await self._beat_once()
        await self._on_change()

    async def _beat(self) -> None:
        while True:
            # A stream that has come or gone is told of sooner: what is free is given away by what was heard last.
            await asyncio.sleep(HEARTBEAT_GAP_S)
            await self._until_changed(HEARTBEAT_S - HEARTBEAT_GAP_S)
            if self._lease.incarnation:
                await self._beat_once()

    async def _until_changed(self, bound_s: float) -> None:
        changed = self._load.streams_changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound_s):
                await changed.wait()
        changed.clear()

    async def _beat_once(self) -> None:
        try:
            head = await self._control_plane.heartbeat(self.report(), self._load.now())
        except SpeakerdError:
            return  # soft state: the next one says it again
        self._head = max(self._head, head)
        if head > self._lease.cursor:
            self._keeper.want(Next.SYNC)

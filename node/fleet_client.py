"""A node's membership in its fleet: takes the lease, keeps it, reads the log, and lets go of all voices when it lapses.

In: answers of the control plane, and time. Out: calls on the lease, the log and the store. What always holds: an
answer counts only for the incarnation that asked; every voice is wiped, on the device too, before a new incarnation
is asked for; waits between attempts are bounded, and nothing but the end of the process ends the attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from node.access import Access
from node.fleet_log import FleetLog
from node.fleet_wire import ControlPlane, Report
from node.lease import Lease, Next
from node.load import LoadGauge
from node.metrics import NodeMetrics
from node.standing import NodeState, Standing
from node.voice_store import VoiceStore
from runtime.clock import Clock
from runtime.errors import SpeakerdError, Stale
from runtime.lifecycle import Tasks
from runtime.logs import get_logger

RENEW_S = 2.0
"""Until the control plane says otherwise."""
HEARTBEAT_S = 1.0
RETRY_S = 0.5
RETRY_MAX_S = 4.0
WATCH_S = 0.25
"""How often the lease is looked at. A timer would stop while the machine sleeps; the lease's clock does not."""
LEAVE_BOUND_S = 1.5


class FleetMembership:
    """Keeps one node in its fleet. on_change: called whenever the node begins or ceases to serve."""

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        lease: Lease,
        standing: Standing,
        log: FleetLog,
        store: VoiceStore,
        access: Access,
        load: LoadGauge,
        metrics: NodeMetrics,
        clock: Clock,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._control_plane = control_plane
        self._lease = lease
        self._standing = standing
        self._log = log
        self._store = store
        self._access = access
        self._load = load
        self._metrics = metrics
        self._clock = clock
        self._on_change = on_change
        self._was = NodeState.JOINING
        self._todo = Next.NOTHING
        self._sync_wanted = asyncio.Event()
        self._renew_now = asyncio.Event()
        self._letting_go = asyncio.Lock()
        self._running: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"FleetMembership({self._lease!r}, todo={self._todo.name})"

    def start(self, tasks: Tasks) -> None:
        """Begin."""
        self._running = [
            tasks.spawn("fleet-renew", self._renew()),
            tasks.spawn("fleet-sync", self._sync()),
            tasks.spawn("fleet-watch", self._watch()),
            tasks.spawn("fleet-heartbeat", self._beat()),
        ]

    async def leave(self) -> None:
        """Stop, forget every voice, and say so, so that nobody has to wait for this lease to run out."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        incarnation = self._lease.incarnation
        try:
            async with asyncio.timeout(LEAVE_BOUND_S):
                await self._let_go("drain")
                if incarnation:
                    await self._control_plane.renew(Report(incarnation, 0, 0, self._store.digest(), NodeState.FENCED))
        except (SpeakerdError, TimeoutError):
            get_logger().info("fleet.left_unheard")  # the lease runs out by itself
        finally:
            await self._control_plane.close()

    async def _renew(self) -> None:
        retry_s = RETRY_S
        while True:
            await self._let_go_if_lapsed()
            asked, sent_s = self._lease.incarnation, self._clock.lease_now_s()
            self._renew_now.clear()
            wait_s, report, told = RENEW_S, self._report(), None
            try:
                answer = await self._control_plane.renew(report)
            except Stale:
                if asked and self._lease.incarnation == asked:
                    await self._let_go("lease_lost")
                wait_s = RETRY_S
            except SpeakerdError as error:
                get_logger().warning("fleet.renew_failed", cause=error.cause.value, reason=str(error))
                wait_s, retry_s = retry_s, min(2 * retry_s, RETRY_MAX_S)
            else:
                retry_s, told = RETRY_S, report.state
                # A lease that lapsed while the answer travelled is gone, whatever the answer says.
                if self._lease.incarnation == asked and not self._lease.has_lapsed():
                    self._access.trust_tickets_of(answer.ticket_keys)
                    self._want(self._lease.renewed(sent_s, answer.renewal))
                    wait_s = min(answer.renew_s or RENEW_S, RENEW_S)
            await self._tell_change(told)
            await _first_of(self._renew_now, wait_s)

    async def _sync(self) -> None:
        while True:
            await self._sync_wanted.wait()
            self._sync_wanted.clear()
            todo, self._todo = self._todo, Next.NOTHING
            try:
                await self._log.sync(todo)
            except Stale:
                self._renew_now.set()  # the renewal learns it too, and lets go
            except SpeakerdError as error:
                get_logger().warning("fleet.sync_failed", cause=error.cause.value, reason=str(error))
                await asyncio.sleep(RETRY_S)
                self._want(todo)
            else:
                # The control plane learns at once how far this node is, and that it serves.
                self._renew_now.set()
            await self._tell_change()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self._let_go_if_lapsed()
            await self._tell_change()
            self._metrics.lease_remaining_seconds.set(self._lease.remaining_s())
            self._metrics.applied_revision.set(self._lease.cursor)
            self._metrics.incarnation.set(self._lease.incarnation)
            self._metrics.voices_warm.set(len(self._store))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._lease.incarnation:
                await self._beat_once()

    async def _beat_once(self) -> None:
        try:
            head = await self._control_plane.heartbeat(self._report(), self._load.now())
        except SpeakerdError:
            return  # soft state: the next one says it again
        if head > self._lease.cursor:
            self._want(Next.SYNC)

    def _want(self, todo: Next) -> None:
        if todo is not Next.NOTHING:
            # A wipe that is still to be done is not forgotten over a later wish.
            self._todo = Next.WIPE_AND_SYNC if Next.WIPE_AND_SYNC in (todo, self._todo) else todo
            self._sync_wanted.set()

    async def _let_go_if_lapsed(self) -> None:
        if self._lease.has_lapsed():
            get_logger().warning("lease.lapsed", incarnation=self._lease.incarnation)
            await self._let_go("lease_lost")
        else:
            async with self._letting_go:
                return  # a wipe that is being done is waited for

    async def _let_go(self, reason: str) -> None:
        # Fenced before anything is awaited: from here on nothing is named.
        if self._lease.incarnation:
            self._lease.fence()
        self._todo = Next.NOTHING
        async with self._letting_go:
            wiped = await self._log.wipe()
            self._metrics.evict.labels(reason).inc(wiped)
        self._renew_now.set()

    def _report(self) -> Report:
        return Report(
            incarnation=self._lease.incarnation,
            cursor=self._lease.cursor,
            num_voices=len(self._store),
            voices_digest=self._store.digest(),
            state=self._standing.state,
        )

    async def _tell_change(self, told: NodeState | None = None) -> None:
        """Say that the node serves, or that it no longer does. told: what the control plane was just told."""
        now = self._standing.state
        if now is self._was or (now is NodeState.SERVING and told is not now):
            return  # a node serves when the control plane knows it, so that streams find it at once
        get_logger().info("node.state", state=now.name.lower(), incarnation=self._lease.incarnation)
        self._was = now
        await self._beat_once()
        await self._on_change()


async def _first_of(event: asyncio.Event, bound_s: float) -> None:
    """Wait for an event, at most so long."""
    try:
        async with asyncio.timeout(bound_s):
            await event.wait()
    except TimeoutError:
        return

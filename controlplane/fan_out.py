"""Tells nodes of enrolments as they are written, and knows how far every node is.

In: beats (the log has grown, here or at another control plane), acknowledgements. Out: pushes of the newest entry to
the nodes that talk to this process and are behind, and a view of the fleet that others wait on. What always holds: a
node has one push under way at most, so that a fleet that is enrolled into faster than a node can answer sends it every
tenth entry or hundredth, and the node reads the others from the log in one go; acknowledgements of many nodes are one
transaction; and nothing depends on a push: a node that hears nothing learns the head from its next heartbeat.

Each control plane pushes to the nodes whose heartbeats it hears, so that control planes share the work instead of
doing it twice. A word over Redis wakes the others at once; without Redis they look once a second.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy import select

from controlplane import fleet_log
from controlplane.database.engine import Database
from controlplane.database.schema import node_leases
from controlplane.fault_points import reach
from controlplane.fleet import Acknowledgement, Fleet
from controlplane.fleet_log import Change
from controlplane.holdings import Holding, SealedHolding, changes_after, opened
from controlplane.keys import KeyRing
from controlplane.lease_rules import NODE, Lease
from controlplane.node_view import NodeView
from controlplane.nodes import Nodes
from controlplane.pulse import Pulse, wait_s
from controlplane.registry import Registry
from runtime.clock import Clock
from runtime.errors import Cause, SpeakerdError, Unavailable
from runtime.logs import get_logger

LOOK_S = 1.0
"""How often the log is looked at when nobody says that it has grown."""
GAP_S = 0.01
GATHER_S = 0.004
"""How long acknowledgements are gathered before they are written down."""
"""Looks are at least so far apart: beats that come closer together are answered by one."""
GROWN, MOVED = "grown", "moved"
"""What control planes tell each other: the log has grown, or nodes have got further."""
AGAIN_S = 1.0
"""A node that did not take a push is left to its own reading for so long."""
FIRST_HOLDER_S = 1.5
OTHER_HOLDERS_S = 0.3
"""How long an enrolment's answer waits for the first node, and then for the others."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """Who holds leases and how far they are, as SQL said a moment ago, and acknowledgements since. now_s: its clock."""

    head: int
    leases: tuple[Lease, ...]
    now_s: float

    def serving(self) -> list[Lease]:
        """The nodes that work may be sent to."""
        return [lease for lease in self.leases if lease.serves(self.now_s)]


class FanOut:
    """The worker, and what it knows."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        fleet: Fleet,
        nodes: Nodes,
        registry: Registry,
        clock: Clock,
        timed: Callable[[float], None] = lambda _: None,
    ) -> None:
        """timed: told what it took from a change being seen to each node's acknowledging it, in seconds."""
        self._database = database
        self._keys = keys
        self._fleet = fleet
        self._nodes = nodes
        self._registry = registry
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._view = FleetView(0, (), 0.0)
        self._beats = 0
        self._beat = asyncio.Event()
        self._looked = Pulse()
        self._moved = Pulse()
        self._pushing: dict[int, asyncio.Task[None]] = {}
        self._again_s: dict[int, float] = {}
        self._acks: dict[int, tuple[Lease, int]] = {}
        # What nodes answered, written down yet or not: nobody is told twice while a transaction runs.
        self._answered: dict[int, int] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._untold = ""
        self._num_waiting = 0
        self._tell_time = timed
        self._grown_s = clock.monotonic_s()  # when the log was seen to have grown to the head that is known

    def __repr__(self) -> str:
        return f"FanOut(head={self._view.head}, pushing={len(self._pushing)})"

    @property
    def view(self) -> FleetView:
        """The fleet as it was looked at last."""
        return self._view

    def head(self) -> int:
        """The head of the log as far as is known here."""
        return self._view.head

    def grown(self) -> None:
        """The log has grown by this process's doing: push, and let the other control planes know."""
        self.look()
        self._tell(GROWN)

    def look(self) -> None:
        """Something has changed: look soon."""
        self._beats += 1
        self._beat.set()

    def hear(self, message: str) -> None:
        """Another control plane says that the log has grown or that nodes have got further. Empty: something, maybe."""
        if message.startswith(self._name):
            return
        # That nodes of others have got further matters to whoever waits for them, and to nobody else.
        if MOVED not in message or self._num_waiting:
            self.look()
        self._fleet.changed.beat()

    async def held(self, revision: int, models: frozenset[str] | None = None) -> list[Lease]:
        """Wait until all that serve, of some models or of all, have applied a revision, within a bound: who has."""
        self._num_waiting += 1
        try:
            return await self._held(revision, models)
        finally:
            self._num_waiting -= 1

    async def _held(self, revision: int, models: frozenset[str] | None) -> list[Lease]:
        began_s = self._clock.monotonic_s()
        first_s: float | None = None
        while True:
            moved = self._moved.next()
            now_s = self._clock.monotonic_s()
            view = self._view
            wanted = [lease for lease in view.serving() if models is None or lease.model in models]
            holding = [lease for lease in wanted if lease.cursor >= revision]
            if holding and first_s is None:
                first_s = now_s
            is_known = view.head >= revision
            until_s = began_s + FIRST_HOLDER_S if first_s is None else first_s + OTHER_HOLDERS_S
            if (is_known and len(holding) == len(wanted)) or now_s >= until_s:
                return holding
            await wait_s(moved, until_s - now_s)

    async def silent(self) -> list[NodeView]:
        """Who may hold voices and is not heard by anybody, for a Redis that forgot them: incarnations and cursors."""
        query = select(
            node_leases.c.node_id, node_leases.c.incarnation, node_leases.c.model, node_leases.c.cursor
        ).where(node_leases.c.wiped.is_(False), node_leases.c.kind == NODE, node_leases.c.cursor > 0)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(node_leases.c.incarnation))).all()
        newest = {row.node_id: row for row in rows}
        return [
            NodeView(row.node_id, int(row.incarnation), "", row.model, "gone", int(row.cursor), 0, 0)
            for row in newest.values()
        ]

    async def run(self) -> None:
        """Work for ever."""
        while True:
            self._beat.clear()
            try:
                await self._look()
            except Unavailable as error:
                get_logger().warning("fleet.not_looked_at", reason=str(error))
            await asyncio.sleep(GAP_S)
            await wait_s(self._beat, LOOK_S)

    async def close(self) -> None:
        """Stop what is under way."""
        tasks = [task for task in (*self._pushing.values(), self._flushing, self._telling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        head, found, now_s = await self._fleet.look()
        if head > self._view.head:
            self._grown_s = self._clock.monotonic_s()
        known = {lease.incarnation: lease.cursor for lease in self._view.leases}
        # What was acknowledged since the rows were read is not forgotten over them.
        leases = tuple(replace(lease, cursor=max(lease.cursor, known.get(lease.incarnation, 0))) for lease in found)
        self._view = FleetView(head, leases, now_s)
        self._answered = {lease.incarnation: self._answered.get(lease.incarnation, 0) for lease in leases}
        self._registry.vouch({lease.incarnation for lease in self._view.serving()})
        self._again_s = {key: at_s for key, at_s in self._again_s.items() if at_s > self._clock.monotonic_s()}
        self._moved.beat()
        await self._push(self._view)

    async def _push(self, view: FleetView) -> None:
        behind = [
            lease
            for lease in view.serving()
            if max(lease.cursor, self._answered.get(lease.incarnation, 0)) < view.head
            and lease.incarnation not in self._pushing
            and lease.incarnation not in self._again_s
            and self._registry.hears(lease.node_id)
        ]
        if not behind:
            return
        newest: dict[str, SealedHolding] = {}
        async with self._database.read() as connection:
            head = await fleet_log.head(connection)
            for model in {lease.model for lease in behind}:
                entries = await changes_after(connection, head - 1, model, 1)
                if entries:
                    newest[model] = entries[0]
        for lease in behind:
            sealed = newest.get(lease.model)
            if sealed is None or (sealed.change is Change.ENROLL and sealed.print_ciphertext is None):
                continue  # nothing to hold for a node of this model: it reads past the entry by itself
            item = replace(opened(sealed, self._keys), as_of=head)
            if item.change is Change.ENROLL and item.voiceprint is None:
                continue
            task = asyncio.create_task(self._send(lease, item), name=f"push.{lease.node_id}")
            self._pushing[lease.incarnation] = task

    async def _send(self, lease: Lease, item: Holding) -> None:
        grown_s = self._grown_s
        try:
            ack = await self._nodes.push(lease, item)
            reach("push.answered")
        except SpeakerdError as error:
            self._again_s[lease.incarnation] = self._clock.monotonic_s() + AGAIN_S
            if error.cause is not Cause.STALE:
                get_logger().info("push.failed", node_id=lease.node_id, cause=error.cause.value)
        else:
            if ack.incarnation == lease.incarnation:
                self._tell_time(self._clock.monotonic_s() - grown_s)
                self._acks[lease.incarnation] = (lease, ack.cursor)
                self._answered[lease.incarnation] = ack.cursor
                if self._flushing is None or self._flushing.done():
                    self._flushing = asyncio.create_task(self._flush(), name="push.acknowledge")
        finally:
            self._pushing.pop(lease.incarnation, None)

    async def _flush(self) -> None:
        """Write down what nodes acknowledged: all that come within a moment, or while a transaction runs, are one."""
        while self._acks:
            await asyncio.sleep(GATHER_S)
            acks, self._acks = list(self._acks.values()), {}
            try:
                await self._fleet.acknowledged_all(
                    [Acknowledgement(lease.incarnation, lease.incarnation, cursor) for lease, cursor in acks]
                )
            except Unavailable as error:
                # Nodes say the same again with their next renewal.
                get_logger().warning("push.not_acknowledged", reason=str(error))
                return
            reach("push.acknowledged")
            await self._registry.advance([(lease.node_id, lease.incarnation, cursor) for lease, cursor in acks])
            reach("redis.advanced")
            cursors = {lease.incarnation: cursor for lease, cursor in acks}
            self._view = replace(
                self._view,
                leases=tuple(
                    replace(lease, cursor=max(lease.cursor, cursors.get(lease.incarnation, 0)))
                    for lease in self._view.leases
                ),
            )
            self._moved.beat()
            if any(lease.cursor < self._view.head for lease in self._view.serving()):
                self.look()
            self._tell(MOVED)

    def _tell(self, what: str) -> None:
        # One word under way at a time; that the log has grown is not lost over one that nodes have got further.
        self._untold = GROWN if GROWN in (what, self._untold) else what
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._publish(), name="wake.publish")

    async def _publish(self) -> None:
        while self._untold:
            what, self._untold = self._untold, ""
            await self._registry.publish(f"{self._name} {what} {self._view.head}")

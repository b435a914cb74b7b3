"""Control planes of a simulated fleet: the daemons' own Fleet and Proving over tables in memory, and their tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from controlplane.erasure_rules import ErasureRules
from controlplane.fleet import Fleet
from controlplane.holdings import Holding
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import NODE, Lease, LeaseRules, LeaseWatch, NodeReport
from controlplane.metrics import Metrics
from controlplane.node_view import NodeView
from controlplane.proving import LOOK_AGAIN_S, Proving, settle
from controlplane.pulse import Pulse, wait_s
from node.fleet_log import Position
from runtime.errors import SpeakerdError, Unavailable
from tests.simulator.holders import SimulatedNode, Spawner
from tests.simulator.loop import Process
from tests.simulator.network import Network
from tests.simulator.quiet import Unmeasured
from tests.simulator.tables import ErasureRow, Reached

PUSH_TIMEOUT_S = 1.5
PROBE_TIMEOUT_S = 1.0
RECONCILE_S = 5.0
METRICS = cast(Metrics, Unmeasured())


@dataclass(frozen=True, slots=True)
class Ack:
    """A node's answer to a command."""

    incarnation: int
    cursor: int


class Redis:
    """Who was heard lately, as the registry remembers it: a hint, which may be gone at any time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.heard: dict[int, float] = {}

    def flush(self) -> None:
        self.heard.clear()

    def lists(self, lease: Lease) -> bool:
        return self.heard.get(lease.incarnation, 0.0) > self._now_s() - 6.0

    async def heartbeat(self, node: NodeView) -> None:
        self.heard[node.incarnation] = self._now_s()


class Suspicion:
    """Finds that a node holds the wrong voices, now and then and for no reason."""

    def __init__(self, random: Random, network: Network) -> None:
        self._random = random
        self._network = network

    def must_resync(self, report: NodeReport) -> bool:
        is_suspect = report.state == "serving" and report.kind == NODE and self._random.random() < 0.01
        return is_suspect and self._network.faulty


class Plane:
    """One process of a control plane, from its start."""

    def __init__(
        self,
        process: Process,
        *,
        tables: Reached,
        redis: Redis,
        network: Network,
        random: Random,
        at: Callable[[str], SimulatedNode | None],
        lease_rules: LeaseRules,
        erasure_rules: ErasureRules,
        watch: LeaseWatch,
        on_erased: Callable[[ErasureRow, tuple[Lease, ...]], None],
        on_enrolled: Callable[[VoiceAddress, int], None],
    ) -> None:
        self.process = process
        self.tables = tables
        self._network = network
        self._random = random
        self._at = at
        self._rules = erasure_rules
        self._on_erased = on_erased
        self._on_enrolled = on_enrolled
        self._asked = Pulse()
        self.fleet = Fleet(
            rules=lease_rules,
            tables=tables,
            keys=None,  # type: ignore[arg-type]
            registry=redis,
            clock=process,
            metrics=METRICS,
            probe=self._probe,
            keep_only=nobody_kept,
            reconcile_s=RECONCILE_S,
        )
        self.fleet.watch = watch
        self.fleet.drift = Suspicion(random, network)
        self._proving = Proving(fleet=self.fleet, nodes=self, rules=erasure_rules)

    def start(self) -> None:
        async def begin() -> None:
            tasks = Spawner(self.process)
            tasks.spawn(f"{self.process.name}.reconcile", self.fleet.reconcile())
            tasks.spawn(f"{self.process.name}.prove", self._prove())

        Spawner(self.process).spawn(f"{self.process.name}.begin", begin())

    def ask(self, what: Callable[[VoiceAddress], Awaitable[None]], voice: VoiceAddress) -> None:
        """A tenant asks for something, which may be refused while the database is away."""

        async def answer() -> None:
            try:
                await what(voice)
            except Unavailable:
                return

        Spawner(self.process).spawn(f"{self.process.name}.ask", answer())

    async def enrol(self, voice: VoiceAddress) -> None:
        """Enrol, answer, and send it to all that serve; whoever sends may be slow."""
        async with self.tables.write() as rows:
            row = rows.enrol(voice)
        if row is None:
            return
        self._on_enrolled(voice, row.revision)
        await self.warm(voice)

    async def warm(self, voice: VoiceAddress) -> None:
        """Send a voice to all that serve, as it is now."""
        for lease in await self.fleet.serving():
            async with self.tables.read() as rows:
                head = (await rows.head()).revision
                living = await rows.held_after("m@1", None, 1_000)
                found = [sealed.holding for sealed in living if sealed.holding.voice == voice]
            for item in found:
                self.process.start(self._send(lease, item, head), f"warm {voice.voice_id}")

    async def withdraw(self, voice: VoiceAddress) -> None:
        async with self.tables.write() as rows:
            rows.withdraw(voice)

    async def erase(self, voice: VoiceAddress) -> None:
        async with self.tables.write() as rows:
            rows.erase(voice)
        self._asked.beat()

    async def push(self, lease: Lease, item: Holding, as_of: int = 0) -> Ack:
        """controlplane.nodes.Nodes.push over the simulated network."""
        node = self._at(lease.address)
        if node is None:
            await asyncio.sleep(0.002)
            raise Unavailable("nobody listens")
        position = Position(lease.incarnation, item.revision, as_of)
        incarnation, cursor = await self._network.call(
            self.process, node.process, "push", lambda: node.take(item, position), timeout_s=PUSH_TIMEOUT_S
        )
        return Ack(incarnation, cursor)

    async def _send(self, lease: Lease, item: Holding, as_of: int) -> None:
        if self._network.faulty and self._random.random() < 0.3:
            await asyncio.sleep(self._random.choice((0.5, 3.0, 25.0)))
        try:
            ack = await self.push(lease, item, as_of)
            await self.fleet.acknowledged(lease, ack.incarnation, ack.cursor)
        except SpeakerdError:
            return

    async def _probe(self, address: str) -> int | None:
        node = self._at(address)
        if node is None:
            return None

        async def answer() -> int:
            return node.lease.incarnation

        try:
            return await self._network.call(self.process, node.process, "probe", answer, timeout_s=PROBE_TIMEOUT_S)
        except Unavailable:
            return -1

    async def _prove(self) -> None:
        """The rhythm of the daemon's worker."""
        while True:
            woken, asked = self.fleet.changed.next(), self._asked.next()
            is_busy = True
            try:
                async with self.tables.read() as rows:
                    erasing = [row for row in rows.state.erasures.values() if row.state == "erasing"]
                is_busy = bool(erasing)
                await self._proving.turn(erasing, self._finish)
            except Unavailable:
                is_busy = True
            if is_busy:
                await wait_s(woken, LOOK_AGAIN_S)
            else:
                await wait_s(asked, RECONCILE_S)

    async def _finish(self, erasure: ErasureRow) -> None:
        async with self.tables.write() as rows:
            if rows.state.erasures[erasure.revision].state != "erasing":
                return
            settlement = await settle(rows, self._rules, self.fleet.watch, erasure.revision)
            if settlement is None:
                return
            rows.complete(erasure)
        self._on_erased(erasure, settlement.applied)


async def nobody_kept(_addresses: Any) -> None:
    return

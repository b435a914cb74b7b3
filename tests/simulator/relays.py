"""A relay of a simulated fleet: results pass through it on their way out, and it withholds names of the erased."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from controlplane.fleet import SnapshotBegins, SnapshotEnds
from controlplane.fleet_log import Change
from controlplane.lease_rules import RELAY, NodeReport
from node.fleet_wire import Answer
from runtime.errors import Unavailable
from runtime.lease import HolderState, Lease, Next
from runtime.membership import LeaseKeeper, Report
from tests.simulator.holders import Link, Spawner
from tests.simulator.loop import Process
from tests.simulator.network import Network


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream through the relay. incarnation: the relay's when it was opened; 0: nobody is named in it."""

    incarnation: int


class SimulatedRelay:
    """One process of a relay."""

    def __init__(
        self,
        process: Process,
        *,
        node_id: str,
        process_id: str,
        network: Network,
        planes: list[Any],
        random: Random,
        make_lease: Callable[[Process], Lease],
        guard: Callable[[Lease], bool] = Lease.allows,
    ) -> None:
        self.process = process
        self.lease = make_lease(process)
        self._guard = guard
        self.denied: dict[str, int] = {}

        def make(report: Report) -> NodeReport:
            return NodeReport(
                node_id,
                process_id,
                report.incarnation,
                report.cursor,
                0,
                bytes(32),
                "",
                "",
                report.state.name.lower(),
                RELAY,
                report.epoch,
            )

        self._link = Link(process, network, planes, random, make)

    def start(self) -> None:
        async def begin() -> None:
            keeper = LeaseKeeper[Answer](
                name=self.process.name, link=self._link, lease=self.lease, holder=self, clock=self.process
            )
            keeper.start(Spawner(self.process))  # type: ignore[arg-type]

        Spawner(self.process).spawn(f"{self.process.name}.begin", begin())

    def open(self) -> Opened:
        return Opened(self.lease.incarnation if self.lease.allows() else 0)

    def emits(self, opened: Opened, voice_id: str, generation: int) -> bool:
        """Whether a name leaves. In one step: nothing comes between this and the sending."""
        if not self._guard(self.lease) or opened.incarnation != self.lease.incarnation:
            return False
        return self.denied.get(voice_id, 0) <= generation

    # runtime.membership.Holder

    def report(self) -> Report:
        state = HolderState.SERVING if self.lease.allows() else HolderState.JOINING
        return Report(self.lease.incarnation, self.lease.cursor, 0, bytes(32), state, self.lease.epoch)

    async def sync(self, todo: Next) -> None:
        lease = self.lease
        if todo is Next.WIPE_AND_SYNC:
            self.denied.clear()
            lease.restart()
        incarnation = lease.incarnation
        whole = True
        async for step in self._link.steps(incarnation, lease.cursor, ""):
            lease.require(incarnation)
            if isinstance(step, SnapshotBegins):
                whole = False
            elif isinstance(step, SnapshotEnds):
                whole = True
                lease.applied(incarnation, step.revision)
            else:
                for item in step:
                    lease.require_next(incarnation, item.revision)
                    if item.change is Change.EVICT:
                        self.denied[item.voice.voice_id] = item.generation
                    lease.applied(incarnation, item.revision)
        if not whole:
            raise Unavailable("the snapshot broke off")
        lease.reconciled(incarnation)

    async def wipe(self, reason: str) -> None:
        self.denied.clear()

    def answered(self, answer: Answer) -> None:
        return

    async def looked(self, told: HolderState | None) -> None:
        return

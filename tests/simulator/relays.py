"""A relay of a simulated fleet: a control plane's own guard over what leaves through it, in a process of its own."""

from __future__ import annotations

import asyncio
from random import Random

from controlplane.fleet import Fleet
from controlplane.lease_rules import LeaseRules
from controlplane.relay_guard import RelayGuard, Relaying
from runtime.errors import Unavailable
from tests.simulator.holders import Spawner
from tests.simulator.loop import Process
from tests.simulator.planes import METRICS, RECONCILE_S, Redis, nobody_kept
from tests.simulator.tables import Reached


class SimulatedRelay:
    """One process of a relay. opened: the streams that run through it."""

    def __init__(
        self,
        process: Process,
        *,
        tables: Reached,
        redis: Redis,
        rules: LeaseRules,
        guard: type[RelayGuard],
        random: Random,
    ) -> None:
        self.process = process
        self.opened: list[Relaying] = []
        self._random = random
        self._fleet = Fleet(
            rules=rules,
            tables=tables,
            keys=None,  # type: ignore[arg-type]
            registry=redis,
            clock=process,
            metrics=METRICS,
            probe=_nobody,
            keep_only=nobody_kept,
            reconcile_s=RECONCILE_S,
        )
        self.guard = guard(fleet=self._fleet, clock=process, metrics=METRICS)

    def start(self) -> None:
        tasks = Spawner(self.process)
        self.guard.start(tasks)  # type: ignore[arg-type]
        tasks.spawn(f"{self.process.name}.streams", self._streams())

    async def _streams(self) -> None:
        """Streams come and go, some of which last longer than leases."""
        while True:
            self.process.start(self._stream(self._random.choice((1.0, 5.0, 40.0))))
            await asyncio.sleep(self._random.uniform(0.5, 3.0))

    async def _stream(self, lasts_s: float) -> None:
        try:
            async with self.guard.relaying() as relaying:
                self.opened.append(relaying)
                try:
                    await asyncio.sleep(lasts_s)
                finally:
                    self.opened.remove(relaying)
        except Unavailable:
            return


async def _nobody(_address: str) -> int | None:
    return None

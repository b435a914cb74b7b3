"""Whether a control plane may be sent work: its database answers, it is reconciled, and it knows the nodes again.

In: the database, the log's follower, the registry. Out: a verdict, looked for anew each second and whenever asked.
What always holds: liveness has no part in it; Redis being away makes nothing unready; and a control plane that has just
started waits for the nodes that hold leases to be heard, or for those leases to run out, but never for longer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from controlplane.fleet import Fleet
from controlplane.registry import Registry
from runtime.clock import Clock
from runtime.errors import Unavailable

LOOK_S = 1.0
ANSWER_S_MAX = 2.0


class Reconciled(Protocol):
    """Follows the fleet log."""

    @property
    def is_reconciled(self) -> bool:
        """Whether it has read what nodes should hold, once."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """status: "ready", "reconciling", "draining" or "unavailable" (the database is away)."""

    status: str
    nodes_serving: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether work may come."""
        return self.status == "ready"


class Readiness:
    """Looks, and remembers what it saw. warm_s: for how long, at most, nodes are waited for after the start."""

    def __init__(
        self, *, fleet: Fleet, reconciled: Reconciled, registry: Registry, clock: Clock, warm_s: float
    ) -> None:
        self._fleet = fleet
        self._reconciled = reconciled
        self._registry = registry
        self._clock = clock
        self._warm_by_s = clock.monotonic_s() + warm_s
        self._is_warm = False
        self.is_draining = False
        self.last = Verdict("reconciling")

    def __repr__(self) -> str:
        return f"Readiness({self.last.status})"

    def is_ready(self) -> bool:
        """What was seen last. May be asked on any thread."""
        return self.last.is_ready and not self.is_draining

    async def look(self) -> Verdict:
        """How it is now."""
        self.last = await self._verdict()
        return self.last

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def _verdict(self) -> Verdict:
        if self.is_draining:
            return Verdict("draining")
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                # Read from tables that the migrations make: where they answer, those have run.
                serving = await self._fleet.serving()
                if not self._is_warm:
                    heard = {(node.node_id, node.incarnation) for node in await self._registry.nodes()}
                    unheard = [lease for lease in serving if (lease.node_id, lease.incarnation) not in heard]
                    self._is_warm = not unheard or self._clock.monotonic_s() >= self._warm_by_s
        except (Unavailable, TimeoutError):
            return Verdict("unavailable")
        return Verdict("ready" if self._reconciled.is_reconciled and self._is_warm else "reconciling", len(serving))

"""Collecting the proof of erasures: evictions are pushed to whoever holds a lease, and answers are waited for.

In: the erasures that are open, looked at in turns. Out: commands to holders, and a call of `finish` for each erasure
for which nobody has to be waited for any more; whether that is so is decided again there, on one state of the leases.
What always holds: one command at a time to a holder, and none faster than the rhythm of the turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from controlplane.erasure_rules import ErasureRules, Settlement
from controlplane.fault_points import reach
from controlplane.fleet_log import Change
from controlplane.fleet_rows import LeaseRows
from controlplane.holdings import Holding
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import Lease, LeaseWatch
from runtime.errors import SpeakerdError
from runtime.logs import get_logger

LOOK_AGAIN_S = 0.5
"""How often open erasures are looked at unasked: a lease that runs out announces itself to nobody."""


class Unproven(Protocol):
    """An erasure that is open."""

    @property
    def revision(self) -> int:
        """The eviction's place in the fleet log."""
        ...

    @property
    def voice(self) -> VoiceAddress:
        """Whose it is."""
        ...

    @property
    def generation(self) -> int:
        """What is evicted, and everything older."""
        ...

    @property
    def audit_id(self) -> str:
        """What it is called, in logs too."""
        ...


class Position(Protocol):
    """A node's answer to a command."""

    @property
    def incarnation(self) -> int:
        """Under which it answered."""
        ...

    @property
    def cursor(self) -> int:
        """How far it is."""
        ...


class Commands(Protocol):
    """Sends commands to nodes."""

    async def push(self, lease: Lease, item: Holding) -> Position:
        """Send a change. Raises a SpeakerdError when there is no answer, or a refusal."""
        ...


class Holders(Protocol):
    """The fleet, as far as a proof asks."""

    watch: LeaseWatch

    async def holders(self) -> tuple[list[Lease], float]:
        """Every lease holder, and now on the database's clock."""
        ...

    async def acknowledged(self, lease: Lease, incarnation: int, cursor: int) -> None:
        """Take a node's answer."""
        ...


E = TypeVar("E", bound=Unproven)
Finish = Callable[[E], Awaitable[None]]


async def settle(rows: LeaseRows, rules: ErasureRules, watch: LeaseWatch, revision: int) -> Settlement | None:
    """Within a transaction that writes: whether an eviction is proven now. Those who are silent are fenced with it."""
    settlement = rules.settlement(await rows.holders(), revision, watch.is_silent)
    if settlement is not None:
        for lease in settlement.silent:
            await rows.put(replace(lease, fenced=True))
    return settlement


class Proving:
    """Turn by turn. node commands that are under way are tasks of their own, so that a frozen node holds up nobody."""

    def __init__(self, *, fleet: Holders, nodes: Commands, rules: ErasureRules) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._rules = rules
        self._pushing: dict[int, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"Proving(pushing={sorted(self._pushing)})"

    async def turn(self, erasing: Sequence[E], finish: Finish[E]) -> None:
        """Push what is not applied, and finish what nobody is waited for. erasing: by revision."""
        if not erasing:
            return
        holders, _ = await self._fleet.holders()
        is_silent = self._fleet.watch.is_silent
        newest = erasing[-1]
        # One command is enough for all: a node that applies the newest has applied what is before it.
        for lease in self._rules.to_push(holders, newest.revision, is_silent):
            if lease.incarnation not in self._pushing:
                self._push(lease, newest)
        for erasure in erasing:
            if self._rules.settlement(holders, erasure.revision, is_silent) is not None:
                await finish(erasure)

    async def close(self) -> None:
        """Leave off pushing; what is open is taken up by the next run."""
        pushing = list(self._pushing.values())
        for task in pushing:
            task.cancel()
        await asyncio.gather(*pushing, return_exceptions=True)

    def _push(self, lease: Lease, erasure: Unproven) -> None:
        task = asyncio.create_task(self._evict(lease, erasure), name=f"erasure.push.{lease.node_id}")
        self._pushing[lease.incarnation] = task
        task.add_done_callback(lambda _: self._pushing.pop(lease.incarnation, None))

    async def _evict(self, lease: Lease, erasure: Unproven) -> None:
        item = Holding(
            erasure.revision, erasure.voice, erasure.generation, Change.EVICT, None, None, audit_id=erasure.audit_id
        )
        try:
            ack = await self._nodes.push(lease, item)
            reach("erase.pushed")
            await self._fleet.acknowledged(lease, ack.incarnation, ack.cursor)
            reach("erase.acknowledged")
        except SpeakerdError as error:
            get_logger().info("erasure.push_failed", node_id=lease.node_id, cause=error.cause.value)
            # The next look is at the rhythm of the loop; a node that refuses at once must not turn it faster.
            await asyncio.sleep(LOOK_AGAIN_S)

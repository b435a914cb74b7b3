"""The fleet: nodes join, read the log, acknowledge, fall silent, come back; voices are enrolled and erased meanwhile.

The control plane's side is the product's, over SQL; each node's lease is the product's too. Of a voice that is called
erased, no node that may name anybody holds anything, whatever was lost or late on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from sqlalchemy import insert

from controlplane.database.engine import open_database
from controlplane.database.schema import tenants
from controlplane.fleet import SnapshotBegins, SnapshotEnds, SnapshotPage
from controlplane.fleet_log import Change
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import NodeReport
from controlplane.leases import SqlTables
from runtime.clock import SteppedClock
from runtime.errors import SpeakerdError, Stale
from runtime.lease import Lease, LeaseState, Renewal
from tests.controlplane.test_fleet_rows import MODEL, VOICES, InSql, _Unopened
from tests.machines.looping import LoopingMachine, bounded

NODES = ("n0", "n1", "n2")


@dataclass
class Node:
    """One node: its lease, and which generations it holds. process: grows with each restart."""

    node_id: str
    lease: Lease
    process: int = 0
    held: dict[VoiceAddress, int] = field(default_factory=dict)

    def report(self) -> NodeReport:
        return NodeReport(
            node_id=self.node_id,
            process_id=f"{self.node_id}-{self.process}",
            incarnation=self.lease.incarnation,
            cursor=self.lease.cursor,
            num_voices=len(self.held),
            voices_digest=bytes(32),
            address=f"{self.node_id}:1",
            model=MODEL,
            state="serving" if self.lease.state is LeaseState.SERVING else "joining",
            epoch=self.lease.epoch,
        )


class Fleet(LoopingMachine):
    async def open(self) -> None:
        self.clock = SteppedClock()
        self.database = await open_database(f"sqlite+aiosqlite:///{self.folder}/f.db", self.clock, lease_s=10.0)
        self.stack.push_async_callback(self.database.close)
        async with self.database.write() as connection:
            await connection.execute(insert(tenants).values(tenant_id="t", created_at_s=0.0))
        self.side = InSql(SqlTables(self.database), self.clock, self.database)
        # Content is not opened here: there is no key to open it with.
        self.side.fleet._opened = lambda page: [_Unopened(sealed) for sealed in page]  # type: ignore[method-assign]
        self.nodes = {name: Node(name, Lease(self.clock)) for name in NODES}
        self.erased: dict[VoiceAddress, int] = {}
        self.asked: dict[int, VoiceAddress] = {}
        self.gone: set[VoiceAddress] = set()

    @rule(voice=st.sampled_from(VOICES))
    def enrol(self, voice: VoiceAddress) -> None:
        if voice not in self.gone:
            self.run(self.side.enrol(voice))

    @rule(voice=st.sampled_from(VOICES))
    def erase(self, voice: VoiceAddress) -> None:
        async def do() -> int:
            before = await self._head()
            await self.side.erase(voice)
            return before

        if voice not in self.gone:
            before = self.run(do())
            head = self.run(self._head())
            if head > before:
                self.gone.add(voice)
                self.asked[head] = voice

    async def _head(self) -> int:
        async with self.side.tables.read() as rows:
            return (await rows.head()).revision

    @rule(name=st.sampled_from(NODES), is_lost=st.booleans(), late_s=st.sampled_from([0.0, 1.0, 6.0]))
    def renew(self, name: str, is_lost: bool, late_s: float) -> None:
        """A renewal, whose answer may be lost, or late."""
        node = self.nodes[name]
        self._notice(node)
        asked = node.lease.ask()
        try:
            given = self.run(self.side.fleet.renew(node.report()))
        except Stale:
            if node.lease.refused(asked):
                node.lease.fence()
                node.held.clear()
            return
        except SpeakerdError:
            return
        self.clock.step(late_s)
        self._notice(node)
        if is_lost:
            return
        renewal = Renewal(given.incarnation, given.lease_s, given.head, given.resync, given.epoch)
        node.lease.answered(asked, renewal)

    @rule(name=st.sampled_from(NODES), steps=st.integers(1, 6))
    def read(self, name: str, steps: int) -> None:
        """The log, or as much of it as comes before it breaks off."""
        node = self.nodes[name]
        self._notice(node)
        if node.lease.incarnation == 0:
            return

        async def reading() -> None:
            left, in_snapshot = steps, False
            async for step in self.side.fleet.sync(node.lease.incarnation, node.lease.cursor, MODEL):
                for item in step if isinstance(step, list) else [step]:
                    if left == 0:
                        return
                    left -= 1
                    in_snapshot = self._take(node, item, in_snapshot)
            node.lease.reconciled(node.lease.incarnation)

        try:
            self.run(reading())
        except SpeakerdError:
            return

    def _take(self, node: Node, item: Any, in_snapshot: bool) -> bool:
        lease = node.lease
        match item:
            case SnapshotBegins():
                lease.restart()
                node.held.clear()
                return True
            case SnapshotPage():
                node.held |= {one.voice: one.generation for one in item.holdings}
            case SnapshotEnds(revision):
                lease.applied(lease.incarnation, revision)
                return False
            case _ if item.revision > lease.cursor:
                lease.require_next(lease.incarnation, item.revision)
                if item.change is Change.EVICT:
                    node.held.pop(item.voice, None)
                elif item.generation > node.held.get(item.voice, 0):
                    node.held[item.voice] = item.generation
                lease.applied(lease.incarnation, item.revision)
        return in_snapshot

    @rule(name=st.sampled_from(NODES), is_old=st.booleans())
    def acknowledge(self, name: str, is_old: bool) -> None:
        """A node says how far it is; perhaps in words of before."""
        node = self.nodes[name]

        async def do() -> None:
            for row in (await self.side.fleet.holders())[0]:
                if row.node_id == name:
                    said = max(0, node.lease.cursor - is_old)
                    await self.side.fleet.acknowledged(row, node.lease.incarnation, said)

        self.run(do())

    @rule(name=st.sampled_from(NODES))
    def restart(self, name: str) -> None:
        """Killed, and started again with nothing."""
        node = self.nodes[name]
        node.process += 1
        node.held.clear()
        node.lease = Lease(self.clock)

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.step(seconds)

    @rule()
    def prove(self) -> None:
        for revision in self.run(self.side.prove()):
            self.erased[self.asked[revision]] = revision

    @rule()
    def heal(self) -> None:
        """When all is well for long enough, whatever was asked for is proven: within eight rounds, mostly in one."""
        for _ in range(8):
            for name in NODES:
                self.renew(name, False, 0.0)
                self.read(name, 10_000)
                self.acknowledge(name, False)
            self.clock.step(2.0)
            self.prove()
            if set(self.erased) == set(self.asked.values()):
                break
        assert set(self.erased) == set(self.asked.values())

    def _notice(self, node: Node) -> None:
        if node.lease.has_lapsed():
            node.lease.fence()
            node.held.clear()

    @invariant()
    def nobody_who_may_name_holds_what_was_erased(self) -> None:
        for node in self.nodes.values():
            if node.lease.allows():
                assert not node.held.keys() & self.erased.keys(), (node.node_id, self.erased)


def test_nothing_that_is_called_erased_is_held_by_who_may_name() -> None:
    run_state_machine_as_test(Fleet, settings=bounded(2, 20))


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_nothing_that_is_called_erased_is_held_by_who_may_name_however_long_one_looks() -> None:
    run_state_machine_as_test(Fleet, settings=bounded(100, 60))

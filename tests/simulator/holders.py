"""Nodes of a simulated fleet: the daemons' own objects, with a gallery of nothing and a network of chance."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.fleet import SnapshotBegins, SnapshotEnds, SnapshotPage
from controlplane.fleet_log import Change
from controlplane.holdings import Holding
from controlplane.lease_rules import NODE, NodeReport
from controlplane.node_view import NodeView
from node.fleet_client import FleetMembership
from node.fleet_log import (
    Enrolment,
    Entry,
    Eviction,
    FleetLog,
    Position,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotVoices,
    Step,
)
from node.fleet_wire import HEARTBEAT_BOUND_S, RENEW_BOUND_S, Answer
from node.load import Load
from node.standing import Standing
from node.voice_store import VoiceStore
from runtime.lease import Lease, Renewal
from runtime.membership import Report
from tests.simulator.loop import Process
from tests.simulator.network import Network

if TYPE_CHECKING:
    from tests.simulator.planes import Plane

IDLE = Load(0, 4, 0, 1, 0, 0, 0.0)


@cache
def embedding_of(voice_id: str) -> np.ndarray:
    """A direction of its own for each voice, so that a row tells whose it is."""
    angle = 0.01 * int(voice_id[1:])
    return np.array([math.cos(angle), math.sin(angle)], np.float32)


class Gallery:
    """Rows on a device that takes its time. written: what lies in each row, until it is zeroed."""

    def __init__(self, random: Random) -> None:
        self.gallery = self
        self.written: dict[int, bytes] = {}
        self._random = random

    async def call(self, work: Callable[[Any], Any]) -> Any:
        if self._random.random() < 0.2:
            await asyncio.sleep(self._random.expovariate(1 / 0.03))
        return work(self)

    def put(self, row: int, embedding: np.ndarray) -> None:
        self.written[row] = embedding.tobytes()

    def zero(self, rows: list[int]) -> None:
        for row in rows:
            self.written.pop(row, None)

    def holds(self, voice_id: str) -> bool:
        return embedding_of(voice_id).tobytes() in self.written.values()


class Spawner:
    """runtime.lifecycle.Tasks of one process. A task that fails fails the run."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def spawn(self, name: str, work: Any) -> asyncio.Task[Any]:
        task = self._process.start(work, name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._process.loop.errors.append({"message": f"{task.get_name()} failed", "exception": task.exception()})


class Link:
    """Calls to whichever control plane answers; the log as a node reads it."""

    def __init__(
        self,
        process: Process,
        network: Network,
        planes: list[Plane],
        random: Random,
        make: Callable[[Report], NodeReport],
    ) -> None:
        self._process = process
        self._network = network
        self._planes = planes
        self._random = random
        self._make = make
        self._at = random.randrange(len(planes))

    @property
    def _plane(self) -> Plane:
        return self._planes[self._at]

    def _elsewhere(self) -> None:
        self._at = (self._at + 1) % len(self._planes)

    async def _call(self, kind: str, serve: Callable[[Plane], Awaitable[Any]], timeout_s: float) -> Any:
        plane = self._plane
        try:
            return await self._network.call(
                self._process, plane.process, kind, lambda: serve(plane), timeout_s=timeout_s
            )
        except Exception:
            self._elsewhere()
            raise

    async def renew(self, report: Report) -> Answer:
        renewal = await self._call("renew", lambda plane: plane.fleet.renew(self._make(report)), RENEW_BOUND_S)
        found = Renewal(renewal.incarnation, renewal.lease_s, renewal.head, renewal.resync, renewal.epoch)
        return Answer(found, renewal.renew_s, ticket_keys=(), checkpoint_keys=())

    async def heartbeat(self, report: Report, _load: Load) -> int:
        view = NodeView(self._process.name, report.incarnation, "", "m@1", "serving", report.cursor, 0, 4)
        return int(await self._call("heartbeat", lambda plane: plane.fleet.heartbeat(view), HEARTBEAT_BOUND_S))

    async def close(self) -> None:
        return

    async def steps(self, incarnation: int, cursor: int, model: str) -> AsyncIterator[Any]:
        plane = self._plane
        async for step in self._network.stream(
            self._process, plane.process, "sync", lambda: plane.fleet.sync(incarnation, cursor, model)
        ):
            yield step

    async def read(self, incarnation: int, cursor: int) -> AsyncIterator[Step]:
        async for step in self.steps(incarnation, cursor, "m@1"):
            if isinstance(step, SnapshotBegins):
                yield SnapshotBegin()
            elif isinstance(step, SnapshotEnds):
                yield SnapshotEnd(step.revision)
            elif isinstance(step, SnapshotPage):
                changes = [change_of(item) for item in step.holdings]
                yield SnapshotVoices(tuple(change for change in changes if isinstance(change, Enrolment)))
            else:
                for item in step:
                    yield Entry(item.revision, change_of(item))


def change_of(item: Holding) -> Enrolment | Eviction:
    tenant_id, voice_id = item.voice.tenant_id, item.voice.voice_id
    if item.change is Change.EVICT:
        return Eviction(tenant_id, voice_id, item.generation)
    embedding = None if item.voiceprint is None else embedding_of(voice_id)
    return Enrolment(tenant_id, voice_id, item.generation, item.label or "", embedding, 16_000)


class SimulatedNode:
    """One process of a node."""

    def __init__(
        self,
        process: Process,
        *,
        node_id: str,
        process_id: str,
        network: Network,
        planes: list[Plane],
        random: Random,
        make_lease: Callable[[Process], Lease],
    ) -> None:
        self.process = process
        self.node_id = node_id
        self.address = process.name
        self.lease = make_lease(process)
        self.standing = Standing(self.lease)
        self.device = Gallery(random)
        self.store = VoiceStore(self.device, embedding_dim=2)  # type: ignore[arg-type]

        def make(report: Report) -> NodeReport:
            return NodeReport(
                node_id,
                process_id,
                report.incarnation,
                report.cursor,
                report.num_voices,
                report.voices_digest,
                self.address,
                "m@1",
                report.state.name.lower(),
                NODE,
                report.epoch,
            )

        self.link = Link(process, network, planes, random, make)
        self.log = FleetLog(self.store, self.lease, self.link)

    def start(self) -> None:
        async def begin() -> None:
            membership = FleetMembership(
                self.link,
                lease=self.lease,
                standing=self.standing,
                log=self.log,
                store=self.store,
                access=_TrustsAll(),  # type: ignore[arg-type]
                seal=_TrustsAll(),  # type: ignore[arg-type]
                load=_Idle(),  # type: ignore[arg-type]
                clock=self.process,
                on_change=_nothing,
            )
            membership.start(Spawner(self.process))  # type: ignore[arg-type]

        Spawner(self.process).spawn(f"{self.process.name}.begin", begin())

    async def take(self, item: Holding, position: Position) -> tuple[int, int]:
        """A command, as node.rpc_node passes it on."""
        change = change_of(item)
        if isinstance(change, Eviction):
            await self.log.evict(change, position)
        else:
            await self.log.enroll(change, position)
        return self.log.incarnation, self.log.cursor

    def sayable(self) -> list[Any]:
        """Whom a result could name at this moment: the guard of node.naming, and what the store holds."""
        return self.store.voices() if self.standing.allows() else []


class _TrustsAll:
    def trust_tickets_of(self, _keys: Any) -> None:
        return

    def use(self, _keys: Any) -> None:
        return


class _Idle:
    def __init__(self) -> None:
        self.streams_changed = asyncio.Event()

    def now(self) -> Load:
        return IDLE


async def _nothing() -> None:
    return

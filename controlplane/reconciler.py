"""Desired against observed, continuously: what every node holds is judged at each renewal, and mended where it differs.

In: the log, and what nodes report with their renewals (cursor, count, digest). Out: repairs. What always holds: a node
is judged against what it should hold at its own cursor; one report that differs is a moment, two in a row are drift; a
node under doubt is warm on nothing; voices that are only missing are sent again without its streams noticing, anything
else makes the node forget everything and read all anew; and a node that drifts again and again is mended less and less
often, rather than taken out of service for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from controlplane import fleet_log
from controlplane.database.engine import Database
from controlplane.desired import Desired, Holds
from controlplane.drift import Drift, compare, compare_counts
from controlplane.fleet import Fleet
from controlplane.holdings import desired, steps_after
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import NODE, NodeReport
from controlplane.leases import SqlRows
from controlplane.metrics import Metrics
from controlplane.nodes import Nodes
from controlplane.pulse import wait_s
from controlplane.registry import Registry
from runtime.clock import Clock
from runtime.errors import SpeakerdError, Unavailable
from runtime.logs import get_logger

STRIKES = 2
STEPS_AT_ONCE = 1_000
COMPARED_MAX = 200_000
"""Of more voices only the number is compared: what differs is told by kind, not by voice."""
RESENT_MAX = 100
AGAIN_FIRST_S = 5.0
AGAIN_MAX_S = 600.0
TRIMMED_AT_ONCE = 10_000
FOLLOW_GAP_S = 0.5
"""The log is followed at most so often: what a node reports is judged at its own cursor, and can wait for that."""

Resend = Callable[[VoiceAddress, tuple[str, ...]], Awaitable[object]]
"""Sends a voice to nodes again."""


@dataclass(slots=True)
class _Suspect:
    """A node whose reports differ. must_resync: how it is to be mended is decided."""

    incarnation: int
    strikes: int = 0
    examining: asyncio.Task[None] | None = None
    must_resync: bool = False
    was_resent: bool = False


class Reconciler:
    """Judges reports, and mends. entries_kept: of the log, beyond what every lease holder has applied."""

    def __init__(
        self,
        *,
        database: Database,
        fleet: Fleet,
        nodes: Nodes,
        registry: Registry,
        resend: Resend,
        clock: Clock,
        metrics: Metrics,
        reconcile_s: float,
        entries_kept: int,
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._nodes = nodes
        self._registry = registry
        self._resend = resend
        self._clock = clock
        self._metrics = metrics
        self._reconcile_s = reconcile_s
        self._entries_kept = entries_kept
        self._desired = Desired()
        self.read = asyncio.Event()
        self._suspects: dict[str, _Suspect] = {}
        self._trusting: set[asyncio.Task[None]] = set()
        # By node id: when it may be made to start over again, and how long the pause after that is.
        self._again: dict[str, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"Reconciler({self._desired!r}, suspects={sorted(self._suspects)})"

    @property
    def is_reconciled(self) -> bool:
        """Whether it has read what nodes should hold, once."""
        return self.read.is_set()

    def must_resync(self, report: NodeReport) -> bool:
        """Judge a renewal. True: the node has to forget everything and read all anew."""
        if report.kind != NODE or report.state != "serving":
            return False
        should = self._desired.at(report.model, report.cursor)
        if should is None:
            return False
        suspect = self._suspects.get(report.node_id)
        if should.digest == report.voices_digest:
            self._trust(report, suspect)
            return False
        if suspect is None or suspect.incarnation != report.incarnation:
            suspect = self._suspects[report.node_id] = _Suspect(report.incarnation)
        suspect.strikes += 1
        if suspect.strikes < STRIKES:
            return False
        if not suspect.must_resync:
            if suspect.examining is None:
                suspect.examining = asyncio.create_task(
                    self._examine(report, should, suspect), name=f"drift.{report.node_id}"
                )
            return False
        return self._may_start_over(report.node_id, suspect)

    async def run(self) -> None:
        """Follow the log, and trim it, for ever."""
        trimmed_s = self._clock.monotonic_s()
        while True:
            moved = self._fleet.changed.next()
            try:
                await self._follow()
                if self._clock.monotonic_s() - trimmed_s >= self._reconcile_s:
                    trimmed_s = self._clock.monotonic_s()
                    await self._trim()
            except Unavailable as error:
                get_logger().warning("reconciler.delayed", reason=str(error))
            await asyncio.sleep(min(FOLLOW_GAP_S, self._reconcile_s))
            await wait_s(moved, self._reconcile_s)

    async def close(self) -> None:
        """Stop what is under way."""
        examining = [suspect.examining for suspect in self._suspects.values() if suspect.examining is not None]
        tasks = [*examining, *self._trusting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        async with self._database.read() as connection:
            head = await fleet_log.head(connection)
        if self._desired.revision < 0 or head < self._desired.revision:
            await self._read_all()
        while True:
            async with self._database.read() as connection:
                steps = await steps_after(connection, self._desired.revision, STEPS_AT_ONCE)
            if not steps:
                return
            for step in steps:
                if not self._desired.follow(step):
                    await self._read_all()  # the log was trimmed past where this process was
                    break

    async def _read_all(self) -> None:
        fresh = Desired()
        async with self._database.read() as connection:
            head = await fleet_log.head(connection)
            async for page in desired(connection):
                # Thousands of hashes take longer than the event loop may stand still.
                await asyncio.to_thread(fresh.include, page)
        fresh.begin(head)
        self._desired = fresh
        self.read.set()

    async def _trim(self) -> None:
        holders, _ = await self._fleet.holders()
        async with self._database.read() as connection:
            head = await fleet_log.head(connection)
            unproven = await SqlRows(self._database, connection, writes=False).oldest_unproven()
            first = await fleet_log.floor(connection) + 1
        below = head - self._entries_kept
        below = min([below, *(max(lease.cursor, lease.joined_revision) for lease in holders)])
        if unproven is not None:
            below = min(below, unproven - 1)
        if below < first:
            return
        async with self._database.write() as connection:
            await fleet_log.trim(connection, below=below, entries_max=TRIMMED_AT_ONCE)

    async def _examine(self, report: NodeReport, should: Holds, suspect: _Suspect) -> None:
        """Find out what differs, count it, and mend it or have it mended."""
        await self._registry.doubt(report.node_id, report.incarnation, doubted=True)
        try:
            drift = await self._drift_of(report, should)
        except SpeakerdError as error:
            get_logger().warning("drift.not_examined", node_id=report.node_id, cause=error.cause.value)
            drift = compare_counts(should.num_voices, report.num_voices)
        for kind, number in drift.by_kind().items():
            self._metrics.reconcile_drift.labels(kind).inc(number)
        get_logger().warning("fleet.drift", node_id=report.node_id, revision=report.cursor, **drift.by_kind())
        if drift.is_only_missing and len(drift.missing) <= RESENT_MAX and not suspect.was_resent:
            suspect.was_resent = True
            try:
                for voice in drift.missing:
                    await self._resend(voice, (report.node_id,))
                self._metrics.reconcile_repairs.labels("resent").inc(len(drift.missing))
            except SpeakerdError as error:
                # It reads all anew if its next reports differ still: else it would be under doubt for ever.
                get_logger().warning("drift.not_resent", node_id=report.node_id, cause=error.cause.value)
            suspect.strikes, suspect.examining = 0, None  # judged anew by its next reports
            return
        suspect.must_resync = True

    async def _drift_of(self, report: NodeReport, should: Holds) -> Drift:
        if max(report.num_voices, should.num_voices) > COMPARED_MAX:
            return compare_counts(should.num_voices, report.num_voices)
        cursor, held = await self._nodes.held(report.address)
        wanted: dict[VoiceAddress, int] = {}
        newer: set[VoiceAddress] = set()
        async with self._database.read() as connection:
            # What was told since the node was asked is not held against it.
            for step in await steps_after(connection, cursor, STEPS_AT_ONCE):
                newer.add(step.now.voice)
            async for told_page in desired(connection):
                for told in told_page:
                    if report.model in told.models:
                        wanted[told.voice] = told.generation
        for voice in newer:
            wanted.pop(voice, None)
            held.pop(voice, None)
        return await asyncio.to_thread(compare, wanted, held)

    def _may_start_over(self, node_id: str, suspect: _Suspect) -> bool:
        now_s = self._clock.monotonic_s()
        at_s, pause_s = self._again.get(node_id, (now_s, AGAIN_FIRST_S))
        if now_s < at_s:
            return False
        self._again[node_id] = (now_s + pause_s, min(2 * pause_s, AGAIN_MAX_S))
        self._metrics.reconcile_repairs.labels("resynced").inc()
        del self._suspects[node_id]
        return True

    def _trust(self, report: NodeReport, suspect: _Suspect | None) -> None:
        """It holds what it should, and counts as warm again."""
        if suspect is not None:
            if suspect.examining is not None and not suspect.examining.done():
                return  # looked at again with the next report
            del self._suspects[report.node_id]
        if self._registry.is_doubted(report.node_id):
            trusting = asyncio.create_task(
                self._registry.doubt(report.node_id, report.incarnation, doubted=False), name=f"trust.{report.node_id}"
            )
            self._trusting.add(trusting)
            trusting.add_done_callback(self._trusting.discard)

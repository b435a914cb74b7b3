"""What has to be done for an erasure after it was asked for, and is taken up again after a crash at any point.

In: the erasures that are open. Out: their records in the erasure journal, their recordings deleted, their proof, and at
last nothing left to do. What always holds: no erasure is called erased that the journal does not know; the proof rests
on SQL alone; each transition has one row of the audit, in the transaction that makes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from sqlalchemy import ColumnElement, and_, case, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import erasure_record, leases
from controlplane.blobs import Blobs
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import erasures, fleet_head, node_leases, samples
from controlplane.erasure_journal import Erased, Journal, Proven
from controlplane.erasure_rows import Erasure, erasure_of, first_entry_of
from controlplane.erasure_rules import ErasureRules
from controlplane.fault_points import reach
from controlplane.fleet import Fleet
from controlplane.keys import KeyRing
from controlplane.lease_rules import NODE
from controlplane.leases import SqlRows
from controlplane.metrics import Metrics
from controlplane.nodes import Nodes
from controlplane.proving import LOOK_AGAIN_S, Proving, settle
from controlplane.pulse import Pulse, wait_s
from controlplane.voices import Outcome
from runtime.clock import Clock
from runtime.errors import SpeakerdError, Unavailable
from runtime.logs import get_logger

SILENT = "silent: its lease ran out and it is fenced"
PAGE_ERASURES = 1_000
BLOBS_AGAIN_S = 5.0
BLOBS_BOUND_S = 0.5
"""How long recordings may hold up the proof in one turn. They are ciphertext whose key is gone already."""
RESIDUAL_LOOK_S = 2.0
IDLE_S = 5.0


class ErasureWork:
    """The worker. on_completed: called when an erasure has been proven."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        blobs: Blobs,
        journal: Journal,
        fleet: Fleet,
        nodes: Nodes,
        clock: Clock,
        metrics: Metrics,
        on_completed: Callable[[], None],
    ) -> None:
        self._database = database
        self._keys = keys
        self._blobs = blobs
        self._journal = journal
        self._fleet = fleet
        self._rules = ErasureRules()
        self._proving = Proving(fleet=fleet, nodes=nodes, rules=self._rules)
        self._clock = clock
        self._metrics = metrics
        self._on_completed = on_completed
        self._journaling = asyncio.Lock()
        self._wanted = Pulse()
        self.moved = Pulse()
        self._blobs_at_s = 0.0
        self._residual_at_s = 0.0
        # Erasures that stay open for their residual nodes, and of whose proof the journal knows.
        self._told: set[str] = set()
        # What an earlier run deleted may be in the log still.
        self._is_unscrubbed = True

    def __repr__(self) -> str:
        return f"ErasureWork({self._proving!r})"

    async def asked(self) -> None:
        """Erasures were asked for and committed: they are in the journal when this returns. Raises Unavailable."""
        self._wanted.beat()
        self._fleet.changed.beat()
        await self._write_journal()
        await self._scrub()

    async def run(self) -> None:
        """Work for ever. Begins with what an earlier run left."""
        while True:
            changed, wanted = self._fleet.changed.next(), self._wanted.next()
            is_busy = True
            try:
                is_busy = await self._turn()
            except Unavailable as error:
                get_logger().warning("erasure.delayed", reason=str(error))
            # A lease that runs out announces itself to nobody, hence the bound while something is to be proven.
            if is_busy or self._is_unscrubbed:
                await wait_s(changed, LOOK_AGAIN_S)
            else:
                await wait_s(wanted, IDLE_S)

    async def close(self) -> None:
        """Leave off pushing; what is open is taken up by the next run."""
        await self._proving.close()

    async def _turn(self) -> bool:
        """Whether there is something to look at again soon."""
        if self._is_unscrubbed:
            await self._scrub()
        found = await self._open()
        if any(not erasure.journaled for erasure in found):
            await self._write_journal()
        waiting = [erasure for erasure in found if erasure.blobs_pending]
        if waiting and self._clock.monotonic_s() >= self._blobs_at_s:
            await self._delete_blobs(waiting)
        erasing = [erasure for erasure in found if erasure.state == "erasing"]
        if erasing:
            await self._proving.turn(erasing, self._finish)
            await self._scrub()
        await self._close_proven()
        return bool(erasing or waiting)

    async def _open(self) -> list[Erasure]:
        # Those that wait for residual nodes alone may be many, and are looked at elsewhere, at a slower pace.
        pressing = or_(
            erasures.c.state == "erasing", erasures.c.blobs_pending.is_(True), erasures.c.journaled.is_(False)
        )
        query = select(erasures).where(erasures.c.is_open.is_(True), pressing)
        # Those whose recordings alone are left come last: while their store is away they may be more than a page.
        last = case((erasures.c.state == "erasing", 0), else_=1)
        async with self._database.read() as connection:
            found = [
                erasure_of(row)
                for row in await connection.execute(query.order_by(last, erasures.c.revision).limit(PAGE_ERASURES))
            ]
        erasing = [erasure for erasure in found if erasure.state == "erasing"]
        self._metrics.erasures_pending.set(len(erasing))
        oldest_s = min((erasure.requested_at_s for erasure in erasing), default=None)
        self._metrics.erasure_oldest_pending_seconds.set(
            0.0 if oldest_s is None else max(0.0, self._clock.wall_s() - oldest_s)
        )
        return found

    async def _write_journal(self) -> None:
        # One at a time: whoever comes second finds its own record written with those of the first.
        async with self._journaling:
            unwritten = and_(erasures.c.is_open.is_(True), erasures.c.journaled.is_(False))
            async with self._database.read() as connection:
                epoch = (await connection.execute(select(fleet_head.c.epoch))).scalar_one()
                query = select(erasures).where(unwritten).order_by(erasures.c.revision)
                found = [erasure_of(row) for row in await connection.execute(query)]
            if not found:
                return
            try:
                await self._journal.append([_record(self._keys, erasure, epoch) for erasure in found])
            except SpeakerdError as error:
                self._metrics.erasure_journal_failures.inc()
                raise Unavailable(
                    f"{error}; the erasure is asked for, and answered when it is in the journal"
                ) from None
            reach("erase.journaled")
            async with self._database.write() as connection:
                written = [erasure.audit_id for erasure in found]
                for start in range(0, len(written), PAGE_ERASURES):
                    page = written[start : start + PAGE_ERASURES]
                    await connection.execute(
                        update(erasures).where(erasures.c.audit_id.in_(page)).values(journaled=True)
                    )
            reach("erase.marked")

    async def _delete_blobs(self, waiting: Sequence[Erasure]) -> None:
        # Moved on only when all went well: a store that is away is not asked at every turn.
        self._blobs_at_s = self._clock.monotonic_s() + BLOBS_AGAIN_S
        try:
            async with asyncio.timeout(BLOBS_BOUND_S):
                for erasure in waiting:
                    await self._delete_blobs_of(erasure)
        except TimeoutError:
            self._blobs_at_s = self._clock.monotonic_s()  # slow, and getting on
            return
        except Unavailable as error:
            get_logger().warning("erasure.blobs_delayed", reason=str(error))
            return
        self._blobs_at_s = self._clock.monotonic_s()

    async def _delete_blobs_of(self, erasure: Erasure) -> None:
        where = (samples.c.tenant_id == erasure.voice.tenant_id, samples.c.voice_id == erasure.voice.voice_id)
        async with self._database.read() as connection:
            kept = (await connection.execute(select(samples.c.blob_key, samples.c.blob_bytes).where(*where))).all()
        for row in kept:
            await self._blobs.delete(row.blob_key)
            reach("erase.blob_deleted")
        async with self._database.write() as connection:
            await locked_head(connection)
            current = await self._locked(connection, erasure.audit_id)
            if current is None or not current.blobs_pending:
                return
            await connection.execute(delete(samples).where(*where))
            num_bytes = sum(int(row.blob_bytes) for row in kept)
            sequence = await erasure_record.blobs_deleted(
                connection, self._keys, current, num_bytes, self._clock.wall_s()
            )
        self._audited(sequence)
        reach("erase.blobs_deleted")

    async def _finish(self, erasure: Erasure) -> None:
        """Say `erased` if it is so, decided on one state of the leases; the late are fenced with it."""
        async with self._database.write() as connection:
            await locked_head(connection)
            current = await self._locked(connection, erasure.audit_id)
            if current is None or current.state != "erasing" or not current.journaled:
                return
            rows = SqlRows(self._database, connection, writes=True)
            settlement = await settle(rows, self._rules, self._fleet.watch, current.revision)
            if settlement is None:
                return
            reach("erase.settled")
            settled = [
                *((lease, "") for lease in settlement.applied),
                *((lease, SILENT) for lease in settlement.silent),
            ]
            outcomes: list[Outcome] = []
            relays: list[Outcome] = []
            for lease, error in settled:
                (outcomes if lease.kind == NODE else relays).append(Outcome(lease.node_id, ok=not error, error=error))
            first = await first_entry_of(connection, current.voice)
            residual = set(await leases.residual_nodes(connection, *first)) if first else set()
            # Those that a journal named, when this erasure is one that a restored database had forgotten.
            residual.update(current.residual_node_ids)
            answered = {outcome.node_id for outcome in outcomes}
            outcomes += [Outcome(node_id, ok=False, error=SILENT) for node_id in sorted(residual - answered)]
            now_s = self._clock.wall_s()
            sequence = await erasure_record.complete(
                connection,
                self._keys,
                current,
                outcomes=outcomes,
                relays=relays,
                residual=sorted(residual),
                now_s=now_s,
            )
            reach("erase.finishing")
        reach("erase.finished")
        self._audited(sequence)
        self._metrics.erasure_seconds.observe(max(0.0, now_s - current.requested_at_s))
        self._metrics.nodes_fenced.inc(len(settlement.silent))
        self.moved.beat()
        self._on_completed()
        get_logger().info("erasure.completed", audit_id=current.audit_id, revision=current.revision)

    async def _close_proven(self) -> None:
        """Erasures with nothing left to do but perhaps to hear of residual nodes, which are heard of now and then."""
        done = and_(
            erasures.c.is_open.is_(True),
            erasures.c.state == "erased",
            erasures.c.blobs_pending.is_(False),
            erasures.c.journaled.is_(True),
        )
        is_time = self._clock.monotonic_s() >= self._residual_at_s
        clean: ColumnElement[bool] = erasures.c.residual_node_ids == "[]"
        query = select(erasures).where(done if is_time else and_(done, clean)).limit(PAGE_ERASURES)
        async with self._database.read() as connection:
            found = [erasure_of(row) for row in await connection.execute(query)]
            fenced = select(node_leases.c.node_id).where(node_leases.c.fenced.is_(True), node_leases.c.wiped.is_(False))
            unheard = {row.node_id for row in await connection.execute(fenced.distinct())} if found else set()
        if is_time:
            self._residual_at_s = self._clock.monotonic_s() + RESIDUAL_LOOK_S
        untold = [erasure for erasure in found if erasure.audit_id not in self._told]
        if untold:
            await self._journal.append(
                [Proven(one.audit_id, one.erased_at_s or 0.0, one.residual_node_ids) for one in untold]
            )
            reach("erase.told")
            self._told.update(erasure.audit_id for erasure in untold)
        changed = [
            erasure
            for erasure in found
            if not erasure.residual_node_ids or not unheard.issuperset(erasure.residual_node_ids)
        ]
        if not changed:
            return
        async with self._database.write() as connection:
            await locked_head(connection)
            sequence = None
            for erasure in changed:
                current = await self._locked(connection, erasure.audit_id)
                if current is None or not current.is_open:
                    continue
                still = [node_id for node_id in current.residual_node_ids if node_id in unheard]
                said = await erasure_record.close(connection, self._keys, current, still, self._clock.wall_s())
                sequence = said or sequence
                if not still:
                    self._told.discard(erasure.audit_id)
        reach("erase.closed")
        self._audited(sequence)

    async def _locked(self, connection: AsyncConnection, audit_id: str) -> Erasure | None:
        query = select(erasures).where(erasures.c.audit_id == audit_id).with_for_update()
        row = (await connection.execute(query)).one_or_none()
        return None if row is None else erasure_of(row)

    async def _scrub(self) -> None:
        """The key is gone from the tables: now also from what SQLite keeps beside them, or at the next look."""
        self._is_unscrubbed = True
        try:
            self._is_unscrubbed = not await self._database.truncate_log()
        except Unavailable as error:
            get_logger().warning("erasure.not_scrubbed", reason=str(error))

    def _audited(self, sequence: int | None) -> None:
        if sequence is not None:
            self._metrics.audit_head.set(sequence)


def _record(keys: KeyRing, erasure: Erasure, epoch: str) -> Erased:
    voice = erasure.voice
    return Erased(
        audit_id=erasure.audit_id,
        tenant_id=voice.tenant_id,
        subject=keys.subject(voice.tenant_id, voice.voice_id) if voice.voice_id else "",
        generation=erasure.generation,
        revision=erasure.revision,
        epoch=epoch,
        trigger=erasure.asking.trigger,
        requested_at_s=erasure.requested_at_s,
    )

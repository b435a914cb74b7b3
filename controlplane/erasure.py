"""Erasing a voice, and proving it.

In: a voice. Out: an Erasure that is `erasing` from one transaction on (tombstone, EVICT in the fleet log, the voice's
key destroyed, audit) and `erased` once every lease holder has applied the eviction or is fenced because its lease ran
out. The proof rests on SQL alone; it is taken up again after a restart. Nodes that were fenced and may still hold the
voice in memory are named as residual.
"""

from __future__ import annotations

import json
import secrets

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit, fleet_log, leases
from controlplane.blobs import Blobs
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import erasures, samples, voices
from controlplane.erasure_rows import Erasure, destroy, erasure_of, first_entry_of, latest_of
from controlplane.erasure_rules import ErasureRules
from controlplane.fleet import Fleet
from controlplane.fleet_log import Change
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.leases import SqlRows
from controlplane.metrics import Metrics
from controlplane.nodes import Nodes
from controlplane.policy import Principal
from controlplane.proving import LOOK_AGAIN_S, Proving, settle
from controlplane.pulse import Pulse, wait_s
from controlplane.voice_lookup import NO_SUCH_VOICE
from controlplane.voices import Outcome
from runtime.clock import Clock
from runtime.errors import InvalidRequest, NotFound, Unavailable
from runtime.logs import get_logger

TRIGGERS = ("user_request", "license_revoked", "license_expired", "platform_decision")
WAIT_S_MAX = 30.0
SILENT = "silent: its lease ran out and it is fenced"
BLOBS_AGAIN_S = 5.0


class Erasures:
    """The use case, and its worker."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        blobs: Blobs,
        fleet: Fleet,
        nodes: Nodes,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._keys = keys
        self._blobs = blobs
        self._fleet = fleet
        self._rules = ErasureRules()
        self._proving = Proving(fleet=fleet, nodes=nodes, rules=self._rules)
        self._clock = clock
        self._metrics = metrics
        self._asked = Pulse()
        self._moved = Pulse()
        # What an earlier run deleted may be in the log still.
        self._is_unscrubbed = True

    def __repr__(self) -> str:
        return f"Erasures({self._proving!r})"

    async def erase(self, principal: Principal, voice_id: str, *, trigger: str, wait_s_max: float) -> Erasure:
        """Erase a voice, and wait for the proof at most so long. Repeating it gives the same one. Raises NotFound."""
        if trigger and trigger not in TRIGGERS:
            raise InvalidRequest(f"trigger: one of {', '.join(TRIGGERS)}")
        if wait_s_max > WAIT_S_MAX:
            raise InvalidRequest(f"wait_ms: at most {round(WAIT_S_MAX * 1000)}")
        voice = VoiceAddress(principal.tenant_id, voice_id)
        audit_id = await self._request(principal, voice, trigger or TRIGGERS[0])
        self._asked.beat()
        self._fleet.changed.beat()
        await self._scrub()
        return await self._proven(voice.tenant_id, audit_id, wait_s_max)

    async def get(self, tenant_id: str, audit_id: str) -> Erasure:
        """How an erasure stands. Raises NotFound."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    select(erasures).where(erasures.c.audit_id == audit_id, erasures.c.tenant_id == tenant_id)
                )
            ).one_or_none()
        if row is None:
            raise NotFound("no such erasure")
        return erasure_of(row)

    async def run(self) -> None:
        """Work for ever: push evictions, collect proof, delete blobs. Begins with what an earlier run left."""
        blobs_at_s = self._clock.monotonic_s()
        while True:
            woken, asked = self._fleet.changed.next(), self._asked.next()
            open_ones: list[Erasure] = []
            try:
                if self._is_unscrubbed:
                    await self._scrub()
                open_ones = await self._open()
                erasing = [erasure for erasure in open_ones if erasure.state == "erasing"]
                await self._proving.turn(erasing, self._finish)
                waiting = [erasure for erasure in open_ones if erasure.blobs_pending]
                if waiting and self._clock.monotonic_s() >= blobs_at_s:
                    # Past this point only when all went well; a store that is away is not asked at every turn.
                    blobs_at_s = self._clock.monotonic_s() + BLOBS_AGAIN_S
                    await self._delete_blobs(waiting)
                    blobs_at_s = self._clock.monotonic_s()
            except Unavailable as error:
                get_logger().warning("erasure.delayed", reason=str(error))
            # A lease that runs out announces itself to nobody, hence the bound while something is open.
            if open_ones or self._is_unscrubbed:
                await wait_s(woken, LOOK_AGAIN_S)
            else:
                await wait_s(asked, BLOBS_AGAIN_S)

    async def close(self) -> None:
        """Leave off pushing; what is open is taken up by the next run."""
        await self._proving.close()

    async def _request(self, principal: Principal, voice: VoiceAddress, trigger: str) -> str:
        async with self._database.write() as connection:
            await locked_head(connection)
            row = (
                await connection.execute(
                    select(voices.c.state, voices.c.generation)
                    .where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
                    .with_for_update()
                )
            ).one_or_none()
            if row is None:
                raise NotFound(NO_SUCH_VOICE)
            if row.state in ("erasing", "erased"):
                return await latest_of(connection, voice)
            audit_id = f"e_{secrets.token_hex(12)}"
            generation = int(row.generation) + 1
            now_s = self._clock.wall_s()
            revision = await fleet_log.append(
                connection,
                Change.EVICT,
                voice,
                generation,
                now_lease_s=await self._database.lease_now_s(connection),
            )
            await destroy(connection, voice, generation, revision, now_s)
            await connection.execute(
                insert(erasures).values(
                    audit_id=audit_id,
                    tenant_id=voice.tenant_id,
                    voice_id=voice.voice_id,
                    generation=generation,
                    revision=revision,
                    trigger_kind=trigger,
                    state="erasing",
                    requested_at_s=now_s,
                    nodes="[]",
                    residual_node_ids="[]",
                    blob_bytes_deleted=0,
                    blobs_pending=True,
                    source="api",
                    trigger_user="",
                    key_id=principal.key_id,
                    replicas_evicted=0,
                    journaled=False,
                    is_open=True,
                )
            )
            await self._audit(
                connection, "erase.requested", audit_id, voice, revision, trigger=trigger, key_id=principal.key_id
            )
        return audit_id

    async def _proven(self, tenant_id: str, audit_id: str, wait_s_max: float) -> Erasure:
        until_s = self._clock.monotonic_s() + wait_s_max
        while True:
            moved = self._moved.next()
            erasure = await self.get(tenant_id, audit_id)
            left_s = until_s - self._clock.monotonic_s()
            if erasure.state == "erased" or left_s <= 0:
                return erasure
            await wait_s(moved, left_s)

    async def _open(self) -> list[Erasure]:
        query = select(erasures).where(or_(erasures.c.state == "erasing", erasures.c.blobs_pending.is_(True)))
        async with self._database.read() as connection:
            found = [erasure_of(row) for row in await connection.execute(query.order_by(erasures.c.revision))]
        erasing = [erasure for erasure in found if erasure.state == "erasing"]
        self._metrics.erasures_pending.set(len(erasing))
        oldest_s = min((erasure.requested_at_s for erasure in erasing), default=None)
        self._metrics.erasure_oldest_pending_seconds.set(
            0.0 if oldest_s is None else max(0.0, self._clock.wall_s() - oldest_s)
        )
        return found

    async def _finish(self, erasure: Erasure) -> None:
        """Say `erased` if it is so, decided on one state of the leases; the late are fenced with it."""
        async with self._database.write() as connection:
            await locked_head(connection)
            row = (
                await connection.execute(
                    select(erasures.c.state).where(erasures.c.audit_id == erasure.audit_id).with_for_update()
                )
            ).one()
            if row.state != "erasing":
                return
            rows = SqlRows(self._database, connection, writes=True)
            settlement = await settle(rows, self._rules, self._fleet.watch, erasure.revision)
            if settlement is None:
                return
            outcomes = [Outcome(lease.node_id, ok=True) for lease in settlement.applied]
            outcomes += [Outcome(lease.node_id, ok=False, error=SILENT) for lease in settlement.silent]
            first = await first_entry_of(connection, erasure.voice)
            residual = await leases.residual_nodes(connection, *first) if first else []
            answered = {outcome.node_id for outcome in outcomes}
            outcomes += [Outcome(node_id, ok=False, error=SILENT) for node_id in residual if node_id not in answered]
            erased_at_s = self._clock.wall_s()
            await connection.execute(
                update(erasures)
                .where(erasures.c.audit_id == erasure.audit_id)
                .values(
                    state="erased",
                    erased_at_s=erased_at_s,
                    nodes=json.dumps([[outcome.node_id, outcome.ok, outcome.error] for outcome in outcomes]),
                    residual_node_ids=json.dumps(residual),
                )
            )
            await connection.execute(
                update(voices)
                .where(
                    voices.c.tenant_id == erasure.voice.tenant_id,
                    voices.c.voice_id == erasure.voice.voice_id,
                    voices.c.generation == erasure.generation,
                )
                .values(state="erased", updated_at_s=erased_at_s)
            )
            await self._audit(
                connection,
                "erase.completed",
                erasure.audit_id,
                erasure.voice,
                erasure.revision,
                num_nodes=len(outcomes),
                residual_node_ids=",".join(residual),
            )
        await self._scrub()
        self._metrics.erasure_seconds.observe(max(0.0, erased_at_s - erasure.requested_at_s))
        self._moved.beat()
        get_logger().info("erasure.completed", audit_id=erasure.audit_id, revision=erasure.revision)

    async def _scrub(self) -> None:
        """The key is gone from the tables: now also from what SQLite keeps beside them, or at the next look."""
        self._is_unscrubbed = True
        try:
            self._is_unscrubbed = not await self._database.truncate_log()
        except Unavailable as error:
            get_logger().warning("erasure.not_scrubbed", reason=str(error))

    async def _delete_blobs(self, waiting: list[Erasure]) -> None:
        for erasure in waiting:
            where = (samples.c.tenant_id == erasure.voice.tenant_id, samples.c.voice_id == erasure.voice.voice_id)
            async with self._database.read() as connection:
                kept = (await connection.execute(select(samples.c.blob_key, samples.c.blob_bytes).where(*where))).all()
            for row in kept:
                await self._blobs.delete(row.blob_key)
            async with self._database.write() as connection:
                await connection.execute(delete(samples).where(*where))
                await connection.execute(
                    update(erasures)
                    .where(erasures.c.audit_id == erasure.audit_id)
                    .values(blobs_pending=False, blob_bytes_deleted=sum(int(row.blob_bytes) for row in kept))
                )

    async def _audit(
        self,
        connection: AsyncConnection,
        action: str,
        audit_id: str,
        voice: VoiceAddress,
        revision: int,
        **facts: str | int,
    ) -> None:
        said: dict[str, str | int] = {
            "audit_id": audit_id,
            "subject": self._keys.subject(voice.tenant_id, voice.voice_id),
            "tenant_id": voice.tenant_id,
            "revision": revision,
            **facts,
        }
        sequence = await audit.append(connection, action, at_s=self._clock.wall_s(), facts=said)
        self._metrics.audit_head.set(sequence)

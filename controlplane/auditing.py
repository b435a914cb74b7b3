"""What an auditor asks of a control plane that runs: is everything whole, and which machines are gone for good.

In: checkpoints that somebody kept, assertions of operators. Out: a verdict of database, journal, checkpoints and nodes;
rows of the audit for what was asserted.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from sqlalchemy import select, update

from controlplane import audit, erasure_record
from controlplane.audit_checkpoints import AuditCheckpoints
from controlplane.audit_verify import AskNode, Verdict, ask_nodes, verify
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import erasures, node_leases
from controlplane.erasure_journal import Journal
from controlplane.erasure_rows import Asking, erasure_of
from controlplane.fleet import Fleet
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.lease_rules import NODE, Lease
from controlplane.metrics import Metrics
from controlplane.nodes import Nodes
from controlplane.outside import Outside
from controlplane.policy import Principal
from runtime.clock import Clock
from runtime.errors import Denied, NotFound, SpeakerdError, Stale
from runtime.logs import get_logger

CHECKPOINTS_READ_MAX = 200_000
PLATFORM_ONLY = "this looks at the whole deployment: it takes a key of the platform's administrator"


class Auditing:
    """The use case."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        journal: Journal,
        store: Outside,
        checkpoints: AuditCheckpoints,
        fleet: Fleet,
        nodes: Nodes,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._keys = keys
        self._journal = journal
        self._store = store
        self._checkpoints = checkpoints
        self._fleet = fleet
        self._nodes = nodes
        self._clock = clock
        self._metrics = metrics

    def __repr__(self) -> str:
        return "Auditing()"

    async def verify(self, principal: Principal, *, given: Sequence[bytes], skip_inventory: bool) -> Verdict:
        """Check everything. given: checkpoints kept elsewhere. Raises Denied, Unavailable."""
        if not principal.is_super:
            raise Denied(PLATFORM_ONLY)
        verdict = await self._looked(given)
        if not skip_inventory:
            verdict = await self._asked(verdict)
        self._tell(verdict)
        return verdict

    async def look(self) -> int:
        """A chore: check all but what nodes hold, which is reconciled anyway; how many problems there are."""
        verdict = await self._looked(())
        self._tell(verdict)
        return len(verdict.problems)

    def _tell(self, verdict: Verdict) -> None:
        self._metrics.audit_verify_ok.set(verdict.ok)
        get_logger().log(
            logging.INFO if verdict.ok else logging.ERROR,
            "audit.verified",
            ok=verdict.ok,
            num_rows=verdict.num_rows,
            problems=len(verdict.problems),
        )

    async def _looked(self, given: Sequence[bytes]) -> Verdict:
        verdict = await self._look(given)
        # An erasure that was written to the journal after it was read, and before the database was, looks as if it
        # were missing there: what is wrong is wrong twice.
        return verdict if verdict.ok else await self._look(given)

    async def _look(self, given: Sequence[bytes]) -> Verdict:
        kept, problems = await self._kept()
        # Before the database: what is in the journal was committed before it was written there.
        records = None
        try:
            records = await self._journal.read()
        except SpeakerdError as error:
            problems.append(str(error))
        async with self._database.read() as connection:
            found = await verify(
                connection,
                checkpoints=[*kept, *given],
                journal=records,
                trusted_keys=frozenset({self._checkpoints.public_key}),
                subject_of=self._keys.subject,
            )
        return replace(found, problems=(*found.problems, *problems))

    async def assert_destroyed(self, principal: Principal, node_id: str, trigger_user: str) -> int:
        """Take an operator's word that a machine is gone: it is residual no more. Returns of how many erasures.

        Raises Denied, NotFound, and Stale while the node holds a lease.
        """
        if not principal.is_super:
            raise Denied(PLATFORM_ONLY)
        asking = Asking(trigger_user=trigger_user, key_id=principal.key_id)
        asking.require_valid()
        async with self._database.write() as connection:
            await locked_head(connection)
            now_s = self._clock.wall_s()
            rows = (await connection.execute(select(node_leases).where(node_leases.c.node_id == node_id))).all()
            if not rows:
                raise NotFound("no such node")
            gone = [row.incarnation for row in rows if row.fenced and not row.wiped]
            if not gone and any(not row.fenced for row in rows):
                raise Stale("the node holds a lease: stop it, wait until its lease has run out, and say it then")
            await connection.execute(update(node_leases).where(node_leases.c.incarnation.in_(gone)).values(wiped=True))
            facts = {"node_id": node_id, "incarnations": gone, "trigger_user": trigger_user, "key_id": principal.key_id}
            await audit.append(connection, "node.destroyed", at_s=now_s, facts=facts)
            query = select(erasures).where(erasures.c.is_open.is_(True), erasures.c.residual_node_ids != "[]")
            named = [
                erasure
                for row in await connection.execute(query)
                if node_id in (erasure := erasure_of(row)).residual_node_ids
            ]
            for erasure in named:
                still = [other for other in erasure.residual_node_ids if other != node_id]
                await erasure_record.close(connection, self._keys, erasure, still, now_s)
        self._fleet.changed.beat()
        return len(named)

    async def _kept(self) -> tuple[list[bytes], list[str]]:
        try:
            names = await self._store.names()
            kept = [await self._store.get(name) for name in names[-CHECKPOINTS_READ_MAX:] if name.endswith(".json")]
        except SpeakerdError as error:
            return [], [f"the checkpoints cannot be read: {error}"]
        return kept, []

    async def _asked(self, verdict: Verdict) -> Verdict:
        holders, now_s = await self._fleet.holders()
        asked: dict[str, AskNode] = {}
        notes = list(verdict.notes)
        for lease in holders:
            if lease.kind != NODE:
                continue
            if lease.superseded or lease.deadline_s < now_s:
                notes.append(f"node {lease.node_id} is silent, and is fenced as soon as its lease has run out")
                continue
            asked[lease.node_id] = self._inventory(lease)
        async with self._database.read() as connection:
            outcomes, problems = await ask_nodes(connection, asked, (SpeakerdError,))
            unheard = select(node_leases.c.node_id).where(
                node_leases.c.fenced.is_(True), node_leases.c.wiped.is_(False)
            )
            fenced = sorted({row.node_id for row in await connection.execute(unheard)})
        notes += [f"node {node_id} is fenced, and may hold voices in memory until it wakes" for node_id in fenced]
        return replace(verdict, problems=(*verdict.problems, *problems), notes=tuple(notes), nodes=tuple(outcomes))

    def _inventory(self, lease: Lease) -> Callable[[], AsyncIterator[VoiceAddress]]:
        return lambda: self._nodes.inventory(lease.address)

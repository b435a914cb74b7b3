"""Where a voice is warm, and making it so.

In: a voice, what the registry knows of nodes, leases. Out: which nodes hold it, which could, which held it and are
gone, and why one that could does not. What always holds: the registry alone makes no node warm. A node counts under the
incarnation that holds its lease in SQL; an entry of Redis that nobody stands behind any more is stale at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import and_, select

from controlplane import fleet_log
from controlplane.database.engine import Database
from controlplane.database.schema import voiceprints, voices
from controlplane.fan_out import FanOut
from controlplane.fleet import Fleet
from controlplane.holdings import LIVE_STATES, one
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.lease_rules import Lease
from controlplane.node_view import NodeView
from controlplane.nodes import Nodes
from controlplane.registry import Registry
from controlplane.voices import Outcome, Warmth
from runtime.errors import SpeakerdError

NOT_SERVING = "no such node is serving"
NO_VOICEPRINT = "there is no voiceprint of the node's model yet; it is made from the kept recordings"
CATCHING_UP = "the node is catching up"
DOUBTED = "the node was found to hold something else than it should, and is being repaired"


@dataclass(frozen=True, slots=True)
class Held:
    """What a node has to have to be warm on a voice: the revision, under a model that has its voiceprint.

    revision 0: nobody is to hold the voice.
    """

    revision: int
    models: frozenset[str]

    def why_not(self, node: NodeView) -> str:
        """Why a node is not warm; empty when it is."""
        if not self.revision or node.model not in self.models:
            return NO_VOICEPRINT
        if node.doubted:
            return DOUBTED
        return "" if node.cursor >= self.revision else CATCHING_UP


def sort_out(nodes: Sequence[NodeView], leases: Mapping[str, Lease], held: Held) -> Warmth:
    """The three lists, and why a candidate is not warm. leases: those that serve, by node id."""
    seen = {node.node_id: node for node in nodes}
    warm, stale, reasons = [], [], []
    for node_id, lease in sorted(leases.items()):
        known = seen.get(node_id)
        if known is None or known.incarnation != lease.incarnation:
            # Redis knows nothing of this incarnation yet; the lease says the same, if a little later.
            known = NodeView(node_id, lease.incarnation, lease.address, lease.model, lease.state, lease.cursor, 0, 0)
        reason = held.why_not(replace(known, cursor=max(known.cursor, lease.cursor)))
        if reason:
            reasons.append(Outcome(node_id, ok=False, error=reason))
        else:
            warm.append(node_id)
    for node_id, node in sorted(seen.items()):
        if node_id not in leases and not held.why_not(node):
            stale.append(node_id)
    return Warmth(tuple(warm), tuple(sorted(leases)), tuple(stale), tuple(reasons))


class Warming:
    """GetWarm and WarmVoice, and the wait of an enrolment for the nodes.

    incomplete: called when a voice was written that has no voiceprint yet of the model of some node that serves.
    """

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        fleet: Fleet,
        fan_out: FanOut,
        nodes: Nodes,
        registry: Registry,
        incomplete: Callable[[], None],
    ) -> None:
        self._database = database
        self._keys = keys
        self._fleet = fleet
        self._fan_out = fan_out
        self._nodes = nodes
        self._registry = registry
        self._incomplete = incomplete

    def __repr__(self) -> str:
        return "Warming()"

    async def warmth(self, voice: VoiceAddress) -> Warmth:
        """Where a voice is warm."""
        leases = {lease.node_id: lease for lease in await self._fleet.serving()}
        _, held = await self._told(voice)
        return sort_out(await self._registry.known(), leases, held)

    async def warm(self, voice: VoiceAddress, node_ids: tuple[str, ...]) -> Warmth:
        """Send a voice to nodes again: those named, or all that serve. outcomes: what became of it, node by node."""
        serving = {lease.node_id: lease for lease in await self._fleet.serving()}
        wanted = tuple(dict.fromkeys(node_ids)) or tuple(sorted(serving))
        outcomes = await asyncio.gather(*(self._send(voice, serving.get(node_id), node_id) for node_id in wanted))
        return replace(await self.warmth(voice), outcomes=tuple(outcomes))

    async def spread(self, voice: VoiceAddress) -> tuple[str, ...]:
        """Have a voice that was just written told to all nodes; those that hold it, once all do or a moment later."""
        revision, held = await self._told(voice)
        self._fan_out.grown()
        if held.revision and any(lease.model not in held.models for lease in self._fan_out.view.serving()):
            self._incomplete()
        if not revision:
            return ()
        # A voice that nobody is to hold any more is waited for in the same way.
        applied = await self._fan_out.held(revision, held.models if held.revision else None)
        return tuple(sorted(lease.node_id for lease in applied)) if held.revision else ()

    async def _told(self, voice: VoiceAddress) -> tuple[int, Held]:
        """The revision of the voice's last change, and what a node has to have to be warm on it."""
        current = and_(
            voiceprints.c.tenant_id == voices.c.tenant_id,
            voiceprints.c.voice_id == voices.c.voice_id,
            voiceprints.c.generation == voices.c.generation,
        )
        query = (
            select(voices.c.revision, voices.c.state, voiceprints.c.model)
            .join(voiceprints, current, isouter=True)
            .where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        revision = max((int(row.revision) for row in rows), default=0)
        models = frozenset(row.model for row in rows if row.model is not None and row.state in LIVE_STATES)
        return revision, Held(revision if models else 0, models)

    async def _send(self, voice: VoiceAddress, lease: Lease | None, node_id: str) -> Outcome:
        if lease is None:
            return Outcome(node_id, ok=False, error=NOT_SERVING)
        async with self._database.read() as connection:
            # Read with the voice: a node that has applied more of the log knows better than this.
            as_of = await fleet_log.head(connection)
            sealed = await one(connection, voice, lease.model)
        if sealed is None:
            return Outcome(node_id, ok=False, error=NO_VOICEPRINT)
        try:
            ack = await self._nodes.push(lease, replace(sealed.open(self._keys), as_of=as_of))
        except SpeakerdError as error:
            return Outcome(node_id, ok=False, error=str(error))
        if ack.incarnation != lease.incarnation or ack.cursor < sealed.revision:
            return Outcome(node_id, ok=False, error=CATCHING_UP)
        await self._fleet.acknowledged(lease, ack.incarnation, ack.cursor)
        await self._registry.advance([(lease.node_id, lease.incarnation, ack.cursor)])
        return Outcome(node_id, ok=True)

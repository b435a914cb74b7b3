"""Where a stream goes: a pure choice, and the use case that reserves a slot and signs a ticket."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import and_, func, select

from controlplane.config import ControlPlaneSettings
from controlplane.database.engine import Database
from controlplane.database.schema import voiceprints, voices
from controlplane.holdings import LIVE_STATES
from controlplane.metrics import Metrics
from controlplane.registry import NodeView, Registry
from controlplane.voice_lookup import NO_SUCH_VOICE
from runtime.clock import Clock
from runtime.errors import NotFound, Overloaded, SpeakerdError, Unavailable
from runtime.tickets import Ticket, sign_ticket

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should be warm: the last revision of the voices in scope, and the models that have all their voiceprints.

    models None: any model, for there is no voice to be warm on.
    """

    revision: int
    models: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Placement:
    """A slot on a node, and the ticket to it. expires_at_s: Unix time."""

    stream_id: str
    node_id: str
    address: str
    ticket: str
    expires_at_s: int
    warm: bool


def is_warm(node: NodeView, wanted: Wanted) -> bool:
    """Whether a node holds all that is wanted."""
    return node.cursor >= wanted.revision and (wanted.models is None or node.model in wanted.models)


def ranked(nodes: Sequence[NodeView], wanted: Wanted, avoid: Collection[str]) -> list[NodeView]:
    """The nodes that serve, best first: not avoided, with room, warm, least loaded; by id where all that is equal."""

    def key(node: NodeView) -> tuple[bool, bool, bool, float, str]:
        taken = node.streams + node.reserved
        load = taken / node.streams_max if node.streams_max else 1.0
        return (node.node_id in avoid, load >= 1.0, not is_warm(node, wanted), load, node.node_id)

    return sorted((node for node in nodes if node.state == "serving"), key=key)


class Placing:
    """PlaceStream."""

    def __init__(
        self,
        *,
        settings: ControlPlaneSettings,
        database: Database,
        registry: Registry,
        ticket_key: Ed25519PrivateKey,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._database = database
        self._registry = registry
        self._ticket_key = ticket_key
        self._clock = clock
        self._metrics = metrics

    def __repr__(self) -> str:
        return "Placing()"

    async def place(
        self, tenant_id: str, *, stream_id: str, voice_ids: Sequence[str], avoid: Collection[str]
    ) -> Placement:
        """Reserve a slot. Raises Unavailable when no node serves, Overloaded when all are full, NotFound for voices."""
        began_s = time.monotonic()
        try:
            placement = await self._place(tenant_id, stream_id or f"s_{secrets.token_hex(10)}", voice_ids, avoid)
        except SpeakerdError:
            self._metrics.route.labels("reject").inc()
            raise
        self._metrics.route.labels("warm" if placement.warm else "cold").inc()
        self._metrics.route_seconds.observe(time.monotonic() - began_s)
        return placement

    async def _place(
        self, tenant_id: str, stream_id: str, voice_ids: Sequence[str], avoid: Collection[str]
    ) -> Placement:
        wanted = await self._wanted(tenant_id, voice_ids)
        candidates = ranked(await self._registry.nodes(), wanted, avoid)
        if not candidates:
            raise Unavailable("no node is serving: start one, or try again", retry_after_s=RETRY_AFTER_S)
        for node in candidates:
            if await self._registry.reserve(node.node_id, stream_id, self._settings.slot_s):
                return self._ticketed(tenant_id, stream_id, node, wanted)
        raise Overloaded("every node is full; try again", retry_after_s=RETRY_AFTER_S)

    def _ticketed(self, tenant_id: str, stream_id: str, node: NodeView, wanted: Wanted) -> Placement:
        expires_at_s = round(self._clock.wall_s() + self._settings.ticket_s)
        ticket = Ticket(tenant_id, stream_id, node.node_id, expires_at_s, secrets.token_hex(16))
        return Placement(
            stream_id=stream_id,
            node_id=node.node_id,
            address=node.address,
            ticket=sign_ticket(ticket, self._ticket_key),
            expires_at_s=expires_at_s,
            warm=is_warm(node, wanted),
        )

    async def _wanted(self, tenant_id: str, voice_ids: Sequence[str]) -> Wanted:
        asked = set(voice_ids)
        in_scope = [voices.c.tenant_id == tenant_id, voices.c.state.in_(LIVE_STATES)]
        if asked:
            in_scope.append(voices.c.voice_id.in_(asked))
        current = and_(
            voiceprints.c.tenant_id == voices.c.tenant_id,
            voiceprints.c.voice_id == voices.c.voice_id,
            voiceprints.c.generation == voices.c.generation,
        )
        async with self._database.read() as connection:
            if asked:
                found = await connection.execute(select(func.count()).select_from(voices).where(*in_scope))
                if found.scalar_one() != len(asked):
                    raise NotFound(NO_SUCH_VOICE)
            # A voice without any voiceprint yet can be warm nowhere; it does not make every node cold.
            printed = (
                await connection.execute(
                    select(func.count(voices.c.voice_id.distinct()), func.max(voices.c.revision))
                    .join(voiceprints, current)
                    .where(*in_scope)
                )
            ).one()
            by_model = await connection.execute(
                select(voiceprints.c.model, func.count())
                .join(voices, current)
                .where(*in_scope)
                .group_by(voiceprints.c.model)
            )
            complete = frozenset(model for model, count in by_model if count == printed[0])
        return Wanted(int(printed[1]), complete) if printed[0] else Wanted(0, None)

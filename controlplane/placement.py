"""Where a stream goes: a pure choice, and the use case that reserves a slot and signs a ticket."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from controlplane.config import ControlPlaneSettings
from controlplane.daily_keys import TicketSigner
from controlplane.metrics import Metrics
from controlplane.node_view import Health, NodeView
from controlplane.policy import Principal, audiences_of
from controlplane.registry import QuotaUsedUp, Registry, Reserved, Wish
from controlplane.voice_lookup import usable_by
from controlplane.wanted import Scope, Wanted, Wanting
from runtime.clock import Clock
from runtime.errors import Overloaded, SpeakerdError, Unavailable
from runtime.logs import get_logger
from runtime.tickets import Ticket, sign_ticket

RETRY_AFTER_S = 1.0
QUOTA_RETRY_AFTER_S = 2.0
CANDIDATES_MAX = 32
RANKED_MAX = 64
"""Of so many nodes all are looked at; of more, as many at random, unless none of those will do."""
FAULTS_MAX = 3
"""A node that so many streams left as failed within seconds goes last, until it is quiet again."""
LAG_MS_MAX = 1_000
"""A node that analyses later than this has more than it can carry, whatever its slots say."""


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
    fits = wanted.models is None or node.model in wanted.models
    return fits and node.cursor >= wanted.revision and not node.doubted


def some_of(
    nodes: Sequence[NodeView], wanted: Wanted, avoid: Collection[str], zone: str, draw: Callable[[int], list[NodeView]]
) -> list[NodeView]:
    """The nodes that may take streams, best first; of a large fleet some drawn at random, if the best of those will do.

    draw: takes so many of the nodes at random.
    """
    if len(nodes) > RANKED_MAX:
        few = ranked(draw(RANKED_MAX), wanted, avoid, zone)
        if few and few[0].load < 1.0 and is_warm(few[0], wanted) and (not zone or few[0].zone == zone):
            return few
    return ranked(nodes, wanted, avoid, zone)


def ranked(nodes: Sequence[NodeView], wanted: Wanted, avoid: Collection[str], zone: str = "") -> list[NodeView]:
    """The nodes that may take streams, best first.

    What decides, in this order: not avoided, room, in good health, a model that has the voices, the zone preferred,
    warm, load; by id where all that is equal.
    """
    candidates = [node for node in nodes if node.is_candidate]
    unwell = {node.node_id for node in candidates if node.faults >= FAULTS_MAX or node.lag_ms > LAG_MS_MAX}
    if 2 * len(unwell) > len(candidates):
        unwell = set()  # when most seem ill it is not they who are

    def key(node: NodeView) -> tuple[bool, bool, bool, bool, bool, bool, bool, float, str]:
        return (
            node.node_id in avoid,
            node.load >= 1.0,
            node.node_id in unwell,
            node.health is not Health.HEALTHY,
            wanted.models is not None and node.model not in wanted.models,
            bool(zone) and node.zone != zone,
            not is_warm(node, wanted),
            node.load,
            node.node_id,
        )

    return sorted(candidates, key=key)


def two_choices(
    best_first: Sequence[NodeView], wanted: Wanted, zone: str, draw: Callable[[Sequence[NodeView]], list[NodeView]]
) -> tuple[str, ...]:
    """The order to try: two drawn from those that differ from the best in load alone, then all, best first.

    draw: takes two of a sequence at random. Two at random, of which the less loaded is taken, spread streams almost as
    well as the least loaded would, and do not send all control planes to the same node between two heartbeats.
    """
    first = best_first[0]

    def is_as_good(node: NodeView) -> bool:
        return (
            node.load < 1.0
            and node.health is first.health
            and (not zone or (node.zone == zone) == (first.zone == zone))
            and is_warm(node, wanted) == is_warm(first, wanted)
            and (node.model == first.model or is_warm(node, wanted))
        )

    alike = [node for node in best_first if is_as_good(node)]
    drawn = sorted(draw(alike), key=lambda node: node.load) if len(alike) > 1 else [first]
    names = dict.fromkeys([*(node.node_id for node in drawn), *(node.node_id for node in best_first)])
    return tuple(names)[:CANDIDATES_MAX]


class Placing:
    """PlaceStream. head: the fleet log as far as this process knows it. streams_max: of a tenant; None: no limit."""

    def __init__(
        self,
        *,
        settings: ControlPlaneSettings,
        wanting: Wanting,
        registry: Registry,
        head: Callable[[], int],
        streams_max: Callable[[str], Awaitable[int | None]],
        tickets: TicketSigner,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._wanting = wanting
        self._registry = registry
        self._head = head
        self._streams_max = streams_max
        self._tickets = tickets
        self._clock = clock
        self._metrics = metrics
        self._random = random.Random()  # noqa: S311 - spreads load

    def __repr__(self) -> str:
        return f"Placing({self._wanting!r})"

    async def place(
        self,
        principal: Principal,
        *,
        stream_id: str,
        voice_ids: Sequence[str],
        avoid: Collection[str],
        zone: str = "",
        slots: int = 1,
    ) -> Placement:
        """Reserve slots on one node: one, or as many as a call has channels that are heard apart.

        Raises Unavailable when no node serves, Overloaded when all are full or the tenant has as many streams as it
        may, NotFound for voices.
        """
        began_s = time.monotonic()
        stream_id = stream_id or f"s_{secrets.token_hex(10)}"
        try:
            placement = await self._place(principal, stream_id, voice_ids, avoid, zone=zone, slots=slots)
        except SpeakerdError:
            self._metrics.route.labels("reject").inc()
            raise
        self._metrics.route.labels("warm" if placement.warm else "cold").inc()
        if avoid:
            self._metrics.route_again.inc()
        self._metrics.route_seconds.observe(time.monotonic() - began_s)
        get_logger().info(
            "stream.placed",
            stream_id=placement.stream_id,
            tenant_id=principal.tenant_id,
            node_id=placement.node_id,
            warm=placement.warm,
        )
        return placement

    async def _place(
        self,
        principal: Principal,
        stream_id: str,
        voice_ids: Sequence[str],
        avoid: Collection[str],
        *,
        zone: str,
        slots: int,
    ) -> Placement:
        tenant_id, audiences = principal.tenant_id, audiences_of(principal)
        scope = Scope(audiences, usable_by(principal))
        wanted = await self._wanting.of(scope, frozenset(voice_ids), self._head())
        tenant_max = await self._streams_max(tenant_id)
        best_first: list[NodeView] = []
        # The first look may be a moment old; what fails on it is decided on a look of now.
        for fresh in (False, True):
            nodes = await self._registry.known(fresh=fresh)
            best_first = some_of(
                nodes,
                wanted,
                avoid,
                zone,
                lambda number, nodes=nodes: self._random.sample(nodes, number),  # type: ignore[misc]
            )
            others = [node for node in best_first if node.node_id not in avoid]
            # Who is to be avoided is asked only once nobody else takes the stream, on a look of now.
            for some in (others, best_first) if fresh and len(others) < len(best_first) else (others,):
                reserved = await self._reserve(
                    f"{tenant_id}/{stream_id}", some, wanted, avoid, zone, slots=slots, tenant_max=tenant_max
                )
                if reserved is not None:
                    chosen = next((node for node in nodes if node.node_id == reserved.node_id), None)
                    warm = chosen is not None and is_warm(chosen, wanted)
                    return self._ticketed(principal, stream_id, reserved, warm=warm)
        if not best_first:
            raise Unavailable("no node is serving: start one, or try again", retry_after_s=RETRY_AFTER_S)
        raise Overloaded("every node is full; try again", retry_after_s=RETRY_AFTER_S)

    async def _reserve(
        self,
        stream: str,
        best_first: Sequence[NodeView],
        wanted: Wanted,
        avoid: Collection[str],
        zone: str,
        *,
        slots: int,
        tenant_max: int | None,
    ) -> Reserved | None:
        """Slots on one of these nodes; None when none of them takes the stream."""
        if not best_first:
            return None
        order = two_choices(best_first, wanted, zone, lambda alike: self._random.sample(alike, 2))
        wish = Wish(
            stream=stream,
            candidates=order,
            avoid=frozenset(avoid),
            revision=wanted.revision if any(is_warm(node, wanted) for node in best_first) else None,
            models=wanted.models,
            hold_s=self._settings.slot_s,
            slots=slots,
            tenant_max=tenant_max,
        )
        try:
            return await self._registry.reserve(wish)
        except QuotaUsedUp:
            raise Overloaded(
                f"the tenant's quota of {tenant_max} streams at once is used up; try again",
                retry_after_s=QUOTA_RETRY_AFTER_S,
            ) from None

    def _ticketed(self, principal: Principal, stream_id: str, slot: Reserved, *, warm: bool) -> Placement:
        expires_at_s = round(self._clock.wall_s() + self._settings.ticket_s)
        ticket = Ticket(
            principal.tenant_id,
            stream_id,
            slot.node_id,
            expires_at_s,
            secrets.token_hex(16),
            # A ticket outlives neither a restart of its node nor the loss of its lease.
            slot.incarnation,
            audiences=audiences_of(principal),
        )
        return Placement(
            stream_id=stream_id,
            node_id=slot.node_id,
            address=slot.address,
            ticket=sign_ticket(ticket, self._tickets),
            expires_at_s=expires_at_s,
            warm=warm,
        )

"""The fleet's soft state: who is there, how loaded, which slots are spoken for, who is warm. In Redis, for all.

In: heartbeats, acknowledgements, wishes to place a stream. Out: nodes as routing sees them, and reserved slots. What
always holds: nothing here is relied on for safety; a Redis that is away, frozen, empty or failed over costs no stream
and no fact. Then this process goes on from its own memory, and tells Redis again what it knows once it is back: each
answer carries the epoch that Redis was filled under, and another one, or none, means that it was emptied.

The schema, and the scripts, are in `registry_schema`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from redis.exceptions import RedisError, ResponseError

from controlplane import registry_schema as schema
from controlplane.fault_points import reach
from controlplane.metrics import Metrics
from controlplane.node_view import NodeView
from controlplane.pulse import Pulse, wait_s
from controlplane.redis_client import Patience, Script, close_redis, open_redis
from controlplane.registry_schema import FAULTS_S, NODE_KEPT_S, NODE_TTL_S, PLACED_S, PREFIX
from controlplane.routing_memory import RoutingMemory
from runtime.clock import Clock
from runtime.logs import get_logger

TIMEOUT_S = 0.5
REST_S = 0.5
"""After a failed call Redis is left alone for so long: nobody waits for it, one call at a time finds out."""
VIEW_S = 0.1
VIEW_DUTY = 20.0
"""How old the view may be that candidates are taken from, at least, and as a multiple of what it took to read: of a
large fleet it is read less often. The reservation looks for itself."""
VIEW_TOOK_S_MAX = 0.05
LOOK_S = 0.1
"""How long is waited for a newer view by whoever has one that is young enough for candidates."""
RECALL_ROWS = 500

Held = Callable[[], Awaitable[Collection[NodeView]]]
"""Reads from SQL who may hold voices and is not heard: (node_id, incarnation, model, cursor) count."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a stream may go. candidates: best first, of the first two the less loaded one is taken.

    revision: what the stream's last node has to have applied to be taken again, None when no candidate has either.
    models: those that are warm; None for any. slots: how many it takes. tenant_max: how many slots the tenant whose
    stream it is may take in all; None: any number. While Redis is away nobody counts them.
    """

    stream: str
    candidates: tuple[str, ...]
    avoid: frozenset[str]
    revision: int | None
    models: frozenset[str] | None
    hold_s: float
    slots: int = 1
    tenant_max: int | None = None

    @property
    def tenant_id(self) -> str:
        """Whose stream it is."""
        return self.stream.partition("/")[0]


class QuotaUsedUp(Exception):
    """The tenant has as many streams as it may."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """A slot that is spoken for."""

    node_id: str
    address: str
    incarnation: int


class Registry:
    """Redis, and beside it what this process knows itself."""

    def __init__(self, url: str, clock: Clock, metrics: Metrics) -> None:
        self._redis = open_redis(url, timeout_s=TIMEOUT_S)
        self._patience = Patience(TIMEOUT_S)
        self._clock = clock
        self._metrics = metrics
        self._memory = RoutingMemory()
        self._heartbeat = Script(self._redis, schema.HEARTBEAT)
        self._advance = Script(self._redis, schema.ADVANCE)
        self._doubt = Script(self._redis, schema.DOUBT)
        self._forget = Script(self._redis, schema.FORGET)
        self._view_script = Script(self._redis, schema.VIEW)
        self._place = Script(self._redis, schema.PLACE)
        self._release = Script(self._redis, schema.RELEASE)
        self._recall_nodes = Script(self._redis, schema.RECALL_NODES)
        self._recall_placed = Script(self._redis, schema.RECALL_PLACED)
        self._view: dict[str, NodeView] = {}
        self._view_s = float("-inf")
        self._view_took_s = 0.0
        self._viewing: asyncio.Task[None] | None = None
        self._epoch = ""
        self._is_up = True
        self._rest_until_s = float("-inf")
        self._emptied = Pulse()

    def __repr__(self) -> str:
        return f"Registry(up={self._is_up}, epoch={self._epoch!r}, {self._memory!r})"

    @property
    def is_up(self) -> bool:
        """Whether Redis answered the last call."""
        return self._is_up

    async def heartbeat(self, node: NodeView) -> None:
        """Take a node's heartbeat. Never raises for Redis's sake."""
        now_s = self._clock.lease_now_s()
        self._memory.hear(node, now_s)
        seen = self._view.get(node.node_id)
        if seen is not None and seen.incarnation <= node.incarnation:
            same = seen.incarnation == node.incarnation
            self._view[node.node_id] = replace(
                node,
                reserved=max(0, seen.reserved - max(0, node.streams - seen.streams)) if same else seen.reserved,
                faults=seen.faults,
                doubted=seen.doubted and same and node.state == "serving",
            )
        await self._tell(node)

    async def advance(self, acknowledged: Sequence[tuple[str, int, int]]) -> None:
        """Nodes said how far they are: (node_id, incarnation, cursor)."""
        for node_id, incarnation, cursor in acknowledged:
            self._memory.advance(node_id, incarnation, cursor)
            seen = self._view.get(node_id)
            if seen is not None and seen.incarnation == incarnation and seen.cursor < cursor:
                self._view[node_id] = replace(seen, cursor=cursor)
        arguments: list[Any] = [part for row in acknowledged for part in row]
        self._learn(await self._ask(lambda: self._advance(args=[PREFIX, *arguments])))

    async def doubt(self, node_id: str, incarnation: int, *, doubted: bool) -> None:
        """A node holds something else than it should, and is warm on nothing until it is repaired; or it is."""
        self._memory.doubt(node_id, incarnation, doubted=doubted)
        self._view_s = float("-inf")
        arguments: list[Any] = [PREFIX, node_id, incarnation, int(doubted)]
        self._learn(await self._ask(lambda: self._doubt(args=arguments)))

    def is_doubted(self, node_id: str) -> bool:
        """Whether a node is under doubt, as far as is known here."""
        seen = self._view.get(node_id)
        return self._memory.is_doubted(node_id) or (seen is not None and seen.doubted)

    async def forget(self, node_id: str, incarnation: int) -> None:
        """A node left, saying that it holds nothing."""
        self._memory.forget(node_id, incarnation)
        self._view.pop(node_id, None)
        self._learn(await self._ask(lambda: self._forget(args=[PREFIX, node_id, incarnation])))

    async def nodes(self) -> list[NodeView]:
        """The nodes that were heard of late."""
        return [node for node in await self.known() if node.age_s <= NODE_TTL_S]

    async def known(self, *, fresh: bool = True) -> list[NodeView]:
        """All nodes, those that fell silent too; from memory when Redis is away or has forgotten.

        fresh: as Redis says now, else as it said a moment ago, or a little longer when it is slow to say so.
        """
        if fresh:
            await self._look()
        elif self._clock.monotonic_s() - self._view_s > max(VIEW_S, VIEW_DUTY * self._view_took_s):
            # Whoever comes meanwhile waits for the same answer. A slow Redis is waited for once: as a slot is reserved.
            if self._viewing is None or self._viewing.done():
                self._viewing = asyncio.create_task(self._look(), name="registry.view")
            young = bool(self._view) and self._clock.monotonic_s() - self._view_s <= NODE_TTL_S
            for looked in (await asyncio.wait((self._viewing,), timeout=LOOK_S if young else None))[0]:
                looked.result()
        remembered = self._memory.nodes(self._clock.lease_now_s())
        return [*self._view.values(), *(node for node in remembered if node.node_id not in self._view)]

    async def reserve(self, wish: Wish) -> Reserved | None:
        """Speak for a slot, atomically among all control planes. None when all that were named are full or gone.

        Raises QuotaUsedUp.
        """
        arguments: list[Any] = [PREFIX, wish.stream, NODE_TTL_S, wish.hold_s, PLACED_S, FAULTS_S]
        arguments += ["" if wish.revision is None else wish.revision, wish.slots, wish.tenant_id]
        arguments += [-1 if wish.tenant_max is None else wish.tenant_max, len(wish.models or ()), *(wish.models or ())]
        arguments += [len(wish.avoid), *wish.avoid, *wish.candidates]
        reply = cast("list[Any] | None", await self._ask(lambda: self._place(args=arguments)))
        now_s = self._clock.lease_now_s()
        if reply is not None:
            self._learn(reply[0])
            if int(reply[1]) == 1:
                placed = Reserved(reply[2].decode(), reply[3].decode(), int(reply[4]))
                self._memory.remember(wish.stream, placed.node_id, now_s + wish.hold_s, wish.slots)
                self._count(placed.node_id, wish.slots)
                return placed
            if int(reply[1]) == -2:
                raise QuotaUsedUp
            if int(reply[1]) == 0:
                return None
        node = self._memory.place(wish.stream, wish.candidates, wish.hold_s, now_s, wish.slots)
        return None if node is None else Reserved(node.node_id, node.address, node.incarnation)

    async def release(self, stream: str) -> None:
        """Give a slot back that was spoken for and will not be used."""
        self._memory.release(stream)
        self._learn(await self._ask(lambda: self._release(args=[PREFIX, stream])))

    async def publish(self, message: str) -> None:
        """Wake the other control planes."""
        await self._ask(lambda: self._redis.publish(schema.WAKE, message))
        reach("redis.published")

    def talks(self, node_id: str) -> None:
        """A node renewed its lease at this process."""
        self._memory.talk(node_id, self._clock.lease_now_s())

    def hears(self, node_id: str) -> bool:
        """Whether this process is the one that a node sends its heartbeats and renewals to."""
        return self._memory.hears(node_id, self._clock.lease_now_s())

    def vouch(self, incarnations: Collection[int]) -> None:
        """These incarnations hold a lease. Counts only while Redis does not answer."""
        if not self._is_up:
            self._memory.vouch(incarnations, self._clock.lease_now_s())

    async def keep_filled(self, held: Held) -> None:
        """Work for ever: fill a Redis that was emptied, from memory and from SQL; nodes do their part by themselves."""
        emptied = self._emptied.next()
        while True:
            await wait_s(emptied, 3_600.0)
            if emptied.is_set():
                emptied = self._emptied.next()
                await self._refill(held)

    async def close(self) -> None:
        """Close the connections."""
        await self._patience.close()
        await close_redis(self._redis)

    async def _refill(self, held: Held) -> None:
        now_s = self._clock.lease_now_s()
        get_logger().warning("redis.emptied", epoch=self._epoch)
        for node in self._memory.heard_here(now_s):
            await self._tell(node)
        placed: list[Any] = [part for row in self._memory.placements(now_s) for part in row]
        for start in range(0, len(placed), 3 * RECALL_ROWS):
            rows = placed[start : start + 3 * RECALL_ROWS]
            await self._ask(lambda rows=rows: self._recall_placed(args=[PREFIX, PLACED_S, *rows]))  # type: ignore[misc]
        gone: list[Any] = [
            part for node in await held() for part in (node.node_id, node.incarnation, node.model, node.cursor)
        ]
        for start in range(0, len(gone), 4 * RECALL_ROWS):
            rows = gone[start : start + 4 * RECALL_ROWS]
            await self._ask(lambda rows=rows: self._recall_nodes(args=[PREFIX, NODE_KEPT_S, *rows]))  # type: ignore[misc]
        get_logger().info("redis.refilled", placements=len(placed) // 3, silent_nodes=len(gone) // 4)

    async def _tell(self, node: NodeView) -> None:
        arguments: list[Any] = [PREFIX, node.node_id, NODE_KEPT_S, secrets.token_hex(8)]
        arguments += [getattr(node, name) for name in schema.NODE_FIELDS if name != "doubted"]
        arguments += [NODE_TTL_S, *(part for row in node.tenants.items() for part in row)]
        self._learn(await self._ask(lambda: self._heartbeat(args=arguments)))

    async def _look(self) -> None:
        now_s = self._clock.lease_now_s()
        reply = cast("list[Any] | None", await self._ask(lambda: self._view_script(args=[PREFIX, FAULTS_S])))
        if reply is None:
            self._view = {}
        else:
            self._learn(reply[0])
            began_s = self._clock.monotonic_s()
            found = [_view(fields) for fields in reply[1:]]
            self._view_took_s = min(self._clock.monotonic_s() - began_s, VIEW_TOOK_S_MAX)
            self._memory.see(found, now_s)
            self._view = {node.node_id: node for node in found}
        self._view_s = self._clock.monotonic_s()

    def _count(self, node_id: str, slots: int) -> None:
        # So that a view that is kept for a moment does not send everybody to the same node.
        node = self._view.get(node_id)
        if node is not None:
            self._view[node_id] = replace(node, reserved=node.reserved + slots)

    def _learn(self, epoch: object) -> None:
        """What a script said of the epoch: another one, or none, means that Redis has to be told again."""
        if epoch is None:
            return
        said = epoch.decode() if isinstance(epoch, bytes) else str(epoch)
        if said == self._epoch:
            return
        if self._epoch or not said:
            self._emptied.beat()
        self._epoch = said

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> object | None:
        """A call's answer; None when there is none, or while Redis is given a rest."""
        now_s = self._clock.monotonic_s()
        if now_s < self._rest_until_s:
            return None
        if not self._is_up:
            self._rest_until_s = now_s + REST_S  # one call finds out, the others do not wait with it
        try:
            reply: object = await self._patience.answer(call)
        except (RedisError, OSError) as error:
            self._metrics.redis_errors.inc()
            if self._is_up:
                get_logger().warning("redis.away", error_type=type(error).__name__)
            self._is_up = False
            self._rest_until_s = self._clock.monotonic_s() + REST_S
            self._metrics.redis_up.set(0)
            if isinstance(error, ResponseError):
                # A master that became a replica refuses to write; Sentinel is asked anew on the next connection.
                await self._redis.connection_pool.disconnect()
            return None
        if not self._is_up:
            get_logger().info("redis.back")
        self._is_up = True
        self._rest_until_s = float("-inf")
        self._metrics.redis_up.set(1)
        return reply


def _view(fields: list[Any]) -> NodeView:
    text = [field.decode() if isinstance(field, bytes) else "" if field is None else str(field) for field in fields]
    said = dict(zip(schema.NODE_FIELDS, text[2:], strict=False))
    return NodeView(
        node_id=text[0],
        incarnation=int(said["incarnation"]),
        address=said["address"],
        model=said["model"],
        state=said["state"],
        cursor=int(said["cursor"]),
        streams=int(said["streams"]),
        streams_max=int(said["streams_max"]),
        zone=said["zone"],
        files=int(said["files"] or 0),
        files_max=int(said["files_max"] or 0),
        lag_ms=int(said["lag_ms"] or 0),
        voices=int(said["voices"] or 0),
        queued=int(said["queued"] or 0),
        doubted=said["doubted"] == "1",
        reserved=int(text[-2]),
        faults=int(text[-1]),
        age_s=max(0.0, float(text[1])),
    )

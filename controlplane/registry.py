"""The fleet's soft state in Redis: who is there, how loaded, which slots are spoken for. The whole schema is here.

    speakerd:1:nodes         sorted set   node_id -> time of its last heartbeat (Redis's clock)
    speakerd:1:node:{id}     hash         incarnation, address, model, state, cursor, streams, streams_max; lives 6 s
    speakerd:1:slots:{id}    sorted set   stream_id -> when its reservation lapses

Ids only: no names, no embeddings. Nothing here is relied on for safety, and all of it comes back with the nodes' next
heartbeats, so a Redis that is away, empty or frozen costs a moment of routing: then the heartbeats that this process
has heard itself are used. Every call has one short timeout and no retry, for redis-py's own retries may execute twice.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from controlplane.metrics import Metrics
from runtime.clock import Clock
from runtime.logs import get_logger

PREFIX = "speakerd:1:"
NODE_TTL_S = 6.0
TIMEOUT_S = 0.5
VIEW_AGE_MAX_S = 10.0
REMEMBERED_NODES_MAX = 10_000

# A stream that has opened is counted by the node, so as many of the oldest reservations go as it has more streams.
_HEARTBEAT = """
local now = redis.call('TIME'); now = now[1] + now[2] / 1e6
local known = redis.call('HMGET', KEYS[2], 'incarnation', 'streams')
if known[1] and tonumber(known[1]) > tonumber(ARGV[2]) then return 0 end
local grown = tonumber(ARGV[7]) - tonumber(known[2] or 0)
if known[1] and grown > 0 then redis.call('ZREMRANGEBYRANK', KEYS[3], 0, grown - 1) end
redis.call('HSET', KEYS[2], 'incarnation', ARGV[2], 'address', ARGV[3], 'model', ARGV[4], 'state', ARGV[5],
  'cursor', ARGV[6], 'streams', ARGV[7], 'streams_max', ARGV[8])
redis.call('PEXPIRE', KEYS[2], ARGV[9])
redis.call('ZADD', KEYS[1], now, ARGV[1])
return 1
"""

_NODES = """
local now = redis.call('TIME'); now = now[1] + now[2] / 1e6
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local fields = redis.call('HMGET', ARGV[1] .. 'node:' .. id, 'incarnation', 'address', 'model', 'state', 'cursor',
    'streams', 'streams_max')
  if fields[1] then
    table.insert(fields, 1, id)
    table.insert(fields, redis.call('ZCOUNT', ARGV[1] .. 'slots:' .. id, now, '+inf'))
    table.insert(found, fields)
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return found
"""

_RESERVE = """
local now = redis.call('TIME'); now = now[1] + now[2] / 1e6
local load = redis.call('HMGET', KEYS[1], 'streams', 'streams_max')
if not load[1] then return -1 end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREM', KEYS[2], ARGV[1])
if tonumber(load[1]) + redis.call('ZCARD', KEYS[2]) >= tonumber(load[2]) then return 0 end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[2], math.ceil(tonumber(ARGV[2]) * 1000) + 1000)
return 1
"""

_RELEASE = "return redis.call('ZREM', KEYS[1], ARGV[1])"


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as routing sees it. cursor: what it has applied of the fleet log. reserved: placed and not yet opened."""

    node_id: str
    incarnation: int
    address: str
    model: str
    state: str
    cursor: int
    streams: int
    streams_max: int
    reserved: int = 0


class Registry:
    """Redis, and beside it what this process heard last."""

    def __init__(self, url: str, clock: Clock, metrics: Metrics) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._clock = clock
        self._metrics = metrics
        self._heartbeat = self._redis.register_script(_HEARTBEAT)
        self._nodes = self._redis.register_script(_NODES)
        self._reserve = self._redis.register_script(_RESERVE)
        self._release = self._redis.register_script(_RELEASE)
        self._heard: dict[str, tuple[float, NodeView]] = {}
        self._placed: dict[str, dict[str, float]] = {}
        self._up = True

    def __repr__(self) -> str:
        return f"Registry(up={self._up}, heard={sorted(self._heard)})"

    async def heartbeat(self, node: NodeView) -> None:
        """Take a node's heartbeat. Never raises for Redis's sake."""
        self._hear(node)
        await self._tell(node)

    async def nodes(self) -> list[NodeView]:
        """The nodes that live, from Redis; from memory when Redis is away or has forgotten."""
        reply = await self._ask(self._nodes(keys=[f"{PREFIX}nodes"], args=[PREFIX]))
        remembered = self._remembered()
        if reply is None:
            return remembered
        found = [_view(fields) for fields in cast(list[list[bytes | int]], reply)]
        missing = [node for node in remembered if node.node_id not in {view.node_id for view in found}]
        for node in missing:
            # Redis was emptied: tell it again, rather than wait for the next heartbeat.
            await self._tell(node)
        return found + missing

    async def reserve(self, node_id: str, stream_id: str, hold_s: float) -> bool:
        """Speak for a slot of a node, atomically. False when the node is full or gone."""
        reply = await self._ask(
            self._reserve(keys=[f"{PREFIX}node:{node_id}", f"{PREFIX}slots:{node_id}"], args=[stream_id, hold_s])
        )
        if reply is not None and int(cast(int, reply)) >= 0:
            return int(cast(int, reply)) == 1
        return self._reserve_in_memory(node_id, stream_id, hold_s)

    async def release(self, node_id: str, stream_id: str) -> None:
        """Give a slot back that was spoken for and not used."""
        self._placed.get(node_id, {}).pop(stream_id, None)
        await self._ask(self._release(keys=[f"{PREFIX}slots:{node_id}"], args=[stream_id]))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _tell(self, node: NodeView) -> None:
        await self._ask(
            self._heartbeat(
                keys=[f"{PREFIX}nodes", f"{PREFIX}node:{node.node_id}", f"{PREFIX}slots:{node.node_id}"],
                args=[
                    node.node_id,
                    node.incarnation,
                    node.address,
                    node.model,
                    node.state,
                    node.cursor,
                    node.streams,
                    node.streams_max,
                    round(NODE_TTL_S * 1000),
                ],
            )
        )

    async def _ask(self, call: Awaitable[Any]) -> object | None:
        try:
            reply: object = await call
        except (RedisError, OSError) as error:
            self._metrics.redis_errors.inc()
            if self._up:
                get_logger().warning("redis.away", error_type=type(error).__name__)
            self._up = False
            self._metrics.redis_up.set(0)
            return None
        if not self._up:
            get_logger().info("redis.back")
        self._up = True
        self._metrics.redis_up.set(1)
        return reply

    def _hear(self, node: NodeView) -> None:
        before = self._heard.get(node.node_id)
        if before is not None and before[1].incarnation > node.incarnation:
            return
        if before is None and len(self._heard) >= REMEMBERED_NODES_MAX:
            return
        placed = self._placed.setdefault(node.node_id, {})
        grown = node.streams - (before[1].streams if before is not None else node.streams)
        for stream_id in list(placed)[: max(0, grown)]:
            del placed[stream_id]
        self._heard[node.node_id] = (self._clock.lease_now_s(), node)

    def _remembered(self) -> list[NodeView]:
        now_s = self._clock.lease_now_s()
        self._heard = {node_id: heard for node_id, heard in self._heard.items() if now_s - heard[0] <= VIEW_AGE_MAX_S}
        self._placed = {node_id: self._placed.get(node_id, {}) for node_id in self._heard}
        return [
            replace(node, reserved=sum(until_s > now_s for until_s in self._placed[node_id].values()))
            for node_id, (_, node) in self._heard.items()
            if now_s - self._heard[node_id][0] <= NODE_TTL_S
        ]

    def _reserve_in_memory(self, node_id: str, stream_id: str, hold_s: float) -> bool:
        now_s = self._clock.lease_now_s()
        heard = self._heard.get(node_id)
        if heard is None:
            return False
        placed = {key: until_s for key, until_s in self._placed.get(node_id, {}).items() if until_s > now_s}
        placed.pop(stream_id, None)
        self._placed[node_id] = placed
        if heard[1].streams + len(placed) >= heard[1].streams_max:
            return False
        placed[stream_id] = now_s + hold_s
        return True


def _view(fields: list[bytes | int]) -> NodeView:
    text = [field.decode() if isinstance(field, bytes) else str(field) for field in fields]
    return NodeView(
        node_id=text[0],
        incarnation=int(text[1]),
        address=text[2],
        model=text[3],
        state=text[4],
        cursor=int(text[5]),
        streams=int(text[6]),
        streams_max=int(text[7]),
        reserved=int(text[8]),
    )

"""How often a key may ask: a sliding window a key and kind of call, in Redis, for all control planes at once.

In: a name of what is counted, and its limit. Out: how the caller stands. What always holds: a call is counted once, one
that is refused is not counted, and a Redis that is away stops nobody: then each process counts for itself.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass

from redis.exceptions import RedisError

from controlplane.redis_client import Patience, Script, close_redis, open_redis
from runtime.clock import Clock

PREFIX = "d:rate:"
TIMEOUT_S = 0.3
REST_S = 1.0
"""After a failed call Redis is left alone for so long, and this process counts for itself."""
COUNTED_MAX = 10_000
"""How many callers this process counts for itself, the latest ones."""

_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
local counted = redis.call('ZCARD', KEYS[1])
local taken = 0
if counted < tonumber(ARGV[1]) then
  redis.call('ZADD', KEYS[1], now, ARGV[3])
  redis.call('PEXPIRE', KEYS[1], window)
  counted = counted + 1
  taken = 1
end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {taken, counted, oldest[2] + window - now}
"""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most so many calls of a kind in any window."""

    kind: str
    calls_max: int
    window_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a caller stands after a call. frees_in_s: until the oldest counted call leaves the window."""

    allowed: bool
    limit: int
    remaining: int
    frees_in_s: float


class RateLimits:
    """Counts calls."""

    def __init__(self, redis_url: str, clock: Clock) -> None:
        self._redis = open_redis(redis_url, timeout_s=TIMEOUT_S)
        self._patience = Patience(TIMEOUT_S)
        self._take = Script(self._redis, _TAKE)
        self._clock = clock
        self._rest_until_s = float("-inf")
        self._own: OrderedDict[str, deque[float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"RateLimits({len(self._own)} counted here)"

    async def close(self) -> None:
        """Close the connections."""
        await self._patience.close()
        await close_redis(self._redis)

    async def take(self, caller: str, limit: RateLimit) -> Standing:
        """Count one call of a caller, if the limit allows it. Never raises for Redis's sake."""
        # Callers are named by a digest: what is counted may hold a key's id or an address.
        name = hashlib.sha256(f"{limit.kind}\n{caller}".encode()).hexdigest()[:32]
        if self._clock.monotonic_s() >= self._rest_until_s:
            try:
                arguments = [limit.calls_max, round(limit.window_s * 1000), secrets.token_hex(8)]
                taken, counted, frees_in_ms = await self._patience.answer(
                    lambda: self._take(keys=[PREFIX + name], args=arguments)
                )
            except (RedisError, OSError, TimeoutError):
                self._rest_until_s = self._clock.monotonic_s() + REST_S
            else:
                remaining = max(0, limit.calls_max - int(counted))
                return Standing(bool(int(taken)), limit.calls_max, remaining, max(0.0, float(frees_in_ms) / 1000))
        return self._take_here(name, limit)

    def _take_here(self, name: str, limit: RateLimit) -> Standing:
        now_s = self._clock.monotonic_s()
        calls = self._own.setdefault(name, deque())
        self._own.move_to_end(name)
        while len(self._own) > COUNTED_MAX:
            self._own.popitem(last=False)
        while calls and calls[0] <= now_s - limit.window_s:
            calls.popleft()
        allowed = len(calls) < limit.calls_max
        if allowed:
            calls.append(now_s)
        frees_in_s = calls[0] + limit.window_s - now_s if calls else 0.0
        return Standing(allowed, limit.calls_max, limit.calls_max - len(calls), frees_in_s)

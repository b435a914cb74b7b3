"""Clients of Redis, alone or behind Sentinels, with bounds of ours.

In: `redis://`, `rediss://`, `unix://`, or `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE?db=N`. What always holds: a
call is made once, and its caller waits for one timeout at most. redis-py's defaults retry ten times, which hangs for a
minute on a frozen server, and a retry after a timeout may execute a second time; its timeout is of each answer alone,
and a call may have to connect, and be answered several times.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from runtime.errors import InvalidRequest

SENTINEL_SCHEME = "redis+sentinel"
SENTINEL_PORT = 26_379
_HOW = "redis_url: write redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"
_PLAIN: dict[str, Any] = {"protocol": 2, "driver_info": None}
"""A new connection asks for nothing before its first call: what redis-py would ask for by itself, a later protocol,
notices of maintenance and a name for the client, is three answers more to wait for, each as slow as Redis is."""


class Script:
    """A script that Redis is told at most once: one answer where Redis knows it, two where it does not."""

    def __init__(self, client: Redis, text: str) -> None:
        self._client = client
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, *, keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Any:
        """Run it."""
        try:
            return await self._client.evalsha(self._digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self._client.eval(self._text, len(keys), *keys, *args)


class Patience:
    """How long callers wait for Redis. A call that takes longer goes on without them, and connects for others."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._calls: set[asyncio.Future[Any]] = set()

    async def answer(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """A call's answer. Raises TimeoutError when there is none in time, and what the call raises."""
        made = asyncio.ensure_future(call())
        self._calls.add(made)
        made.add_done_callback(self._ended)
        await asyncio.wait((made,), timeout=self._within_s)
        if not made.done() or made.cancelled():
            raise TimeoutError
        return made.result()

    async def close(self) -> None:
        """End the calls that nobody waits for any more."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, so that nobody complains that it was not


def open_redis(url: str, *, timeout_s: float) -> Redis:
    """A client whose calls end within a timeout. Connects at its first call. Raises InvalidRequest for a bad URL."""
    if urlsplit(url).scheme == SENTINEL_SCHEME:
        return _behind_sentinels(url, timeout_s)
    try:
        return Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), **_PLAIN
        )
    except ValueError as error:
        raise InvalidRequest(f"redis_url: {error}") from None


async def close_redis(client: Redis) -> None:
    """Close a client's connections, those to Sentinels too."""
    await client.aclose()
    if isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _behind_sentinels(url: str, timeout_s: float) -> Redis:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service = parts.path.strip("/")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if not service or not hosts or set(options) - {"db", "sentinel_password"}:
        raise InvalidRequest(f"{_HOW}, and no options but db and sentinel_password")
    try:
        database = int(options.get("db", "0"))
        sentinels = [_address(host) for host in hosts.split(",")]
    except ValueError:
        raise InvalidRequest(_HOW) from None
    bounds = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, **_PLAIN}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        sentinels,
        sentinel_kwargs={**bounds, "retry": Retry(NoBackoff(), 0), "password": options.get("sentinel_password")},
        **bounds,
    )
    master: Redis = sentinel.master_for(
        service,
        db=database,
        username=unquote(username) or None,
        password=unquote(password) or None,
        retry=Retry(NoBackoff(), 0),
    )
    return master


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text.rpartition("]")[2] else (text, "", str(SENTINEL_PORT))
    if not host:
        raise ValueError(text)
    return host.strip("[]"), int(port)

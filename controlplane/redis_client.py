"""Clients of Redis, alone or behind Sentinels, with bounds of ours.

In: `redis://`, `rediss://`, `unix://`, or `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE?db=N`. What always holds: a
call ends within its timeout and is made once. redis-py's defaults retry ten times, which hangs for a minute on a frozen
server, and a retry after a timeout may execute a second time.
"""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from runtime.errors import InvalidRequest

SENTINEL_SCHEME = "redis+sentinel"
SENTINEL_PORT = 26_379
_HOW = "redis_url: write redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"


def open_redis(url: str, *, timeout_s: float) -> Redis:
    """A client whose calls end within a timeout. Connects at its first call. Raises InvalidRequest for a bad URL."""
    if urlsplit(url).scheme == SENTINEL_SCHEME:
        return _behind_sentinels(url, timeout_s)
    try:
        return Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
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
    bounds = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
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

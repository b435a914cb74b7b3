"""Hears what other control planes say over Redis: that there is something new. A hint; losing it costs a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.exceptions import RedisError

from controlplane.redis_client import close_redis, open_redis
from controlplane.registry_schema import WAKE

LISTEN_S = 2.0
AGAIN_S = 1.0


async def listen(url: str, heard: Callable[[str], None], *, channel_name: str = WAKE) -> None:
    """Call `heard` with every message of a channel, for ever; with an empty one each time that it is connected anew."""
    # A client of its own: a call that waits for news must not be cut off by the bound of those that do not.
    client = open_redis(url, timeout_s=2 * LISTEN_S)
    task = asyncio.current_task()
    assert task is not None
    try:
        # redis-py may take a cancellation for the end of its own timeout: it is looked at after every call.
        while not task.cancelling():
            channel = client.pubsub(ignore_subscribe_messages=True)
            try:
                await channel.subscribe(channel_name)
                heard("")  # whatever was said meanwhile
                while not task.cancelling():
                    message = await channel.get_message(timeout=LISTEN_S)
                    if message is None:
                        await channel.ping()  # a peer that is gone without a word is noticed by this
                    elif message["type"] == "message":
                        heard(message["data"].decode(errors="replace"))
            except (RedisError, OSError):
                await asyncio.sleep(AGAIN_S)
            finally:
                await channel.aclose()  # type: ignore[no-untyped-call]
    finally:
        await close_redis(client)

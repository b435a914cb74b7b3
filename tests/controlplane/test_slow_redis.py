"""What a Redis that answers slowly costs: as few answers as can be, and never more than one timeout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from controlplane import registry as registry_module
from controlplane.redis_client import Patience
from tests.controlplane.redis_server import redis_server
from tests.controlplane.test_registry import Fleet, node, placed, wish
from tests.faults.storage import toxic


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(await stack.enter_async_context(redis_server(tmp_path / "redis")), stack)


async def asked(redis: Redis) -> dict[str, int]:
    """How often each command was called, by clients and by scripts."""
    found = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): said["calls"] for name, said in found.items()}


async def test_a_new_connection_asks_for_nothing_but_what_it_is_for(fleet: Fleet) -> None:
    registry, redis = fleet.registry(), fleet.redis()
    before = await asked(redis)
    await registry.heartbeat(node("a"))
    for number in range(3):
        assert await placed(registry, wish(f"t/{number}", "a")) == "a"
    after = await asked(redis)
    # Both scripts are told once, together with their first call.
    made = {name: after[name] - before.get(name, 0) for name in ("eval", "evalsha")}
    assert made == {"eval": 2, "evalsha": 4}
    for name in ("hello", "client", "select", "script"):
        assert after.get(name, 0) == before.get(name, 0), name


async def test_who_has_a_view_does_not_wait_for_a_newer_one_of_a_slow_redis(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "TIMEOUT_S", 60.0)
    async with toxic(int(fleet.server.url.rpartition(":")[2])) as proxy:
        registry = fleet.registry(f"redis://127.0.0.1:{proxy.port}")
        await fleet.registry().heartbeat(node("a"))
        assert [one.node_id for one in await registry.known(fresh=False)] == ["a"]
        proxy.delay_s = 20.0
        await asyncio.sleep(2 * registry_module.VIEW_S)
        assert [one.node_id for one in await registry.known(fresh=False)] == ["a"]
        assert registry._viewing is not None and not registry._viewing.done()


async def test_a_call_that_takes_longer_than_its_caller_waits_is_made_to_its_end() -> None:
    patience, answer = Patience(0.05), asyncio.Event()
    ended: list[str] = []

    async def call() -> str:
        await answer.wait()
        ended.append("answered")
        return "answered"

    with pytest.raises(TimeoutError):
        await patience.answer(call)
    answer.set()
    assert await Patience(60.0).answer(call) == "answered"
    assert ended == ["answered", "answered"]

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with pytest.raises(TimeoutError):
        await patience.answer(never)
    await patience.close()
    assert ended[2:] == ["cancelled"]

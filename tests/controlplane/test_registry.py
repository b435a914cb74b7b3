"""The fleet's soft state, over a real Redis: reservations, placements, epochs, and life without it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import RedisError

from controlplane import registry_schema
from controlplane.metrics import declare
from controlplane.node_view import Health, NodeView
from controlplane.redis_client import open_redis
from controlplane.registry import QuotaUsedUp, Registry, Wish
from controlplane.registry_schema import PREFIX
from controlplane.wakes import listen
from runtime.clock import SystemClock
from runtime.errors import InvalidRequest
from runtime.lifecycle import Tasks
from tests.controlplane.conftest import until
from tests.controlplane.redis_server import Server, redis_server, sentinels
from tests.faults.figures import Figures


def node(node_id: str, streams: int = 0, **fields: object) -> NodeView:
    values: dict[str, object] = {
        "node_id": node_id,
        "incarnation": 1,
        "address": f"{node_id}:1",
        "model": "m",
        "state": "serving",
        "cursor": 5,
        "streams": streams,
        "streams_max": 4,
        **fields,
    }
    return NodeView(**values)  # type: ignore[arg-type]


def wish(stream: str, *candidates: str, avoid: tuple[str, ...] = (), revision: int | None = None) -> Wish:
    return Wish(stream, candidates, frozenset(avoid), revision, frozenset({"m"}), hold_s=10.0)


async def nobody() -> list[NodeView]:
    return []


class Fleet:
    """Registries of several control planes over one Redis."""

    def __init__(self, server: Server, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack

    def registry(self, url: str | None = None) -> Registry:
        found = Registry(url or self.server.url, SystemClock(), declare(CollectorRegistry()))
        self._stack.push_async_callback(found.close)
        return found

    def redis(self) -> Redis:
        client = Redis.from_url(self.server.url)
        self._stack.push_async_callback(client.aclose)
        return client


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(await stack.enter_async_context(redis_server(tmp_path / "redis")), stack)


async def placed(registry: Registry, asked: Wish) -> str | None:
    found = await registry.reserve(asked)
    return None if found is None else found.node_id


async def test_two_control_planes_never_give_away_the_same_slot(fleet: Fleet) -> None:
    one, other = fleet.registry(), fleet.registry()
    await one.heartbeat(node("a"))
    await one.heartbeat(node("b"))
    asked = [wish(f"t/{index}", "a", "b") for index in range(16)]
    answers = await asyncio.gather(*(placed((one, other)[index % 2], ask) for index, ask in enumerate(asked)))
    assert sorted(answer for answer in answers if answer) == ["a"] * 4 + ["b"] * 4


async def test_of_the_first_two_the_less_loaded_node_is_taken_whatever_the_asker_believed(fleet: Fleet) -> None:
    registry = fleet.registry()
    await registry.heartbeat(node("a", streams=3))
    await registry.heartbeat(node("b", streams=1))
    assert await placed(registry, wish("t/1", "a", "b")) == "b"


async def test_a_stream_finds_back_to_its_node_unless_that_is_avoided_or_away(fleet: Fleet) -> None:
    one, other = fleet.registry(), fleet.registry()
    for name, streams in (("a", 2), ("b", 0)):
        await one.heartbeat(node(name, streams=streams))
    assert await placed(one, wish("t/s", "a")) == "a"
    assert await placed(other, wish("t/s", "b", "a")) == "a"
    assert await placed(other, wish("u/s", "b", "a")) == "b"  # another tenant's stream of the same name
    assert await placed(other, wish("t/s", "b", "a", avoid=("a",))) == "b"
    await one.heartbeat(node("b", state="draining"))
    assert await placed(other, wish("t/s", "a")) == "a"


async def test_a_stream_does_not_go_back_to_a_node_that_lost_the_voices_while_another_has_them(fleet: Fleet) -> None:
    registry = fleet.registry()
    await registry.heartbeat(node("a"))
    assert await placed(registry, wish("t/s", "a")) == "a"
    await registry.heartbeat(node("b", cursor=9))
    assert await placed(registry, wish("t/s", "b", "a", revision=9)) == "b"
    await registry.doubt("b", 1, doubted=True)
    await registry.heartbeat(node("a", cursor=9))
    assert await placed(registry, wish("t/s", "a", "b", revision=9)) == "a"


async def test_a_reservation_moves_with_its_stream_and_is_never_held_twice(fleet: Fleet) -> None:
    registry, redis = fleet.registry(), fleet.redis()
    for name in ("a", "b"):
        await registry.heartbeat(node(name, streams_max=1))
    assert await placed(registry, wish("t/s", "a")) == "a"
    assert await placed(registry, wish("t/s", "a")) == "a"  # its own reservation is not in its way
    assert await placed(registry, wish("t/s", "b", avoid=("a",))) == "b"
    assert await redis.zcard(f"{PREFIX}slots:a") == 0
    await registry.release("t/s")
    assert await redis.zcard(f"{PREFIX}slots:b") == 0


async def test_a_call_takes_a_slot_for_each_of_its_channels(fleet: Fleet) -> None:
    registry, redis = fleet.registry(), fleet.redis()
    await registry.heartbeat(node("a", streams=1))
    call = replace(wish("t/call", "a"), slots=3)
    assert await placed(registry, replace(wish("t/other", "a"), slots=4)) is None
    assert await placed(registry, call) == "a"
    assert await placed(registry, call) == "a"  # its own reservations are not in its way
    assert await placed(registry, wish("t/1", "a")) is None
    assert (await registry.known())[0].reserved == 3
    await registry.heartbeat(node("a", streams=4, tenants={"t": 4}))  # it has opened
    assert await redis.zcard(f"{PREFIX}slots:a") == 0
    await registry.heartbeat(node("a", streams=1))
    assert await placed(registry, call) == "a"
    await registry.release("t/call")
    assert await redis.zcard(f"{PREFIX}slots:a") == 0


async def test_a_tenant_gets_no_more_slots_than_it_may_have_on_all_nodes_together(fleet: Fleet) -> None:
    one, other = fleet.registry(), fleet.registry()
    await one.heartbeat(node("a", streams=3, streams_max=9, tenants={"t": 2, "u": 1}))
    await one.heartbeat(node("b", streams=1, streams_max=9, tenants={"t": 1}))

    async def ask(stream: str, **fields: object) -> str | None:
        return await placed(other, replace(wish(stream, "b", "a"), tenant_max=4, **fields))  # type: ignore[arg-type]

    with pytest.raises(QuotaUsedUp):
        await ask("t/call", slots=2)
    assert await ask("t/4")
    with pytest.raises(QuotaUsedUp):
        await ask("t/5")
    assert await ask("t/4")  # it asks again for what it has
    assert await ask("u/2") and await placed(one, wish("t/no-quota", "a"))
    await one.release("t/no-quota")
    await one.heartbeat(node("b", streams=0, streams_max=9))  # one has ended
    assert await ask("t/5")
    with pytest.raises(QuotaUsedUp):
        await ask("t/6")


async def test_a_stream_that_moves_is_not_refused_for_what_its_lost_node_counts_still(fleet: Fleet) -> None:
    registry = fleet.registry()
    for name in ("a", "b"):
        await registry.heartbeat(node(name, streams_max=9))
    asked = [replace(wish(f"t/{number}", "a"), tenant_max=2) for number in range(5)]
    for ask in asked[:2]:
        assert await placed(registry, ask) == "a"
    await registry.heartbeat(node("a", streams=2, streams_max=9, tenants={"t": 2}))
    for ask in asked[:2]:
        moved = replace(ask, candidates=("b",), avoid=frozenset({"a"}))
        assert await placed(registry, moved) == "b"
    await registry.heartbeat(node("b", streams=2, streams_max=9, tenants={"t": 2}))
    with pytest.raises(QuotaUsedUp):  # by the name of one that was placed nobody gets more and more
        await placed(registry, asked[0])
    with pytest.raises(QuotaUsedUp):
        await placed(registry, asked[2])


async def test_calls_are_counted_by_their_channels_without_redis_too(fleet: Fleet) -> None:
    registry = fleet.registry("redis://127.0.0.1:1")
    await registry.heartbeat(node("a", streams=1))
    assert await placed(registry, replace(wish("t/other", "a"), slots=4)) is None
    call = replace(wish("t/call", "a"), slots=3)
    assert await placed(registry, call) == "a" and await placed(registry, call) == "a"
    assert await placed(registry, wish("t/1", "a")) is None
    await registry.release("t/call")
    assert await placed(registry, wish("t/1", "a")) == "a"


async def test_streams_that_leave_a_node_as_failed_count_against_it(fleet: Fleet) -> None:
    registry = fleet.registry()
    for name in ("a", "b"):
        await registry.heartbeat(node(name, streams_max=9))
    for index in range(3):
        await registry.reserve(wish(f"t/{index}", "a"))
        await registry.reserve(wish(f"t/{index}", "b", avoid=("a",)))
    # One that was never there has nothing to say about it.
    await registry.reserve(wish("t/liar", "a", avoid=("b",)))
    assert {view.node_id: view.faults for view in await registry.nodes()} == {"a": 3, "b": 0}


async def test_what_an_older_incarnation_says_changes_nothing(fleet: Fleet) -> None:
    registry = fleet.registry()
    await registry.heartbeat(node("a", incarnation=2, cursor=3))
    await registry.heartbeat(node("a", incarnation=1, cursor=9))
    await registry.advance([("a", 1, 9)])
    await registry.doubt("a", 1, doubted=True)
    await registry.forget("a", 1)
    (found,) = await registry.nodes()
    assert (found.incarnation, found.cursor, found.doubted) == (2, 3, False)
    await registry.advance([("a", 2, 7)])
    await registry.heartbeat(node("a", incarnation=2, cursor=6))  # sent before it applied the seventh
    (found,) = await registry.nodes()
    assert found.cursor == 7


async def test_a_silent_node_stays_known_and_one_that_left_does_not(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = fleet.registry()
    await registry.heartbeat(node("silent"))
    await registry.heartbeat(node("gone"))
    await registry.forget("gone", 1)
    redis = fleet.redis()
    await redis.zadd(f"{PREFIX}nodes", {"silent": 1.0})
    other = fleet.registry()  # which has not heard it itself
    assert await other.nodes() == []
    (known,) = await other.known()
    assert (known.node_id, known.health, known.cursor) == ("silent", Health.STALE, 5)
    assert await placed(other, wish("t/s", "silent")) is None


async def test_an_emptied_redis_is_filled_with_nodes_reservations_placements_and_the_silent(fleet: Fleet) -> None:
    registry, redis = fleet.registry(), fleet.redis()
    tasks = Tasks()

    async def silent() -> list[NodeView]:
        return [node("silent", state="gone", cursor=4)]

    tasks.spawn("fill", registry.keep_filled(silent))
    await registry.heartbeat(node("a"))
    await registry.heartbeat(node("b"))
    assert await placed(registry, wish("t/s", "a")) == "a"
    await redis.flushall()
    assert await placed(registry, wish("t/other", "b")) == "b"  # from memory: nobody has told Redis again yet
    await until(lambda: redis.exists(f"{PREFIX}node:silent"))
    other = fleet.registry()
    assert {view.node_id: (view.reserved, view.cursor) for view in await other.known()} == {
        "a": (1, 5),
        "b": (1, 5),
        "silent": (0, 4),
    }
    assert await placed(other, wish("t/s", "b", "a")) == "a"
    await tasks.cancel()


@pytest.mark.fault("F6", "P4")
@pytest.mark.fault("F11", "P4", "P8")
async def test_a_frozen_redis_costs_one_caller_half_a_second_and_no_placement(fleet: Fleet, figures: Figures) -> None:
    registry = fleet.registry()
    await registry.heartbeat(node("a", streams_max=1_000))
    fleet.server.signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    began_s, slowest_s = loop.time(), 0.0
    for index in range(40):
        asked_s = loop.time()
        assert await placed(registry, wish(f"t/{index}", "a")) == "a"
        slowest_s = max(slowest_s, loop.time() - asked_s)
        assert [view.node_id for view in await registry.known(fresh=False)] == ["a"]
    assert loop.time() - began_s < 25.0  # 80 calls of half a second each would be 40
    for cell in ("F6", "F11"):
        figures.record("slowest of 40 placements", slowest_s, cell=cell)
        figures.record("placements refused", 0, "", cell=cell)
    fleet.server.signal(signal.SIGCONT)
    await asyncio.sleep(0.6)
    other = fleet.registry()

    async def is_back() -> bool:
        await registry.heartbeat(node("a", streams_max=1_000))
        return len(await other.nodes()) == 1

    await until(is_back)


async def test_a_word_of_one_control_plane_wakes_the_others(fleet: Fleet) -> None:
    registry, heard, tasks = fleet.registry(), [], Tasks()
    tasks.spawn("listen", listen(fleet.server.url, heard.append))
    await until(lambda: heard == [""])  # it listens now
    await registry.publish("me 7")
    await until(lambda: heard == ["", "me 7"])
    await tasks.cancel()


async def test_a_listener_that_is_cancelled_at_any_moment_ends(fleet: Fleet) -> None:
    for number in range(40):
        listening = asyncio.create_task(listen(fleet.server.url, lambda _: None))
        await asyncio.sleep(number * 0.0005)
        listening.cancel()
        await asyncio.wait((listening,), timeout=10)
        assert listening.done()


@pytest.mark.fault("F10", "P4")
async def test_a_failover_of_sentinels_costs_no_placement_and_the_new_master_is_filled(
    tmp_path: Path, figures: Figures
) -> None:
    async with sentinels(tmp_path) as servers, AsyncExitStack() as stack:
        fleet = Fleet(servers.master, stack)
        registry, tasks, heard = fleet.registry(servers.url), Tasks(), []
        tasks.spawn("fill", registry.keep_filled(nobody))
        tasks.spawn("listen", listen(servers.url, heard.append))
        await registry.heartbeat(node("a", streams_max=1_000))
        assert await placed(registry, wish("t/s", "a")) == "a"
        await until(lambda: bool(heard))
        servers.master.signal(signal.SIGKILL)
        killed_s = time.monotonic()
        replica = open_redis(servers.replica.url, timeout_s=0.5)
        stack.push_async_callback(replica.aclose)
        number = 0

        async def failed_over() -> bool:
            nonlocal number
            number += 1
            assert await placed(registry, wish(f"t/{number}", "a")) == "a"
            await registry.heartbeat(node("a", streams_max=1_000))
            with contextlib.suppress(RedisError):  # Sentinel cuts all connections as it promotes a replica
                return bool((await replica.info("replication"))["role"] == "master")
            return False

        await until(failed_over, 20)

        async def told() -> bool:
            await registry.heartbeat(node("a", streams_max=1_000, cursor=6))
            found = await replica.hget(f"{PREFIX}node:a", "cursor")
            return bool(found == b"6")

        await until(told)
        figures.record("the new master knows the fleet after", time.monotonic() - killed_s)
        figures.record("placements refused meanwhile", 0, "")
        await registry.publish("me 8")
        await until(lambda: "me 8" in heard or len(heard) > 1, 60)
        await tasks.cancel()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://127.0.0.1:1",
        "redis+sentinel:///speakerd",
        "redis+sentinel://h:x/speakerd",
        "redis+sentinel://h/speakerd?retry=10",
        "http://h",
    ],
)
def test_a_redis_url_that_means_nothing_is_named(url: str) -> None:
    with pytest.raises(InvalidRequest, match="redis_url"):
        open_redis(url, timeout_s=0.5)


async def test_a_client_makes_a_call_once_and_ends_it_in_time(fleet: Fleet) -> None:
    client = open_redis(fleet.server.url, timeout_s=0.2)
    await client.set("n", 0)
    fleet.server.signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(Exception, match="Timeout"):
        await client.incr("n")
    assert loop.time() - began_s < 15.0
    fleet.server.signal(signal.SIGCONT)
    again = fleet.redis()
    await until(again.ping)
    assert int(await again.get("n")) <= 1
    await client.aclose()


def test_every_key_of_the_scripts_is_in_the_schema() -> None:
    scripts = [value for name, value in vars(registry_schema).items() if name.isupper() and isinstance(value, str)]
    named = {
        part.split("'")[0].rstrip(":")
        for script in scripts
        for part in script.replace("prefix ..", "ARGV[1] ..").split("ARGV[1] .. '")[1:]
    }
    of_jobs = {"jobs", "jobs:known", "jobs:turn", "jobs:turns", "jobs:served"}
    assert named == {"epoch", "node", "nodes", "slots", "tenants", "placed", "faults"} | of_jobs
    for key in named:
        assert f"\n    {key}" in (registry_schema.__doc__ or "")

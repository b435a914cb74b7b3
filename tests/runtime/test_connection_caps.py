"""Too many connections: from one address, from all of them, through proxies, and what is left alone."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError

from runtime import connection_caps
from runtime.config import DaemonSettings
from runtime.connection_caps import Caps, ConnectionCaps, excess, networks
from runtime.lifecycle import Tasks

Looked = Callable[[], Awaitable[None]]
SEEN = {(7, "one", port): port for port in range(1, 7)} | {(7, "two", port): port for port in range(1, 4)}


def test_the_newest_of_an_address_with_too_many_are_too_many() -> None:
    assert excess(SEEN, Caps(4), 100) == [(7, "one", 5), (7, "one", 6)]
    assert excess(SEEN, Caps(0), 100) == []


def test_of_too_many_in_all_they_are_taken_from_whoever_has_the_most() -> None:
    left = set(SEEN) - set(excess(SEEN, Caps(0), 5))
    assert sorted(port for _, address, port in left if address == "two") in ([1, 2], [1, 2, 3])
    assert len(left) == 5 and {(7, "one", 1), (7, "one", 2)} <= left
    assert len(set(SEEN) - set(excess(SEEN, Caps(4), 6))) == 6


def test_proxies_that_are_trusted_are_bound_by_the_total_alone() -> None:
    caps = Caps(1, networks(("10.0.0.0/8", "fd00::/8")))
    seen = {(7, address, port): 1 for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1") for port in range(3)}
    assert excess(seen, caps, 100) == []
    assert len(excess(seen, caps, 4)) == 5
    assert len(excess({(7, "11.1.2.3", port): 1 for port in range(3)}, caps, 100)) == 2


def test_a_network_of_ipv6_counts_as_one_address_and_ipv4_is_the_same_however_it_is_written() -> None:
    seen = {(7, f"2001:db8::{port}", port): port for port in range(1, 6)} | {(7, "2001:db8:0:1::1", 9): 9}
    assert excess(seen, Caps(3), 100) == [(7, "2001:db8::4", 4), (7, "2001:db8::5", 5)]
    seen = {(7, address, port): port for port, address in enumerate(("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"))}
    assert excess(seen, Caps(1), 100) == [(7, "::ffff:192.0.2.1", 1)]
    assert excess({(7, "fe80::1%eth0", port): port for port in range(2)}, Caps(1), 100) == [(7, "fe80::1%eth0", 1)]


def test_a_proxy_that_is_no_network_is_refused() -> None:
    with pytest.raises(ValidationError):
        DaemonSettings(trusted_proxies=("proxy.example",))
    assert DaemonSettings(trusted_proxies=("10.0.0.1",)).connection_caps().is_trusted("10.0.0.1")


@asynccontextmanager
async def capped(caps: Caps) -> AsyncIterator[tuple[int, Counter]]:
    """An echo server under caps: its port, and what counts the cut."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=512)
    tasks, cut = Tasks(), Counter("cut", "", registry=CollectorRegistry())
    await ConnectionCaps(caps, cut).start(tasks)
    try:
        yield server.sockets[0].getsockname()[1], cut
    finally:
        await tasks.cancel()
        server.close()


async def connect(port: int, count: int, source: str) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    return [await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)) for _ in range(count)]


async def answers(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    reader, writer = connection
    try:
        writer.write(b"?")
        await writer.drain()
        return await asyncio.wait_for(reader.read(1), 10) == b"?"
    except OSError:
        return False


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    """Looks come soon after one another; returns once one has ended that began after the call."""
    monkeypatch.setattr(connection_caps, "LOOK_S", 0.05)
    look, ended = ConnectionCaps._look, [0]

    def counted(caps: ConnectionCaps) -> int:
        found = look(caps)
        ended[0] += 1
        return found

    monkeypatch.setattr(ConnectionCaps, "_look", counted)

    async def wait() -> None:
        enough = ended[0] + 2  # the first of them may have begun before
        async with asyncio.timeout(30):
            while ended[0] < enough:
                await asyncio.sleep(0.05)

    return wait


async def test_a_flood_from_one_address_is_cut_and_everybody_else_is_served(looked: Looked) -> None:
    async with capped(Caps(20)) as (port, cut):
        (good,) = await connect(port, 1, "127.0.0.1")
        old = await connect(port, 10, "127.0.0.2")
        assert all([await answers(one) for one in (good, *old)])
        await looked()
        flood = await connect(port, 100, "127.0.0.2")
        async with asyncio.timeout(60):
            while cut._value.get() < 90:
                await asyncio.sleep(0.05)
        await looked()
        alive = [one for one in flood if await answers(one)]
        assert len(alive) == 10
        assert all([await answers(one) for one in (good, *old)]), "who was there before the flood stays"
        (late,) = await connect(port, 1, "127.0.0.3")
        assert await answers(late)
        for _, writer in (good, late, *old, *flood):
            writer.close()


async def test_a_flood_is_cut_when_no_descriptor_is_left_to_look_with(
    monkeypatch: pytest.MonkeyPatch, looked: Looked
) -> None:
    def none_left(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    async with capped(Caps(20)) as (port, cut):
        flood = await connect(port, 60, "127.0.0.2")
        with monkeypatch.context() as crowded:
            crowded.setattr(connection_caps.os, "listdir", none_left)
            crowded.setattr(connection_caps.os, "dup", none_left)
            async with asyncio.timeout(60):
                while cut._value.get() < 40:
                    await asyncio.sleep(0.05)
            await looked()
        alive = [one for one in flood if await answers(one)]
        assert len(alive) == 20
        for _, writer in flood:
            writer.close()


async def test_a_look_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def fails(_: object) -> int:
        nonlocal looks
        looks += 1
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(connection_caps, "LOOK_S", 0.01)
    monkeypatch.setattr(ConnectionCaps, "_look", fails)
    async with capped(Caps(20)), asyncio.timeout(20):
        while looks < 3:
            await asyncio.sleep(0.01)


async def test_connections_that_this_process_makes_itself_are_not_counted(looked: Looked) -> None:
    with socket.socket() as elsewhere:
        async with capped(Caps(5)) as (port, cut):
            elsewhere.bind(("127.0.0.1", 0))
            elsewhere.listen(64)
            # Its own listening port is among those that are looked at: these 5 and no others.
            inside = await connect(port, 5, "127.0.0.2")
            assert all([await answers(one) for one in inside])
            await looked()
            assert all([await answers(one) for one in inside]) and cut._value.get() == 0
            for _, writer in inside:
                writer.close()


def test_as_many_descriptors_are_taken_as_there_are() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1_024, before[1]), before[1]))
        assert connection_caps.raise_descriptor_limit() == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

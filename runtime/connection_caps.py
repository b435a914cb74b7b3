"""How many connections a daemon holds, from one address and in all: who opens more has the newest of them closed.
Of IPv6 a network of 64 bits counts as an address, for whoever has one has all of it.

In: the process's own sockets, looked at twice a second. Out: connections shut down. What always holds: a connection
that was there before a flood outlives it; proxies that the operator trusts are bound by the total alone, for behind
one of them is everybody; descriptors are left for what the daemon itself opens. It works on sockets and not in a
server, for gRPC's listen in C, out of Python's reach, and say nothing of who connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import resource
import socket
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prometheus_client import Counter as Metric

from runtime.lifecycle import Tasks
from runtime.logs import get_logger

LOOK_S = 0.5
RESERVED_MAX = 256
"""Descriptors that are left for files, databases and other daemons; of few, a quarter of them."""
FOLDER = "/proc/self/fd"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Key = tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class Caps:
    """per_address: from one address; 0: any number. trusted: whose connections count in the total alone."""

    per_address: int
    trusted: tuple[Network, ...] = ()

    def is_trusted(self, address: str) -> bool:
        """Whether an address is that of a proxy."""
        if not self.trusted:
            return False
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None) or found
        return any(mapped.version == network.version and mapped in network for network in self.trusted)


IPV6_PREFIX = 64
"""What one customer has of IPv6 at the least: bits of an address that say whose it is."""


@lru_cache(maxsize=16_384)
def owner(address: str) -> str:
    """Whose connection it is: an IPv4 address, however it is written, or the network of an IPv6 one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return address
    mapped = found.ipv4_mapped
    return str(mapped or ipaddress.ip_network((found, IPV6_PREFIX), strict=False))


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks as they are written in configuration. Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def raise_descriptor_limit() -> int:
    """Take as many descriptors as the system gives; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def excess(since: dict[_Key, int], caps: Caps, total: int) -> list[_Key]:
    """Which connections are too many: the newest of each address that has too many, then of whoever has the most.

    since: when each was first seen, in looks; a key is (local port, peer's address, peer's port).
    """
    by_address: dict[str, list[_Key]] = {}  # a proxy's, or its owner's
    for key in sorted(since, key=lambda key: since[key]):
        by_address.setdefault(key[1] if caps.is_trusted(key[1]) else owner(key[1]), []).append(key)
    cut: list[_Key] = []
    for keys in by_address.values():
        if caps.per_address and len(keys) > caps.per_address and not caps.is_trusted(keys[0][1]):
            cut += keys[caps.per_address :]
            del keys[caps.per_address :]
    num_left = sum(map(len, by_address.values()))
    sizes = Counter({address: len(keys) for address, keys in by_address.items()})
    while num_left > total:
        # Whoever has the most gives up what is beyond the next, at once: one at a time would take long of ten thousand.
        (most, size), *others = sizes.most_common(2)
        step = max(1, min(num_left - total, size - (others[0][1] if others else 0)))
        keys = by_address[most]
        cut += keys[size - step :]
        del keys[size - step :]
        sizes[most], num_left = size - step, num_left - step
    return cut


class ConnectionCaps:
    """A part of a daemon. cut: counts what was closed."""

    def __init__(self, caps: Caps, cut: Metric) -> None:
        self._caps = caps
        self._cut = cut
        self._since: dict[_Key, int] = {}
        self._looks = 0
        self._total = 0

    def __repr__(self) -> str:
        return f"ConnectionCaps({len(self._since)} of {self._total})"

    async def start(self, tasks: Tasks) -> None:
        """Begin to look, where the system shows a process its descriptors (Linux)."""
        limit = raise_descriptor_limit()
        self._total = limit - min(RESERVED_MAX, limit // 4)
        if Path(FOLDER).is_dir():  # noqa: ASYNC240 - asked once
            tasks.spawn("connections.cap", self._run())

    async def drain(self, deadline_s: float) -> None:
        """Nothing is under way."""

    async def stop(self) -> None:
        """The task ends with the others."""

    async def _run(self) -> None:
        num_cut = 0
        while True:
            # What was closed is taken by those who wait to be accepted: while a crowd lasts it is looked at more often.
            await asyncio.sleep(LOOK_S / 10 if num_cut else LOOK_S)
            try:
                num_cut = await asyncio.to_thread(self._look)
            except OSError as error:
                # The next look may see more; a daemon does not end because it is crowded.
                get_logger().warning("connections.not_counted", error_type=type(error).__name__)
                continue
            if num_cut:
                self._cut.inc(num_cut)
                get_logger().warning("connections.cut", connections=num_cut, kept=len(self._since))

    def _look(self) -> int:
        """Count, and close what is too many; how many. On a thread: of ten thousand sockets it takes a while."""
        bound = min(self._total, self._caps.per_address or self._total)
        names = _open_descriptors()
        if len(names) <= bound // 2:
            self._since.clear()  # not worth the looking: should there be more, these are as old as one another
            return 0
        self._looks += 1
        found: dict[_Key, int] = {}
        for key, _ in _connections(names):
            found[key] = self._since.get(key, self._looks)
        self._since = found
        over = set(excess(found, self._caps, self._total))
        num_cut = 0
        if over:
            for key, connection in _connections(names):
                if key in over:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                        num_cut += 1
                    self._since.pop(key, None)
        return num_cut


def _open_descriptors() -> list[int]:
    """All of them. To list them takes one more: where there is none left, each number is tried."""
    try:
        return [int(name) for name in os.listdir(FOLDER)]  # noqa: PTH208 - thousands of names, and no paths needed
    except OSError:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return [number for number in range(limit) if _is_socket(number)]


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False


def _connections(numbers: Iterable[int]) -> Iterator[tuple[_Key, socket.socket]]:
    """The process's accepted connections. Each is good until the next is asked for."""
    sockets: list[tuple[int, _Key]] = []
    listening: set[int] = set()
    for number in numbers:
        with _opened(number) as one:
            if one is None:
                continue
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listening.add(one.getsockname()[1])
            else:
                key = _key(one)
                if key is not None:
                    sockets.append((number, key))
    for number, key in sockets:
        if key[0] not in listening:
            continue
        with _opened(number) as one:
            # The descriptor may have become another's since: only one that is the same connection still is given out.
            if one is not None and _key(one) == key:
                yield key, one


@contextlib.contextmanager
def _opened(number: int) -> Iterator[socket.socket | None]:
    """A TCP socket of ours; None for what is none. Under a descriptor of its own, where there is one left."""
    if not _is_socket(number):
        yield None
        return
    is_borrowed = False
    found: socket.socket | None = None
    try:
        try:
            own = os.dup(number)
        except OSError:
            own, is_borrowed = number, True
        found = socket.socket(fileno=own)
    except OSError:
        found = None  # it was closed meanwhile
    try:
        is_tcp = found is not None and found.family in (socket.AF_INET, socket.AF_INET6)
        yield found if is_tcp and found is not None and found.type == socket.SOCK_STREAM else None
    finally:
        if found is not None:
            if is_borrowed:
                found.detach()
            else:
                found.close()


def _key(one: socket.socket) -> _Key | None:
    try:
        peer = one.getpeername()
        return int(one.getsockname()[1]), str(peer[0]), int(peer[1])
    except OSError:
        return None

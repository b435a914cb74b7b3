"""The connections to nodes that the streams of one client share: fewer of them, and fewer TLS handshakes.

In: where a stream is to go. Out: its hold on a connection there. What always holds: streams share only what goes to the
same address, trusting the same authority, for a certificate of the same name; a connection that is suspect or old gets
no new stream, and those that are on it go on; a connection is closed as soon as its last stream has let go of it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from grpc import aio

from speakerd.channel import TlsTrust, open_channel

STREAMS_A_CONNECTION = 16
"""Most of what sharing saves is saved by then; and over a line that loses packets they have one TCP's share of it, of
which sound in 16 bits takes a quarter of a Mbit/s each."""
SHARED_FOR_S = 600.0
"""A connection this old gets no new streams: a node's certificate is looked at only as one is made."""


@dataclass(slots=True, eq=False)
class _Connection:
    whereto: tuple[str, TlsTrust | None, str]
    channel: aio.Channel
    opened_s: float
    num_streams: int = 0
    is_retired: bool = False

    def has_room(self, now_s: float) -> bool:
        is_young = now_s - self.opened_s < SHARED_FOR_S
        return is_young and not self.is_retired and self.num_streams < STREAMS_A_CONNECTION


class Hold:
    """One stream's hold on a connection, until it lets go."""

    def __init__(self, connection: _Connection, among: set[_Connection]) -> None:
        self._connection = connection
        self._among = among
        self._is_held = True
        connection.num_streams += 1

    def __repr__(self) -> str:
        return f"Hold({self._connection.whereto[0]!r}, with={self._connection.num_streams})"

    @property
    def channel(self) -> aio.Channel:
        """What to call over."""
        return self._connection.channel

    def retire(self, *, is_line: bool = False) -> None:
        """Take the connection for suspect, with all of now to the same place: who tries again gets a new one.

        is_line: and with those to other places, for it may be our own line that is gone. A connection that was retired
        with others says nothing about those that were made after that.
        """
        if self._connection.is_retired:
            return
        for one in self._among | {self._connection}:
            if is_line or one.whereto == self._connection.whereto:
                one.is_retired = True

    async def release(self) -> None:
        """Let go, once: the last one closes the connection."""
        if not self._is_held:
            return
        self._is_held = False
        self._connection.num_streams -= 1
        if self._connection.num_streams == 0:
            self._among.discard(self._connection)
            await self._connection.channel.close()


class Connections:
    """Those of one client, on one event loop."""

    def __init__(self) -> None:
        self._open: set[_Connection] = set()

    def __repr__(self) -> str:
        return f"Connections({len(self._open)} open)"

    def __len__(self) -> int:
        return len(self._open)

    def take(self, address: str, tls: TlsTrust | None = None, *, tls_name: str = "") -> Hold:
        """A hold on a connection to "host:port", the fullest that has room, or a new one. It is dialled when used."""
        whereto, now_s = (address, tls, tls_name), asyncio.get_running_loop().time()
        fitting = [one for one in self._open if one.whereto == whereto and one.has_room(now_s)]
        if fitting:
            return Hold(max(fitting, key=lambda one: one.num_streams), self._open)
        connection = _Connection(whereto, open_channel(address, tls, name=tls_name), now_s)
        self._open.add(connection)
        return Hold(connection, self._open)

    async def close(self) -> None:
        """Let go of them all. A call that runs on one goes on to its end: gRPC closes it after that."""
        while self._open:
            await self._open.pop().channel.close()

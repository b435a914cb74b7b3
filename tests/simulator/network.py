"""What lies between processes: calls and streams that are lost, delayed, doubled, cut off, and late by half a minute.

Modelled on gRPC over TCP as the daemons use it: a call has a deadline, after which its answer is not taken any more
while the request may still arrive; a stream keeps its order and breaks off when nothing gets through for as long as
keepalive allows; a peer that is gone refuses at once. Doubled requests are what a proxy that tries again makes of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from random import Random
from typing import Any, TypeVar

from runtime.errors import SpeakerdError, Unavailable
from tests.simulator.loop import Delivery, Process, SimulatedLoop

T = TypeVar("T")
KEEPALIVE_S = 7.0
LATE_S = 40.0
STALL_S = 20.0
KINDS = ("renew", "sync", "heartbeat", "push", "probe", "result")


class Network:
    """Everything that is sent."""

    def __init__(self, loop: SimulatedLoop, seed: int) -> None:
        self._loop = loop
        # Dice of their own for each kind: one heartbeat more does not change what becomes of every renewal after it.
        self._dice = {kind: Random(f"{seed} {kind}") for kind in KINDS}
        self.faulty = True
        self.loss = 0.0
        self.doubled = 0.0
        self.late = 0.0
        self._blocked: dict[tuple[str, str], float] = {}

    def block(self, name: str, kind: str, until_s: float) -> None:
        """Nothing of a kind passes to or from a process; kind "*": nothing at all."""
        key = (name, kind)
        self._blocked[key] = max(until_s, self._blocked.get(key, 0.0))

    def heal(self) -> None:
        self.faulty = False
        self._blocked.clear()

    def passes(self, one: Process, other: Process, kind: str) -> bool:
        blocked, now_s = self._blocked, self._loop.now_s
        if not blocked:
            return True
        for name in (one.name, other.name):
            if blocked.get((name, "*"), 0.0) > now_s or blocked.get((name, kind), 0.0) > now_s:
                return False
        return True

    def delay_s(self, kind: str) -> float:
        dice = self._dice[kind]
        if self.faulty and dice.random() < self.late:
            return dice.uniform(0.1, dice.choice((3.0, LATE_S)))
        return 0.001 + dice.expovariate(1 / 0.02)

    def send(self, source: Process, target: Process, kind: str, act: Callable[[], None]) -> None:
        """One message; it may be lost, or come more than once."""
        if not self.passes(source, target, kind) or (self.faulty and self._dice[kind].random() < self.loss):
            return
        copies = 2 if self.faulty and self._dice[kind].random() < self.doubled else 1
        for _ in range(copies):
            delivery = Delivery(act)
            self._loop.call_later(self.delay_s(kind), delivery, context=target.context())

    async def call(
        self, source: Process, target: Process, kind: str, serve: Callable[[], Awaitable[T]], *, timeout_s: float
    ) -> T:
        """A unary call. Raises what the server raised, or Unavailable."""
        answer: asyncio.Future[T] = self._loop.create_future()
        if target.dead:
            await asyncio.sleep(0.002)
            raise Unavailable("nobody listens")

        def fail(error: SpeakerdError) -> None:
            if not answer.done():
                answer.set_exception(error)

        async def handle() -> None:
            try:
                result = await serve()
            except SpeakerdError as error:
                failure = error
                self.send(target, source, kind, lambda: fail(failure))
            else:
                self.send(target, source, kind, lambda: None if answer.done() else answer.set_result(result))

        self.send(source, target, kind, lambda: None if target.dead else self._begin(handle))
        deadline = self._loop.call_later(timeout_s, fail, Unavailable("no answer in time"))
        try:
            return await answer
        finally:
            deadline.cancel()

    async def stream(
        self, source: Process, target: Process, kind: str, serve: Callable[[], AsyncIterator[T]]
    ) -> AsyncIterator[T]:
        """A stream of answers, in order. Raises what the server raised, or Unavailable when it breaks off."""
        arrived: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        arrives_s = 0.0
        gone = False

        def post(what: str, value: Any) -> bool:
            """Whether the bytes are on their way; the server does not learn whether they arrive."""
            nonlocal arrives_s
            if not self.passes(source, target, kind) or (self.faulty and self._dice[kind].random() < self.loss):
                return False
            arrives_s = max(arrives_s, self._loop.now_s + self.delay_s(kind))
            delivery = Delivery(lambda: arrived.put_nowait((what, value)))
            self._loop.call_at(arrives_s, delivery, context=source.context())
            return True

        async def handle() -> None:
            try:
                async with aclosing(serve()) as answers:  # type: ignore[type-var]
                    async for answer in answers:
                        if gone or not post("answer", answer):
                            return
                        if self.faulty and self._dice[kind].random() < self.late:
                            await asyncio.sleep(self._dice[kind].uniform(0.0, STALL_S))
            except SpeakerdError as error:
                post("error", error)
            else:
                post("end", None)

        if target.dead:
            raise Unavailable("nobody listens")
        begun = False

        def begin() -> None:
            nonlocal begun
            if not begun and not target.dead:  # a connection's bytes come once
                begun = True
                self._begin(handle)

        self.send(source, target, kind, begin)
        try:
            while True:
                # Keepalive is answered below the application, so that a frozen server's stream is cut as well.
                async with asyncio.timeout(KEEPALIVE_S if self.broken(source, target, kind) else STALL_S + KEEPALIVE_S):
                    what, value = await arrived.get()
                if what == "end":
                    return
                if what == "error":
                    raise value
                yield value
        except TimeoutError:
            raise Unavailable("the stream broke off") from None
        finally:
            gone = True

    def broken(self, source: Process, target: Process, kind: str) -> bool:
        return target.dead or target.frozen or not self.passes(source, target, kind)

    def _begin(self, handle: Callable[[], Any]) -> None:
        self._loop.create_task(handle())

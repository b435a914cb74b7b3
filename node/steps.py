"""The streams' own decisions (who is who, which turns), and when they are worth a change of threads.

In: functions. Out: what they returned, or raised. What always holds: nothing that is expected to take longer than
AT_ONCE_S runs on the event loop; other works run on one thread, in the order in which they came, and those that wait
are handed over and back together, WORKS_A_GO at most. A stream waits for its work before it gives the next, so its own
never overtake each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from time import thread_time
from typing import Any, TypeVar

T = TypeVar("T")

WORKS_A_GO = 8
AT_ONCE_S = 0.0008
"""What a change of threads and back costs where all of them share a core, or the interpreter: about a step."""
COST_WEIGHT = 0.1  # of the newest work in what one of its kind is expected to take


class Steps:
    """Works on an executor of one thread, which the caller closes."""

    def __init__(self, executor: Executor, timed: Callable[[float], None] = lambda _: None) -> None:
        """timed: told what each work took of a processor's time, in seconds."""
        self._executor = executor
        self._tell_time = timed
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._is_running = False
        self._costs_s: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Steps({len(self._waiting)} waiting, running={self._is_running})"

    async def run(self, work: Callable[[], T], kind: str) -> T:
        """Run a work and return what it returned, or raise what it raised. kind: works of one kind take alike."""
        timed = partial(self._timed, work, kind)
        if self._costs_s.get(kind, AT_ONCE_S) < AT_ONCE_S:
            return timed()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((timed, future))
        if not self._is_running:
            self._is_running = True
            # Not at once: whoever was woken by the same batch of the device comes along.
            loop.call_soon(self._start)
        return await future

    def _timed(self, work: Callable[[], T], kind: str) -> T:
        began_s = thread_time()
        try:
            return work()
        finally:
            took_s = thread_time() - began_s
            self._tell_time(took_s)
            known_s = self._costs_s.get(kind, took_s)
            self._costs_s[kind] = known_s + COST_WEIGHT * (took_s - known_s)

    def _start(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(WORKS_A_GO, len(self._waiting)))]
        batch = [(work, future) for work, future in batch if not future.done()]
        futures = [future for _, future in batch]
        try:
            running = asyncio.get_running_loop().run_in_executor(self._executor, _run_all, [work for work, _ in batch])
        except RuntimeError as error:  # the executor is closed: the node is stopping
            self._settle_all(futures, [_Raised(error)] * len(futures))
            return
        running.add_done_callback(
            lambda done: self._settle_all(futures, [_GONE] * len(futures) if done.cancelled() else done.result())
        )

    def _settle_all(self, futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Any]) -> None:
        for future, outcome in zip(futures, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, _Raised):
                future.set_exception(outcome.error)
            else:
                future.set_result(outcome)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._start)
        else:
            self._is_running = False


class _Raised:
    """What a work raised, told apart from what one returned."""

    def __init__(self, error: Exception) -> None:
        self.error = error


_GONE = _Raised(RuntimeError("the thread of the streams' steps has ended"))


def _run_all(works: Sequence[Callable[[], Any]]) -> list[Any]:
    outcomes: list[Any] = []
    for work in works:
        try:
            outcomes.append(work())
        except Exception as error:  # noqa: BLE001 - handed to the stream whose work it was
            outcomes.append(_Raised(error))
    return outcomes

"""The streams' own decisions (who is who, which turns), off the event loop: on one thread, many at a go.

In: functions. Out: what they returned, or raised. What always holds: works run one at a time, in the order in which
they came, so that one stream's never overtake each other; those that wait are handed over and handed back together,
WORKS_A_GO at most, since a change of threads costs about as much as a step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")

WORKS_A_GO = 8


class Steps:
    """Works on an executor of one thread, which the caller closes."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._is_running = False

    def __repr__(self) -> str:
        return f"Steps({len(self._waiting)} waiting, running={self._is_running})"

    async def run(self, work: Callable[[], T]) -> T:
        """Run a work and return what it returned, or raise what it raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((work, future))
        if not self._is_running:
            self._is_running = True
            # Not at once: whoever was woken by the same batch of the device comes along.
            loop.call_soon(self._start)
        return await future

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

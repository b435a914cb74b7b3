"""A bound on each of many waits of one task, one after another, at the cost of next to nothing a wait.

In: `with patience:` around a wait. Out: TimeoutError where it takes longer than the bound. What always holds: there is
one timer at most, touched once a bound and not once a wait, which thousands of messages a second are worth; a
cancellation by somebody else stays one.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Patience:
    """How long a task waits for the other end. Not to be nested. `close` it at the end of the task."""

    def __init__(self, bound_s: float) -> None:
        self.bound_s = bound_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._until_s: float | None = None  # None: nobody waits
        self._is_out = False

    def __repr__(self) -> str:
        return f"Patience({self.bound_s:g} s, waiting={self._until_s is not None})"

    def __enter__(self) -> None:
        assert self._until_s is None, "one wait at a time"
        self._task = asyncio.current_task()
        self._until_s = self._loop.time() + self.bound_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._until_s, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._until_s = None
        if self._is_out:
            self._is_out = False
            assert self._task is not None
            if self._task.uncancel() == 0 and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._until_s is None:
            return  # the next wait sets the timer
        if self._loop.time() < self._until_s:
            self._timer = self._loop.call_at(self._until_s, self._look)
            return
        assert self._task is not None
        self._is_out = True
        self._task.cancel()

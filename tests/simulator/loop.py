"""An event loop on which time is what the simulation says, and whose tasks belong to processes that can freeze and die.

Runs the daemons' own coroutines unchanged. Every handle belongs to the process in whose context it was made; a handle
of a frozen process waits until it thaws, one of a dead process never runs. Nothing here depends on real time, on hashes
or on addresses, so that a seed always gives the same run.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from random import Random
from typing import Any


class Process:
    """A process: a clock of its own, and whether its code runs. drift: seconds of its clock in a second of time."""

    def __init__(self, name: str, loop: SimulatedLoop, *, drift: float = 1.0, offset_s: float = 0.0) -> None:
        self.name = name
        self.loop = loop
        self.drift = drift
        self.offset_s = offset_s
        self.frozen = False
        self.dead = False
        self.undisturbed_since_s = loop.now_s
        self.waiting: list[tuple[asyncio.Handle, bool]] = []
        self._context = Context()
        self._context.run(OWNER.set, self)

    def __repr__(self) -> str:
        return f"Process({self.name}, frozen={self.frozen}, dead={self.dead})"

    @property
    def runs(self) -> bool:
        return not (self.frozen or self.dead)

    def context(self) -> Context:
        """The context whose tasks belong to this process."""
        return self._context

    def start(self, work: Any, name: str = "") -> asyncio.Task[Any]:
        return self.context().run(self.loop.create_task, work, name=name)

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self, random: Random) -> None:
        """What became due meanwhile runs now: messages first or timers first, as a selector may have it."""
        if not self.frozen:
            return
        self.frozen = False
        self.undisturbed_since_s = max(self.undisturbed_since_s, self.loop.now_s)
        waiting, self.waiting = self.waiting, []
        if random.random() < 0.5:
            waiting.sort(key=lambda item: item[1])
        self.loop.take_back([handle for handle, _ in waiting])

    def crash(self) -> None:
        self.dead = True

    # runtime.clock.Clock
    def lease_now_s(self) -> float:
        return self.loop.now_s * self.drift + self.offset_s

    monotonic_s = lease_now_s

    def wall_s(self) -> float:
        return self.loop.now_s


class Delivery:
    """A message that reaches a process: a timer's callback that is told from timers."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def __call__(self) -> None:
        self._act()


OWNER: ContextVar[Process | None] = ContextVar("OWNER", default=None)


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Single-stepped. after_step: called with the process whose code just ran."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.after_step: Callable[[Process | None], None] = lambda _process: None
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._sequence = 0
        self._limbo: list[asyncio.Handle] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self.errors: list[dict[str, Any]] = []

    def run_until(self, end_s: float) -> None:
        """Step until there is nothing to do before a moment."""
        previous = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        asyncio._set_running_loop(self)
        try:
            while self._ready or (self._timers and self._timers[0][0] <= end_s):
                if self._ready:
                    handle = self._ready.popleft()
                    is_timer = False
                else:
                    when_s, _, handle = heapq.heappop(self._timers)
                    self.now_s = max(self.now_s, when_s)
                    is_timer = True
                if handle._cancelled:
                    continue
                process = handle._context.get(OWNER)
                if process is not None and not process.runs:
                    if process.dead:
                        self._limbo.append(handle)
                    else:
                        process.waiting.append((handle, is_timer and not isinstance(handle._callback, Delivery)))
                    continue
                handle._run()
                self.after_step(process)
            self.now_s = max(self.now_s, end_s)
        finally:
            asyncio._set_running_loop(previous)

    def take_back(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def tear_down(self, processes: list[Process]) -> None:
        """End every task, also of the dead, so that nothing is left half-way when the run is forgotten."""
        self.after_step = lambda _process: None
        for process in processes:
            process.dead = process.frozen = False
            self._limbo += [handle for handle, _ in process.waiting]
            process.waiting = []
        self._ready.extend(self._limbo)
        for _ in range(50):
            pending = [task for task in self._tasks if not task.done()]
            if not pending:
                break
            for task in pending:
                task.cancel()
            self.run_until(self.now_s)
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.exception()
        self._tasks = []
        self._timers = []

    # What coroutines and futures ask of a loop.

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, handle))
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self.keep(task)
        return task

    def keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.append(task)
        if len(self._tasks) > 2_000:
            self._tasks = [task for task in self._tasks if not task.done()]

    def run_in_executor(self, _executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

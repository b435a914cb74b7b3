"""One lifecycle for every daemon: start, serve, then refuse, drain, stop.

A daemon is a list of parts, started in order and stopped in reverse. SIGTERM and SIGINT begin the end: every part first
refuses new work, then drains what runs within one bound, then stops. A background task that fails, or a part that
fails to start, ends the process loudly (exit code 1); a clean end is 0. A second signal stops waiting for the drain.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from runtime.logs import get_logger

STOP_BOUND_S = 10.0
"""How long one part may take to stop before it is left behind."""


class Part(Protocol):
    """A piece of a daemon that has a beginning and an end."""

    async def start(self, tasks: Tasks) -> None:
        """Become ready. Background work is started on `tasks`."""
        ...

    async def drain(self, deadline_s: float) -> None:
        """Refuse new work at once, and return when what runs has ended; it is cancelled after deadline_s seconds."""
        ...

    async def stop(self) -> None:
        """Release everything. Called once, also when start failed half-way."""
        ...


class Tasks:
    """Named background tasks. One that fails ends the daemon."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"Tasks({sorted(task.get_name() for task in self._running)})"

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work until it returns. An exception other than cancellation ends the daemon."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self.failed.done():
            get_logger().error("task.failed", task=task.get_name(), error_type=type(error).__name__, exc_info=error)
            self.failed.set_result(error)

    async def cancel(self) -> None:
        """Cancel what still runs and wait for it."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_daemon(
    parts: Sequence[Part],
    *,
    drain_s: float,
    ready: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
) -> int:
    """Run parts until a signal, `stop`, or a failure. Returns the exit code of the process.

    ready: called once, when every part has started. stop: ends the daemon as a signal would (for tests and embedding).
    """
    log = get_logger()
    stopping = stop or asyncio.Event()
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            hurry.set()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    before = loop.get_exception_handler()
    loop.set_exception_handler(_unhandled)
    tasks = Tasks()
    started: list[Part] = []
    try:
        for part in parts:
            started.append(part)
            await part.start(tasks)
        ready()
        log.info("daemon.ready")
        await _first(stopping.wait(), tasks.failed)
        log.info("daemon.stopping", failed=tasks.failed.done())
        if not tasks.failed.done():
            await _first(_drain(started, drain_s), hurry.wait(), tasks.failed)
        return 1 if tasks.failed.done() else 0
    finally:
        await _stop(started)
        await tasks.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        loop.set_exception_handler(before)
        log.info("daemon.stopped")


def _unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # The loop's own handler would write out the task or future, and in it the message of its exception.
    get_logger().error("loop.failed", what=str(context.get("message", "")), exc_info=context.get("exception"))


async def _drain(parts: Sequence[Part], drain_s: float) -> None:
    # All at once: every part refuses from the same moment on, and the longest drain bounds the whole.
    await asyncio.gather(*(part.drain(drain_s) for part in reversed(parts)))


async def _stop(parts: Sequence[Part]) -> None:
    for part in reversed(parts):
        try:
            await asyncio.wait_for(part.stop(), STOP_BOUND_S)
        except Exception as error:  # noqa: BLE001 - one part that fails to stop must not keep the others running
            get_logger().error("part.stop_failed", part=type(part).__name__, error_type=type(error).__name__)


async def _first(*waits: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Return when the first of several waits is over; cancel the coroutines among the others."""
    futures = [asyncio.ensure_future(wait) for wait in waits]
    ours = [future for future, wait in zip(futures, waits, strict=True) if future is not wait]
    try:
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in ours:
            future.cancel()
        await asyncio.gather(*ours, return_exceptions=True)
    for future in done:
        if future in ours and not future.cancelled():
            future.result()

"""The one thread that owns the device. Calls go in through a bounded queue, results come back to the event loop.

In: functions of the engine. Out: futures of the loop. What always holds: calls run one at a time, in the order of their
submission, on one thread; a call whose caller has gone before it began is not run; and when the thread ends other than
by `stop`, `lost` says so and every call fails. A call that fails for want of memory is refused as too much; after any
other failure the device is asked whether it still answers, and is lost if it does not.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from node.engine import Engine, probe
from runtime.errors import Overloaded, SpeakerdError, Unavailable
from runtime.logs import get_logger

T = TypeVar("T")
STOP_BOUND_S = 5.0
OUT_OF_MEMORY = "the device is out of memory: try again in a second, or go to another node"


class DeviceLost(Exception):
    """The device no longer answers; the process has to end."""


class DeviceThread:
    """Runs calls on an engine that it loads itself. calls_max bounds those that wait, but for those that must run."""

    def __init__(self, load: Callable[[], Engine], *, calls_max: int) -> None:
        self._load = load
        self._calls_max = calls_max
        self._queue: queue.SimpleQueue[tuple[Callable[[Engine], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._loaded: asyncio.Future[Engine] = self._loop.create_future()
        self._stopping = False
        self._since_s: float | None = None  # when the call began that runs
        self.lost: asyncio.Future[DeviceLost] = self._loop.create_future()

    def __repr__(self) -> str:
        return f"DeviceThread({self._queue.qsize()} calls waiting, lost={self.lost.done()})"

    def busy_s(self) -> float:
        """How long the call has run that runs now; 0 where none does. May be asked on any thread."""
        since_s = self._since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    async def start(self) -> Engine:
        """Load and warm the engine. Raises what loading raised."""
        self._thread.start()
        return await self._loaded

    def submit(self, work: Callable[[Engine], T], *, must_run: bool = False) -> asyncio.Future[T]:
        """Queue a call now; its place in the order is fixed when this returns. Raises Overloaded, or Unavailable.

        must_run: it is not refused for the number of those that wait. For callers who have one call at a time.
        """
        if self.lost.done() or self._stopping:
            raise Unavailable("the device is gone; go to another node")
        if not must_run and self._queue.qsize() >= self._calls_max:
            raise Overloaded("the device has too many calls waiting; try again", retry_after_s=1.0)
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((work, future))
        return future

    async def call(self, work: Callable[[Engine], T], *, must_run: bool = False) -> T:
        """Run a call and return what it returned, or raise what it raised."""
        return await self.submit(work, must_run=must_run)

    def declare_lost(self, error: DeviceLost) -> None:
        """The device failed a probe: nothing more is to be expected of it."""
        if not self.lost.done():
            self.lost.set_result(error)

    async def stop(self) -> None:
        """End the thread after the call that it runs; calls that still wait are cancelled."""
        self._stopping = True
        while not self._queue.empty():
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting[1].cancel()
        self._queue.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_BOUND_S)

    def _work(self) -> None:
        try:
            engine = self._load()
            probe(engine.device)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the engine
            self._post(_fail, self._loaded, error)
            return
        self._post(_resolve, self._loaded, engine)
        while (item := self._queue.get()) is not None:
            work, future = item
            if future.cancelled():
                continue
            self._since_s = time.monotonic()
            try:
                result = work(engine)
            except Exception as error:  # noqa: BLE001 - handed to the caller
                self._failed(engine, future, error)
            except BaseException as error:
                # Not the error itself: a SystemExit that reaches the event loop ends the process as if all were well.
                lost = DeviceLost(f"the device thread ended: {type(error).__name__}")
                self._post(_fail, future, lost)
                self._post(self.declare_lost, lost)
                raise
            else:
                self._post(_resolve, future, result)
            finally:
                self._since_s = None

    def _failed(self, engine: Engine, future: asyncio.Future[Any], error: Exception) -> None:
        if engine.is_out_of_memory(error):
            # In place of the error, whose traceback would hold what the call had allocated.
            self._post(_fail, future, Overloaded(OUT_OF_MEMORY, retry_after_s=1.0))
            return
        self._post(_fail, future, error)
        if isinstance(error, SpeakerdError):
            return
        try:
            probe(engine.device)
        except Exception as again:  # noqa: BLE001 - whatever a dead device raises, the conclusion is the same
            if not engine.is_out_of_memory(again):
                get_logger().error("device.lost", error_type=type(again).__name__)
                self._post(self.declare_lost, DeviceLost("the device failed on silence after failing on a call"))

    def _post(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(act, *arguments)
        except RuntimeError:
            # The loop has closed: nobody is left to hear it.
            assert self._loop.is_closed()


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)

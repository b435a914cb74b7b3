"""Whether a daemon has started, lives, and is ready: one object a process, asked over gRPC and HTTP alike.

In: what its parts know of themselves. Out: three words. What always holds: "live" says that the event loop turns and
that nothing hangs which only a restart mends, and depends on no other process; "ready" says that new work may come, and
only after "started"; a process that has not been alive for too long is ended by its watchdog, so that whatever
supervises it starts another. Every method may be called on any thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runtime.logs import get_logger

LOOP_BOUND_S = 2.0
"""An event loop that has not turned for so long is not alive."""
WATCH_S = 1.0
STALLED_EXIT_CODE = 70

NEVER = 0.0


class Health:
    """The health of one process. Made on its event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._hangs: dict[str, Callable[[], bool]] = {}
        self._is_ready: Callable[[], bool] = lambda: True
        self._is_started = False

    def __repr__(self) -> str:
        return f"Health(started={self._is_started}, ready={self.is_ready()}, hanging={self.hanging()})"

    def watch(self, what: str, hangs: Callable[[], bool]) -> None:
        """Have "live" depend on something that may come to hang, by name for the log."""
        self._hangs[what] = hangs

    def started(self, is_ready: Callable[[], bool]) -> None:
        """Everything is loaded and serves. is_ready: whether new work may come, asked from now on."""
        self._is_ready = is_ready
        self._is_started = True

    def is_started(self) -> bool:
        """Whether everything is loaded."""
        return self._is_started

    def is_ready(self) -> bool:
        """Whether new work may come."""
        return self._is_started and self._is_ready()

    def is_live(self) -> bool:
        """Whether nothing hangs, the event loop left aside: whoever asks on it has seen it turn."""
        return not self.hanging()

    def is_alive(self) -> bool:
        """Whether nothing hangs and the event loop turns. Not to be asked on the loop, for it waits for it."""
        return self.is_live() and self._turns()

    def hanging(self) -> list[str]:
        """What hangs, the event loop left aside."""
        return [what for what, hangs in self._hangs.items() if hangs()]

    def _turns(self) -> bool:
        turned = threading.Event()
        try:
            self._loop.call_soon_threadsafe(turned.set)
        except RuntimeError:
            return False  # it is closed
        return turned.wait(LOOP_BOUND_S)

    @contextmanager
    def watchdog(self, stall_s: float) -> Iterator[None]:
        """End the process once it has not been alive for so long, while the context lasts. NEVER: do not.

        Rounds are counted and not seconds: a process that was stopped, or whose machine slept, has missed none.
        """
        if stall_s == NEVER:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stall_s, over), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, stall_s: float, over: threading.Event) -> None:
        stalled_s = 0.0
        while not over.wait(WATCH_S):
            hanging = self.hanging()
            if not self._turns():
                hanging.append("event loop")
                stalled_s += LOOP_BOUND_S
            if not hanging:
                stalled_s = 0.0
                continue
            stalled_s += WATCH_S
            if stalled_s >= stall_s and not over.is_set():
                _say(hanging, stalled_s)
                # Nothing less ends a process whose event loop, or whose device's driver, does not come back.
                os._exit(STALLED_EXIT_CODE)


def _say(hanging: list[str], stalled_s: float) -> None:
    # Beside, and not for long: what hangs may be the writing of the log.
    words = threading.Thread(
        target=lambda: get_logger().error("daemon.stalled", hanging=hanging, stalled_s=stalled_s), daemon=True
    )
    words.start()
    words.join(WATCH_S)

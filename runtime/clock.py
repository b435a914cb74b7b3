"""Clocks, injected wherever time decides something, so that tests can step them.

`lease_now_s` counts suspension (CLOCK_BOOTTIME), because a lease must run out while a laptop or a virtual machine
sleeps; `monotonic_s` times work; `wall_s` is for records that people read. None of them may stand in for another.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What a daemon may ask about time. All values are seconds."""

    def monotonic_s(self) -> float:
        """Time for measuring work; may stop while the machine sleeps."""
        ...

    def lease_now_s(self) -> float:
        """Time for leases; goes on while the machine sleeps."""
        ...

    def wall_s(self) -> float:
        """Unix time, for records; may jump."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC."""
        return time.monotonic()

    def lease_now_s(self) -> float:
        """CLOCK_BOOTTIME where the system has it (Linux), else CLOCK_MONOTONIC."""
        boottime = getattr(time, "CLOCK_BOOTTIME", None)
        return time.monotonic() if boottime is None else time.clock_gettime(boottime)

    def wall_s(self) -> float:
        """Unix time."""
        return time.time()


@dataclass(slots=True)
class SteppedClock:
    """A clock that moves only when it is told to: the twin for tests."""

    now_s: float = 1_000.0

    def monotonic_s(self) -> float:
        """The stepped time."""
        return self.now_s

    def lease_now_s(self) -> float:
        """The stepped time."""
        return self.now_s

    def wall_s(self) -> float:
        """The stepped time."""
        return self.now_s

    def step(self, seconds: float) -> None:
        """Move on."""
        self.now_s += seconds

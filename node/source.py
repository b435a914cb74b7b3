"""One slot's sound on its way to the device, and its analyses on their way back.

In: samples, pushed by a stream or file. Out: analyses of its windows, in order. What always holds: sound waits in a
bounded backlog, and who pushes more than that waits; a source whose results are not collected gets no further windows;
after a fault of the device both sides are told of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from node.slots import Slot
from runtime.errors import SpeakerdError
from runtime.units import SAMPLE_RATE_HZ

WINDOWS_A_SLOT = 8
"""Bound on the windows of one slot in one batch, and so on the ring that it needs."""
RESULTS_MAX = 2 * WINDOWS_A_SLOT
BACKLOG_SAMPLES_MAX = 20 * SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class SlotWork:
    """What one slot has in a batch: sound to append first, then the windows that end at `ends`."""

    slot: int
    samples: FloatArray
    ends: Sequence[int]


class Source:
    """One slot's sound on its way to the device, its analyses on their way back. Positions count from the slot's 0."""

    def __init__(
        self, slot: Slot, *, live: bool, grid: FrameGrid, first_end: int, heard: int, wake: asyncio.Event
    ) -> None:
        self.slot = slot
        self.live = live
        self.grid = grid
        self._wake = wake
        self._backlog: deque[FloatArray] = deque()
        self._next_end = first_end
        self._heard = heard  # sound up to here is in windows that were handed out
        self._results: deque[WindowAnalysis] = deque()
        self._in_flight = 0
        self._ended = False
        self._failure: SpeakerdError | None = None
        self._changed = asyncio.Event()
        self.due_since_s: float | None = None
        self.received = 0  # samples pushed
        self.written = 0  # samples given to the device
        self.analysed = 0  # end of the last window whose analysis came back

    def __repr__(self) -> str:
        kind = "live" if self.live else "file"
        return f"Source({kind} {self.slot}, {self.received} received, {self.analysed} analysed, {self.num_due} due)"

    @property
    def num_due(self) -> int:
        """Windows whose sound is here and whose results there is room for."""
        ready = (self.received - self._next_end) // self.grid.hop_samples + 1 if self.received >= self._next_end else 0
        return min(ready, RESULTS_MAX - len(self._results) - self._in_flight) if self._failure is None else 0

    async def push(self, samples: FloatArray) -> None:
        """Append (N,) samples, once there is room for them. Raises what failed on the device."""
        while self.received - self.written > BACKLOG_SAMPLES_MAX and self._failure is None:
            self._changed.clear()
            await self._changed.wait()
        self._raise_failure()
        if len(samples):
            self._backlog.append(samples)
            self.received += len(samples)
            self._wake.set()

    def end(self) -> None:
        """No more sound: the last window is filled up with silence. `take` returns [] after the last analysis."""
        if self._ended:
            return
        if self.received > self._heard:
            end = self.received + -self.received % self.grid.hop_samples
            if not self.live and not self.analysed and not self.grid.starts_at_zero:
                self._next_end = min(self._next_end, end)  # a recording shorter than a window: it begins in silence
            end = max(self._next_end, end)
            if end > self.received:
                self._backlog.append(np.zeros(end - self.received, np.float32))
                self.received = end
        self._ended = True
        self._changed.set()
        self._wake.set()

    async def take(self) -> list[WindowAnalysis]:
        """The analyses that have come back, at least one; [] once all are out. Raises what failed on the device."""
        while not self._results:
            self._raise_failure()
            if self._ended and not self._in_flight and self.received < self._next_end:
                return []
            self._changed.clear()
            await self._changed.wait()
        found = list(self._results)
        self._results.clear()
        self._wake.set()
        return found

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def begin(self, num_windows: int) -> SlotWork:
        """Hand out the next windows, and the sound up to the end of the last of them."""
        ends = [self._next_end + index * self.grid.hop_samples for index in range(num_windows)]
        pieces = []
        missing = ends[-1] - self.written
        while missing > 0:
            piece = self._backlog.popleft()
            if len(piece) > missing:
                self._backlog.appendleft(piece[missing:])
                piece = piece[:missing]
            pieces.append(piece)
            missing -= len(piece)
        self.written = max(self.written, ends[-1])
        self._next_end, self._heard = ends[-1] + self.grid.hop_samples, ends[-1]
        self._in_flight = num_windows
        self._changed.set()
        return SlotWork(self.slot.index, np.concatenate(pieces) if pieces else np.zeros(0, np.float32), ends)

    def complete(self, outcome: list[WindowAnalysis] | SpeakerdError) -> None:
        """Take what the device made of the windows that `begin` handed out."""
        self._in_flight = 0
        if isinstance(outcome, SpeakerdError):
            self._failure = outcome
        else:
            self._results.extend(outcome)
            self.analysed = self._next_end - self.grid.hop_samples
        self._changed.set()

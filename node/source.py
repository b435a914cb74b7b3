"""One slot's sound on its way to the device, and its analyses on their way back.

In: samples, pushed by a stream or file. Out: analyses of its windows, in order. What always holds: sound waits in a
bounded backlog, and who pushes more than that waits; a source whose results are not collected gets no further windows;
windows are left out only of a stream that sends at the pace of speech, and are counted; after a fault of the device
both sides are told of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from node.slots import Slot
from runtime.clock import Clock
from runtime.errors import SpeakerdError
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples

WINDOWS_A_SLOT = 8
"""Bound on the windows of one slot in one batch, and so on the ring that it needs."""
RESULTS_MAX = 2 * WINDOWS_A_SLOT
BACKLOG_SAMPLES_MAX = 20 * SAMPLE_RATE_HZ
SPEECH_PACE = 1.2
"""Who sends faster than this times speech, for long, streams a recording."""
AT_PACE_S = 2.0
AHEAD_S = 8.0
"""How far a live stream may get ahead: its client was held up, or sends large pieces."""
RESUMED_AHEAD_S = 40.0
"""On top of it, a stream that goes on from elsewhere first sends what its client kept."""


@dataclass(frozen=True, slots=True)
class SlotWork:
    """What one slot has in a batch: sound to append first, then the windows that end at `ends`."""

    slot: int
    samples: FloatArray
    ends: Sequence[int]


class Source:
    """One slot's sound on its way to the device, its analyses on their way back. Positions count from the slot's 0."""

    def __init__(
        self,
        slot: Slot,
        *,
        live: bool,
        grid: FrameGrid,
        first_end: int,
        heard: int,
        clock: Clock,
        on_due: Callable[[Source], None],
        is_resumed: bool = False,
    ) -> None:
        """on_due: called when windows are due, again and again until they are taken."""
        self.slot = slot
        self.live = live
        self.grid = grid
        self._clock = clock
        self._on_due = on_due
        self._backlog: deque[FloatArray] = deque()
        self._next_end = first_end
        self._next_arrival = first_end  # end of the first window whose sound is not here yet
        self._arrived: deque[float] = deque()  # when the sound of each window came that has not been handed out
        self._heard = heard  # sound up to here is in windows that were handed out
        self._results: deque[WindowAnalysis] = deque()
        self._in_flight = 0
        self._ended = False
        self._failure: SpeakerdError | None = None
        self._changed = asyncio.Event()
        self._ahead_s = 0.0  # how far the client is ahead of speech, while it is we who wait for it
        self._ahead_s_max = AHEAD_S + (RESUMED_AHEAD_S if is_resumed else 0.0)
        self._waiting_since_s: float | None = None
        self._collected_s = 0.0  # when results that were in the way were taken
        self.received = 0  # samples pushed
        self.written = 0  # samples given to the device
        self.analysed = 0  # end of the last window whose analysis came back
        self.num_skipped = 0  # windows that were left out

    def __repr__(self) -> str:
        kind = "live" if self.live else "file"
        return f"Source({kind} {self.slot}, {self.received} received, {self.analysed} analysed, {self.num_due} due)"

    @property
    def num_due(self) -> int:
        """Windows whose sound is here and whose results there is room for."""
        if self._failure is not None:
            return 0
        return min(len(self._arrived), RESULTS_MAX - len(self._results) - self._in_flight)

    @property
    def is_paced(self) -> bool:
        """Whether it is live and comes at the pace of speech, so that its windows cannot wait."""
        return self.live and self._ahead_s <= self._ahead_s_max

    @property
    def is_at_pace(self) -> bool:
        """Whether nothing of it came early, so that what waits is late."""
        return self.live and self._ahead_s <= AT_PACE_S

    @property
    def samples_to_window(self) -> int:
        """How much more sound the next window takes; one sample at least."""
        return max(1, self._next_arrival - self.received)

    def oldest_due_s(self) -> float:
        """Since when its oldest due window waits for the device."""
        return max(self._arrived[0], self._collected_s)

    async def push(self, samples: FloatArray) -> None:
        """Append (N,) samples, once there is room for them. Raises what failed on the device."""
        self._pace(len(samples))
        while self.received - self.written > BACKLOG_SAMPLES_MAX and self._failure is None:
            self._changed.clear()
            await self._changed.wait()
        self._raise_failure()
        if len(samples):
            self._append(samples)
        self._waiting_since_s = self._clock.monotonic_s()

    def end(self) -> None:
        """No more sound: the last window is filled up with silence. `take` returns [] after the last analysis."""
        if self._ended:
            return
        if self.received > self._heard:
            end = self.received + -self.received % self.grid.hop_samples
            if not self.live and not self.analysed and not self.grid.starts_at_zero and end < self._next_end:
                self._next_end = self._next_arrival = end  # a recording shorter than a window: it begins in silence
            end = max(self._next_end, end)
            if end > self.received:
                self._append(np.zeros(end - self.received, np.float32))
            self._note_arrivals()
        self._ended = True
        self._changed.set()

    async def take(self) -> list[WindowAnalysis]:
        """The analyses that have come back, at least one; [] once all are out. Raises what failed on the device."""
        while not self._results:
            self._raise_failure()
            if self._ended and not self._in_flight and not self._arrived:
                return []
            self._changed.clear()
            await self._changed.wait()
        found = list(self._results)
        self._results.clear()
        if len(found) + self._in_flight >= RESULTS_MAX:
            self._collected_s = self._clock.monotonic_s()
        self.tell_due()
        return found

    def skip_late(self, late_s: float) -> int:
        """Jump to the newest due window if the oldest has waited for `late_s`; how many windows that leaves out.

        A recording that is streamed loses nothing, nor does what came in one go: that was early, and is not late.
        """
        skipped = len(self._arrived) - 1
        if skipped < 1 or not self.live or self._ahead_s > AHEAD_S or self._ended:
            return 0
        now_s = self._clock.monotonic_s()
        came_s = self._arrived[-1] - self._arrived[0]
        if now_s - self.oldest_due_s() <= late_s or came_s < skipped * seconds_from_samples(self.grid.hop_samples) / 2:
            return 0
        self._next_end += skipped * self.grid.hop_samples
        for _ in range(skipped):
            self._arrived.popleft()
        self.num_skipped += skipped
        return skipped

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
        for _ in range(num_windows):
            self._arrived.popleft()
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
        self.tell_due()

    def tell_due(self) -> None:
        """Tell the batcher if there is something for it."""
        if self._arrived and self.num_due > 0:
            self._on_due(self)

    def _append(self, samples: FloatArray) -> None:
        self._backlog.append(samples)
        self.received += len(samples)
        if self.received >= self._next_arrival:
            self._note_arrivals()

    def _note_arrivals(self) -> None:
        now_s = self._clock.monotonic_s()
        while self.received >= self._next_arrival:
            self._arrived.append(now_s)
            self._next_arrival += self.grid.hop_samples
        self.tell_due()

    def _pace(self, num_samples: int) -> None:
        # Time in which the client was held back by us does not count: a recording that is sent as fast as the device
        # takes it would look like speech where the device is slow.
        if self._waiting_since_s is not None:
            waited_s = self._clock.monotonic_s() - self._waiting_since_s
            self._ahead_s = max(0.0, self._ahead_s - SPEECH_PACE * waited_s)
        self._ahead_s += seconds_from_samples(num_samples)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

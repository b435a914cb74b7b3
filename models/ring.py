"""A ring of rows in device memory, addressed by absolute index.

In come rows, in order; out come ranges of the newest rows. Row `i` is the i-th ever appended. Rows before 0 read as
zeros, rows that have fallen out or have not come yet are a fault of the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Ring:
    """The newest `capacity` rows of a sequence of rows of one shape."""

    def __init__(self, capacity: int, row_shape: tuple[int, ...], device: torch.device) -> None:
        self.capacity = capacity
        self.end = 0  # index after the newest row
        self._rows = torch.zeros(capacity, *row_shape, device=device)

    def __repr__(self) -> str:
        return f"Ring({max(0, self.end - self.capacity)}..{self.end} of {self.capacity})"

    @property
    def start(self) -> int:
        """Index of the oldest row that is still held."""
        return max(0, self.end - self.capacity)

    def append(self, rows: Tensor) -> None:
        """Append (R, ...) rows; the oldest fall out."""
        kept = rows[-self.capacity :]
        first = self.end + len(rows) - len(kept)
        at = first % self.capacity
        head = min(len(kept), self.capacity - at)
        self._rows[at : at + head] = kept[:head]
        self._rows[: len(kept) - head] = kept[head:]
        self.end += len(rows)

    def read(self, start: int, end: int) -> Tensor:
        """Rows [start, end), zeros before row 0: (end - start, ...)."""
        assert start <= end <= self.end, f"rows up to {end} asked of {self!r}"
        assert max(0, start) >= self.start or start == end, f"rows from {start} asked of {self!r}"
        at, stop = max(0, start) % self.capacity, max(0, end) % self.capacity
        if end <= 0 or start == end:
            kept = self._rows[:0]
        elif at < stop:
            kept = self._rows[at:stop]
        else:
            kept = torch.cat([self._rows[at:], self._rows[:stop]])
        if start < 0:
            silence = torch.zeros(min(end, 0) - start, *self._rows.shape[1:], device=self._rows.device)
            kept = torch.cat([silence, kept])
        return kept

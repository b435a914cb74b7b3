"""Batches of few sizes: what is missing to the next one is filled up with silence, whose results are left out.

In: a batch, and what is to be done with it. Out: the results of the batch. What always holds: what is done sees one of
`sizes` sizes, or multiples of the largest, so that a GPU keeps one set of kernels for each (and could replay them as
graphs), and no stream's results depend on how many others happened to be in its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GPU_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Twice as large each: at most half of a batch is silence."""
CPU_SIZES = (1,)
"""A CPU computes what it is given, silence too: as it comes."""


class FixedShapes:
    """Fills batches up. sizes: ascending; (1,) for as they come."""

    def __init__(self, sizes: Sequence[int]) -> None:
        assert list(sizes) == sorted(sizes) and sizes[0] >= 1
        self._sizes = tuple(sizes)
        self.seen: set[int] = set()

    def __repr__(self) -> str:
        return f"FixedShapes({self._sizes}, seen {sorted(self.seen)})"

    def size_for(self, count: int) -> int:
        """The size to which a batch of so many is filled up."""
        largest = self._sizes[-1]
        return next((size for size in self._sizes if size >= count), -(-count // largest) * largest)

    def run(self, work: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """What `work` makes of (B, ...), for these B alone."""
        count = len(batch)
        missing = self.size_for(count) - count
        self.seen.add(count + missing)
        if not missing:
            return work(batch)
        return work(torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]))[:count]

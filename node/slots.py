"""The fixed places of a node: one a stream or file, each with a generation that grows every time it is taken.

In: take and release. Out: slots. What always holds: never more than `count` are taken at once, and a slot that was
released is never mistaken for the one that took its place, so late results of it can be told and dropped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from runtime.errors import Overloaded

RETRY_AFTER_S = 2.0
"""What a caller who found the node full is advised to wait."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place on the device. index: its ring there. generation: which tenancy of it."""

    index: int
    generation: int


class SlotTable:
    """`count` slots whose indices start at `first_index`. What: the word that refusals use, "stream" or "file"."""

    def __init__(self, count: int, *, what: str, first_index: int = 0) -> None:
        self.count = count
        self._what = what
        self._free = list(range(first_index + count - 1, first_index - 1, -1))
        self._generations = dict.fromkeys(self._free, 0)
        self._taken: dict[Slot, str] = {}
        self.changed = asyncio.Event()
        """Set with each slot that is taken or given back; whoever waits for it clears it."""

    def __repr__(self) -> str:
        return f"SlotTable({len(self._taken)} of {self.count} {self._what} slots taken)"

    @property
    def num_taken(self) -> int:
        """How many are in use."""
        return len(self._taken)

    def take(self, holder: str = "") -> Slot:
        """A free slot under a new generation. holder: whose it is, a tenant. Raises Overloaded when there is none."""
        if not self._free:
            raise Overloaded(
                f"all {self.count} {self._what} slots of this node are taken: try again in {RETRY_AFTER_S:g} s, "
                "or go to another node",
                retry_after_s=RETRY_AFTER_S,
            )
        index = self._free.pop()
        self._generations[index] += 1
        slot = Slot(index, self._generations[index])
        self._taken[slot] = holder
        self.changed.set()
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back. It must be held."""
        assert slot in self._taken, f"{slot} is not held"
        del self._taken[slot]
        self._free.append(slot.index)
        self.changed.set()

    def holders(self) -> dict[str, int]:
        """How many slots each holder has."""
        return dict(Counter(self._taken.values()))

    def holds(self, slot: Slot) -> bool:
        """Whether this very tenancy of the slot still lasts."""
        return slot in self._taken

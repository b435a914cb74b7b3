"""The trunk's frames of a slot, kept from one window to the next: each adds the newest, and mends the last second.

In come plans for windows, in order; out come the frames (C, T') of each window. A frame that lies far enough from both
ends of what it was computed from is the same in every window but for the mean that was taken off, so it is kept. Frames
near a window's end saw silence where the sound goes on, and are computed again with the next. What always holds: a
window's frames depend on the slot's sound and on where its windows lie, not on how windows were batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.pyannote.embedding import TRUNK_STRIDE, Trunk
from models.ring import Ring

# Measured on random weights: this many frames from an edge, silence in place of sound changes a frame by less than 1 %.
EDGE_FRAMES = 10
EDGE_MELS = EDGE_FRAMES * TRUNK_STRIDE


@dataclass(slots=True)
class TrunkMemory:
    """What a slot keeps: by phase, the index of the first frame kept and the frames (C, T').

    Frame j of phase p is centred on mel frame 8 j + p: windows whose starts differ by no multiple of 8 share nothing.
    """

    kept: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    ends: dict[int, tuple[int, int]] = field(default_factory=dict)  # by phase: first and last frame once plans are done


@dataclass(frozen=True, slots=True)
class Plan:
    """What one window needs: mel frames [tile_from, end) of its slot, of which frames from `fresh` on are new.

    first, fresh: indices of frames of the phase. frames before `fresh` are kept from earlier windows.
    """

    memory: TrunkMemory
    mels: Tensor  # (M', bands), centred
    phase: int
    first: int
    fresh: int
    lead: int  # frames of the tile before `fresh`


def plan_window(memory: TrunkMemory, mels: Ring, start: int, end: int) -> Plan:
    """Plan a window of mel frames [start, end) of a slot. Plans of a slot are made, and carried out, in one order."""
    phase = start % TRUNK_STRIDE
    # Where a stream has just begun its window starts before it: what is not there is left out.
    first = max(start - phase, 0) // TRUNK_STRIDE
    known_first, known_end = memory.ends.get(phase, (first, first))
    fresh = known_end - EDGE_FRAMES if known_first <= first else first
    fresh = max(first, fresh)
    oldest = -(-(mels.start - phase) // TRUNK_STRIDE)
    tile_from = max(fresh - EDGE_FRAMES, 0, oldest)
    memory.ends[phase] = (first, -(-(end - phase) // TRUNK_STRIDE))
    mean = mels.read(max(start, 0), end).mean(dim=0)
    tile = mels.read(tile_from * TRUNK_STRIDE + phase, end) - mean
    return Plan(memory, tile, phase, first, fresh, fresh - tile_from)


def run_plans(trunk: Trunk, plans: Sequence[Plan], batch: int) -> list[Tensor]:
    """The frames (C, T') of each planned window, tiles of one length in batches of at most `batch`."""
    by_length: dict[int, list[int]] = {}
    for index, plan in enumerate(plans):
        by_length.setdefault(len(plan.mels), []).append(index)
    tiles: dict[int, Tensor] = {}
    for indices in by_length.values():
        for at in range(0, len(indices), batch):
            some = indices[at : at + batch]
            maps = trunk(torch.stack([plans[index].mels for index in some])).flatten(1, 2)  # (B, C, T'')
            tiles |= zip(some, maps, strict=True)
    found = []
    for index, plan in enumerate(plans):
        frames = tiles[index][:, plan.lead :]
        if plan.fresh > plan.first:
            known_first, known = plan.memory.kept[plan.phase]
            frames = torch.cat([known[:, plan.first - known_first : plan.fresh - known_first], frames], dim=1)
        plan.memory.kept[plan.phase] = (plan.first, frames)
        found.append(frames)
    return found

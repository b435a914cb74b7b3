"""Mends what the segmentation confuses inside a window: a slot that holds two people, and two slots of one person.

Pure NumPy and SciPy. In come the shares of a window's slots (local speakers) and its embedded partials; out come shares
in which each slot is one person, as far as the partials can tell. The embedding knows voices better than the
segmentation does, and the segmentation knows times better than the embedding does; each decides what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

from models.analysis import FloatArray

BoolArray = npt.NDArray[np.bool_]

GROUP_PARTIALS_MIN = 3
SLOT_PARTIALS_MIN = 8
REFINEMENTS = 2
# Share that a free slot may keep of what it held before the second voice of another slot moves in.
LEFTOVER_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class RepairParameters:
    """When slots are split. Cosines are between means of partials, lengths are frames.

    split_cosine: two groups of a slot's partials that are less alike than this are two people.
    split_frames_min: frames that each of them needs. free_frames: a slot with fewer is free to take one of them in.
    partial_frames_min: a slot's clean frames in a partial from which it counts as that slot's.
    reach_frames: how far from a partial's centre it says who speaks.
    snap_frames: how far a change of speaker moves to reach a pause.
    """

    split_cosine: float
    split_frames_min: int
    free_frames: int
    partial_frames_min: float
    reach_frames: float
    snap_frames: int


def split_slot(
    partials: FloatArray, weights: FloatArray, centres: FloatArray, active: BoolArray, repair: RepairParameters
) -> BoolArray | None:
    """Frames (F,) after splitting that belong to a slot's second voice, or None where it holds one.

    partials: (P, D) of the slot. weights: (P,) how much of the slot each holds. centres: (P,) their middle frames.
    active: (F,) the slot's frames.
    """
    if len(partials) < SLOT_PARTIALS_MIN:
        return None
    distances = np.maximum(0.0, 1.0 - (partials @ partials.T)[np.triu_indices(len(partials), 1)])
    second = fcluster(linkage(distances, "average"), 2, "maxclust") == 2
    for _ in range(REFINEMENTS):
        means = _group_means(partials, weights, second)
        if means is None:
            return None
        second = partials @ (means[0] - means[1]) < 0.0
    means = _group_means(partials, weights, second)
    if means is None or float(means[0] @ means[1]) > repair.split_cosine:
        return None
    leaning = partials @ (means[0] - means[1])  # (P,), above 0 for the first voice
    frames = _snapped(_leaning_by_frame(leaning, centres, len(active), repair.reach_frames) < 0.0, active, repair)
    if min((active & frames).sum(), (active & ~frames).sum()) < repair.split_frames_min:
        return None
    return frames


def give_second_voice_a_slot(
    share: FloatArray, slot: int, frames: BoolArray, active: BoolArray, repair: RepairParameters
) -> FloatArray:
    """Shares (F, S) with a slot's `frames` moved to the freest other slot; unchanged if none is free.

    active: (F, S), the slots' frames now.
    """
    free = [k for k in range(share.shape[1]) if k != slot and active[:, k].sum() < repair.free_frames]
    if not free:
        return share
    target = min(free, key=lambda k: float(share[:, k].sum()))
    mended = share.copy()
    mended[:, target] = np.where(frames, share[:, slot], np.minimum(share[:, target], LEFTOVER_SHARE))
    mended[:, slot] = np.where(frames, 0.0, share[:, slot])
    return mended


def _group_means(partials: FloatArray, weights: FloatArray, second: BoolArray) -> FloatArray | None:
    """Unit means (2, D) of the two groups, or None where one is too small to trust."""
    if min(second.sum(), (~second).sum()) < GROUP_PARTIALS_MIN:
        return None
    sums = np.stack([weights[group] @ partials[group] for group in (~second, second)])
    means: FloatArray = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return means


def _leaning_by_frame(leaning: FloatArray, centres: FloatArray, num_frames: int, reach: float) -> FloatArray:
    """What the partials near each frame say, nearer ones counting more: (P,) → (F,)."""
    distance = np.abs(np.arange(num_frames)[:, None] + 0.5 - centres)  # (F, P)
    weight = np.maximum(0.0, 1.0 - distance / reach) ** 2
    total = weight.sum(axis=1)
    known = np.flatnonzero(total > 1e-3)
    if len(known) == 0:
        return np.zeros(num_frames, np.float32)
    said = (weight[known] @ leaning) / total[known]
    by_frame: FloatArray = np.interp(np.arange(num_frames), known, said).astype(np.float32)
    return by_frame


def _snapped(second: BoolArray, active: BoolArray, repair: RepairParameters) -> BoolArray:
    """The same stretches, each change moved to the nearest pause within reach."""
    moved = np.zeros(len(second), bool)
    current, begin = bool(second[0]), 0
    for change in (int(frame) + 1 for frame in np.flatnonzero(second[1:] != second[:-1])):
        low = max(begin + 1, change - repair.snap_frames)
        high = min(len(second) - 1, change + repair.snap_frames)
        at = change
        if high > low:
            candidates = np.arange(low, high)
            at = int(candidates[np.argmin(active[candidates] + np.abs(candidates - change) / (4 * repair.snap_frames))])
        at = max(at, begin)
        moved[begin:at] = current
        current, begin = not current, at
    moved[begin:] = current
    return moved

"""Runs of frames: hysteresis, gaps and stretches. Pure NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray

BoolArray = npt.NDArray[np.bool_]
FAINT = 1e-3  # activity below which a frame says nothing about who speaks


def runs(mask: BoolArray) -> npt.NDArray[np.int64]:
    """Half-open ranges of frames in which the mask (F,) is true: (R, 2)."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.flatnonzero(edges).reshape(-1, 2)


def begin_and_go_on(probability: FloatArray, onset: float, offset: float) -> BoolArray:
    """Frames of stretches that begin at or above `onset` and last while at or above `offset`: (F,) → (F,)."""
    going = probability >= offset
    found = np.zeros(len(probability), bool)
    for begin, end in runs(going):
        starts = np.flatnonzero(probability[begin:end] >= onset)
        if len(starts):
            found[begin + starts[0] : end] = True
    return found


def fill_gaps(mask: BoolArray, shortest: int, *, edges: bool = False) -> BoolArray:
    """The mask (F,) with gaps of fewer than `shortest` frames filled; those at its ends too if `edges`."""
    filled = mask.copy()
    for begin, end in runs(~mask):
        if end - begin < shortest and (edges or (begin > 0 and end < len(mask))):
            filled[begin:end] = True
    return filled


def latest_true(mask: BoolArray) -> npt.NDArray[np.int64]:
    """For each frame of the mask (F,) the latest one up to it that is true, or the first that is; 0 if none: (F,)."""
    first = int(mask.argmax()) if len(mask) else 0
    found: npt.NDArray[np.int64] = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), first))
    return found

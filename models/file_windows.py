"""The analysed windows of one recording, kept small: some 2 kB a window, 16 MB an hour of two windows a second.

Pure NumPy. In come WindowAnalysis as they are made, out they come again, in the order in which they came, as often as a
pass over the recording asks for them. Activity and embeddings are kept as half floats, whose rounding (5e-4 of a value)
is far below what any threshold looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray, FrameGrid, WindowAnalysis

WINDOWS_A_BLOCK = 512


@dataclass(slots=True)
class _Block:
    starts: npt.NDArray[np.int64]  # (W,)
    activity: npt.NDArray[np.float16]  # (W, F, S)
    embeddings: npt.NDArray[np.float16]  # (W, S, D)
    clean_frames: FloatArray  # (W, S)
    used: int = 0


class FileWindows:
    """Windows of one grid, in the order in which they came."""

    def __init__(self, grid: FrameGrid) -> None:
        self._grid = grid
        self._blocks: list[_Block] = []

    def __repr__(self) -> str:
        return f"FileWindows({len(self)} windows)"

    def __len__(self) -> int:
        return sum(block.used for block in self._blocks)

    def __iter__(self) -> Iterator[WindowAnalysis]:
        for block in self._blocks:
            for index in range(block.used):
                yield WindowAnalysis(
                    int(block.starts[index]),
                    block.activity[index].astype(np.float32),
                    block.embeddings[index].astype(np.float32),
                    block.clean_frames[index],
                )

    def extend(self, analyses: Iterable[WindowAnalysis]) -> None:
        """Take windows in. Each starts on a multiple of the grid's frame step."""
        for analysis in analyses:
            assert analysis.start_samples % self._grid.step_samples == 0
            if not self._blocks or self._blocks[-1].used == WINDOWS_A_BLOCK:
                self._blocks.append(self._new_block())
            block = self._blocks[-1]
            block.starts[block.used] = analysis.start_samples
            block.activity[block.used] = analysis.activity
            block.embeddings[block.used] = analysis.embeddings
            block.clean_frames[block.used] = analysis.clean_frames
            block.used += 1

    def voices(self, clean_frames_min: float) -> tuple[FloatArray, FloatArray]:
        """Embeddings (I, D) of all local speakers who have one and so much clean speech, and that in frames (I,)."""
        found = [np.zeros((0, self._grid.embedding_dim), np.float32)]
        clean = [np.zeros(0, np.float32)]
        for block in self._blocks:
            frames, embeddings = block.clean_frames[: block.used], block.embeddings[: block.used]
            chosen = embeddings.any(axis=2) & (frames >= clean_frames_min)
            found.append(embeddings[chosen].astype(np.float32))
            clean.append(frames[chosen])
        return np.concatenate(found), np.concatenate(clean)

    def _new_block(self) -> _Block:
        size, grid = WINDOWS_A_BLOCK, self._grid
        return _Block(
            np.zeros(size, np.int64),
            np.zeros((size, grid.num_frames, grid.num_local_speakers), np.float16),
            np.zeros((size, grid.num_local_speakers, grid.embedding_dim), np.float16),
            np.zeros((size, grid.num_local_speakers), np.float32),
        )

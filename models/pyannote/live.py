"""A window of a live stream: soft speech on the bundle's common frames, and voices as unit vectors.

Torch in, WindowAnalysis out. What pyannote's pipeline decides hard stays a probability here, since what stands above
averages over windows; embeddings are taken under hard masks all the same, as the network was trained to have them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.file import voice_vectors


def on_grid(frames: Tensor, grid: FrameGrid, step_samples: int, field_samples: int) -> Tensor:
    """Frames (F', S) of the network, `step_samples` apart, on the last frames of the grid that they reach: (F, S).

    Frames of the grid before them are 0: there is no sound there yet.
    """
    covered = min(grid.num_frames, (len(frames) * step_samples + field_samples) // grid.step_samples)
    centres = (np.arange(covered) + 0.5) * grid.step_samples
    position = np.clip((centres - field_samples / 2) / step_samples, 0, len(frames) - 1)
    before = position.astype(np.int64)
    weight = torch.from_numpy((position - before).astype(np.float32)).to(frames.device)[:, None]
    after = torch.from_numpy(np.minimum(before + 1, len(frames) - 1)).to(frames.device)
    mixed = frames[torch.from_numpy(before).to(frames.device)] * (1 - weight) + frames[after] * weight
    found = frames.new_zeros(grid.num_frames, frames.shape[1])
    found[grid.num_frames - covered :] = mixed
    return found


def live_analysis(
    start_samples: int,
    activity: FloatArray,
    embeddings: FloatArray,
    alone: FloatArray,
    bundle: PyannoteBundle,
) -> WindowAnalysis:
    """A window's analysis, of activity (F, S), raw embeddings (S, D) and frames of the grid spoken alone (S,)."""
    heard = alone >= bundle.live.clean_frames_min
    vectors = np.where(heard[:, None], voice_vectors(embeddings, bundle.voice_mean), 0.0)
    return WindowAnalysis(
        start_samples, activity, vectors.astype(np.float32), np.where(heard, alone, 0.0).astype(np.float32)
    )

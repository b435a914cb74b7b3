"""What the engine says about a window of sound: the seam between the device and everything above it.

NumPy only, so that a node with a null engine, and all pure decisions (clustering, naming, turns), never import torch.
Axis letters, everywhere: B batch, N samples, F frames, K powerset classes, S local speakers, D embedding, V voices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """Where the frames of a window lie. All values are samples at 16 kHz.

    Frame `f` of a window that starts at sample `w` stands for `[w + f * step_samples, w + (f + 1) * step_samples)`.
    A window is `num_frames` frames of `window_samples` samples; windows follow each other every `hop_samples`, and
    `hop_samples` is a multiple of `step_samples`, so that frames of overlapping windows lie on one common grid.
    starts_at_zero: no window begins before the sound does. A recording shorter than a window is followed by silence
    then; else its one window ends with it, and begins in the silence before.
    """

    window_samples: int
    hop_samples: int
    step_samples: int
    num_frames: int
    num_local_speakers: int  # S
    embedding_dim: int  # D
    starts_at_zero: bool = False


@dataclass(frozen=True, slots=True)
class WindowAnalysis:
    """One window, analysed.

    start_samples: position of the window's first sample in its stream or file; may be negative where a stream has
        just begun and the window is padded with silence in front.
    activity: (F, S) float32 in [0, 1], soft activity of each local speaker. Column order means nothing across windows.
    embeddings: (S, D) float32, unit length; a row of zeros where the local speaker is silent or has too little clean
        speech for an embedding.
    clean_frames: (S,) float32, frames of clean (not overlapped) speech that the embedding stands on.
    """

    start_samples: int
    activity: FloatArray
    embeddings: FloatArray
    clean_frames: FloatArray

"""From a window's frame posteriors, speech probabilities and embedded partials to its local speakers.

Pure NumPy. Out comes a WindowAnalysis: who of at most S speakers is active in each frame, and an embedding of each from
the partials that it fills.
"""

from __future__ import annotations

import numpy as np

from models.analysis import FloatArray, WindowAnalysis
from models.bundle import Bundle
from models.embedding import PARTIAL_SAMPLES
from models.segmentation import POWERSET


def find_local_speakers(
    *,
    start_samples: int,
    posteriors: FloatArray,
    speech: FloatArray,
    partials: FloatArray,
    partial_ends: np.ndarray,
    bundle: Bundle,
) -> WindowAnalysis:
    """The local speakers of one window.

    posteriors: (F, K) probabilities of the powerset classes. speech: (F,) probability of speech. partials: (P, D) unit
    vectors, of sound that ends at `partial_ends` (P,), in samples from the window's start.
    """
    local, grid = bundle.local, bundle.grid
    gate = (speech >= local.speech_threshold).astype(np.float32)  # (F,)
    voiced = posteriors[:, 1:] / np.maximum(posteriors[:, 1:].sum(axis=1, keepdims=True), 1e-6)
    activity = (voiced @ POWERSET[1:]) * gate[:, None]  # (F, S)
    active = activity > local.active_threshold
    clean = active & (active.sum(axis=1, keepdims=True) == 1)  # (F, S)
    clean_frames = clean.sum(axis=0).astype(np.float32)
    embeddings = np.zeros((grid.num_local_speakers, grid.embedding_dim), np.float32)
    if len(partials):
        last = np.minimum(partial_ends // grid.step_samples, grid.num_frames).astype(np.int64)
        first = np.maximum((partial_ends - PARTIAL_SAMPLES) // grid.step_samples, 0).astype(np.int64)
        summed = np.concatenate([np.zeros((1, clean.shape[1])), np.cumsum(clean, axis=0)])
        summed_active = np.concatenate([np.zeros((1, clean.shape[1])), np.cumsum(active, axis=0)])
        own = summed[last] - summed[first]  # (P, S)
        total = (summed_active[last] - summed_active[first]).sum(axis=1, keepdims=True)
        share = own / np.maximum(total, 1.0)
        weight = own * np.maximum(0.0, 2.0 * share - 1.0) ** 4  # (P, S)
        for speaker in np.flatnonzero((clean_frames >= local.clean_frames_min) & (weight.sum(axis=0) > 0)):
            mean = weight[:, speaker] @ partials
            embeddings[speaker] = mean / max(float(np.linalg.norm(mean)), 1e-6)
    return WindowAnalysis(start_samples, activity.astype(np.float32), embeddings, clean_frames)

"""From a window's frame posteriors, speech probabilities and embedded partials to its local speakers.

Pure NumPy. Out comes a WindowAnalysis: who of at most S speakers is active in each frame, and an embedding of each from
the partials that it fills. Activity is the probability of speech, shared out by the segmentation's view of who speaks
given that somebody does: so its sum over speakers, cut at 1, is the probability of speech again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis

# Which local speakers are active in each powerset class: nobody, one of three, two of three.
POWERSET = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.float32)


@dataclass(frozen=True, slots=True)
class LocalParameters:
    """How a window's local speakers are found. Probabilities in [0, 1], lengths in samples or frames.

    vad_weight: share of the voice activity model in the probability of speech; the rest is the segmentation's.
    speech_threshold, active_threshold: from which a frame counts as speech, and as that of a local speaker.
    purity_power: how steeply a partial loses weight as others speak in it; one that is half another's has none.
    clean_frames_min: least clean speech for an embedding.
    partial_hop_samples, partial_mel_power: hop of the embedded partials, and the mean power that each is scaled to,
        so that a recording's level does not matter.
    """

    vad_weight: float
    speech_threshold: float
    active_threshold: float
    purity_power: float
    clean_frames_min: int
    partial_hop_samples: int
    partial_mel_power: float


def find_local_speakers(
    *,
    start_samples: int,
    posteriors: FloatArray,
    voice: FloatArray,
    partials: FloatArray,
    partial_spans: np.ndarray,
    grid: FrameGrid,
    local: LocalParameters,
) -> WindowAnalysis:
    """The local speakers of one window.

    posteriors: (F, K) probabilities of the powerset classes. voice: (F,) speech probability by the voice activity model.
    partials: (P, D) unit vectors of sound at `partial_spans`, (P, 2) samples [from, to) counted from the window's start.
    """
    speech = local.vad_weight * voice + (1.0 - local.vad_weight) * (1.0 - posteriors[:, 0])  # (F,)
    share = posteriors[:, 1:] @ POWERSET[1:] / np.maximum(posteriors[:, 1:].sum(axis=1, keepdims=True), 1e-6)
    active = (share > local.active_threshold) & (speech > local.speech_threshold)[:, None]  # (F, S)
    clean = active & (active.sum(axis=1, keepdims=True) == 1)
    clean_frames = clean.sum(axis=0).astype(np.float32)
    embeddings = np.zeros((grid.num_local_speakers, grid.embedding_dim), np.float32)
    if len(partials):
        weight = _partial_weights(active, clean, partial_spans // grid.step_samples, local.purity_power)  # (P, S)
        for speaker in np.flatnonzero((clean_frames >= local.clean_frames_min) & (weight.sum(axis=0) > 0)):
            mean = weight[:, speaker] @ partials
            embeddings[speaker] = mean / max(float(np.linalg.norm(mean)), 1e-6)
    activity = (share * speech[:, None]).astype(np.float32)
    return WindowAnalysis(start_samples, activity, embeddings, clean_frames)


def _partial_weights(active: np.ndarray, clean: np.ndarray, spans: np.ndarray, purity_power: float) -> np.ndarray:
    """What each partial tells of each local speaker: his clean frames in it, and how far it is his alone. (P, S)."""
    begin, end = np.clip(spans, 0, len(active)).astype(np.int64).T
    own = np.concatenate([np.zeros((1, clean.shape[1])), np.cumsum(clean, axis=0)])
    everyone = np.concatenate([[0.0], np.cumsum(active.sum(axis=1))])
    own_frames = own[end] - own[begin]
    share = own_frames / np.maximum(everyone[end] - everyone[begin], 1.0)[:, None]
    weight: np.ndarray = own_frames * np.maximum(0.0, 2.0 * share - 1.0) ** purity_power
    return weight

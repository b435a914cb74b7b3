"""From a window's frame posteriors, speech probabilities and embedded partials to its local speakers.

Pure NumPy and SciPy. Out comes a WindowAnalysis: who of at most S speakers is active in each frame, and an embedding of
each from the partials that it fills. Activity is the probability of speech, shared out by the segmentation's view of
who speaks given that somebody does: so its sum over speakers, cut at 1, is the probability of speech again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter1d

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.slot_repair import RepairParameters, give_second_voice_a_slot, split_slot

BoolArray = npt.NDArray[np.bool_]

# Which local speakers are active in each powerset class: nobody, one of three, two of three.
POWERSET = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], np.float32)

# Partials near the edge between two voices show where one slot holds both, so they count for more there.
SPLIT_PURITY_POWER = 2.0


@dataclass(frozen=True, slots=True)
class LocalParameters:
    """How a window's local speakers are found. Probabilities in [0, 1], lengths in samples or frames.

    vad_weight: share of the voice activity model in the probability of speech; the rest is the segmentation's.
    support_frames, support_voice: the segmentation knows when somebody speaks, but takes a melody or a far murmur for
        somebody as well. It is believed in full where voice activity reaches `support_voice` within so many frames.
    speech_threshold, active_threshold: from which a frame counts as speech, and as that of a local speaker.
    purity_power: how steeply a partial loses weight as others speak in it; one that is half another's has none.
    clean_frames_min: least clean speech for an embedding.
    join_cosine, join_frames_min: two local speakers whose embeddings are more alike than this are one person, if each
        has this many clean frames.
    partial_hop_samples, partial_mel_power: hop of the embedded partials, and the mean power that each is scaled to,
        so that a recording's level does not matter.
    """

    vad_weight: float
    support_frames: int
    support_voice: float
    speech_threshold: float
    active_threshold: float
    purity_power: float
    clean_frames_min: int
    partial_hop_samples: int
    partial_mel_power: float
    join_cosine: float
    join_frames_min: int
    repair: RepairParameters


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

    posteriors: (F, K) probabilities of the powerset classes. voice: (F,) speech probability by the voice activity
    model. partials: (P, D) unit vectors of sound at `partial_spans`, (P, 2) samples [from, to) counted from the
    window's start.
    """
    speech = _speech(1.0 - posteriors[:, 0], voice, local)
    share = posteriors[:, 1:] @ POWERSET[1:] / np.maximum(posteriors[:, 1:].sum(axis=1, keepdims=True), 1e-6)
    spans = partial_spans // grid.step_samples
    for slot in range(share.shape[1]):
        share = _one_voice_a_slot(share, slot, speech, partials=partials, spans=spans, local=local)
    active, clean = _masks(share, speech, local)
    clean_frames = clean.sum(axis=0).astype(np.float32)
    embeddings = np.zeros((grid.num_local_speakers, grid.embedding_dim), np.float32)
    if len(partials):
        weight = _partial_weights(active, clean, spans, local.purity_power)  # (P, S)
        for heard in np.flatnonzero((clean_frames >= local.clean_frames_min) & (weight.sum(axis=0) > 0)):
            embeddings[heard] = _unit(weight[:, heard] @ partials)
    for one, other in combinations(range(share.shape[1]), 2):
        both_heard = min(clean_frames[one], clean_frames[other]) >= local.join_frames_min
        if both_heard and float(embeddings[one] @ embeddings[other]) > local.join_cosine:
            embeddings[one] = _unit(clean_frames[one] * embeddings[one] + clean_frames[other] * embeddings[other])
            share[:, one] = np.maximum(share[:, one], share[:, other])
            clean_frames[one] += clean_frames[other]
            share[:, other], embeddings[other], clean_frames[other] = 0.0, 0.0, 0.0
    activity = (share * speech[:, None]).astype(np.float32)
    return WindowAnalysis(start_samples, activity, embeddings, clean_frames)


def _speech(somebody: FloatArray, voice: FloatArray, local: LocalParameters) -> FloatArray:
    """Probability of speech (F,), from the segmentation's view and the voice activity model's."""
    support = np.minimum(1.0, maximum_filter1d(voice, 2 * local.support_frames + 1) / local.support_voice)
    speech: FloatArray = support * (local.vad_weight * voice + (1.0 - local.vad_weight) * somebody)
    return speech


def _one_voice_a_slot(
    share: FloatArray, slot: int, speech: FloatArray, *, partials: FloatArray, spans: np.ndarray, local: LocalParameters
) -> FloatArray:
    """Shares (F, S) in which the slot holds one voice: a second one is given a free slot."""
    active, clean = _masks(share, speech, local)
    if len(partials) == 0 or clean[:, slot].sum() < 2 * local.repair.split_frames_min:
        return share
    weight = _partial_weights(active, clean, spans, SPLIT_PURITY_POWER)[:, slot]  # (P,)
    own = weight > local.repair.partial_frames_min
    centres = spans[own].mean(axis=1)
    second = split_slot(partials[own], weight[own], centres, active[:, slot], local.repair)
    if second is None:
        return share
    return give_second_voice_a_slot(share, slot, second, active, local.repair)


def _masks(share: FloatArray, speech: FloatArray, local: LocalParameters) -> tuple[BoolArray, BoolArray]:
    """Frames in which each slot is active, and those that are its alone: (F, S) twice."""
    active = (share > local.active_threshold) & (speech > local.speech_threshold)[:, None]
    return active, active & (active.sum(axis=1, keepdims=True) == 1)


def _unit(vector: FloatArray) -> FloatArray:
    unit: FloatArray = vector / max(float(np.linalg.norm(vector)), 1e-6)
    return unit


def _partial_weights(active: BoolArray, clean: BoolArray, spans: np.ndarray, purity_power: float) -> FloatArray:
    """What each partial tells of each local speaker: his clean frames in it, and how far it is his alone. (P, S)."""
    begin, end = np.clip(spans, 0, len(active)).astype(np.int64).T
    own = np.concatenate([np.zeros((1, clean.shape[1])), np.cumsum(clean, axis=0)])
    everyone = np.concatenate([[0.0], np.cumsum(active.sum(axis=1))])
    own_frames = own[end] - own[begin]
    share = own_frames / np.maximum(everyone[end] - everyone[begin], 1.0)[:, None]
    weight = own_frames * np.maximum(0.0, 2.0 * share - 1.0) ** purity_power
    found: FloatArray = weight.astype(np.float32)
    return found

"""How wrong a segmentation network is: the loss it learns from, and its diarization error rate by frames.

In come log probabilities of powerset classes and the truth; out come a loss and counts of frames. Local speakers have
no names, so that both hold for the best of all orders of the three.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from scripts.simulate_mixtures import (
    FRAME_CENTRE_SAMPLES,
    FRAME_STEP_SAMPLES,
    NUM_LOCAL_SPEAKERS,
    RATE,
    BoolArray,
    FloatArray,
    local_speakers,
    num_frames,
)

# Classes in pyannote's order: nobody, each speaker alone, each pair.
CLASSES = [speakers for size in range(3) for speakers in itertools.combinations(range(NUM_LOCAL_SPEAKERS), size)]
POWERSET = torch.tensor([[float(s in speakers) for s in range(NUM_LOCAL_SPEAKERS)] for speakers in CLASSES])  # (K, S)
ORDERS = torch.tensor(list(itertools.permutations(range(NUM_LOCAL_SPEAKERS))))  # (P, S)


def _class_of_speakers() -> Tensor:
    """(P, 8): class of a set of speakers, given as bits, once they are put in an order. All three at once: class 0."""
    bits = torch.tensor([[(code >> s) & 1 for s in range(NUM_LOCAL_SPEAKERS)] for code in range(8)])  # (8, S)
    reordered = bits[:, ORDERS].transpose(0, 1).float()  # (P, 8, S)
    match = (reordered.unsqueeze(2) == POWERSET).all(-1)  # (P, 8, K)
    return match.int().argmax(-1)


CLASS_OF_SPEAKERS = _class_of_speakers()


@dataclass(frozen=True, slots=True)
class FrameErrors:
    """Counts of frames, one for each speaker: missed, falsely found, confused, and spoken in truth."""

    missed: float = 0.0
    false_alarm: float = 0.0
    confused: float = 0.0
    spoken: float = 0.0

    def __add__(self, other: FrameErrors) -> FrameErrors:
        return FrameErrors(
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confused + other.confused,
            self.spoken + other.spoken,
        )

    @property
    def rate(self) -> float:
        """Diarization error rate by frames, as a fraction."""
        return (self.missed + self.false_alarm + self.confused) / max(self.spoken, 1.0)

    def __str__(self) -> str:
        parts = (self.missed, self.false_alarm, self.confused)
        miss, false_alarm, confusion = (100 * part / max(self.spoken, 1.0) for part in parts)
        return f"{100 * self.rate:.2f} % (miss {miss:.2f}, false alarm {false_alarm:.2f}, confusion {confusion:.2f})"


def powerset_loss(log_probabilities: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Cross-entropy under the best order of local speakers, a scalar: the mean over windows of means over frames.

    log_probabilities (B, F, K); target (B, F, S) and scored (B, F), both bool. All orders are taken at once by a table.
    """
    bit = 2 ** torch.arange(NUM_LOCAL_SPEAKERS, device=target.device)
    code = (target * bit).sum(-1)  # (B, F)
    classes = CLASS_OF_SPEAKERS.to(target.device)[:, code].permute(1, 2, 0)  # (B, F, P)
    cost = -log_probabilities.float().gather(-1, classes) * scored.unsqueeze(-1)  # (B, F, P)
    per_order = cost.sum(1) / scored.sum(1, keepdim=True).clamp(min=1)  # (B, P)
    return per_order.min(1).values.mean()


def frame_errors(log_probabilities: Tensor, target: Tensor, scored: Tensor) -> FrameErrors:
    """Errors over a batch, each window under the order that confuses least. Shapes as in powerset_loss."""
    weight = scored.float().unsqueeze(-1)
    found = POWERSET.to(target.device)[log_probabilities.argmax(-1)] * weight  # (B, F, S)
    spoken = target.float() * weight  # (B, F, S)
    num_found, num_spoken = found.sum(-1), spoken.sum(-1)  # (B, F)
    right = (found.unsqueeze(2) * spoken[:, :, ORDERS.to(target.device)]).sum(-1)  # (B, F, P)
    best = right.sum(1).max(1).values.sum()
    return FrameErrors(
        missed=float((num_spoken - num_found).clamp(min=0).sum()),
        false_alarm=float((num_found - num_spoken).clamp(min=0).sum()),
        confused=float(torch.minimum(num_found, num_spoken).sum() - best),
        spoken=float(num_spoken.sum()),
    )


def windows_of_recordings(folder: Path, num_samples: int) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Every window of every NAME.flac that has a NAME.rttm, one after the other; shapes as Simulator.batch gives."""
    mixtures, targets, scored = [], [], []
    frames = num_frames(num_samples)
    for path in sorted(folder.glob("*.flac")):
        truth = path.with_suffix(".rttm")
        if not truth.exists():
            continue
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != RATE or samples.ndim != 1:
            raise ValueError(f"{path}: expected one channel at {RATE} Hz")
        turns = [
            (float(words[3]) * RATE, (float(words[3]) + float(words[4])) * RATE, words[7])
            for words in map(str.split, truth.read_text().splitlines())
        ]
        names = sorted({name for _, _, name in turns})
        for start in range(0, len(samples) - num_samples + 1, num_samples):
            centres = start + FRAME_CENTRE_SAMPLES + FRAME_STEP_SAMPLES * np.arange(frames)
            activity = np.zeros((frames, max(len(names), NUM_LOCAL_SPEAKERS)), np.bool_)
            for begin, end, name in turns:
                activity[(begin <= centres) & (centres < end), names.index(name)] = True
            target, counts = local_speakers(activity)
            mixtures.append(samples[start : start + num_samples])
            targets.append(target)
            scored.append(counts)
    if not mixtures:
        raise ValueError(f"{folder}: no labelled recording as long as a window")
    return np.stack(mixtures)[:, None], np.stack(targets), np.stack(scored)

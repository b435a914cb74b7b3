"""Local speech of windows: powerset probabilities, hard decisions, and the masks under which voices are heard.

Torch throughout, on the device of what comes in: (B, F, K) powerset log probabilities become (B, F, S) speech.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor


class Powerset:
    """Which local speakers speak in each class: nobody, one of S, then sets of two, up to `most` at once."""

    def __init__(self, num_speakers: int, most: int, device: torch.device) -> None:
        sets = [members for size in range(most + 1) for members in combinations(range(num_speakers), size)]
        self.mapping = torch.zeros(len(sets), num_speakers, device=device)  # (K, S)
        for index, members in enumerate(sets):
            self.mapping[index, list(members)] = 1.0

    def hard(self, log_probabilities: Tensor) -> Tensor:
        """Zeros and ones (B, F, S): the members of the likeliest class."""
        return self.mapping[log_probabilities.argmax(dim=-1)]

    def soft(self, log_probabilities: Tensor) -> Tensor:
        """Probability (B, F, S) that each local speaker speaks."""
        return log_probabilities.exp() @ self.mapping


def voice_masks(speech: Tensor, *, exclude_overlap: bool, num_frames_min: int) -> Tensor:
    """The frames (B, S, F) in which each local speaker of hard speech (B, F, S) is heard for an embedding.

    With exclude_overlap those in which nobody else speaks, where there are more than `num_frames_min` of them.
    """
    if not exclude_overlap:
        return speech.transpose(1, 2)
    clean = speech * (speech.sum(dim=2, keepdim=True) < 2)
    enough = clean.sum(dim=1, keepdim=True) > num_frames_min
    return torch.where(enough, clean, speech).transpose(1, 2)

"""What the recent windows of a live stream tell of voices, ready to be compared with its session speakers.

In: embeddings of each window's local speakers. Out: those of all recent windows, one row each, and log odds. What
always holds: of a window nothing is computed twice, since no decision changes what its embeddings say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from models.analysis import FloatArray
from models.clustering import ClusteringParameters
from models.voice_evidence import Values, VoiceEvidence, log_odds


@dataclass(frozen=True, slots=True, eq=False)
class HeardVoices:
    """N local speakers who have an embedding.

    embeddings: (N, D), of unit length. clean_frames: (N,) that each stands on. heard: the same as evidence.
    alone: (N,), how well each explains itself.
    """

    embeddings: FloatArray
    clean_frames: FloatArray
    heard: VoiceEvidence
    alone: Values

    @classmethod
    def of(
        cls, embeddings: FloatArray, clean_frames: FloatArray, evidence: ClusteringParameters, *, frame_s: float
    ) -> HeardVoices:
        """Those of one window."""
        heard = VoiceEvidence.of(embeddings, clean_frames * np.float32(frame_s), evidence)
        return cls(embeddings, clean_frames, heard, heard.alone(evidence))


class RecentVoices:
    """Those of several windows, in their order: N rows. clean_frames: (N,). embeddings: (N, D)."""

    def __init__(self, windows: Sequence[HeardVoices], evidence: ClusteringParameters) -> None:
        self._evidence = evidence
        self.embeddings: FloatArray = np.concatenate([window.embeddings for window in windows])
        self.clean_frames: FloatArray = np.concatenate([window.clean_frames for window in windows])
        nothing = _nothing(self.embeddings.shape[1])
        self._asked = VoiceEvidence(
            np.concatenate([nothing.counts, *[window.heard.counts for window in windows]]),
            np.concatenate([nothing.sums, *[window.heard.sums for window in windows]]),
        )
        self._alone: Values = np.concatenate([window.alone for window in windows])

    def __repr__(self) -> str:
        return f"RecentVoices({len(self._alone)})"

    def odds(self, known: VoiceEvidence) -> Values:
        """Log odds (N, K) that each is the same as each of the K known voices; 0 where nothing is known."""
        return log_odds(self._asked, self._alone, known, self._evidence)


@lru_cache(maxsize=8)
def _nothing(embedding_dim: int) -> VoiceEvidence:
    """A voice of which nothing is known, which `log_odds` wants before the others."""
    return VoiceEvidence(np.zeros(1), np.zeros((1, embedding_dim)))

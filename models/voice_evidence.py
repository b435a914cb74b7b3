"""Evidence about voices: whether a stretch of speech is of somebody heard before, as log odds.

In come sums of embeddings, each with the independent observations that it stands on; out come log odds of one person
against two, at even odds beforehand (the two-covariance model that recordings are clustered by). So no cosine has to
fit both half a second of speech and half an hour of it: little evidence says little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray
from models.clustering import ClusteringParameters, log_likelihood

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class VoiceEvidence:
    """What is known of N voices. counts: (N,) independent observations. sums: (N, D) of their embeddings."""

    counts: Values
    sums: Values

    @classmethod
    def of(cls, embeddings: FloatArray, seconds: FloatArray, clustering: ClusteringParameters) -> VoiceEvidence:
        """One voice an embedding (N, D), which stands on so many seconds (N,) of clean speech."""
        counts = clustering.evidence_per_second * seconds.astype(np.float64)
        return cls(counts, counts[:, None] * embeddings)

    def __add__(self, other: VoiceEvidence) -> VoiceEvidence:
        return VoiceEvidence(self.counts + other.counts, self.sums + other.sums)

    def gathered(self, members: npt.NDArray[np.bool_]) -> VoiceEvidence:
        """What it is when each of K groups, members (K, N), is one voice."""
        return VoiceEvidence(members @ self.counts, members @ self.sums)

    def bounded(self, most: float) -> VoiceEvidence:
        """The same voices, no surer of any than by so many observations."""
        share = np.minimum(1.0, most / np.maximum(self.counts, 1e-9))
        return VoiceEvidence(share * self.counts, share[:, None] * self.sums)

    def odds(self, known: VoiceEvidence, clustering: ClusteringParameters) -> Values:
        """Log odds (N, K) that each voice is the same as each of the K known ones; 0 where nothing is known."""
        theirs = known.bounded(clustering.evidence_max)
        together = log_likelihood(
            self.counts[:, None] + theirs.counts, self.sums[:, None] + theirs.sums, clustering
        )  # (N, K)
        alone = log_likelihood(self.counts, self.sums, clustering)
        odds: Values = together - alone[:, None] - log_likelihood(theirs.counts, theirs.sums, clustering)
        return odds

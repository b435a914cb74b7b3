"""Evidence about voices: whether a stretch of speech is of somebody heard before, as log odds.

In come sums of embeddings, each with the independent observations that it stands on; out come log odds of one person
against two, at even odds beforehand (the two-covariance model that recordings are clustered by). So no cosine has to
fit both half a second of speech and half an hour of it: little evidence says little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from models.analysis import FloatArray
from models.clustering import ClusteringParameters, IntArray, log_likelihood

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

    def alone(self, clustering: ClusteringParameters) -> Values:
        """How well each voice (N,) explains what is known of it, which `log_odds` compares with."""
        return log_likelihood(self.counts, self.sums, clustering)

    def odds(self, known: VoiceEvidence, clustering: ClusteringParameters) -> Values:
        """Log odds (N, K) that each voice is the same as each of the K known ones; 0 where nothing is known."""
        asked = VoiceEvidence(np.append(0.0, self.counts), np.pad(self.sums, ((1, 0), (0, 0))))
        return log_odds(asked, self.alone(clustering), known, clustering)


def log_odds(asked: VoiceEvidence, alone: Values, known: VoiceEvidence, clustering: ClusteringParameters) -> Values:
    """As `VoiceEvidence.odds`, where a caller keeps what that makes anew.

    asked: a voice of which nothing is known, then the N voices. alone: what `alone` says of these (N,).
    """
    theirs = known.bounded(clustering.evidence_max)
    together = log_likelihood(
        asked.counts[:, None] + theirs.counts, asked.sums[:, None] + theirs.sums, clustering
    )  # (1 + N, K)
    # A voice of which nothing is known, added to each of theirs, leaves them as they are: what they are alone.
    odds: Values = together[1:] - alone[:, None] - together[0]
    return odds


def worthwhile_changes(
    taken: IntArray, clusters: IntArray, heard: VoiceEvidence, clustering: ClusteringParameters, change_odds: float
) -> IntArray:
    """Clusters (M,) of M embeddings, those only that explain them clearly better than the groups they were taken for.

    taken: (M,) the group of each so far. Where groups and clusters hang together, all of them change or none does.
    Groups that become one cluster are left to the clustering: to tell that two are one person mends what doubt opened.
    """
    # Pairs of a group and a cluster as one number, in the order of the groups and within them of the clusters.
    num_clusters = int(clusters.max()) + 1
    cells, cell = np.unique(taken * num_clusters + clusters, return_inverse=True)  # (X,), (M,)
    groups, found = np.divmod(cells, num_clusters)
    if not (groups[1:] == groups[:-1]).any():
        return clusters  # which part none of the groups
    # What is the same in both is no surer than a bound, so that both explain the same observations.
    bounded = heard.gathered(cell == np.arange(len(cells))[:, None]).bounded(clustering.evidence_max)
    num_groups = int(groups.max()) + 1
    joined = coo_array(
        (np.ones(len(groups)), (groups, num_groups + found)), shape=(num_groups + int(found.max()) + 1,) * 2
    )
    _, component = connected_components(joined, directed=False)
    gain = np.zeros(int(component.max()) + 1)
    for sign, owner, offset in ((-1.0, groups, 0), (1.0, found, num_groups)):
        names, which = np.unique(owner, return_inverse=True)
        together = bounded.gathered(which == np.arange(len(names))[:, None])
        worth = log_likelihood(together.counts, together.sums, clustering)
        np.add.at(gain, component[names + offset], sign * worth)
    is_parted = np.bincount(component[num_groups + np.unique(found)], minlength=len(gain)) > 1
    stays = (is_parted & (gain < change_odds))[component[taken]]  # (M,)
    changed = np.where(stays, taken, num_groups + clusters)
    return np.unique(changed, return_inverse=True)[1].reshape(-1).astype(np.int64)

"""Whole-file clustering: which local speakers are one person. Pure NumPy and SciPy.

In come embeddings of local speakers with the clean speech behind each; out comes a cluster index for each. Clusters
merge while the evidence says that one speaker explains both better than two (log likelihood ratio of the two-covariance
model), so that no threshold on a cosine has to fit every recording. Who is clearly one enrolled person is never merged
with who is clearly another, unless fewer speakers are asked for. Memory and time are bounded: what is all but identical
is merged first, within blocks, and where that leaves more than `MERGED_AT_ONCE` clusters (some hours of speech), those
of the same hours are merged by evidence before those of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from models.analysis import FloatArray

IntArray = npt.NDArray[np.int64]
BLOCK_ITEMS = 2_000
MERGED_AT_ONCE = 512
"""Clusters whose merges are looked at together: the time of that grows with their square, and worse."""
# Off the gain of merging two enrolled people: more than any evidence, but not so much that bounds could not force it.
TWO_PEOPLE = 1e9


@dataclass(frozen=True, slots=True)
class ClusteringParameters:
    """How local speakers of a file become speakers.

    tight_distance: cosine distance up to which embeddings are merged outright (average linkage).
    evidence_per_second: how many independent observations a second of clean speech is worth.
    train_clean_frames: clean speech from which a window's local speaker takes part in finding the clusters.
    full_clean_frames: clean speech from which its embedding is trusted in full when it is assigned to a cluster.
    agreement_weight: what agreement in time with the other windows counts there, against a cosine.
    active_frames_min: activity, in frames, below which a local speaker is ignored.
    passes: assignments, each after centroids and activities were made again.
    onset, offset: speech begins at or above `onset` and goes on while at or above `offset`.
    gap_samples, speech_samples_min: shorter silences are filled, shorter speech is dropped.
    overlap_threshold: activity from which a second speaker is heard as well.
    turn_samples_min: shorter pieces of a speaker's turn, and shorter gaps in it, are dropped while others speak.
    voice_cosine, voice_preference: two clusters, each this close to an enrolled voice, are two people if together they
        prefer their own voices to each other's by this much, as a sum of cosines.
    evidence_max: observations above which a cluster counts as no surer of its voice. Speech from one place at one time
        shares its room and its mood: without this, an hour of it is so sure of what it heard that the same person in
        another room is somebody else.
    """

    tight_distance: float
    evidence_per_second: float
    train_clean_frames: int
    full_clean_frames: int
    agreement_weight: float
    active_frames_min: float
    passes: int
    onset: float
    offset: float
    gap_samples: int
    speech_samples_min: int
    overlap_threshold: float
    turn_samples_min: int
    within_variance: FloatArray
    between_variance: FloatArray
    voice_cosine: float = 0.5
    voice_preference: float = 0.4
    evidence_max: float = float("inf")
    # Of the variances, and made once, since a live stream asks for them thousands of times a second: (D,).
    spread_by_evidence: npt.NDArray[np.float64] = field(init=False, repr=False, compare=False)
    weight_by_square: npt.NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        within, between = self.within_variance.astype(np.float64), self.between_variance.astype(np.float64)
        object.__setattr__(self, "spread_by_evidence", between / within)
        object.__setattr__(self, "weight_by_square", 0.5 * between / (within * within))


@dataclass(frozen=True, slots=True)
class SpeakerBounds:
    """How many speakers may be found: `least` to `most`, `most` None where there is no limit."""

    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TightClusters:
    """Items that are all but identical, and the C clusters that they make.

    labels: (I,) cluster of each item. evidence: (C,) independent observations that each stands on. sums: (C, D) of its
    embeddings, weighted with that.
    """

    labels: IntArray
    evidence: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]

    @property
    def centroids(self) -> FloatArray:
        """Unit vectors (C, D)."""
        norms = np.linalg.norm(self.sums, axis=1, keepdims=True)
        return np.asarray(self.sums / np.maximum(norms, 1e-9), np.float32)


def log_likelihood(
    evidence: npt.NDArray[np.float64], sums: npt.NDArray[np.float64], clustering: ClusteringParameters
) -> npt.NDArray[np.float64]:
    """How well one speaker explains observations, up to what does not depend on who shares them: (...).

    evidence: (...) independent observations. sums: (..., D) of their embeddings. What two groups have more together
    than the two alone are the log odds, at even odds beforehand, that they are of one speaker.
    """
    spread = evidence[..., None] * clustering.spread_by_evidence
    spread += 1.0
    each = sums * sums  # in place from here on: a step of a live stream makes thousands of these
    each *= clustering.weight_by_square
    each /= spread
    each -= 0.5 * np.log(spread)
    total: npt.NDArray[np.float64] = each.sum(axis=-1)
    return total


def cluster_embeddings(
    embeddings: FloatArray, seconds: FloatArray, clustering: ClusteringParameters, bounds: SpeakerBounds
) -> IntArray:
    """Cluster indices (I,), from 0 without gaps, of unit embeddings (I, D) that stand on `seconds` (I,) of speech.

    Fewer than `bounds.least` clusters come out only where there are fewer items.
    """
    tight = tight_clusters(embeddings, seconds, clustering, bounds)
    return merge_clusters(tight, clustering, bounds)[tight.labels]


def tight_clusters(
    embeddings: FloatArray, seconds: FloatArray, clustering: ClusteringParameters, bounds: SpeakerBounds
) -> TightClusters:
    """Merge what is all but identical among unit embeddings (I, D) that stand on `seconds` (I,) of speech."""
    labels = _merge_identical(embeddings, clustering.tight_distance, bounds.least)
    count = int(labels.max()) + 1
    evidence = clustering.evidence_per_second * seconds.astype(np.float64)
    members = np.bincount(labels, evidence, count).astype(np.float64)
    return TightClusters(labels, members, _summed(evidence[:, None] * embeddings, labels))


def merge_clusters(
    tight: TightClusters,
    clustering: ClusteringParameters,
    bounds: SpeakerBounds,
    cosines: FloatArray | None = None,
) -> IntArray:
    """Indices (C,), from 0 without gaps, of what the tight clusters are merged into by evidence.

    cosines: (C, V) of the tight clusters' centroids against enrolled voices, if there are any.
    """
    if cosines is None:
        cosines = np.zeros((len(tight.evidence), 0), np.float32)
    clusters = _Clusters(tight.evidence, tight.sums, cosines * np.linalg.norm(tight.sums, axis=1, keepdims=True))
    owner = np.arange(len(tight.evidence))
    while len(clusters.evidence) > MERGED_AT_ONCE:
        part = _merge_in_groups(clusters, clustering, bounds.least)
        clusters, owner = clusters.gathered(part), part[owner]
    return _merge_by_evidence(clusters, clustering, bounds)[owner]


@dataclass(frozen=True, slots=True, eq=False)
class _Clusters:
    """evidence (C,), sums (C, D) and, which add up as sums do, products of the sums with voices, near (C, V)."""

    evidence: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    near: npt.NDArray[np.float64]

    def __getitem__(self, chosen: slice) -> _Clusters:
        return _Clusters(self.evidence[chosen], self.sums[chosen], self.near[chosen])

    def gathered(self, owner: IntArray) -> _Clusters:
        """What they are when those of one owner are one."""
        evidence = np.bincount(owner, self.evidence).astype(np.float64)
        return _Clusters(evidence, _summed(self.sums, owner), _summed(self.near, owner))


def _summed(rows: npt.NDArray[np.float64], owner: IntArray) -> npt.NDArray[np.float64]:
    """Sums (C, D) of the rows (I, D) of each owner; every one of 0 to C - 1 has some."""
    order = owner.argsort(kind="stable")
    ends = np.bincount(owner).cumsum()
    found: npt.NDArray[np.float64] = np.add.reduceat(rows[order], [0, *ends[:-1].tolist()], axis=0)
    return found


def _merge_in_groups(clusters: _Clusters, clustering: ClusteringParameters, least: int) -> IntArray:
    """Merges by evidence within groups of consecutive clusters, each to half its size at least: (C,) indices."""
    owner, found = np.zeros(len(clusters.evidence), np.int64), 0
    for at in range(0, len(owner), MERGED_AT_ONCE):
        group = slice(at, at + MERGED_AT_ONCE)
        size = len(owner[group])
        part = _merge_by_evidence(clusters[group], clustering, SpeakerBounds(min(least, size), -(-size // 2)))
        owner[group] = part + found
        found += int(part.max()) + 1
    return owner


def _merge_identical(embeddings: FloatArray, tight_distance: float, least: int) -> IntArray:
    """Average-linkage clusters within blocks of consecutive items, in order of appearance: (I,) indices."""
    labels = np.zeros(len(embeddings), np.int64)
    found = 0
    for at in range(0, len(embeddings), BLOCK_ITEMS):
        block = embeddings[at : at + BLOCK_ITEMS].astype(np.float64)
        if not np.isfinite(block).all():
            raise ValueError("embeddings have to be finite")
        distances = np.maximum(0.0, 1.0 - block @ block.T)
        np.fill_diagonal(distances, 0.0)
        part = _cliques(distances <= tight_distance)
        if part is None or part.max() + 1 < min(least, len(block)):
            tree = linkage(squareform(distances, checks=False), "average")
            part = _cut(tree, tight_distance)
            if part.max() + 1 < least:
                part = _by_appearance(fcluster(tree, least, "maxclust").tolist())
        labels[at : at + BLOCK_ITEMS] = part + found
        found += int(part.max()) + 1
    return labels


def _cliques(near: npt.NDArray[np.bool_]) -> IntArray | None:
    """The groups (I,) of items all of whom are near (I, I) each other and nobody else, in order of appearance.

    None where it is not so clear. Where it is, average linkage finds just these, and takes twenty times as long.
    """
    first = near.argmax(axis=1)  # of the group of each
    if not np.array_equal(near, first[:, None] == first):
        return None
    found: IntArray = (first == np.arange(len(first))).cumsum()[first] - 1
    return found


def _cut(tree: npt.NDArray[np.float64], height: float) -> IntArray:
    """Which cluster each of I items is in (I,) where a tree (I - 1, 4) is cut, in order of appearance.

    `fcluster` checks a tree at length: a live stream, whose memory is looked at every few seconds, has no time for it.
    """
    num_items = len(tree) + 1
    left: list[int] = tree[:, 0].astype(np.int64).tolist()
    right: list[int] = tree[:, 1].astype(np.int64).tolist()
    heights: list[float] = [0.0] * num_items  # of the highest merge in each subtree
    for one, other, distance in zip(left, right, tree[:, 2].tolist(), strict=True):
        heights.append(max(distance, heights[one], heights[other]))
    highest = list(range(len(heights)))  # the highest subtree around each that is not cut
    for merge in range(len(tree) - 1, -1, -1):
        top = highest[num_items + merge]
        if heights[top] <= height:
            highest[left[merge]] = highest[right[merge]] = top
    return _by_appearance(highest[:num_items])


def _by_appearance(labels: list[int]) -> IntArray:
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.int64)


def _merge_by_evidence(clusters: _Clusters, clustering: ClusteringParameters, bounds: SpeakerBounds) -> IntArray:
    """Greedy merges of C clusters, best gain first: (C,) new indices."""

    def gains_of(i: int) -> npt.NDArray[np.float64]:
        together = log_likelihood(counted + counted[i], heard + heard[i], clustering)
        gain: npt.NDArray[np.float64] = together - alone - alone[i]
        return gain - TWO_PEOPLE * _two_people(i, near, sums, clustering)

    members, sums, near = clusters.evidence.copy(), clusters.sums.copy(), clusters.near.copy()
    share = np.minimum(1.0, clustering.evidence_max / np.maximum(members, 1e-9))
    counted, heard = share * members, share[:, None] * sums  # what each is compared with others by
    alone = log_likelihood(counted, heard, clustering)
    gains = np.stack([gains_of(i) for i in range(len(members))])
    np.fill_diagonal(gains, -np.inf)
    owner = np.arange(len(members))  # of each original cluster
    alive = np.ones(len(members), bool)
    most = len(members) if bounds.most is None else bounds.most
    while (count := int(alive.sum())) > max(1, bounds.least):
        i, j = np.unravel_index(int(np.argmax(gains)), gains.shape)
        if gains[i, j] <= 0.0 and count <= most:
            break
        members[i] += members[j]
        sums[i] += sums[j]
        near[i] += near[j]
        alive[j] = False
        owner[owner == j] = i
        surplus = max(1.0, members[i] / clustering.evidence_max)
        counted[i], heard[i] = members[i] / surplus, sums[i] / surplus
        alone[i] = log_likelihood(counted[i], heard[i], clustering)
        row = gains_of(int(i))
        row[~alive] = -np.inf
        row[i] = -np.inf
        gains[i], gains[:, i] = row, row
        gains[j], gains[:, j] = -np.inf, -np.inf
    return np.unique(owner, return_inverse=True)[1].astype(np.int64)


def _two_people(
    i: int, near: npt.NDArray[np.float64], sums: npt.NDArray[np.float64], clustering: ClusteringParameters
) -> npt.NDArray[np.bool_]:
    """Which of the clusters (C,) are clearly another enrolled person than cluster i.

    near: (C, V) products of the clusters' sums (C, D) with the voices.
    """
    if near.shape[1] < 2:
        return np.zeros(len(near), np.bool_)
    cosines = near / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    best, own = cosines.argmax(axis=1), cosines.max(axis=1)  # (C,)
    # By how much cluster i prefers its voice to those of the others, and they theirs to its: (C,).
    preference = (own[i] - cosines[i, best]) + (own - cosines[:, best[i]])
    clear = own >= clustering.voice_cosine
    return np.asarray(clear[i] & clear & (preference >= clustering.voice_preference), np.bool_)

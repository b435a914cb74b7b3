"""Which local speakers of a file are one person, as pyannote.audio 4.0.7 decides it.

Pure NumPy, SciPy and scikit-learn. In come the embeddings of all windows' local speakers and how much each spoke; out
come a speaker for each, and the speakers' centroids. What always holds: up to `linkage.ONE_LEVEL_ITEMS` embeddings with
enough clean speech (over an hour), the result is that of pyannote's `VBxClustering` and `AgglomerativeClustering`;
beyond, first clusters are found in two levels and there are at most `SPEAKERS_MAX` of them, so that time grows with the
length of the file and memory with its embeddings.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from models.analysis import FloatArray
from models.clustering import SpeakerBounds
from models.pyannote.linkage import Tree, centroid_tree
from models.pyannote.plda import Plda
from models.pyannote.vbx import VbxParameters, vbx

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NOBODY = -2
"""Label of a local speaker who does not speak, or for whom no speaker was left."""
TRAIN_SHARE_MIN = 0.2
PRIOR_MIN = 1e-7
SPEAKERS_MAX = 128
"""First clusters that VBx starts from in a long file: the heaviest, as the rest are noise."""
KMEANS_RUNS, KMEANS_SEED = 3, 42
BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class AgglomerativeParameters:
    """threshold: Euclidean distance of unit centroids at which merging stops. min_cluster_size: in items; smaller
    clusters are given to the nearest large one."""

    threshold: float
    min_cluster_size: int


@dataclass(frozen=True, slots=True, eq=False)
class LocalSpeakers:
    """The local speakers of a file's W windows.

    embeddings: (W, S, D) float32, as the model gives them, not of unit length; rows of who is not active are not read.
    clean_frames: (W, S) frames in which nobody else of the window speaks. active: (W, S) whether they speak at all.
    num_frames: frames of a window.
    """

    embeddings: FloatArray
    clean_frames: npt.NDArray[np.integer]
    active: BoolArray
    num_frames: int

    @property
    def trained(self) -> BoolArray:
        """Who has enough clean speech, and an embedding, to take part in finding the speakers: (W, S)."""
        enough = (self.clean_frames >= TRAIN_SHARE_MIN * self.num_frames) & self.active
        candidates = self.embeddings[enough]
        enough[enough] = candidates.any(axis=1) & ~np.isnan(candidates).any(axis=1)
        return enough


@dataclass(frozen=True, slots=True, eq=False)
class Speakers:
    """labels: (W, S) int64, speaker of each local speaker, or NOBODY. centroids: (K, D) float64, not of unit length;
    zeros for the one speaker of a file in which nobody speaks long enough."""

    labels: IntArray
    centroids: Array


def cluster_vbx(
    local: LocalSpeakers, plda: Plda, parameters: VbxParameters, bounds: SpeakerBounds | None = None
) -> Speakers:
    """pyannote's VBxClustering with constrained assignment: community-1."""
    bounds = bounds or SpeakerBounds()
    train = local.embeddings[local.trained]  # (N, D)
    if len(train) < 2:
        return _one_speaker(local, train)
    units = train / np.linalg.norm(train, axis=1, keepdims=True)
    tree = centroid_tree(units)
    gamma, prior = vbx(_first_labels(tree, parameters.threshold), plda.project(train), plda.phi, parameters)
    weights = gamma[:, prior > PRIOR_MIN]
    del gamma
    centroids: Array = weights.T @ train / weights.sum(0, keepdims=True).T
    asked = _asked(len(centroids), bounds, len(train))
    if asked == len(centroids):
        return Speakers(_assigned(local, centroids, constrained=True), centroids)
    centroids = _means(train, _kmeans(units, asked))
    return Speakers(_assigned(local, centroids, constrained=False), centroids)


def cluster_agglomerative(
    local: LocalSpeakers, parameters: AgglomerativeParameters, bounds: SpeakerBounds | None = None
) -> Speakers:
    """pyannote's AgglomerativeClustering with centroid linkage, as the 3.1 pipeline has it."""
    bounds = bounds or SpeakerBounds()
    train = local.embeddings[local.trained]  # (N, D)
    least = max(1, min(len(train), bounds.least))
    most = max(1, len(train) if bounds.most is None else min(len(train), bounds.most))
    if most < 2:
        return _one_speaker(local, train)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = train / np.linalg.norm(train, axis=-1, keepdims=True)
    tree = centroid_tree(units)
    size_min = min(parameters.min_cluster_size, max(1, round(0.1 * len(train))))
    leaves = _large_clusters(tree, parameters.threshold, size_min, least, most)
    centroids = _means(train, leaves[tree.leaf])
    return Speakers(_assigned(local, centroids, constrained=False), centroids)


def constrained_argmax(scores: Array) -> IntArray:
    """Columns (W, S) that maximise the sum of scores (W, S, K) with each column used once a window; NOBODY if none is
    left. Rows of -inf take no part."""
    labels: IntArray = np.argmax(scores, axis=2).astype(np.int64)
    taking_part: BoolArray = np.asarray(np.isfinite(scores).all(axis=2), np.bool_)
    labels[~taking_part] = NOBODY
    best = scores.max(axis=2)
    tied = np.count_nonzero(scores == best[..., None], axis=2) > 1
    contested: BoolArray = np.asarray((tied & taking_part).any(axis=1), np.bool_)
    for one in range(labels.shape[1]):
        for other in range(one):
            contested |= (labels[:, one] == labels[:, other]) & (labels[:, one] != NOBODY)
    # Where everyone's best is another's as well, there is nothing to solve: most windows.
    low = float(np.min(scores, where=np.isfinite(scores), initial=np.inf)) - 1.0
    for window in np.flatnonzero(contested):
        rows, columns = linear_sum_assignment(
            np.where(taking_part[window, :, None], scores[window], low), maximize=True
        )
        labels[window] = NOBODY
        labels[window, rows] = columns
        labels[window, ~taking_part[window]] = NOBODY
    return labels


def _one_speaker(local: LocalSpeakers, train: FloatArray) -> Speakers:
    """All who speak are one."""
    dim = local.embeddings.shape[2]
    centroids = np.mean(train, axis=0, keepdims=True) if len(train) else np.zeros((1, dim), np.float32)
    return Speakers(np.where(local.active, 0, NOBODY).astype(np.int64), np.asarray(centroids, np.float64))


def _first_labels(tree: Tree, threshold: float) -> IntArray:
    """Clusters (N,) of the items, from 0 without gaps; in a long file at most SPEAKERS_MAX."""
    leaves = np.unique(tree.cut(threshold), return_inverse=True)[1]
    count = int(leaves.max()) + 1
    if count > SPEAKERS_MAX and not tree.is_exact:
        weights, sums = _totals(tree, leaves, count)
        heavy = np.sort(np.argsort(-weights, kind="stable")[:SPEAKERS_MAX])
        means = sums / weights[:, None]
        nearest = cdist(means, means[heavy]).argmin(axis=1)
        nearest[heavy] = np.arange(len(heavy))
        leaves = nearest[leaves]
    return np.asarray(leaves[tree.leaf], np.int64)


def _totals(tree: Tree, leaves: IntArray, count: int) -> tuple[Array, Array]:
    """Items in (K,), and sums of unit vectors of (K, D), the clusters of the leaves."""
    sums = np.zeros((count, tree.sums.shape[1]))
    np.add.at(sums, leaves, tree.sums)
    return np.bincount(leaves, tree.weights, count).astype(np.float64), sums


def _asked(found: int, bounds: SpeakerBounds, num_items: int) -> int:
    """How many speakers there have to be, given how many were found."""
    most = num_items if bounds.most is None else min(bounds.most, num_items)
    return min(max(found, bounds.least), most)


def _kmeans(units: FloatArray, count: int) -> IntArray:
    """Clusters (N,) of unit vectors (N, D), from 0 without gaps; fewer than `count` where fewer differ."""
    from sklearn.cluster import KMeans  # takes a second to import, and is rarely asked for
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct items than clusters
        labels = KMeans(n_clusters=count, n_init=KMEANS_RUNS, random_state=KMEANS_SEED, copy_x=False).fit_predict(units)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _means(items: FloatArray, labels: IntArray) -> Array:
    """Mean (K, D) of the items (N, D) of each cluster."""
    return np.vstack([np.mean(items[labels == k], axis=0) for k in range(int(labels.max()) + 1)])


def _assigned(local: LocalSpeakers, centroids: Array, *, constrained: bool) -> IntArray:
    """Nearest centroid by cosine of each active local speaker: (W, S)."""
    items = np.argwhere(local.active)
    scores = np.full((*local.active.shape, len(centroids)), -np.inf)
    for at in range(0, len(items), BLOCK_ROWS):
        windows, slots = items[at : at + BLOCK_ROWS].T
        scores[windows, slots] = 2 - cdist(local.embeddings[windows, slots], centroids, metric="cosine")
    if not constrained:
        return np.where(local.active, np.argmax(scores, axis=2), NOBODY).astype(np.int64)
    missing = np.isnan(scores)
    if missing.any():
        # Who has no embedding is as far from every speaker as the farthest of the others.
        scores[missing] = np.min(scores, where=np.isfinite(scores), initial=np.inf)
    return constrained_argmax(scores)


def _large_clusters(tree: Tree, threshold: float, size_min: int, least: int, most: int) -> IntArray:
    """Clusters (M,) of the leaves, from 0 without gaps, that hold `size_min` items each: as many as are allowed, where
    the tree can be cut so."""
    leaves = tree.cut(threshold)
    count = _num_large(tree, leaves, size_min)
    asked = min(max(count, least), most)
    if asked != count:
        leaves = _cut_into(tree, threshold, size_min, asked)
    sizes = np.bincount(leaves, tree.weights)
    large = np.flatnonzero(sizes >= size_min)
    if not len(large):
        return np.zeros(len(leaves), np.int64)
    small = np.flatnonzero((sizes > 0) & (sizes < size_min))
    if len(small):
        weights, sums = _totals(tree, leaves, len(sizes))
        means = sums / np.maximum(weights, 1.0)[:, None]
        nearest = cdist(means[large], means[small], metric="cosine").argmin(axis=0)
        owner = np.arange(len(sizes))
        owner[small] = large[nearest]
        leaves = owner[leaves]
    return np.unique(leaves, return_inverse=True)[1].astype(np.int64)


def _num_large(tree: Tree, leaves: IntArray, size_min: int) -> int:
    return int((np.bincount(leaves, tree.weights) >= size_min).sum())


def _cut_into(tree: Tree, threshold: float, size_min: int, asked: int) -> IntArray:
    """The cut, by number of merges and as near the threshold as can be, that leaves `asked` large clusters, or the
    number nearest to that."""
    by_number = tree.merges.copy()
    by_number[:, 2] = np.arange(len(by_number))
    best, best_count, items = len(by_number), 1, tree.items_merged()
    leaves = tree.cut(threshold)
    for iteration in np.argsort(np.abs(tree.merges[:, 2] - threshold)):
        if items[iteration] < size_min:
            continue
        leaves = np.asarray(fcluster(by_number, iteration, criterion="distance") - 1, np.int64)
        count = _num_large(tree, leaves, size_min)
        if abs(count - asked) < abs(best_count - asked):
            best, best_count = int(iteration), count
        if count == asked:
            break
    if best_count != asked:
        leaves = np.asarray(fcluster(by_number, best, criterion="distance") - 1, np.int64)
    return leaves

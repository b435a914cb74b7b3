"""Centroid linkage of unit vectors: exact while they are few, in two levels when they are many.

Pure NumPy and SciPy. A tree of all merges takes memory and time with the square of the number of items: some 2 s and
0.5 GB for an hour of speech, 200 GB for a day. Beyond `ONE_LEVEL_ITEMS`, what is all but identical within blocks of
consecutive items is merged first, and the tree is made of the means that come out, each with the weight of its items:
centroid linkage is defined on weighted means, so given the first level the second is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ONE_LEVEL_ITEMS = 8_192
"""An hour of speech gives some 6,300 items of windows a second apart."""
BLOCK_ITEMS = 2_048
TIGHT_DISTANCES = (0.3, 0.4, 0.5)
"""Each tried while more means are left than `MEANS_MAX`. All lie below any cut that makes speakers."""
MEANS_MAX = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """All merges of M leaves, in SciPy's format (M - 1, 4).

    leaf: (N,) leaf of each item. weights: (M,) items in each leaf. sums: (M, D) of the unit vectors in each leaf.
    """

    merges: Array
    leaf: IntArray
    weights: Array
    sums: Array

    @property
    def is_exact(self) -> bool:
        """Whether every item is a leaf of its own."""
        return len(self.weights) == len(self.leaf)

    def items_merged(self) -> Array:
        """Items in what comes of each merge: (M - 1,)."""
        items = np.concatenate([self.weights, np.zeros(len(self.merges))])
        for step, (one, other) in enumerate(self.merges[:, :2].astype(np.int64), start=len(self.weights)):
            items[step] = items[one] + items[other]
        return items[len(self.weights) :]

    def cut(self, distance: float) -> IntArray:
        """Clusters (M,) of the leaves, numbered from 0, after all merges up to a distance."""
        if not len(self.merges):
            return np.zeros(len(self.weights), np.int64)
        return np.asarray(fcluster(self.merges, distance, criterion="distance") - 1, np.int64)


def centroid_tree(units: npt.NDArray[np.floating]) -> Tree:
    """The merges of N ≥ 1 unit vectors (N, D), in order of time."""
    if len(units) <= ONE_LEVEL_ITEMS:
        merges = linkage(units, method="centroid", metric="euclidean") if len(units) > 1 else np.zeros((0, 4))
        return Tree(merges, np.arange(len(units)), np.ones(len(units)), np.asarray(units, np.float64))
    leaf, weights, sums = _micro_clusters(units)
    return Tree(weighted_centroid_linkage(sums / weights[:, None], weights), leaf, weights, sums)


def weighted_centroid_linkage(centroids: Array, weights: Array) -> Array:
    """All merges of weighted points (M, D), nearest centroids first, in SciPy's format: (M - 1, 4)."""
    count = len(centroids)
    norms = np.einsum("md,md->m", centroids, centroids)
    squared = np.maximum(norms[:, None] + norms[None] - 2.0 * (centroids @ centroids.T), 0.0)  # (M, M)
    np.fill_diagonal(squared, np.inf)
    mass, name, leaves = weights.astype(np.float64), np.arange(count), np.ones(count)
    merges = np.zeros((max(0, count - 1), 4))
    step = 0
    while step < count - 1:
        # Rows of what was merged away are dropped when they are a quarter of all.
        alive = len(mass)
        nearest, least = squared.argmin(axis=1), squared.min(axis=1)
        for _ in range(min(alive - 1, alive // 4 + 1)):
            one = int(least.argmin())
            other, distance = int(nearest[one]), float(least[one])
            both, num_leaves = mass[one] + mass[other], leaves[one] + leaves[other]
            merges[step] = (*sorted((name[one], name[other])), np.sqrt(distance), num_leaves)
            # Where either is gone its row is infinite, and so is what comes of it.
            row = (mass[one] * squared[one] + mass[other] * squared[other]) / both
            row = np.maximum(row - mass[one] * mass[other] / both**2 * distance, 0.0)
            row[one] = row[other] = np.inf
            squared[one], squared[:, one] = row, row
            squared[other], squared[:, other] = np.inf, np.inf
            mass[one], leaves[one], name[one] = both, num_leaves, count + step
            mass[other], least[other] = 0.0, np.inf
            stale = np.flatnonzero((nearest == one) | (nearest == other))
            closer = np.flatnonzero(row < least)
            nearest[closer], least[closer] = one, row[closer]
            for index in {one, *stale.tolist()}:
                nearest[index] = squared[index].argmin()
                least[index] = squared[index, nearest[index]]
            step += 1
        kept = np.flatnonzero(mass)
        squared = np.ascontiguousarray(squared[np.ix_(kept, kept)])
        mass, leaves, name = mass[kept], leaves[kept], name[kept]
    return merges


def _micro_clusters(units: npt.NDArray[np.floating]) -> tuple[IntArray, Array, Array]:
    """Leaves (N,), weights (M,) and sums (M, D) of what is all but identical among unit vectors (N, D)."""
    leaf, weights = np.arange(len(units)), np.ones(len(units))
    sums = units
    for distance in TIGHT_DISTANCES:
        owner = _merge_in_blocks(sums, weights, distance)
        leaf, weights, sums = _gathered(owner, leaf, weights, sums)
        if len(weights) <= MEANS_MAX:
            return leaf, weights, np.asarray(sums, np.float64)
    while len(weights) > MEANS_MAX:
        # Nothing but noise is as scattered as this: the nearest halves of each block are joined, at any distance.
        owner = _merge_in_blocks(sums, weights, None)
        leaf, weights, sums = _gathered(owner, leaf, weights, sums)
    return leaf, weights, np.asarray(sums, np.float64)


def _merge_in_blocks(sums: npt.NDArray[np.floating], weights: Array, distance: float | None) -> IntArray:
    """New indices (M,) after merging within blocks up to a distance, or down to half of each block."""
    owner, found = np.zeros(len(weights), np.int64), 0
    for at in range(0, len(weights), BLOCK_ITEMS):
        weight = weights[at : at + BLOCK_ITEMS]
        means = sums[at : at + BLOCK_ITEMS].astype(np.float64) / weight[:, None]
        if len(weight) == 1:
            part = np.zeros(1, np.int64)
        else:
            alike = weight.max() == 1.0  # SciPy's is twice as fast, and knows no weights
            merges = linkage(means, method="centroid") if alike else weighted_centroid_linkage(means, weight)
            if distance is None:
                merges[:, 2] = np.arange(len(merges))  # cut by the number of merges
                part = fcluster(merges, len(merges) // 2, criterion="distance").astype(np.int64) - 1
            else:
                part = fcluster(merges, distance, criterion="distance").astype(np.int64) - 1
        owner[at : at + BLOCK_ITEMS] = part + found
        found += int(part.max()) + 1
    return owner


def _gathered(
    owner: IntArray, leaf: IntArray, weights: Array, sums: npt.NDArray[np.floating]
) -> tuple[IntArray, Array, Array]:
    count = int(owner.max()) + 1
    gathered = np.zeros((count, sums.shape[1]))
    np.add.at(gathered, owner, sums)
    return owner[leaf], np.bincount(owner, weights, count).astype(np.float64), gathered

"""What is all but identical is one cluster, however it is found: at a glance, or by a tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

import models.clustering
from models.analysis import FloatArray
from models.clustering import IntArray, SpeakerBounds, tight_clusters
from tests.models.test_online import EVIDENCE

CLUSTERING = replace(
    EVIDENCE, within_variance=np.full(16, 0.2 / 16, np.float32), between_variance=np.full(16, 0.8 / 16, np.float32)
)


def embeddings_of(seed: int) -> FloatArray:
    """Up to forty unit vectors (I, 16) around up to five, alike or less so."""
    rng = np.random.default_rng([11, seed])
    people = rng.standard_normal((rng.integers(1, 6), 16))
    found = people[rng.integers(0, len(people), rng.integers(2, 40))]
    found = found + rng.choice([0.05, 0.2, 0.4, 0.6]) * rng.standard_normal(found.shape)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def by_tree(embeddings: FloatArray) -> IntArray:
    wide = embeddings.astype(np.float64)
    distances = np.maximum(0.0, 1.0 - wide @ wide.T)
    np.fill_diagonal(distances, 0.0)
    tree = linkage(squareform(distances, checks=False), "average")
    labels = fcluster(tree, CLUSTERING.tight_distance, "distance").tolist()
    return np.array([list(dict.fromkeys(labels)).index(label) for label in labels])  # in order of appearance


def test_the_clusters_are_those_of_average_linkage_whether_they_were_plain_to_see_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_a_glance = models.clustering._cliques
    were_plain: list[bool] = []

    def seen(near: np.ndarray) -> IntArray | None:
        found = at_a_glance(near)
        were_plain.append(found is not None)
        return found

    monkeypatch.setattr(models.clustering, "_cliques", seen)
    for seed in range(300):
        embeddings = embeddings_of(seed)
        found = tight_clusters(embeddings, np.ones(len(embeddings), np.float32), CLUSTERING, SpeakerBounds()).labels
        assert found.tolist() == by_tree(embeddings).tolist(), seed
    assert 50 < sum(were_plain) < 250


def test_each_cluster_is_the_sum_of_its_items() -> None:
    for seed in range(20):
        embeddings = embeddings_of(seed)
        seconds = np.linspace(0.5, 4.0, len(embeddings), dtype=np.float32)
        found = tight_clusters(embeddings, seconds, CLUSTERING, SpeakerBounds())
        for cluster in range(len(found.evidence)):
            counts = CLUSTERING.evidence_per_second * seconds[found.labels == cluster].astype(np.float64)
            assert found.evidence[cluster] == pytest.approx(counts.sum())
            assert np.allclose(found.sums[cluster], counts @ embeddings[found.labels == cluster])


@pytest.mark.parametrize(("items", "least"), [(1, 1), (1, 3), (4, 1), (4, 3), (4, 6)])
def test_items_that_are_alike_are_parted_where_more_speakers_are_known_to_be_there(items: int, least: int) -> None:
    noise = 0.01 * np.random.default_rng(5).standard_normal((items, 16))
    alike = embeddings_of(0)[:1] + noise
    embeddings = np.asarray(alike / np.linalg.norm(alike, axis=1, keepdims=True), np.float32)
    labels = tight_clusters(embeddings, np.ones(items, np.float32), CLUSTERING, SpeakerBounds(least)).labels
    assert len(set(labels.tolist())) == min(items, least)


def test_an_embedding_that_is_no_number_is_refused() -> None:
    embeddings = embeddings_of(0)
    embeddings[1, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        tight_clusters(embeddings, np.ones(len(embeddings), np.float32), CLUSTERING, SpeakerBounds())

"""Our clustering against pyannote.audio's own classes, on synthetic embeddings of many shapes."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from models.clustering import SpeakerBounds
from models.pyannote import clustering
from models.pyannote import linkage as two_level
from models.pyannote.clustering import (
    NOBODY,
    AgglomerativeParameters,
    LocalSpeakers,
    Speakers,
    cluster_agglomerative,
    cluster_vbx,
)
from models.pyannote.plda import Plda, plda_from_arrays
from models.pyannote.vbx import VbxParameters

DIM, LDA, FRAMES = 32, 16, 100
VBX = VbxParameters(threshold=0.6, fa=0.07, fb=0.8)
AHC = AgglomerativeParameters(threshold=0.7045654963945799, min_cluster_size=12)
Found = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def plda_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("plda")
    np.savez(
        folder / "xvec_transform.npz",
        mean1=0.1 * rng.normal(size=DIM),
        mean2=0.1 * rng.normal(size=LDA),
        lda=np.linalg.qr(rng.normal(size=(DIM, LDA)))[0],
    )
    np.savez(
        folder / "plda.npz",
        mu=0.1 * rng.normal(size=LDA),
        tr=rng.normal(size=(LDA, LDA)) + 3 * np.eye(LDA),
        psi=np.sort(rng.uniform(0.5, 20.0, LDA))[::-1],
    )
    return folder / "xvec_transform.npz", folder / "plda.npz"


@pytest.fixture(scope="module")
def plda(plda_files: tuple[Path, Path]) -> Plda:
    arrays: dict[str, np.ndarray] = {}
    for file in plda_files:
        arrays |= dict(np.load(file))
    return plda_from_arrays(arrays, LDA)


def conversation(
    seed: int, *, windows: int = 120, speakers: int = 3, spread: float = 0.25, speech: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (W, 3, D) and binary activity (W, F, 3) of windows in which up to three of the speakers talk."""
    rng = np.random.default_rng(seed)
    voices = rng.normal(size=(speakers, DIM))
    activity = np.zeros((windows, FRAMES, 3), np.float32)
    embeddings = rng.normal(size=(windows, 3, DIM)).astype(np.float32)
    for window in range(windows):
        present = rng.permutation(speakers)[:3]
        slots = rng.permutation(3)[: len(present)]
        for speaker, slot in zip(present, slots, strict=True):
            if rng.uniform() < speech:
                begin = int(rng.integers(0, FRAMES - 5))
                activity[window, begin : begin + int(rng.integers(3, 70)), slot] = 1.0
            noise = spread * np.sqrt(DIM) * rng.normal(size=DIM) / np.sqrt(DIM)
            embeddings[window, slot] = rng.uniform(0.5, 3.0) * (voices[speaker] + noise)
    return embeddings, activity


def local_speakers(embeddings: np.ndarray, activity: np.ndarray) -> LocalSpeakers:
    alone = activity.sum(axis=2, keepdims=True) == 1
    return LocalSpeakers(
        embeddings, (activity * alone).sum(axis=1).astype(np.int64), activity.max(axis=1) > 0, activity.shape[1]
    )


def theirs(pipeline: object, embeddings: np.ndarray, activity: np.ndarray, bounds: SpeakerBounds) -> Found:
    """What pyannote's class says, as its SpeakerDiarization calls it and goes on."""
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    most = np.inf if bounds.most is None else bounds.most
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        labels, _, centroids = pipeline(  # type: ignore[operator]
            embeddings=embeddings.copy(),
            segmentations=SlidingWindowFeature(activity.copy(), SlidingWindow(duration=10.0, step=1.0)),
            num_clusters=bounds.least if bounds.least == most else None,
            min_clusters=bounds.least,
            max_clusters=most,
        )
    labels = labels.astype(np.int64)
    labels[activity.sum(axis=1) == 0] = NOBODY
    return labels, np.nan_to_num(centroids)


def vbx_pipeline(plda_files: tuple[Path, Path]) -> object:
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines.clustering import VBxClustering

    pipeline = VBxClustering(PLDA(*plda_files, lda_dimension=LDA))
    return pipeline.instantiate({"threshold": VBX.threshold, "Fa": VBX.fa, "Fb": VBX.fb})


def agglomerative_pipeline() -> object:
    from pyannote.audio.pipelines.clustering import AgglomerativeClustering

    return AgglomerativeClustering().instantiate(
        {"method": "centroid", "threshold": AHC.threshold, "min_cluster_size": AHC.min_cluster_size}
    )


SHAPES: dict[str, dict[str, float]] = {
    "three speakers": {},
    "five, more than a window holds": {"speakers": 5, "windows": 250},
    "twelve, scattered": {"speakers": 12, "windows": 300, "spread": 0.6},
    "one voice": {"speakers": 1},
    "one voice, scattered": {"speakers": 1, "spread": 0.9},
    "two, scattered so that they blur": {"speakers": 2, "spread": 1.2},
    "a few windows": {"windows": 4},
    "one window": {"windows": 1},
    "two windows of few words": {"windows": 2, "speech": 0.4},
    "hardly anybody speaks": {"windows": 40, "speech": 0.05},
    "nobody speaks": {"windows": 10, "speech": 0.0},
}
BOUNDS = [
    SpeakerBounds(),
    SpeakerBounds(2, 2),
    SpeakerBounds(4, 4),
    SpeakerBounds(1, 1),
    SpeakerBounds(5),
    SpeakerBounds(1, 2),
]


def assert_equal(found: Speakers, expected: Found) -> None:
    labels, centroids = expected
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.centroids, centroids, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: f"{bounds.least}-{bounds.most}")
@pytest.mark.parametrize("shape", SHAPES)
def test_vbx_gives_the_speakers_of_pyannote(
    shape: str, bounds: SpeakerBounds, plda: Plda, plda_files: tuple[Path, Path]
) -> None:
    for seed in range(3):
        embeddings, activity = conversation(seed, **SHAPES[shape])  # type: ignore[arg-type]
        local = local_speakers(embeddings, activity)
        found = cluster_vbx(local, plda, VBX, bounds)
        try:
            expected = theirs(vbx_pipeline(plda_files), embeddings, activity, bounds)
        except ValueError:
            # pyannote fails where more speakers are asked for than there are embeddings: we give as many as there are.
            assert len(found.centroids) == int(local.trained.sum()) < bounds.least
            continue
        assert_equal(found, expected)


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: f"{bounds.least}-{bounds.most}")
@pytest.mark.parametrize("shape", SHAPES)
def test_agglomerative_gives_the_speakers_of_pyannote(shape: str, bounds: SpeakerBounds) -> None:
    for seed in range(3):
        embeddings, activity = conversation(seed, **SHAPES[shape])  # type: ignore[arg-type]
        found = cluster_agglomerative(local_speakers(embeddings, activity), AHC, bounds)
        assert_equal(found, theirs(agglomerative_pipeline(), embeddings, activity, bounds))


def test_identical_embeddings_are_one_speaker(plda: Plda, plda_files: tuple[Path, Path]) -> None:
    embeddings, activity = conversation(3, windows=30)
    embeddings[:] = embeddings[0, 0]
    local = local_speakers(embeddings, activity)
    assert_equal(cluster_vbx(local, plda, VBX), theirs(vbx_pipeline(plda_files), embeddings, activity, SpeakerBounds()))
    assert_equal(
        cluster_agglomerative(local, AHC), theirs(agglomerative_pipeline(), embeddings, activity, SpeakerBounds())
    )
    assert len(cluster_vbx(local, plda, VBX, SpeakerBounds(3, 3)).centroids) == 1


def test_an_embedding_that_failed_takes_no_part_in_finding_speakers(plda: Plda, plda_files: tuple[Path, Path]) -> None:
    embeddings, activity = conversation(4)
    speaking = np.argwhere(activity.any(axis=1))[::7]
    embeddings[speaking[:, 0], speaking[:, 1]] = np.nan
    found = cluster_vbx(local_speakers(embeddings, activity), plda, VBX)
    assert_equal(found, theirs(vbx_pipeline(plda_files), embeddings, activity, SpeakerBounds()))


def test_rows_of_silent_slots_are_not_read(plda: Plda) -> None:
    embeddings, activity = conversation(6)
    expected = cluster_vbx(local_speakers(embeddings, activity), plda, VBX)
    embeddings[~activity.any(axis=1)] = 0.0
    assert_equal(cluster_vbx(local_speakers(embeddings, activity), plda, VBX), (expected.labels, expected.centroids))


def test_plda_projects_as_pyannote_does(plda: Plda, plda_files: tuple[Path, Path]) -> None:
    from pyannote.audio.core.plda import PLDA

    embeddings = conversation(1)[0].reshape(-1, DIM)
    reference = PLDA(*plda_files, lda_dimension=LDA)
    np.testing.assert_array_equal(plda.project(embeddings), reference(embeddings))
    np.testing.assert_array_equal(plda.phi, reference.phi)


def test_vbx_in_blocks_of_rows_is_vbx(plda: Plda, monkeypatch: pytest.MonkeyPatch) -> None:
    local = local_speakers(*conversation(2, windows=200))
    whole = cluster_vbx(local, plda, VBX)
    monkeypatch.setattr("models.pyannote.vbx.BLOCK_ROWS", 37)
    assert_equal(cluster_vbx(local, plda, VBX), (whole.labels, whole.centroids))


def test_constrained_assignment_is_the_best_for_each_window() -> None:
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)
    for num_columns in (1, 2, 3, 5):
        scores = rng.integers(0, 6, (300, 3, num_columns)).astype(np.float64)  # with many ties
        labels = clustering.constrained_argmax(scores)
        for window, score in enumerate(scores):
            rows, columns = linear_sum_assignment(score, maximize=True)
            given = np.flatnonzero(labels[window] != NOBODY)
            assert score[given, labels[window, given]].sum() == score[rows, columns].sum()
            assert len(set(labels[window, given])) == len(given) == len(rows)


def test_weighted_linkage_of_single_items_is_scipys() -> None:
    points = np.random.default_rng(1).normal(size=(300, 8))
    ours = two_level.weighted_centroid_linkage(points, np.ones(300))
    np.testing.assert_allclose(ours, linkage(points, "centroid"), rtol=1e-9)


def test_a_weight_counts_as_so_many_items() -> None:
    rng = np.random.default_rng(2)
    points, weights = rng.normal(size=(40, 8)), rng.integers(1, 6, 40)
    repeated = linkage(np.repeat(points, weights, axis=0), "centroid")
    ours = two_level.weighted_centroid_linkage(points, weights.astype(np.float64))
    # The first merges of the repeated points join equals; those that follow are ours.
    np.testing.assert_allclose(ours[:, 2], repeated[-len(ours) :, 2], rtol=1e-9)
    tree = two_level.Tree(ours, np.repeat(np.arange(40), weights), weights.astype(np.float64), points)
    np.testing.assert_array_equal(tree.items_merged(), repeated[-len(ours) :, 3])


@pytest.mark.parametrize("kind", ["vbx", "agglomerative"])
def test_two_levels_find_the_speakers_of_one(kind: str, plda: Plda, monkeypatch: pytest.MonkeyPatch) -> None:
    local = local_speakers(*conversation(7, windows=900, speakers=6, spread=0.35))
    run: Callable[[], Speakers] = (
        (lambda: cluster_vbx(local, plda, VBX)) if kind == "vbx" else (lambda: cluster_agglomerative(local, AHC))
    )
    one_level = run()
    monkeypatch.setattr(two_level, "ONE_LEVEL_ITEMS", 100)
    monkeypatch.setattr(two_level, "BLOCK_ITEMS", 128)
    two_levels = run()
    assert len(one_level.centroids) == len(two_levels.centroids) == 6
    order = (one_level.centroids @ two_levels.centroids.T).argmax(axis=1)
    renamed = np.where(one_level.labels == NOBODY, NOBODY, order[one_level.labels])
    assert (renamed == two_levels.labels).mean() > 0.999


def test_noise_without_speakers_stays_bounded(plda: Plda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_level, "ONE_LEVEL_ITEMS", 100)
    monkeypatch.setattr(two_level, "BLOCK_ITEMS", 64)
    monkeypatch.setattr(two_level, "MEANS_MAX", 50)
    monkeypatch.setattr(clustering, "SPEAKERS_MAX", 8)
    embeddings, activity = conversation(8, windows=400, speakers=3, spread=8.0)
    found = cluster_vbx(local_speakers(embeddings, activity), plda, VBX)
    assert 1 <= len(found.centroids) <= 8
    assert (found.labels >= 0).any()

"""The gallery in device memory: what is put is scored, what is zeroed is gone."""

from __future__ import annotations

import numpy as np
import pytest

import models.torch_gallery
from models.seams import Gallery
from models.torch_gallery import FIRST_CAPACITY, TorchGallery
from node.null_engine import NullGallery


def _unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=16)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def test_scores_are_cosines_of_the_rows_asked_for():
    gallery = TorchGallery(16)
    for row in range(3 * FIRST_CAPACITY):  # grows twice on the way
        gallery.put(row, _unit(row))
    rows = np.array([5, 0, 3 * FIRST_CAPACITY - 1])
    found = gallery.scores(np.stack([_unit(5), _unit(9)]), rows)
    plain = np.stack([_unit(5), _unit(9)]) @ np.stack([_unit(int(row)) for row in rows]).T
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_a_zeroed_row_scores_nothing_and_its_neighbours_stay():
    gallery = TorchGallery(16)
    gallery.put(0, _unit(0))
    gallery.put(1, _unit(1))
    gallery.zero([0, 10_000])
    found = gallery.scores(_unit(0)[None], np.array([0]))
    np.testing.assert_array_equal(found, [[0.0]])
    np.testing.assert_allclose(gallery.scores(_unit(1)[None], np.array([1])), [[1.0]], atol=1e-6)


def test_nothing_asked_is_nothing_scored():
    gallery = TorchGallery(16)
    assert gallery.scores(np.zeros((0, 16), np.float32), np.array([0])).shape == (0, 1)
    assert gallery.scores(_unit(1)[None], np.array([], np.int64)).shape == (1, 0)


@pytest.fixture(params=[TorchGallery, NullGallery])
def any_gallery(request: pytest.FixtureRequest) -> Gallery:
    gallery: Gallery = request.param(64)
    return gallery


def _unit64(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.mark.parametrize("scattered", [False, True])
def test_the_nearest_rows_are_exactly_those_of_a_whole_product(any_gallery, monkeypatch, scattered):
    monkeypatch.setattr(models.torch_gallery, "CHUNK_ROWS_MIN", 50)
    monkeypatch.setattr(models.torch_gallery, "CHUNK_ROWS_MAX", 50)  # several chunks, the last one short
    for row in range(330):
        any_gallery.put(row, _unit64(row))
    rows = np.random.default_rng(1).permutation(np.arange(10, 330))[:275] if scattered else np.arange(10, 330)
    queries = np.stack([_unit64(seed) for seed in (12, 5_000, 6_000)])
    found = any_gallery.top_k(queries, 7, rows)
    plain = queries @ np.stack([_unit64(int(row)) for row in rows]).T
    np.testing.assert_array_equal(found.places, np.argsort(-plain, axis=1)[:, :7])
    np.testing.assert_allclose(found.cosines, -np.sort(-plain, axis=1)[:, :7], atol=1e-6)


def test_fewer_rows_than_asked_for_are_all_given_and_nothing_gives_nothing(any_gallery):
    for row in range(3):
        any_gallery.put(row, _unit64(row))
    assert any_gallery.top_k(_unit64(1)[None], 10, range(3)).places.tolist()[0][0] == 1
    assert any_gallery.top_k(_unit64(1)[None], 10, range(3)).places.shape == (1, 3)
    assert any_gallery.top_k(_unit64(1)[None], 10, np.array([], np.int64)).places.shape == (1, 0)
    assert len(any_gallery.top_k(np.zeros((0, 64), np.float32), 10, range(3)).places) == 0

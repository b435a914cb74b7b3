"""The gallery in device memory: what is put is scored, what is zeroed is gone."""

from __future__ import annotations

import numpy as np

from models.torch_gallery import FIRST_CAPACITY, TorchGallery


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

"""The transform in front of VBx: from raw embeddings to a space in which speakers differ along independent axes.

Pure NumPy and SciPy. In come the arrays of a PLDA checkpoint (`xvec_transform.npz` and `plda.npz`), out comes a Plda
that maps embeddings (N, E) to features (N, D). What always holds: the same numbers, bit for bit, as pyannote.audio
4.0.7 computes, so the order of operations is its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

Array = npt.NDArray[np.float64]
LDA_DIMENSION = 128


@dataclass(frozen=True, slots=True, eq=False)
class Plda:
    """Centring, whitening and PLDA.

    mean1 (E,), lda (E, L), mean2 (L,): the first transform. mu (L,), transform (L, L): the second, whose first D axes
    are kept. phi: (D,) variance between speakers along each axis, where that within a speaker is 1.
    """

    mean1: Array
    lda: Array
    mean2: Array
    mu: Array
    transform: Array
    phi: Array

    def project(self, embeddings: npt.NDArray[np.floating]) -> Array:
        """Features (N, D) of raw embeddings (N, E)."""
        centred = np.sqrt(self.lda.shape[0]) * _unit(embeddings - self.mean1)
        whitened = np.sqrt(self.lda.shape[1]) * _unit(self.lda.T.dot(centred.T).T - self.mean2)
        features: Array = (whitened - self.mu).dot(self.transform.T)[:, : len(self.phi)]
        return features


def plda_from_arrays(arrays: Mapping[str, npt.NDArray[np.floating]], lda_dimension: int = LDA_DIMENSION) -> Plda:
    """A Plda from the arrays `mean1`, `mean2`, `lda` (xvec_transform.npz) and `mu`, `tr`, `psi` (plda.npz)."""
    rotation, psi = arrays["tr"], arrays["psi"]
    within = np.linalg.inv(rotation.T.dot(rotation))
    between = np.linalg.inv((rotation.T / psi).dot(rotation))
    variances, axes = eigh(between, within)
    return Plda(
        mean1=np.asarray(arrays["mean1"]),
        lda=np.asarray(arrays["lda"]),
        mean2=np.asarray(arrays["mean2"]),
        mu=np.asarray(arrays["mu"]),
        transform=axes.T[::-1],
        phi=variances[::-1][:lda_dimension],
    )


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, ord=2)[:, np.newaxis]
    return unit

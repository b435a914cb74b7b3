"""The linear backend of embeddings: what an encoder says, less what room and noise put into it.

Pure NumPy. In come vectors as the encoder gives them; out come unit vectors in which speakers lie apart. It holds the
variances within and between speakers as well, which is what clustering weighs its evidence with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from models.analysis import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """Linear discriminants, fitted by scripts/fit_backend.py.

    mean: (E,) of the encoder's vectors. projection: (E, D). within_variance and between_variance: (D,), of projected
    vectors of unit length.
    """

    mean: FloatArray
    projection: FloatArray
    within_variance: FloatArray
    between_variance: FloatArray

    def project(self, vectors: FloatArray) -> FloatArray:
        """Encoder's vectors (P, E) to unit vectors (P, D)."""
        projected = (vectors - self.mean) @ self.projection
        unit: FloatArray = projected / np.maximum(np.linalg.norm(projected, axis=-1, keepdims=True), 1e-6)
        return unit


def load_backend(path: Path) -> Backend:
    """A backend from its tensors; KeyError if the file holds others."""
    tensors = load_file(path)
    return Backend(tensors["mean"], tensors["projection"], tensors["within_variance"], tensors["between_variance"])

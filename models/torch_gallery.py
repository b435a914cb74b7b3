"""Gallery on a torch device: rows of unit vectors, written in place, scored with one product.

Not thread-safe: called from the thread that owns the device. A row that was zeroed scores 0 against everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.analysis import FloatArray

FIRST_CAPACITY = 64


class TorchGallery:
    """Rows (V, D) float32 in device memory; grows by doubling."""

    def __init__(self, embedding_dim: int, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._rows = torch.zeros(FIRST_CAPACITY, embedding_dim, device=self._device)  # (V, D)

    def __repr__(self) -> str:
        return f"TorchGallery({len(self._rows)} rows, {self._device})"

    def put(self, row: int, embedding: FloatArray) -> None:
        """Write one (D,) unit vector into a row, growing the store if needed."""
        if row >= len(self._rows):
            grown = torch.zeros(max(row + 1, 2 * len(self._rows)), self._rows.shape[1], device=self._device)
            grown[: len(self._rows)] = self._rows
            self._rows.zero_()  # nothing of a voice stays behind in memory that was given up
            self._rows = grown
        self._rows[row] = torch.from_numpy(np.asarray(embedding, np.float32)).to(self._device)

    def zero(self, rows: Sequence[int]) -> None:
        """Overwrite rows with zeros, on the device, before this returns. Rows never written are zero already."""
        held = [row for row in rows if row < len(self._rows)]
        if held:
            self._rows[held] = 0.0
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def scores(self, queries: FloatArray, rows: np.ndarray) -> FloatArray:
        """Cosines of (Q, D) unit queries against the named rows (V,): (Q, V) float32."""
        if len(queries) == 0 or len(rows) == 0:
            return np.zeros((len(queries), len(rows)), np.float32)
        index = torch.from_numpy(np.asarray(rows, np.int64)).to(self._device)
        asked = torch.from_numpy(np.asarray(queries, np.float32)).to(self._device)
        found: FloatArray = (asked @ self._rows[index].T).cpu().numpy()
        return found

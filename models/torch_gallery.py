"""Gallery on a torch device: rows of unit vectors, written in place, scored with products of a bounded number of rows.

Not thread-safe: called from the thread that owns the device. A row that was zeroed scores 0 against everything. On a
CUDA device rows are kept in half precision, which moves a cosine by 1e-4 at most and halves what each look reads;
products are summed in single precision on every device. The nearest rows of many are found chunk by chunk, so that the
scores of one chunk are all that is ever written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.analysis import FloatArray
from models.seams import NearestRows

FIRST_CAPACITY = 64
CHUNK_SCORES = 1 << 21
"""Scores written at a time, 8 MiB: they are read again at once, out of a cache."""
CHUNK_ROWS_MIN, CHUNK_ROWS_MAX = 1 << 12, 1 << 16


class TorchGallery:
    """Rows (V, D) in device memory; grows by doubling."""

    def __init__(self, embedding_dim: int, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._precision = torch.float16 if self._device.type == "cuda" else torch.float32
        self._rows = self._zeros(FIRST_CAPACITY, embedding_dim)  # (V, D)

    def __repr__(self) -> str:
        return f"TorchGallery({len(self._rows)} rows, {self._device})"

    def put(self, row: int, embedding: FloatArray) -> None:
        """Write one (D,) unit vector into a row, growing the store if needed."""
        if row >= len(self._rows):
            grown = self._zeros(max(row + 1, 2 * len(self._rows)), self._rows.shape[1])
            grown[: len(self._rows)] = self._rows
            self._rows.zero_()  # nothing of a voice stays behind in memory that was given up
            self._rows = grown
        self._rows[row] = self._on_device(embedding)

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
        found: FloatArray = self._product(self._on_device(queries), self._rows[self._index(rows)]).cpu().numpy()
        return found

    @torch.inference_mode()
    def top_k(self, queries: FloatArray, k: int, rows: np.ndarray | range) -> NearestRows:
        """The k nearest of the named rows (V,) to each of (Q, D) unit queries, nearest first.

        Exact, of however many rows. Those in one piece are read where they lie; of others, chunks are copied.
        """
        k = min(k, len(rows))
        if len(queries) == 0 or k <= 0:
            return NearestRows(np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32))
        asked = self._on_device(queries)  # (Q, D)
        best = torch.full((len(queries), k), -torch.inf, device=self._device)  # (Q, k)
        where = torch.zeros((len(queries), k), dtype=torch.int64, device=self._device)
        for begin, chunk in self._chunks(rows, len(queries)):
            scores = self._product(asked, chunk)  # (Q, C)
            near = torch.topk(scores, min(k, scores.shape[1]), dim=1)
            joint = torch.cat([best, near.values], dim=1)
            places = torch.cat([where, near.indices + begin], dim=1)
            best, order = torch.topk(joint, k, dim=1)
            where = places.gather(1, order)
        return NearestRows(where.cpu().numpy(), best.cpu().numpy())

    def _chunks(self, rows: np.ndarray | range, num_queries: int) -> Iterator[tuple[int, Tensor]]:
        """Where in `rows` each chunk begins, and its rows (C, D)."""
        size = max(CHUNK_ROWS_MIN, min(CHUNK_ROWS_MAX, CHUNK_SCORES // num_queries))
        if not isinstance(rows, range) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
            rows = range(int(rows[0]), int(rows[-1]) + 1)  # read where they lie, as enrolments in order do
        index = None if isinstance(rows, range) else self._index(rows)
        for begin in range(0, len(rows), size):
            end = min(begin + size, len(rows))
            if index is None:
                assert isinstance(rows, range) and rows.step == 1
                yield begin, self._rows[rows.start + begin : rows.start + end]
            else:
                yield begin, self._rows[index[begin:end]]

    def _product(self, queries: Tensor, rows: Tensor) -> Tensor:
        """(Q, D), (C, D) → (Q, C), summed and given in single precision."""
        if self._precision is torch.float32:
            return queries @ rows.T
        return torch.mm(queries, rows.T, out_dtype=torch.float32)

    def _index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(rows, np.int64)).to(self._device)

    def _on_device(self, vectors: FloatArray) -> Tensor:
        return torch.from_numpy(np.asarray(vectors, np.float32)).to(self._device, self._precision)

    def _zeros(self, num_rows: int, embedding_dim: int) -> Tensor:
        return torch.zeros(num_rows, embedding_dim, device=self._device, dtype=self._precision)

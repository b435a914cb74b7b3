"""What a stream remembers of its session speakers: a bounded set of embeddings, each with its weight, speaker and time.

In: embeddings of windows that are settled. Out: the set itself. What always holds: at most `capacity` embeddings; what
makes room is the more redundant of two that are most alike, of the speaker remembered most often, so that nobody is
forgotten for having been silent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray

IntArray = npt.NDArray[np.int64]


class SpeakerMemory:
    """M embeddings (M, D) of unit length, weights (M,) in frames of clean speech, speakers (M,), spans (M, 2).

    A span is the frames of the stream, [from, to), in which what the embedding stands on was said.
    """

    def __init__(self, embedding_dim: int, capacity: int) -> None:
        self._capacity = capacity
        self.changes = 0
        """Grows with every change: what was computed of the memory holds while it stays."""
        self.embeddings: FloatArray = np.zeros((0, embedding_dim), np.float32)
        self.weights: FloatArray = np.zeros(0, np.float32)
        self.speakers: IntArray = np.zeros(0, np.int64)
        self.spans: IntArray = np.zeros((0, 2), np.int64)

    def __repr__(self) -> str:
        return f"SpeakerMemory({len(self)} of {self._capacity})"

    def __len__(self) -> int:
        return len(self.weights)

    def remember(self, embedding: FloatArray, weight: float, speaker: int, span: tuple[int, int]) -> None:
        """Add one (D,) embedding; forget another if there is no room."""
        self.embeddings = np.concatenate([self.embeddings, embedding[None]])
        self.weights = np.concatenate([self.weights, np.array([weight], np.float32)])
        self.speakers = np.concatenate([self.speakers, np.array([speaker], np.int64)])
        self.spans = np.concatenate([self.spans, np.array([span], np.int64)])
        self.changes += 1
        if len(self) > self._capacity:
            self._forget(np.arange(len(self)) == self._most_redundant())

    def rename(self, source: int, target: int) -> None:
        """What was one speaker's is another's."""
        self.relabel(np.where(self.speakers == source, target, self.speakers))

    def relabel(self, speakers: IntArray) -> None:
        """Give every embedding its speaker (M,) anew."""
        self.speakers = speakers
        self.changes += 1

    def forget_speaker(self, speaker: int) -> None:
        """Forget all there is of a speaker."""
        self._forget(self.speakers == speaker)

    def weight_of(self, speaker: int) -> float:
        """Clean frames remembered of a speaker; windows overlap, so this counts most speech several times."""
        return float(self.weights[self.speakers == speaker].sum())

    def load(self, embeddings: FloatArray, weights: FloatArray, speakers: IntArray, spans: IntArray) -> None:
        """Take over what another memory held."""
        self.embeddings, self.weights, self.speakers, self.spans = embeddings, weights, speakers, spans
        self.changes += 1

    def _most_redundant(self) -> int:
        mine = (self.speakers == np.bincount(self.speakers).argmax()).nonzero()[0]
        alike = self.embeddings[mine] @ self.embeddings[mine].T
        np.fill_diagonal(alike, -2.0)
        pair = np.unravel_index(int(alike.argmax()), alike.shape)
        return min((int(mine[pair[0]]), int(mine[pair[1]])), key=lambda at: (float(self.weights[at]), -at))

    def _forget(self, gone: npt.NDArray[np.bool_]) -> None:
        self.load(self.embeddings[~gone], self.weights[~gone], self.speakers[~gone], self.spans[~gone])

"""The seams between a node and its device, as Protocols. NumPy in, NumPy out; each has a deterministic twin.

Everything here is called from one thread, the one that owns the device. Sound goes to the device once, into the ring of
a slot; a live stream and a file are both slots, and differ in nothing but the length of the ring and in priority.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis


class SlotKind(Enum):
    """What a slot holds, which decides its windows' grid and how they are analysed."""

    LIVE = "live"
    FILE = "file"
    """A recording, with all care."""
    FAST_FILE = "fast file"
    """A recording, at less cost and within a tenth of a point of FILE."""


@dataclass(frozen=True, slots=True)
class DueWindow:
    """A window to analyse: the `window_samples` of slot `slot` that end at stream position `end_samples`."""

    slot: int
    end_samples: int


@dataclass(frozen=True, slots=True)
class VoiceSample:
    """What the engine hears in an enrolment clip.

    embedding: (D,) float32, unit length, from the dominant speaker's clean speech.
    net_speech_samples: how much clean speech of that speaker it stands on.
    num_speakers: how many distinct speakers the clip holds (0 when there is no speech).
    cohesion: mean cosine of the clip's parts to the embedding, in [-1, 1]; low means noise or mixed voices.
    """

    embedding: FloatArray
    net_speech_samples: int
    num_speakers: int
    cohesion: float


@dataclass(frozen=True, slots=True, eq=False)
class NearestRows:
    """What lies nearest to each of Q queries, nearest first.

    places: (Q, k) int64, indices into the rows that were asked about. cosines: (Q, k) float32.
    """

    places: np.ndarray
    cosines: FloatArray


class AnalysisDevice(Protocol):
    """Rings of sound on a device, and the engine that analyses windows of them."""

    @property
    def grid(self) -> FrameGrid:
        """The geometry of live windows and their frames."""
        ...

    def grid_of(self, kind: SlotKind) -> FrameGrid:
        """The geometry of the windows of such slots."""
        ...

    def open(self, slot: int, ring_samples: int, kind: SlotKind = SlotKind.LIVE) -> None:
        """Give a slot an empty ring whose first sample is stream position 0. Forgets what the slot held."""
        ...

    def write(self, slot: int, samples: FloatArray) -> None:
        """Append (N,) float32 at 16 kHz to a slot's ring. The oldest samples fall out when it is full."""
        ...

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """Analyse a batch of windows, of any mix of slots, in order. Sound before position 0 is silence.

        A window's samples must still lie in its ring; asking for others is a fault of the caller (AssertionError).
        """
        ...

    def analyze_voice(self, samples: FloatArray) -> VoiceSample:
        """What an enrolment clip (N,) float32 at 16 kHz holds."""
        ...

    def voice_parts(self, samples: FloatArray) -> Generator[None, None, VoiceSample]:
        """The same a part at a time (models.enrolment.next_part), for who has other work in between. One at a time."""
        ...


class Gallery(Protocol):
    """Rows of unit vectors in device memory, scored against queries. Rows are owned by the node's voice store."""

    def put(self, row: int, embedding: FloatArray) -> None:
        """Write one (D,) unit vector into a row, growing the store if needed."""
        ...

    def zero(self, rows: Sequence[int]) -> None:
        """Overwrite rows with zeros, on the device, before this returns."""
        ...

    def scores(self, queries: FloatArray, rows: np.ndarray) -> FloatArray:
        """Cosines of (Q, D) unit queries against the named rows (V,): (Q, V) float32."""
        ...

    def top_k(self, queries: FloatArray, k: int, rows: np.ndarray | range) -> NearestRows:
        """The k nearest of the named rows (V,) to each of (Q, D) unit queries; all of them where V is less than k.

        Exact, and no (Q, V) matrix is ever written.
        """
        ...

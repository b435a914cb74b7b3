"""Deterministic twins of the engine's seams in NumPy, so that a whole node runs, and is tested, without torch.

In: sound. Out: analyses that depend on nothing but the window's samples. A "voice" is a mix of tones: frames louder
than a floor are grouped by the shape of their spectrum, each group is a local speaker, and its embedding is that
shape. So a tone mix sounds like itself in every window and clip, and other mixes sound like somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.clustering import ClusteringParameters
from models.diarize import FileCollector, FileDiarization
from models.naming import NamingParameters
from models.seams import DueWindow, NearestRows, SlotKind, VoiceSample

GRID = FrameGrid(
    window_samples=80_000,
    hop_samples=8_000,
    step_samples=320,
    num_frames=250,
    num_local_speakers=3,
    embedding_dim=64,
)
NAMING = NamingParameters(
    bias=-20.0,
    cosine_weight=25.0,
    margin_weight=2.0,
    speech_weight=0.0,
    background_cosine=0.3,
    probability_min=0.5,
    margin_min=0.05,
    net_speech_samples_min=16_000,
    net_speech_samples_max=64_000,
)
"""Named from a cosine of about 0.75 up, after a second of speech."""
CLUSTERING = ClusteringParameters(
    tight_distance=0.2,
    evidence_per_second=0.3,
    train_clean_frames=25,
    full_clean_frames=50,
    agreement_weight=0.3,
    active_frames_min=3.0,
    passes=2,
    onset=0.5,
    offset=0.4,
    gap_samples=0,
    speech_samples_min=3_200,
    overlap_threshold=0.5,
    turn_samples_min=0,
    within_variance=np.full(64, 0.001, np.float32),
    between_variance=np.full(64, 1 / 64, np.float32),
)
FLOOR_RMS = 0.005
SAME_SPEAKER_COSINE = 0.8
CLEAN_FRAMES_MIN = 10
NUM_SPEAKERS_MAX = 8
"""Groups looked for in a clip; more are not told apart."""


def collector(kind: SlotKind) -> FileCollector:
    """What makes turns of a recording's windows: the same for all kinds."""
    return FileDiarization(GRID, CLUSTERING)


class NullDevice:
    """AnalysisDevice that groups frames by spectrum. revision: of its model, which orders the bands in its own way."""

    def __init__(self, revision: int = 1) -> None:
        self._rings: dict[int, _Ring] = {}
        self._bands = np.random.default_rng(revision).permutation(GRID.embedding_dim)

    def __repr__(self) -> str:
        return f"NullDevice({len(self._rings)} slots)"

    @property
    def grid(self) -> FrameGrid:
        """The geometry of windows and frames."""
        return GRID

    def grid_of(self, kind: SlotKind) -> FrameGrid:
        """The same for all."""
        return GRID

    def open(self, slot: int, ring_samples: int, kind: SlotKind = SlotKind.LIVE) -> None:
        """Give a slot an empty ring."""
        assert ring_samples >= GRID.window_samples
        self._rings[slot] = _Ring(ring_samples)

    def write(self, slot: int, samples: FloatArray) -> None:
        """Append (N,) float32 to a slot's ring."""
        self._rings[slot].append(samples)

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """Analyse windows one by one."""
        return [self._analyze(window) for window in windows]

    def analyze_voice(self, samples: FloatArray) -> VoiceSample:
        """The loudest group of the clip's frames, and how many groups are long enough to be somebody."""
        frames = len(samples) // GRID.step_samples
        groups, spectra = _group(np.asarray(samples[: frames * GRID.step_samples], np.float32), NUM_SPEAKERS_MAX)
        lengths = np.array([int((groups == g).sum()) for g in range(NUM_SPEAKERS_MAX)])
        if lengths.max() < CLEAN_FRAMES_MIN:
            return VoiceSample(np.zeros(GRID.embedding_dim, np.float32), 0, 0, 0.0)
        dominant = int(lengths.argmax())
        embedding = _unit(spectra[groups == dominant].sum(axis=0))
        return VoiceSample(
            embedding=embedding[self._bands],
            net_speech_samples=int(lengths[dominant]) * GRID.step_samples,
            num_speakers=int((lengths >= CLEAN_FRAMES_MIN).sum()),
            cohesion=float((spectra[groups == dominant] @ embedding).mean()),
        )

    def _analyze(self, window: DueWindow) -> WindowAnalysis:
        start = window.end_samples - GRID.window_samples
        groups, spectra = _group(self._rings[window.slot].read(start, window.end_samples), GRID.num_local_speakers)
        activity = np.zeros((GRID.num_frames, GRID.num_local_speakers), np.float32)  # (F, S)
        embeddings = np.zeros((GRID.num_local_speakers, GRID.embedding_dim), np.float32)  # (S, D)
        clean = np.zeros(GRID.num_local_speakers, np.float32)  # (S,)
        for speaker in range(GRID.num_local_speakers):
            mine = groups == speaker
            activity[mine, speaker] = 1.0
            if mine.sum() >= CLEAN_FRAMES_MIN:
                clean[speaker] = mine.sum()
                embeddings[speaker] = _unit(spectra[mine].sum(axis=0))[self._bands]
        return WindowAnalysis(start, activity, embeddings, clean)


class NullGallery:
    """Gallery in NumPy. Grows by doubling."""

    def __init__(self, embedding_dim: int) -> None:
        self._rows = np.zeros((64, embedding_dim), np.float32)  # (V, D)

    def __repr__(self) -> str:
        return f"NullGallery({len(self._rows)} rows)"

    def put(self, row: int, embedding: FloatArray) -> None:
        """Write one (D,) unit vector into a row, growing the store if needed."""
        if row >= len(self._rows):
            grown = np.zeros((max(row + 1, 2 * len(self._rows)), self._rows.shape[1]), np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows[:] = 0.0
            self._rows = grown
        self._rows[row] = embedding

    def zero(self, rows: Sequence[int]) -> None:
        """Overwrite rows with zeros."""
        self._rows[[row for row in rows if row < len(self._rows)]] = 0.0

    def scores(self, queries: FloatArray, rows: np.ndarray) -> FloatArray:
        """Cosines of (Q, D) unit queries against the named rows (V,): (Q, V) float32."""
        found: FloatArray = (queries @ self._rows[np.asarray(rows, np.int64)].T).astype(np.float32)
        return found

    def top_k(self, queries: FloatArray, k: int, rows: np.ndarray | range) -> NearestRows:
        """The k nearest of the named rows (V,) to each of (Q, D) unit queries, one query at a time."""
        places = np.zeros((len(queries), min(k, len(rows))), np.int64)
        cosines = np.zeros(places.shape, np.float32)
        for number, query in enumerate(queries):
            found = self._rows[np.asarray(rows, np.int64)] @ query  # (V,)
            places[number] = np.argsort(-found, kind="stable")[: places.shape[1]]
            cosines[number] = found[places[number]]
        return NearestRows(places, cosines)


class _Ring:
    """The last `capacity` samples of a slot, and the position after them."""

    def __init__(self, capacity: int) -> None:
        self._samples = np.zeros(capacity, np.float32)
        self._end = 0

    def append(self, samples: FloatArray) -> None:
        kept = np.asarray(samples, np.float32)[-len(self._samples) :]
        first = self._end + len(samples) - len(kept)
        self._samples[(first + np.arange(len(kept))) % len(self._samples)] = kept
        self._end += len(samples)

    def read(self, start: int, end: int) -> FloatArray:
        """[start, end); silence before position 0."""
        assert end <= self._end and max(start, 0) >= self._end - len(self._samples), "not in the ring"
        found = np.zeros(end - start, np.float32)
        at = np.arange(max(start, 0), end)
        found[at - start] = self._samples[at % len(self._samples)]
        return found


def _group(samples: FloatArray, num_groups: int) -> tuple[np.ndarray, FloatArray]:
    """Group frames by spectrum, in order of appearance. (N,) -> group of each frame (F,), -1 silent; spectra (F, D)."""
    frames = samples.reshape(-1, GRID.step_samples)  # (F, 320)
    loud = np.sqrt((frames**2).mean(axis=1)) > FLOOR_RMS  # (F,)
    power = np.abs(np.fft.rfft(frames * np.hanning(GRID.step_samples), axis=1))  # (F, 161)
    # 2.5 bins of 50 Hz a band: 125 Hz, up to 8 kHz.
    bands = np.add.reduceat(power[:, :160], (np.arange(GRID.embedding_dim) * 2.5).astype(int), axis=1)  # (F, D)
    spectra = (bands / np.maximum(np.linalg.norm(bands, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    groups = np.full(len(frames), -1)
    for group in range(num_groups):
        left = np.flatnonzero(loud & (groups < 0))
        if len(left) == 0:
            break
        # The leader is the mean of a few frames, so that one frame across a change of speaker leads nobody.
        leader = _unit(spectra[left[: CLEAN_FRAMES_MIN // 2]].mean(axis=0))
        near = left[spectra[left] @ leader > SAME_SPEAKER_COSINE]
        groups[near if len(near) else left[:1]] = group
    return groups, spectra


def _unit(vector: FloatArray) -> FloatArray:
    found: FloatArray = (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)
    return found

"""Deterministic twins of the engine's seams in NumPy, so that a whole node runs, and is tested, without torch.

In: sound. Out: analyses that depend on nothing but the window's samples. A "voice" is a mix of tones: frames louder
than a floor are grouped by the shape of their spectrum, each group is a local speaker, and its embedding is that
shape. So a tone mix sounds like itself in every window and clip, and other mixes sound like somebody else.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np
from scipy.fft import rfft

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
        self._rings[slot] = _Ring(-(-ring_samples // GRID.step_samples))

    def write(self, slot: int, samples: FloatArray) -> None:
        """Append (N,) float32 to a slot's ring."""
        self._rings[slot].append(samples)

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """Analyse windows one by one."""
        return [self._analyze(window) for window in windows]

    def analyze_voice(self, samples: FloatArray) -> VoiceSample:
        """The loudest group of the clip's frames, and how many groups are long enough to be somebody."""
        frames = len(samples) // GRID.step_samples
        loud, spectra = _hear(np.asarray(samples[: frames * GRID.step_samples], np.float32))
        groups = _group(loud, spectra, NUM_SPEAKERS_MAX)
        lengths = [int(np.count_nonzero(group)) for group in groups]
        if max(lengths, default=0) < CLEAN_FRAMES_MIN:
            return VoiceSample(np.zeros(GRID.embedding_dim, np.float32), 0, 0, 0.0)
        most = max(lengths)
        dominant = spectra[groups[lengths.index(most)]]
        embedding = _unit(dominant.sum(axis=0))
        return VoiceSample(
            embedding=embedding[self._bands],
            net_speech_samples=most * GRID.step_samples,
            num_speakers=sum(length >= CLEAN_FRAMES_MIN for length in lengths),
            cohesion=float((dominant @ embedding).mean()),
        )

    def voice_parts(self, samples: FloatArray) -> Generator[None, None, VoiceSample]:
        """The same, in one part."""
        yield
        return self.analyze_voice(samples)

    def _analyze(self, window: DueWindow) -> WindowAnalysis:
        start = window.end_samples - GRID.window_samples
        loud, spectra = self._rings[window.slot].read(start, window.end_samples)
        activity = np.zeros((GRID.num_frames, GRID.num_local_speakers), np.float32)  # (F, S)
        embeddings = np.zeros((GRID.num_local_speakers, GRID.embedding_dim), np.float32)  # (S, D)
        clean = np.zeros(GRID.num_local_speakers, np.float32)  # (S,)
        groups = _group(loud, spectra, GRID.num_local_speakers)
        for speaker, mine in enumerate(groups):
            activity[:, speaker] = mine
        sums = activity.T @ spectra  # (S, D)
        for speaker, mine in enumerate(groups):
            num_frames = np.count_nonzero(mine)
            if num_frames >= CLEAN_FRAMES_MIN:
                clean[speaker] = num_frames
                embeddings[speaker] = _unit(sums[speaker])[self._bands]
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
    """The last `capacity` frames of a slot as they sound, made once, as their samples come, and the position after.

    There is room for twice as many, so that any stretch of them lies in one piece, and is read without copying it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._loud = np.zeros(2 * capacity, bool)
        self._spectra = np.zeros((2 * capacity, GRID.embedding_dim), np.float32)
        self._rest = np.zeros(0, np.float32)  # samples after the last whole frame
        self._end = 0  # frames
        self._first = 0  # the frame at the beginning of the room

    def append(self, samples: FloatArray) -> None:
        sound = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(sound) // GRID.step_samples
        self._rest = sound[whole * GRID.step_samples :]
        skipped = max(0, whole - self._capacity)
        loud, spectra = _hear(sound[skipped * GRID.step_samples : whole * GRID.step_samples])
        at = self._end + skipped - self._first
        if at + len(loud) > 2 * self._capacity:
            kept = min(self._capacity - len(loud), at)
            self._loud[:kept], self._spectra[:kept] = self._loud[at - kept : at], self._spectra[at - kept : at]
            self._first, at = self._end + skipped - kept, kept
        self._loud[at : at + len(loud)], self._spectra[at : at + len(loud)] = loud, spectra
        self._end += whole

    def read(self, start: int, end: int) -> tuple[np.ndarray, FloatArray]:
        """Which frames of the samples [start, end) are loud (F,), and their spectra (F, D); silence before 0."""
        first, last = start // GRID.step_samples, end // GRID.step_samples
        assert last <= self._end and max(first, 0) >= self._end - self._capacity, "not in the ring"
        room = slice(max(first, 0) - self._first, last - self._first)
        loud, spectra = self._loud[room], self._spectra[room]
        if first < 0:
            loud, spectra = np.pad(loud, (-first, 0)), np.pad(spectra, ((-first, 0), (0, 0)))
        return loud, spectra


_TAPER = np.hanning(GRID.step_samples).astype(np.float32)
# 2.5 bins of 50 Hz a band: 125 Hz, up to 8 kHz. One column a band, of the bins (161,) that it sums up.
_BAND_STARTS = (np.arange(GRID.embedding_dim) * 2.5).astype(int)
_BANDS = np.zeros((GRID.step_samples // 2 + 1, GRID.embedding_dim), np.float32)
_BANDS[np.arange(160), np.searchsorted(_BAND_STARTS, np.arange(160), side="right") - 1] = 1.0


def _hear(samples: FloatArray) -> tuple[np.ndarray, FloatArray]:
    """Which frames of (N,) samples are loud (F,), and the shape of their spectra (F, D)."""
    frames = samples.reshape(-1, GRID.step_samples)  # (F, 320)
    loud = np.einsum("fn,fn->f", frames, frames) > FLOOR_RMS**2 * GRID.step_samples  # (F,)
    spectrum = rfft(frames * _TAPER, axis=1)  # (F, 161), NumPy's own would be of doubles
    bands = np.abs(spectrum) @ _BANDS  # (F, D)
    norms = np.sqrt(np.einsum("fd,fd->f", bands, bands))[:, None]
    return loud, bands / np.maximum(norms, np.float32(1e-9))


def _group(loud: np.ndarray, spectra: FloatArray, num_groups: int) -> list[np.ndarray]:
    """Group frames by spectrum, in order of appearance: the frames (F,) of each group, none of which is empty."""
    groups: list[np.ndarray] = []
    left = loud.copy()
    while len(groups) < num_groups and len(frames := left.nonzero()[0]):
        # The leader is the mean of a few frames, so that one frame across a change of speaker leads nobody.
        leader = _unit(np.add.reduce(spectra[frames[: CLEAN_FRAMES_MIN // 2]]))
        near = spectra @ leader > SAME_SPEAKER_COSINE  # of all frames: to pick those that are left copies them
        near &= left
        near[frames[0]] |= not near.any()
        groups.append(near)
        left &= ~near
    return groups


def _unit(vector: FloatArray) -> FloatArray:
    found: FloatArray = (vector / max(math.sqrt(float(vector @ vector)), 1e-9)).astype(np.float32)
    return found

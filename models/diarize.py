"""A whole file: from the analyses of its windows, in order, to who spoke when.

Pure NumPy and SciPy, so that a node may run it off its device. FileDiarization takes windows as they are analysed and
gives the result at the end; `diarize_samples` drives an AnalysisDevice through a file for use in-process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.clustering import ClusteringParameters, SpeakerBounds, TightClusters, merge_clusters, tight_clusters
from models.frames import FAINT, begin_and_go_on, fill_gaps, latest_true, runs
from models.seams import AnalysisDevice, DueWindow
from runtime.errors import InvalidRequest
from runtime.units import seconds_from_samples

BoolArray = npt.NDArray[np.bool_]
FILE_SLOT = -2
WINDOWS_A_BATCH = 32
Progress = Callable[[int, int], None]
Score = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class SpeakerTurn:
    """A speaker's speech in `[start_samples, end_samples)`; `speaker` indexes Diarization.speakers."""

    start_samples: int
    end_samples: int
    speaker: int


@dataclass(frozen=True, slots=True, eq=False)
class FileSpeaker:
    """A speaker of a file.

    embedding: (D,) unit centroid; zeros where no clean speech was long enough for one. net_speech_samples: speech in
    which nobody else spoke.
    """

    embedding: FloatArray
    net_speech_samples: int


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who spoke when. Speakers are numbered by their first turn.

    turns: ordered by start, overlaps included. exclusive: the same with at most one speaker at a time.
    """

    turns: tuple[SpeakerTurn, ...]
    exclusive: tuple[SpeakerTurn, ...]
    speakers: tuple[FileSpeaker, ...]


class FileDiarization:
    """Collects the windows of one file and clusters them at the end. Windows are `hop_samples` apart or nearer."""

    def __init__(self, grid: FrameGrid, clustering: ClusteringParameters) -> None:
        self._grid = grid
        self._clustering = clustering
        self._windows: list[WindowAnalysis] = []

    def __repr__(self) -> str:
        return f"FileDiarization({len(self._windows)} windows)"

    def add(self, analyses: Iterable[WindowAnalysis]) -> None:
        """Take analyses in; their order does not matter. Each starts on a multiple of the grid's frame step."""
        for analysis in analyses:
            assert analysis.start_samples % self._grid.step_samples == 0
            self._windows.append(analysis)

    def parts(self, bounds: SpeakerBounds | None = None) -> FloatArray:
        """Unit vectors (C, D) of the tight clusters of which `finish` makes speakers: score these for its `cosines`."""
        tight = self._tight(bounds or SpeakerBounds())
        return np.zeros((0, self._grid.embedding_dim), np.float32) if tight is None else tight.centroids

    def finish(
        self, total_samples: int, bounds: SpeakerBounds | None = None, cosines: FloatArray | None = None
    ) -> Diarization:
        """Who spoke when in the file's `total_samples`.

        cosines: (C, V) of `parts(bounds)` against enrolled voices. What is clearly one of them is never merged with
        what is clearly another, however alike they sound on a poor line.
        """
        bounds = bounds or SpeakerBounds()
        num_frames = -(-total_samples // self._grid.step_samples)
        centroids = self._centroids(bounds, cosines)
        if len(centroids) == 0 or num_frames == 0:
            return Diarization((), (), ())
        activity: FloatArray | None = None
        speech = np.zeros(num_frames, np.float32)
        for _ in range(self._clustering.passes):
            activity, speech, centroids = self._assign(num_frames, centroids, activity)
        assert activity is not None
        return self._turns(activity, speech, centroids, total_samples)

    def _tight(self, bounds: SpeakerBounds) -> TightClusters | None:
        """Local speakers with enough speech, clustered as far as is beyond doubt; None where nobody is heard."""
        if not self._windows:
            return None
        clean = np.stack([window.clean_frames for window in self._windows])  # (W, S)
        embeddings = np.stack([window.embeddings for window in self._windows])  # (W, S, D)
        heard = embeddings.any(axis=2)
        chosen = np.logical_and(heard, clean >= self._clustering.train_clean_frames)
        if not chosen.any():
            chosen = np.asarray(heard)  # a file with nothing but short words is clustered on those
        if not chosen.any():
            return None
        # Speech is heard by every window that covers it: its evidence counts once all the same.
        covering = self._grid.window_samples / self._grid.hop_samples
        seconds = clean[chosen] * seconds_from_samples(self._grid.step_samples) / covering
        return tight_clusters(embeddings[chosen], seconds, self._clustering, bounds)

    def _centroids(self, bounds: SpeakerBounds, cosines: FloatArray | None) -> FloatArray:
        """First centroids (C, D) of the file's speakers."""
        tight = self._tight(bounds)
        if tight is None:
            # Whatever speech there is has no voice to tell by: it is one speaker, whom nothing will match.
            return np.zeros((1 if self._windows else 0, self._grid.embedding_dim), np.float32)
        owner = merge_clusters(tight, self._clustering, bounds, cosines)
        sums = np.zeros((int(owner.max()) + 1, tight.sums.shape[1]))
        np.add.at(sums, owner, tight.sums)
        return _unit(sums.astype(np.float32))

    def _assign(
        self, num_frames: int, centroids: FloatArray, before: FloatArray | None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Local speakers to centroids (C, D), by voice and by agreement with the activity found `before`.

        Returns activity (F, C) and speech (F,), both averaged over the windows that cover a frame, and new centroids.
        Two local speakers of a window go to different speakers where there are enough.
        """
        settings, num_speakers = self._clustering, len(centroids)
        activity = np.zeros((num_frames, num_speakers), np.float32)
        speech, covered = np.zeros(num_frames, np.float32), np.zeros(num_frames, np.float32)
        sums = np.zeros_like(centroids)
        for window in self._windows:
            start = window.start_samples // self._grid.step_samples
            begin, end = max(0, start), min(num_frames, start + self._grid.num_frames)
            if begin >= end:
                continue
            local = window.activity[begin - start : end - start]  # (F, S)
            trust = np.minimum(1.0, window.clean_frames / settings.full_clean_frames)[:, None]
            score = window.embeddings @ centroids.T * trust  # (S, C)
            if before is not None:
                agreement = local.T @ before[begin:end] / np.maximum(local.sum(axis=0), 1.0)[:, None]
                score = score + settings.agreement_weight * agreement
            known = window.embeddings.any(axis=1) if before is None else np.ones(len(score), bool)
            present = known & (local.sum(axis=0) > settings.active_frames_min)
            chosen = np.flatnonzero(present)
            rows, columns = linear_sum_assignment(score[chosen], maximize=True)
            owner = np.argmax(score, axis=1)
            owner[chosen[rows]] = columns
            for speaker in chosen[rows]:
                sums[owner[speaker]] += window.embeddings[speaker] * window.clean_frames[speaker]
            for speaker in chosen:
                activity[begin:end, owner[speaker]] += local[:, speaker]
            speech[begin:end] += np.minimum(local.sum(axis=1), 1.0)
            covered[begin:end] += 1.0
        covered = np.maximum(covered, 1.0)
        renewed = np.where(sums.any(axis=1, keepdims=True), _unit(sums), centroids)
        return np.minimum(activity / covered[:, None], 1.0), speech / covered, renewed

    def _turns(
        self, activity: FloatArray, speech: FloatArray, centroids: FloatArray, total_samples: int
    ) -> Diarization:
        settings, step = self._clustering, self._grid.step_samples
        voiced = begin_and_go_on(speech, settings.onset, settings.offset)
        voiced = fill_gaps(voiced, settings.gap_samples // step)
        voiced = ~fill_gaps(~voiced, settings.speech_samples_min // step, edges=True)
        # A frame in which nobody is heard, in a gap that was filled, goes on with who was heard before it.
        heard = latest_true(activity.max(axis=1) > FAINT)
        order = np.argsort(-activity, axis=1, kind="stable")[heard]
        frames = np.arange(len(activity))
        exclusive = np.zeros(activity.shape, bool)
        exclusive[frames, order[:, 0]] = voiced
        spoken = exclusive.copy()
        if activity.shape[1] > 1:
            second = order[:, 1]
            spoken[frames, second] |= voiced & (activity[frames, second] > settings.overlap_threshold)
        spoken = _without_flicker(spoken, voiced, settings.turn_samples_min // step)
        alone = spoken & (spoken.sum(axis=1, keepdims=True) == 1)
        present = np.flatnonzero(spoken.any(axis=0))
        present = present[np.argsort(spoken[:, present].argmax(axis=0), kind="stable")]
        speakers = tuple(FileSpeaker(centroids[k], int(alone[:, k].sum()) * step) for k in present)
        return Diarization(
            _as_turns(spoken[:, present], step, total_samples),
            _as_turns(exclusive[:, present], step, total_samples),
            speakers,
        )


def diarize_samples(
    device: AnalysisDevice,
    samples: FloatArray,
    clustering: ClusteringParameters,
    *,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    score: Score | None = None,
    progress: Progress | None = None,
) -> Diarization:
    """Diarize (N,) float32 samples at 16 kHz on a device, calling `progress(samples done, samples in all)`.

    score: cosines (C, V) of unit vectors (C, D) against the enrolled voices. InvalidRequest if the numbers of speakers
    contradict each other.
    """
    bounds = speaker_bounds(num_speakers, min_speakers, max_speakers)
    file = FileDiarization(device.grid, clustering)
    for analyses, done in analyze_samples(device, samples, FILE_SLOT):
        file.add(analyses)
        if progress is not None:
            progress(min(done, len(samples)), len(samples))
    return file.finish(len(samples), bounds, None if score is None else score(file.parts(bounds)))


def analyze_samples(
    device: AnalysisDevice, samples: FloatArray, slot: int
) -> Iterable[tuple[list[WindowAnalysis], int]]:
    """Write samples into a slot and analyse all of their windows: batches of them, and the samples done so far.

    The slot's ring holds one batch, not the file. The tail is padded with silence to a whole hop.
    """
    grid = device.grid
    length = -(-len(samples) // grid.hop_samples) * grid.hop_samples
    # A file shorter than a window is one window that begins before it.
    ends = list(range(min(grid.window_samples, length), length + 1, grid.hop_samples)) if length else []
    device.open(slot, grid.window_samples + WINDOWS_A_BATCH * grid.hop_samples)
    written = 0
    for at in range(0, len(ends), WINDOWS_A_BATCH):
        batch = ends[at : at + WINDOWS_A_BATCH]
        piece = samples[written : batch[-1]]
        device.write(slot, np.pad(piece, (0, batch[-1] - written - len(piece))))
        written = batch[-1]
        yield device.analyze([DueWindow(slot, end) for end in batch]), written


def speaker_bounds(num_speakers: int | None, min_speakers: int | None, max_speakers: int | None) -> SpeakerBounds:
    """Bounds from what a request says; InvalidRequest where it contradicts itself."""
    if num_speakers is not None:
        min_speakers, max_speakers = num_speakers, num_speakers
    least = 1 if min_speakers is None else min_speakers
    if least < 1 or (max_speakers is not None and max_speakers < least):
        raise InvalidRequest("numbers of speakers must be at least 1, and min_speakers at most max_speakers")
    return SpeakerBounds(least, max_speakers)


def _unit(vectors: FloatArray) -> FloatArray:
    unit: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return unit


def _without_flicker(spoken: BoolArray, voiced: BoolArray, shortest: int) -> BoolArray:
    """Fill a speaker's gaps, then drop his pieces, that are shorter than `shortest` frames; speech stays somebody's."""
    filled = np.stack([fill_gaps(column, shortest) for column in spoken.T], axis=1) & voiced[:, None]
    kept = np.stack([~fill_gaps(~column, shortest, edges=True) for column in filled.T], axis=1)
    orphaned = voiced & ~kept.any(axis=1)
    kept[orphaned] = spoken[orphaned]
    return kept


def _as_turns(spoken: BoolArray, step_samples: int, total_samples: int) -> tuple[SpeakerTurn, ...]:
    turns = [
        SpeakerTurn(int(begin) * step_samples, min(int(end) * step_samples, total_samples), speaker)
        for speaker in range(spoken.shape[1])
        for begin, end in runs(spoken[:, speaker])
    ]
    return tuple(sorted(turns, key=lambda turn: (turn.start_samples, turn.end_samples, turn.speaker)))

"""A whole file: from the analyses of its windows, in order, to who spoke when.

Pure NumPy and SciPy, so that a node may run it off its device. A FileCollector takes windows as they are analysed and
gives the result at the end; FileDiarization is that of `builtin`, and `diarize_blocks` drives an AnalysisDevice through
a recording for use in-process. What always holds: sound is never kept, and memory and time grow with the recording's
length and no faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.clustering import ClusteringParameters, SpeakerBounds, TightClusters, merge_clusters, tight_clusters
from models.confidence import ConfidenceParameters
from models.file_turns import Diarization, FileSpeaker, SpeakerTurn, turns_of_activity
from models.file_windows import FileWindows
from models.seams import AnalysisDevice, DueWindow, SlotKind
from runtime.errors import InvalidRequest
from runtime.units import seconds_from_samples

__all__ = [
    "Diarization",
    "FileCollector",
    "FileDiarization",
    "FileSpeaker",
    "SpeakerTurn",
    "analyze_blocks",
    "analyze_samples",
    "diarize_blocks",
    "diarize_samples",
    "speaker_bounds",
]

FILE_SLOT = -2
WINDOWS_A_BATCH = 32
Progress = Callable[[int], None]
Score = Callable[[FloatArray], FloatArray]


class FileCollector(Protocol):
    """Takes the windows of one recording in, and says at the end who spoke when."""

    def add(self, analyses: Iterable[WindowAnalysis]) -> None:
        """Take analyses in; their order does not matter."""
        ...

    def parts(self, bounds: SpeakerBounds | None = None) -> FloatArray:
        """Unit vectors (C, D) of which `finish` makes speakers: score these for its `cosines`. None, where no voice
        decides who is who."""
        ...

    def finish(
        self, total_samples: int, bounds: SpeakerBounds | None = None, cosines: FloatArray | None = None
    ) -> Diarization:
        """Who spoke when in the recording's `total_samples`. cosines: (C, V) of `parts(bounds)` against voices."""
        ...


class FileDiarization:
    """Collects the windows of one file and clusters them at the end. Windows are `hop_samples` apart or nearer."""

    def __init__(
        self, grid: FrameGrid, clustering: ClusteringParameters, confidence: ConfidenceParameters | None = None
    ) -> None:
        """confidence: how sure a result is, and how that is found out; without, a result says nothing of it."""
        self._grid = grid
        self._clustering = clustering
        self._confidence = confidence
        self._windows = FileWindows(grid)
        self._tight_of: tuple[SpeakerBounds, TightClusters | None] | None = None

    def __repr__(self) -> str:
        return f"FileDiarization({len(self._windows)} windows)"

    def add(self, analyses: Iterable[WindowAnalysis]) -> None:
        """Take analyses in; their order does not matter. Each starts on a multiple of the grid's frame step."""
        self._windows.extend(analyses)
        self._tight_of = None

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
        activity: npt.NDArray[np.float16] | None = None
        speech = np.zeros(num_frames, np.float32)
        for _ in range(self._clustering.passes):
            activity, speech, centroids = self._assign(num_frames, centroids, activity)
        assert activity is not None
        return turns_of_activity(
            activity,
            speech,
            centroids,
            self._clustering,
            step_samples=self._grid.step_samples,
            total_samples=total_samples,
            confidence=self._confidence,
        )

    def _tight(self, bounds: SpeakerBounds) -> TightClusters | None:
        """Local speakers with enough speech, clustered as far as is beyond doubt; None where nobody is heard."""
        if self._tight_of is None or self._tight_of[0] != bounds:
            self._tight_of = (bounds, self._find_tight(bounds))
        return self._tight_of[1]

    def _find_tight(self, bounds: SpeakerBounds) -> TightClusters | None:
        embeddings, clean = self._windows.voices(self._clustering.train_clean_frames)
        if not len(embeddings):
            # A file with nothing but short words is clustered on those.
            embeddings, clean = self._windows.voices(0)
        if not len(embeddings):
            return None
        # Speech is heard by every window that covers it: its evidence counts once all the same.
        covering = self._grid.window_samples / self._grid.hop_samples
        seconds = clean * seconds_from_samples(self._grid.step_samples) / covering
        return tight_clusters(embeddings, seconds, self._clustering, bounds)

    def _centroids(self, bounds: SpeakerBounds, cosines: FloatArray | None) -> FloatArray:
        """First centroids (C, D) of the file's speakers."""
        tight = self._tight(bounds)
        if tight is None:
            # Whatever speech there is has no voice to tell by: it is one speaker, whom nothing will match.
            return np.zeros((1 if len(self._windows) else 0, self._grid.embedding_dim), np.float32)
        owner = merge_clusters(tight, self._clustering, bounds, cosines)
        sums = np.zeros((int(owner.max()) + 1, tight.sums.shape[1]))
        np.add.at(sums, owner, tight.sums)
        return _unit(sums.astype(np.float32))

    def _assign(
        self, num_frames: int, centroids: FloatArray, before: npt.NDArray[np.float16] | None
    ) -> tuple[npt.NDArray[np.float16], FloatArray, FloatArray]:
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
            covered[begin:end] += 1.0
            local = window.activity[begin - start : end - start]  # (F, S)
            heard = local.sum(axis=0)  # (S,)
            known = window.embeddings.any(axis=1) if before is None else np.ones(len(heard), bool)
            chosen = np.flatnonzero(known & (heard > settings.active_frames_min))
            if heard.any():
                speech[begin:end] += np.minimum(local.sum(axis=1), 1.0)
            if not len(chosen):
                continue
            trust = np.minimum(1.0, window.clean_frames[chosen] / settings.full_clean_frames)[:, None]
            score = window.embeddings[chosen] @ centroids.T * trust  # (S', C)
            if before is not None:
                agreement = local[:, chosen].T @ before[begin:end].astype(np.float32)
                score = score + settings.agreement_weight * agreement / np.maximum(heard[chosen], 1.0)[:, None]
            owner = np.argmax(score, axis=1)
            if len(set(owner.tolist())) < len(owner):
                rows, columns = linear_sum_assignment(score, maximize=True)
                owner[rows] = columns
                assigned = rows
            else:
                assigned = np.arange(len(owner))
            for row in assigned:
                slot = chosen[row]
                sums[owner[row]] += window.embeddings[slot] * window.clean_frames[slot]
            for row, slot in enumerate(chosen):
                activity[begin:end, owner[row]] += local[:, slot]
        covered = np.maximum(covered, 1.0)
        renewed = np.where(sums.any(axis=1, keepdims=True), _unit(sums), centroids)
        activity /= covered[:, None]
        return np.minimum(activity, 1.0, out=activity).astype(np.float16), speech / covered, renewed


def diarize_samples(
    device: AnalysisDevice,
    samples: FloatArray,
    clustering: ClusteringParameters,
    *,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    score: Score | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diarization:
    """`diarize_blocks` of samples (N,) that are all there, with all care. progress: samples done, and in all."""
    return diarize_blocks(
        device,
        [samples],
        FileDiarization(device.grid_of(SlotKind.FILE), clustering),
        SlotKind.FILE,
        bounds=speaker_bounds(num_speakers, min_speakers, max_speakers),
        score=score,
        progress=None if progress is None else lambda done: progress(done, len(samples)),
    )


def diarize_blocks(
    device: AnalysisDevice,
    blocks: Iterable[FloatArray],
    file: FileCollector,
    kind: SlotKind,
    *,
    bounds: SpeakerBounds | None = None,
    score: Score | None = None,
    progress: Progress | None = None,
) -> Diarization:
    """Diarize a recording that comes in blocks (N,) float32 at 16 kHz, calling `progress(samples done)`.

    score: cosines (C, V) of unit vectors (C, D) against the enrolled voices.
    """
    total = 0

    def counted() -> Iterator[FloatArray]:
        nonlocal total
        for block in blocks:
            total += len(block)
            yield block

    for analyses, done in analyze_blocks(device, counted(), FILE_SLOT, kind):
        file.add(analyses)
        if progress is not None:
            progress(min(done, total))
    return file.finish(total, bounds, None if score is None else score(file.parts(bounds)))


def analyze_samples(
    device: AnalysisDevice, samples: FloatArray, slot: int, *, windows_a_batch: int = WINDOWS_A_BATCH
) -> Iterator[tuple[list[WindowAnalysis], int]]:
    """`analyze_blocks` of samples (N,) that are all there, as of a recording analysed with all care."""
    return analyze_blocks(device, [samples], slot, SlotKind.FILE, windows_a_batch=windows_a_batch)


def analyze_blocks(
    device: AnalysisDevice,
    blocks: Iterable[FloatArray],
    slot: int,
    kind: SlotKind,
    *,
    windows_a_batch: int = WINDOWS_A_BATCH,
) -> Iterator[tuple[list[WindowAnalysis], int]]:
    """Write blocks of samples into a slot and analyse all of their windows: batches of them, and the samples done.

    Neither the slot's ring nor this holds more than a batch and a block. The tail is padded with silence to a whole
    hop.
    """
    grid = device.grid_of(kind)
    device.open(slot, grid.window_samples + windows_a_batch * grid.hop_samples, kind)
    waiting, received, written, next_end = deque[FloatArray](), 0, 0, grid.window_samples

    def analyze(ends: Sequence[int]) -> list[WindowAnalysis]:
        nonlocal written, next_end
        device.write(slot, _take(waiting, ends[-1] - written))
        written, next_end = ends[-1], ends[-1] + grid.hop_samples
        return device.analyze([DueWindow(slot, end) for end in ends])

    for block in blocks:
        waiting.append(block)
        received += len(block)
        while received >= next_end + (windows_a_batch - 1) * grid.hop_samples:
            yield analyze([next_end + index * grid.hop_samples for index in range(windows_a_batch)]), written
    if not received:
        return
    last_end = received + -received % grid.hop_samples
    if last_end < grid.window_samples:
        # The only window: it begins before the recording, or goes on after it.
        next_end = last_end = grid.window_samples if grid.starts_at_zero else last_end
    if last_end > received:
        waiting.append(np.zeros(last_end - received, np.float32))
    if next_end <= last_end:
        yield analyze(range(next_end, last_end + 1, grid.hop_samples)), written


def _take(waiting: deque[FloatArray], count: int) -> FloatArray:
    """The first `count` samples of what waits."""
    pieces = []
    while count > 0:
        piece = waiting.popleft()
        if len(piece) > count:
            waiting.appendleft(piece[count:])
            piece = piece[:count]
        pieces.append(piece)
        count -= len(piece)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


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

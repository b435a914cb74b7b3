"""A whole recording: from the analyses of its windows to who spoke when, as pyannote.audio's SpeakerDiarization has it.

Pure NumPy, SciPy and scikit-learn, so that a node may run it off its device. PyannoteFile takes windows as they are
analysed under the bundle's `file_grid` (hard segmentation, embeddings as the network gives them) and gives the result
at the end. What always holds: what is kept grows with the recording alone, by some 4 kB a window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from models.analysis import FloatArray, WindowAnalysis
from models.clustering import SpeakerBounds
from models.diarize import Diarization, FileSpeaker, SpeakerTurn
from models.pyannote import assembly, clustering
from models.pyannote.assembly import BoolArray, FrameClock, FrameTurn
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.clustering import LocalSpeakers, Speakers
from models.pyannote.plda import Plda, plda_from_arrays
from models.pyannote.vbx import VbxParameters


@dataclass(frozen=True, slots=True, eq=False)
class FrameDiarization:
    """pyannote's result in its own frames. Speakers are numbered as pyannote numbers SPEAKER_00, SPEAKER_01, ...

    turns: overlaps included. exclusive: one speaker at a time. embeddings: (K, D) float64, a row a speaker of `turns`,
    not of unit length; zeros for a speaker whom only the count asked for, NaN where nobody spoke alone for long enough.
    clean_frames: (K,) with nobody else in them.
    """

    turns: tuple[FrameTurn, ...]
    exclusive: tuple[FrameTurn, ...]
    embeddings: npt.NDArray[np.float64]
    clean_frames: npt.NDArray[np.int64]


class PyannoteFile:
    """Collects the windows of one recording and clusters them at the end."""

    def __init__(self, bundle: PyannoteBundle) -> None:
        self._bundle = bundle
        self._pipeline = bundle.pipeline
        self._plda = load_plda(bundle)
        self.clock = frame_clock(bundle)
        self._speech: dict[int, npt.NDArray[np.uint8]] = {}  # by first sample: (F, S), packed along frames
        self._embeddings: dict[int, FloatArray] = {}  # (S, D)

    def __repr__(self) -> str:
        return f"PyannoteFile({self._bundle.id}, {len(self._speech)} windows)"

    def add(self, analyses: Iterable[WindowAnalysis]) -> None:
        """Take analyses in; their order does not matter. Each starts on a multiple of the grid's hop."""
        for analysis in analyses:
            assert analysis.start_samples % self._bundle.file_grid.hop_samples == 0
            self._speech[analysis.start_samples] = np.packbits(analysis.activity > 0.5, axis=0)
            self._embeddings[analysis.start_samples] = np.asarray(analysis.embeddings, np.float32)

    def parts(self, bounds: SpeakerBounds | None = None) -> FloatArray:
        """Nothing to score: no voice decides who is who in a recording here, as none does in pyannote.audio."""
        return np.zeros((0, self._bundle.file_grid.embedding_dim), np.float32)

    def finish(
        self, total_samples: int, bounds: SpeakerBounds | None = None, cosines: FloatArray | None = None
    ) -> Diarization:
        """Who spoke when, in samples. Speakers are numbered by their first turn; their embeddings are unit vectors.

        Turns may end a few hundredths of a second after the recording, where pyannote's do.
        """
        found = self.finish_frames(bounds)
        order = list(dict.fromkeys(turn.speaker for turn in found.turns))
        rank = {speaker: index for index, speaker in enumerate(order)}
        speakers = tuple(
            FileSpeaker(
                voice_vectors(found.embeddings[speaker][None], self._bundle.voice_mean)[0],
                int(found.clean_frames[speaker]) * self.clock.step_samples,
            )
            for speaker in order
        )
        return Diarization(self._in_samples(found.turns, rank), self._in_samples(found.exclusive, rank), speakers)

    def finish_frames(self, bounds: SpeakerBounds | None = None) -> FrameDiarization:
        """Who spoke when, in frames, and each speaker's embedding: exactly what pyannote.audio answers."""
        bounds = bounds or SpeakerBounds()
        speech = self._all_speech()
        dimension = self._bundle.file_grid.embedding_dim
        count = assembly.count_speakers(speech, self.clock) if len(speech) else np.zeros(0, np.int64)
        if not count.any():
            return FrameDiarization((), (), np.zeros((0, dimension)), np.zeros(0, np.int64))
        speakers = self._cluster(speech, bounds)
        if bounds.most is not None:
            count = np.minimum(count, bounds.most)
        labels = np.where(speech.any(axis=1), speakers.labels, clustering.NOBODY)
        scores = assembly.speaker_scores(speech, labels, self.clock)
        chosen = assembly.choose_speakers(scores, count)
        exclusive = assembly.choose_speakers(scores, np.minimum(count, 1))
        gap_s = self._pipeline.min_duration_off
        turns = assembly.turns_of(chosen, self.clock, gap_s)
        order = assembly.label_order(turns)
        rank = {speaker: index for index, speaker in enumerate(order)}
        embeddings = np.zeros((max(chosen.shape[1], len(speakers.centroids)), dimension))
        # A speaker without enough clean speech for an embedding has NaN in pyannote's answer, one whom only the count
        # asked for has zeros.
        unheard = ~speakers.centroids.any(axis=1, keepdims=True)
        embeddings[: len(speakers.centroids)] = np.where(unheard, np.nan, speakers.centroids)
        alone = chosen & (chosen.sum(axis=1, keepdims=True) == 1)
        return FrameDiarization(
            _renamed(turns, rank),
            _renamed(assembly.turns_of(exclusive, self.clock, gap_s), rank),
            embeddings[order],
            alone.sum(axis=0)[order],
        )

    def _all_speech(self) -> BoolArray:
        """Hard segmentation (W, F, S) of all windows, in order. AssertionError if one is missing."""
        hop, grid = self._bundle.file_grid.hop_samples, self._bundle.file_grid
        starts = sorted(self._speech)
        assert starts == list(range(0, len(starts) * hop, hop)), "windows are missing"
        speech = np.zeros((len(starts), grid.num_frames, grid.num_local_speakers), bool)
        for index, start in enumerate(starts):
            speech[index] = np.unpackbits(self._speech[start], axis=0, count=grid.num_frames)
        return speech

    def _cluster(self, speech: BoolArray, bounds: SpeakerBounds) -> Speakers:
        alone = speech & (speech.sum(axis=2, keepdims=True) == 1)
        local = LocalSpeakers(
            embeddings=np.stack([self._embeddings[start] for start in sorted(self._embeddings)]),
            clean_frames=alone.sum(axis=1),
            active=np.asarray(speech.any(axis=1)),
            num_frames=speech.shape[1],
        )
        parameters = self._pipeline.clustering
        if isinstance(parameters, VbxParameters):
            assert self._plda is not None
            return clustering.cluster_vbx(local, self._plda, parameters, bounds)
        return clustering.cluster_agglomerative(local, parameters, bounds)

    def _in_samples(self, turns: Iterable[FrameTurn], rank: dict[int, int]) -> tuple[SpeakerTurn, ...]:
        return tuple(
            SpeakerTurn(self.clock.samples(turn.begin), self.clock.samples(turn.end), rank[turn.speaker])
            for turn in turns
            if turn.speaker in rank
        )


def frame_clock(bundle: PyannoteBundle) -> FrameClock:
    """The clock of a bundle's files."""
    grid = bundle.file_grid
    return FrameClock(
        window_samples=grid.window_samples,
        hop_samples=grid.hop_samples,
        step_samples=grid.step_samples,
        field_samples=_field_samples(grid.step_samples // 27),
        num_window_frames=grid.num_frames,
    )


def load_plda(bundle: PyannoteBundle) -> Plda | None:
    """The bundle's PLDA, its digest checked; None where clustering does without."""
    if not isinstance(bundle.pipeline.clustering, VbxParameters):
        return None
    return plda_from_arrays(load_file(bundle.weights["plda"].verified_path()), bundle.pipeline.lda_dimension)


def voice_vectors(embeddings: npt.NDArray[np.floating], mean: FloatArray) -> FloatArray:
    """Unit vectors (P, D) to compare with voices, of embeddings (P, D) as the network gives them.

    Zeros stay zeros, and NaN becomes zeros: nobody is named by them.
    """
    known = np.nan_to_num(embeddings)
    centred = np.where(known.any(axis=1, keepdims=True), known - mean, 0.0)
    unit: FloatArray = (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    return unit


def _field_samples(stride: int) -> int:
    """What one frame of PyanNet looks at: 991 samples with its stride of 10."""
    size = 1
    for kernel, step in ((3, 3), (5, 1), (3, 3), (5, 1), (3, 3), (251, stride)):
        size = (size - 1) * step + kernel
    return size


def _renamed(turns: Iterable[FrameTurn], rank: dict[int, int]) -> tuple[FrameTurn, ...]:
    renamed = [FrameTurn(turn.begin, turn.end, rank[turn.speaker]) for turn in turns if turn.speaker in rank]
    return tuple(sorted(renamed, key=lambda turn: (turn.begin, turn.end, turn.speaker)))

"""pyannote's networks on a torch device: rings of sound, windows of files and live streams analysed in batches.

In come samples and the windows that are due; out come WindowAnalysis. Windows of a slot opened for a file are
pyannote's own: hard speech on the network's frames, embeddings as the network gives them. Those of a live slot are
soft, on the bundle's live grid, their embeddings unit vectors. What always holds: mel frames of a slot are made once;
a window's analysis depends on the slot's samples alone, not on how they came nor on what else is in the batch (up to
rounding); memory is bounded by the rings.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.enrolment import hear_voice, heard_at_once
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.embedding import MelFrames, Pooling, Trunk, centred
from models.pyannote.file import PyannoteFile, frame_clock, voice_vectors
from models.pyannote.live import live_analysis, on_grid
from models.pyannote.networks import build_embedding, build_segmentation, exact_kernels
from models.pyannote.shared_trunk import EDGE_MELS, TrunkMemory, plan_window, run_plans
from models.pyannote.speech import Powerset, voice_masks
from models.ring import Ring
from models.seams import DueWindow, SlotKind, VoiceSample

# What is fastest: on a CPU a window's maps have to stay in its cache, a GPU wants many windows at once.
CPU_SEGMENTATION_BATCH, CPU_TRUNK_BATCH = 8, 1
CUDA_SEGMENTATION_BATCH, CUDA_TRUNK_BATCH = 256, 32
CUDA_SHAPE_STEP = 32  # batches on a GPU are filled up to a multiple of this
# A stream of which less is there is not listened to yet.
LIVE_SAMPLES_MIN = 4_000
# A window of a stream in which nothing is louder (-60 dBFS) is silence, as it is at enrolment. The networks would scale
# whatever noise is left in it up to where speech is.
SILENCE_PEAK = 1e-3


@dataclass(slots=True)
class Slot:
    """What a slot holds: its samples, and the mel frames made of them so far."""

    samples: Ring  # (N,)
    mels: Ring  # (T, M)
    trunk: TrunkMemory
    kind: SlotKind


class PyannoteDevice:
    """AnalysisDevice on a torch device. Call it from one thread."""

    def __init__(self, bundle: PyannoteBundle, device: str = "cpu", precision: str = "float32") -> None:
        """precision: of the trunk, "float32", "float16" or "bfloat16"; pooling and all else stay in float32."""
        self._device = torch.device(device)
        self._bundle = bundle
        exact_kernels()
        self._segmentation = build_segmentation(bundle).to(self._device)
        embedding: Any = build_embedding(bundle).to(self._device)
        self._mels = MelFrames(embedding)
        self._trunk = Trunk(embedding.resnet, getattr(torch, precision)).to(self._device)
        self._pooling = Pooling(embedding.resnet)
        grid = bundle.file_grid
        self._powerset = Powerset(
            grid.num_local_speakers, bundle.segmentation.specifications["powerset_max_classes"], self._device
        )
        # Less sound than one mel frame has no embedding; pyannote counts what that is in frames of the segmentation.
        self._frames_min = math.ceil(grid.num_frames * self._mels.length_samples / grid.window_samples)
        on_gpu = self._device.type == "cuda"
        self._segmentation_batch = CUDA_SEGMENTATION_BATCH if on_gpu else CPU_SEGMENTATION_BATCH
        self._trunk_batch = CUDA_TRUNK_BATCH if on_gpu else CPU_TRUNK_BATCH
        self._field_samples = frame_clock(bundle).field_samples
        self._slots: dict[int, Slot] = {}

    def __repr__(self) -> str:
        return f"PyannoteDevice({self._bundle.id}, {self._device}, {len(self._slots)} slots)"

    @property
    def grid(self) -> FrameGrid:
        """The geometry of live windows and their frames."""
        return self._bundle.grid

    def grid_of(self, kind: SlotKind) -> FrameGrid:
        """The geometry of the windows of such slots."""
        return self._bundle.grid if kind is SlotKind.LIVE else self._bundle.file_grid

    def open(self, slot: int, ring_samples: int, kind: SlotKind = SlotKind.LIVE) -> None:
        """Give a slot an empty ring whose first sample is stream position 0. Forgets what the slot held."""
        assert ring_samples >= self._bundle.file_grid.window_samples
        mels = ring_samples // self._mels.step_samples
        self._slots[slot] = Slot(
            samples=Ring(ring_samples + self._mels.length_samples, (), self._device),
            # Frames shared between windows are computed with some of what came before them.
            mels=Ring(mels + 1 + EDGE_MELS, (self._mels.num_bands,), self._device),
            trunk=TrunkMemory(),
            kind=kind,
        )

    @torch.inference_mode()
    def write(self, slot: int, samples: FloatArray) -> None:
        """Append (N,) float32 at 16 kHz to a slot's ring. The oldest samples fall out when it is full."""
        held = self._slots[slot]
        room = held.samples.capacity - self._mels.length_samples
        for at in range(0, len(samples), room):
            piece = samples[at : at + room]
            held.samples.append(torch.from_numpy(np.ascontiguousarray(piece, dtype=np.float32)).to(self._device))
            self._advance_mels(held)

    @torch.inference_mode()
    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """Analyse a batch of windows, of any mix of slots, in order. Sound before position 0 is silence."""
        found: dict[int, WindowAnalysis] = {}
        whole = [index for index, window in enumerate(windows) if self._slots[window.slot].kind is not SlotKind.LIVE]
        for at in range(0, len(whole), self._segmentation_batch):
            some = whole[at : at + self._segmentation_batch]
            found |= zip(some, self._analyze_whole([windows[index] for index in some]), strict=True)
        by_length: dict[int, list[int]] = {}
        for index, window in enumerate(windows):
            if self._slots[window.slot].kind is SlotKind.LIVE:
                by_length.setdefault(min(window.end_samples, self.grid.window_samples), []).append(index)
        for length, indices in by_length.items():
            for at in range(0, len(indices), self._segmentation_batch):
                some = indices[at : at + self._segmentation_batch]
                found |= zip(some, self._analyze_live([windows[index] for index in some], length), strict=True)
        return [found[index] for index in range(len(windows))]

    def analyze_voice(self, samples: FloatArray) -> VoiceSample:
        """What an enrolment clip (N,) float32 at 16 kHz holds."""
        return heard_at_once(self.voice_parts(samples))

    def voice_parts(self, samples: FloatArray) -> Generator[None, None, VoiceSample]:
        """The same a part at a time, for who has other work in between. One clip at a time."""
        return hear_voice(
            self,
            samples,
            PyannoteFile(self._bundle),
            lambda vectors: voice_vectors(vectors, self._bundle.voice_mean),
            windows_a_part=self._trunk_batch,
        )

    def _analyze_whole(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """A file's windows, at most one batch: hard speech, embeddings as the network gives them."""
        grid = self._bundle.file_grid
        speech = self._powerset.hard(self._log_probabilities(windows, grid.window_samples))  # (B, F, S)
        masks = voice_masks(
            speech,
            exclude_overlap=self._bundle.pipeline.embedding_exclude_overlap,
            num_frames_min=self._frames_min,
        )
        # Windows in which somebody speaks: the others have no embeddings to compute.
        heard: list[int] = np.flatnonzero(speech.any(dim=2).any(dim=1).cpu().numpy()).tolist()
        embeddings = np.zeros((len(windows), grid.num_local_speakers, grid.embedding_dim), np.float32)
        for kind in (SlotKind.FILE, SlotKind.FAST_FILE):
            of_kind = [index for index in heard if self._slots[windows[index].slot].kind is kind]
            frames = self._own_frames if kind is SlotKind.FILE else self._shared_frames
            for at in range(0, len(of_kind), self._trunk_batch):
                some = of_kind[at : at + self._trunk_batch]
                found = self._pooling(frames([windows[index] for index in some]), masks[some])
                embeddings[some] = found.cpu().numpy()
        alone = speech * (speech.sum(dim=2, keepdim=True) == 1)
        clean = alone.sum(dim=1).cpu().numpy()
        embeddings *= speech.any(dim=1).cpu().numpy()[:, :, None]
        activity = speech.cpu().numpy()
        return [
            WindowAnalysis(window.end_samples - grid.window_samples, activity[index], embeddings[index], clean[index])
            for index, window in enumerate(windows)
        ]

    def _analyze_live(self, windows: Sequence[DueWindow], length: int) -> list[WindowAnalysis]:
        """Live windows of which `length` samples are there, at most one batch."""
        grid = self._bundle.grid
        found = [_silent(window.end_samples - grid.window_samples, grid) for window in windows]
        if length < LIVE_SAMPLES_MIN:
            return found
        sound = [self._slots[w.slot].samples.read(w.end_samples - length, w.end_samples) for w in windows]
        peaks = torch.stack([samples.abs().amax() for samples in sound])
        heard: list[int] = torch.nonzero(peaks > SILENCE_PEAK).flatten().tolist()
        if heard:
            for index, analysis in zip(heard, self._analyze_heard([windows[i] for i in heard], length), strict=True):
                found[index] = analysis
        return found

    def _analyze_heard(self, windows: Sequence[DueWindow], length: int) -> list[WindowAnalysis]:
        grid, file_grid, live = self._bundle.grid, self._bundle.file_grid, self._bundle.live
        starts = [window.end_samples - grid.window_samples for window in windows]
        embeddings = np.zeros((len(windows), grid.num_local_speakers, grid.embedding_dim), np.float32)
        log_probabilities = self._log_probabilities(windows, length)
        speech = self._powerset.hard(log_probabilities)  # (B, F', S)
        single = speech * (speech.sum(dim=2, keepdim=True) == 1)
        alone = single.sum(dim=1).cpu().numpy() * np.float32(file_grid.step_samples / grid.step_samples)
        soft = self._powerset.soft(log_probabilities)
        placed = [on_grid(frames, grid, file_grid.step_samples, self._field_samples) for frames in soft]
        activity = torch.stack(placed).clamp_(0.0, 1.0).cpu().numpy()
        masks = voice_masks(speech, exclude_overlap=True, num_frames_min=self._frames_min)
        heard = np.flatnonzero((alone >= live.clean_frames_min).any(axis=1)).tolist()
        for at in range(0, len(heard), self._trunk_batch):
            some = heard[at : at + self._trunk_batch]
            frames = self._shared_frames([windows[index] for index in some])
            embeddings[some] = self._pooling(frames, masks[some]).cpu().numpy()
        return [
            live_analysis(starts[index], activity[index], embeddings[index], alone[index], self._bundle)
            for index in range(len(windows))
        ]

    def _log_probabilities(self, windows: Sequence[DueWindow], length: int) -> Tensor:
        """Of the powerset classes in windows of which the last `length` samples are there: (B, F, K)."""
        sound = [
            self._slots[window.slot].samples.read(window.end_samples - length, window.end_samples) for window in windows
        ]
        batch = _padded(torch.stack(sound)[:, None], CUDA_SHAPE_STEP if self._device.type == "cuda" else 1)
        found: Tensor = self._segmentation(batch)[: len(windows)]
        return found

    def _own_frames(self, windows: Sequence[DueWindow]) -> Tensor:
        """The trunk's frames (B, C, T') of windows, each from its own mel frames alone, as pyannote has it."""
        ranges = [(self._slots[window.slot].mels, self._mel_range(window)) for window in windows]
        mels = torch.stack([ring.read(start, end) for ring, (start, end) in ranges])
        maps = self._trunk(centred(_padded(mels, self._trunk_batch)))
        own: Tensor = maps[: len(windows)].flatten(1, 2)
        return own

    def _shared_frames(self, windows: Sequence[DueWindow]) -> Tensor:
        """The trunk's frames (B, C, T') of windows, as far as may be those of the windows before them."""
        slots = [self._slots[window.slot] for window in windows]
        plans = [
            plan_window(held.trunk, held.mels, *self._mel_range(window))
            for held, window in zip(slots, windows, strict=True)
        ]
        try:
            return torch.stack(run_plans(self._trunk, plans, self._trunk_batch))
        except Exception:
            for held in slots:  # whatever was planned has not come: begin anew with the next window
                held.trunk = TrunkMemory()
            raise

    def _mel_range(self, window: DueWindow) -> tuple[int, int]:
        """First mel frame of a window, negative where a stream has just begun, and the one after its last."""
        length = self._bundle.file_grid.window_samples
        first, rest = divmod(window.end_samples - length, self._mels.step_samples)
        assert rest == 0, "windows begin on the grid of mel frames"
        return first, first + self._mels.count(length)

    def _advance_mels(self, held: Slot) -> None:
        """Make the mel frames whose sound is there."""
        mels, done = self._mels, held.mels.end
        fresh = mels.count(held.samples.end) - done
        if fresh > 0:
            start = done * mels.step_samples
            end = start + (fresh - 1) * mels.step_samples + mels.length_samples
            held.mels.append(mels(held.samples.read(start, end)))


def _padded(batch: Tensor, size: int) -> Tensor:
    """A batch filled up with silence to a multiple of `size`: few shapes, so one set of kernels."""
    missing = -len(batch) % size
    return batch if not missing else torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])


def _silent(start_samples: int, grid: FrameGrid) -> WindowAnalysis:
    """A window in which nobody speaks."""
    return WindowAnalysis(
        start_samples,
        np.zeros((grid.num_frames, grid.num_local_speakers), np.float32),
        np.zeros((grid.num_local_speakers, grid.embedding_dim), np.float32),
        np.zeros(grid.num_local_speakers, np.float32),
    )

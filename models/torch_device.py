"""The engine on a torch device: rings of sound, features computed once a slot, windows analysed in batches.

In come samples and the windows that are due; out come WindowAnalysis. Per slot, voice activity, mel frames and voice
embeddings of 1.6 s partials are computed once, on grids counted from stream position 0, and kept beside the samples; a
window only adds its local segmentation. So a window's analysis depends on the slot's samples up to the window's end and
on nothing else: not on how they were cut into writes, nor on what else is in the batch (up to rounding).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from models import embedding as ge2e
from models import segmentation as seg
from models import vad
from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.bundle import Bundle
from models.diarize import FileDiarization
from models.enrolment import hear_voice, heard_at_once
from models.fixed_shapes import CPU_SIZES, GPU_SIZES, FixedShapes
from models.local_speakers import LocalParameters, find_local_speakers
from models.ring import Ring
from models.seams import DueWindow, SlotKind, VoiceSample
from runtime.errors import Unavailable

MAX_PARTIALS_A_BATCH = 256
MAX_WINDOWS_A_BATCH = 64
# A partial with less sound in it than this says nothing of a voice.
EARLY_PARTIAL_SAMPLES_MIN = 4_800


@dataclass(frozen=True, slots=True)
class _Care:
    """How much care a slot's windows get. silent_voice: a window with no more voice activity is not segmented."""

    grid: FrameGrid
    local: LocalParameters
    silent_voice: float = 0.0
    bfloat16: bool = False


@dataclass(slots=True)
class _Slot:
    """What a slot holds: its samples, and the features made of them so far."""

    care: _Care
    samples: Ring  # (N,)
    mels: Ring  # (T, 40); frame t ends at sample 160 (t + 1)
    voice: Ring  # (C,) speech probability of each 512 samples
    voice_state: vad.VadState  # live: the one in use, and the one that is in use from the next block on
    partials: Ring  # (P, D); partial p ends at sample (p + 1) * partial_hop


class TorchDevice:
    """AnalysisDevice on a torch device. Call it from one thread."""

    def __init__(self, bundle: Bundle, device: str = "cpu", *, batch_sizes: Sequence[int] | None = None) -> None:
        """batch_sizes: to which batches are filled up, if not as suits the device."""
        self._device = torch.device(device)
        self._shapes = FixedShapes(batch_sizes or (GPU_SIZES if self._device.type == "cuda" else CPU_SIZES))
        self._bundle = bundle
        self._grid = bundle.grid
        self._care = _Care(bundle.grid, bundle.local)
        self._live_care = _Care(bundle.grid, bundle.local, bundle.live_silent_voice)
        self._less_care = _Care(
            replace(bundle.grid, hop_samples=bundle.fast.hop_samples),
            replace(bundle.local, partial_hop_samples=bundle.fast.partial_hop_samples),
            bundle.fast.silent_voice,
            bundle.fast.bfloat16 and _multiplies_bfloat16(self._device),
        )
        weights = {name: bundle.weights[name].verified_path() for name in bundle.weights}
        self._segmentation = seg.PyanNet(load_file(weights["segmentation"])).to(self._device)
        checkpoint = torch.load(weights["embedding"], map_location="cpu", weights_only=True)
        self._encoder = ge2e.Ge2eEncoder(checkpoint["model_state"]).to(self._device)
        self._mels = ge2e.MelFrontEnd().to(self._device)
        with warnings.catch_warnings():
            # The package ships TorchScript, whose loader is deprecated; we take its tensors and run none of it.
            warnings.simplefilter("ignore", DeprecationWarning)
            voice_activity = torch.jit.load(  # type: ignore[no-untyped-call]
                weights["voice_activity"], map_location="cpu"
            ).state_dict()
        self._vad = vad.SileroVad(voice_activity)
        self._vad.to(self._device)
        self._backend_mean = torch.from_numpy(bundle.backend.mean).to(self._device)
        self._backend_projection = torch.from_numpy(bundle.backend.projection).to(self._device)
        self._slots: dict[int, _Slot] = {}

    def __repr__(self) -> str:
        return f"TorchDevice({self._bundle.id}, {self._device}, {len(self._slots)} slots)"

    @property
    def grid(self) -> FrameGrid:
        """The geometry of live windows and their frames."""
        return self._grid

    def grid_of(self, kind: SlotKind) -> FrameGrid:
        """The geometry of the windows of such slots."""
        return self._care_of(kind).grid

    def open(self, slot: int, ring_samples: int, kind: SlotKind = SlotKind.LIVE) -> None:
        """Give a slot an empty ring whose first sample is stream position 0. Forgets what the slot held."""
        assert ring_samples >= self._grid.window_samples
        care = self._care_of(kind)
        self._slots[slot] = _Slot(
            care=care,
            samples=Ring(ring_samples + ge2e.FRAME_SAMPLES, (), self._device),
            mels=Ring(ge2e.PARTIAL_FRAMES + ring_samples // ge2e.FRAME_STEP_SAMPLES, (ge2e.NUM_BANDS,), self._device),
            voice=Ring(2 + ring_samples // vad.CHUNK_SAMPLES, (), self._device),
            voice_state=self._vad.initial_state(2 if care is self._live_care else 1, self._device),
            partials=Ring(
                2 + ring_samples // care.local.partial_hop_samples, (self._grid.embedding_dim,), self._device
            ),
        )

    def write(self, slot: int, samples: FloatArray) -> None:
        """Append (N,) float32 at 16 kHz to a slot's ring. The oldest samples fall out when it is full."""
        held = self._slots[slot]
        room = held.samples.capacity - ge2e.FRAME_SAMPLES
        for at in range(0, len(samples), room):
            piece = samples[at : at + room]
            if held.samples.end + len(piece) - room > held.voice.end * vad.CHUNK_SAMPLES:
                self._advance({slot: held.samples.end})  # before samples fall out that no feature was made of
            held.samples.append(torch.from_numpy(np.ascontiguousarray(piece, dtype=np.float32)).to(self._device))

    @torch.inference_mode()
    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """Analyse a batch of windows, of any mix of slots, in order. Sound before position 0 is silence."""
        ends: dict[int, int] = {}
        for window in windows:
            ends[window.slot] = max(window.end_samples, ends.get(window.slot, 0))
        self._advance(ends)
        found: list[WindowAnalysis] = []
        for at in range(0, len(windows), MAX_WINDOWS_A_BATCH):
            found += self._analyze_batch(windows[at : at + MAX_WINDOWS_A_BATCH])
        return found

    def analyze_voice(self, samples: FloatArray) -> VoiceSample:
        """What an enrolment clip (N,) float32 at 16 kHz holds."""
        return heard_at_once(self.voice_parts(samples))

    def voice_parts(self, samples: FloatArray) -> Generator[None, None, VoiceSample]:
        """The same a part at a time, for who has other work in between. One clip at a time."""
        return hear_voice(self, samples, FileDiarization(self.grid_of(SlotKind.FILE), self._bundle.clustering))

    def mel_frames(self, samples: Tensor) -> Tensor:
        """Mel power of (N,) samples: (T, 40). For fitting; streams keep theirs in their slots."""
        mels: Tensor = self._mels(samples.to(self._device))
        return mels

    def encode_partials(self, mels: Tensor) -> Tensor:
        """The encoder's own vectors (P, E) of partials (P, 160, 40), each scaled to one level first."""
        level = mels.mean(dim=(1, 2), keepdim=True).clamp_min(1e-9)
        vectors: Tensor = self._encoder(mels * (self._bundle.local.partial_mel_power / level))
        return vectors

    def _care_of(self, kind: SlotKind) -> _Care:
        care = {SlotKind.LIVE: self._live_care, SlotKind.FAST_FILE: self._less_care}
        return care.get(kind, self._care)

    def _project(self, vectors: Tensor) -> Tensor:
        return functional.normalize((vectors - self._backend_mean) @ self._backend_projection, dim=-1, eps=1e-6)

    def _analyze_batch(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        grid = self._grid
        voices = [self._voice(window) for window in windows]
        posteriors = self._posteriors(windows, [float(voice.max()) for voice in voices])
        found = []
        for window, posterior, voice in zip(windows, posteriors, voices, strict=True):
            held, start = self._slots[window.slot], window.end_samples - grid.window_samples
            hop = held.care.local.partial_hop_samples
            last = window.end_samples // hop
            # Only partials that lie in the window whole: older ones may have fallen out of the ring. Where there is
            # none yet, in the first seconds of a stream, those that begin in the silence before it.
            first = -(-(max(start, 0) + ge2e.PARTIAL_SAMPLES) // hop) - 1
            if first >= last:
                first = max(0, -(-EARLY_PARTIAL_SAMPLES_MIN // hop) - 1)
            first = min(first, last)
            found.append(
                find_local_speakers(
                    start_samples=start,
                    posteriors=posterior,
                    voice=voice,
                    partials=held.partials.read(first, last).cpu().numpy(),
                    partial_spans=_spans(np.arange(first, last), hop) - start,
                    grid=grid,
                    local=held.care.local,
                )
            )
        return found

    def _voice(self, window: DueWindow) -> FloatArray:
        """Voice activity in each frame of a window: (F,) in [0, 1]."""
        grid, held = self._grid, self._slots[window.slot]
        chunks = window.end_samples // vad.CHUNK_SAMPLES
        start = window.end_samples - grid.window_samples
        centres = start + (np.arange(grid.num_frames) + 0.5) * grid.step_samples
        index = np.minimum(centres // vad.CHUNK_SAMPLES, chunks - 1).astype(np.int64)
        oldest = max(0, int(index[0]))
        voice = held.voice.read(oldest, chunks).cpu().numpy()
        probability = voice[np.maximum(index - oldest, 0)] if chunks > oldest else np.zeros(len(index), np.float32)
        heard: FloatArray = np.where(index >= 0, probability, 0.0).astype(np.float32)
        return heard

    def _posteriors(self, windows: Sequence[DueWindow], voices: Sequence[float]) -> FloatArray:
        """Probabilities (B, F, K) of the powerset classes; nobody speaks before position 0.

        voices: the highest voice activity in each window. The network hears only sound that is there: it scales its
        input by what is in it, and silence put in front of a stream's first seconds would shift all it says of them.
        So windows are taken together that are of one length, and neighbours of one slot share their first filters.
        """
        grid = self._grid
        found = np.zeros((len(windows), grid.num_frames, seg.NUM_CLASSES), np.float32)
        found[:, :, 0] = 1.0
        lengths = [min(grid.window_samples, w.end_samples // grid.step_samples * grid.step_samples) for w in windows]
        heard = [
            index
            for index, (window, voice) in enumerate(zip(windows, voices, strict=True))
            if voice >= self._slots[window.slot].care.silent_voice and lengths[index] >= seg.FRAME_FIELD_SAMPLES
        ]
        lone: dict[tuple[int, bool], list[int]] = {}
        for run in _neighbours(
            heard, windows, {slot: held.care.grid.hop_samples for slot, held in self._slots.items()}
        ):
            held = self._slots[windows[run[0]].slot]
            if len(run) == 1 or lengths[run[0]] < grid.window_samples:
                for index in run:
                    lone.setdefault((lengths[index], held.care.bfloat16), []).append(index)
                continue
            sound = held.samples.read(windows[run[0]].end_samples - grid.window_samples, windows[run[-1]].end_samples)
            with self._precision(low=held.care.bfloat16):
                classes = self._segmentation.overlapping(sound, grid.window_samples, held.care.grid.hop_samples)
            found[run] = self._on_grid(classes, grid.num_frames)
        for (length, low), indices in lone.items():
            ends = [(self._slots[windows[i].slot].samples, windows[i].end_samples) for i in indices]
            sounds = torch.stack([samples.read(end - length, end) for samples, end in ends])  # (B, N)
            with self._precision(low=low):
                classes = self._shapes.run(self._segmentation, sounds)
            num_frames = length // grid.step_samples
            found[indices, grid.num_frames - num_frames :] = self._on_grid(classes, num_frames)
        return found

    def _on_grid(self, classes: Tensor, num_frames: int) -> FloatArray:
        """Probabilities (B, F, K) on the grid's frames from log probabilities (B, F', K) on the network's."""
        before, weight = seg.frame_positions(num_frames, self._grid.step_samples, classes.shape[1])
        after = np.minimum(before + 1, classes.shape[1] - 1)
        mix = torch.from_numpy(weight).to(self._device)[:, None]
        probabilities = classes.float().exp()
        on_grid: FloatArray = (probabilities[:, before] * (1 - mix) + probabilities[:, after] * mix).cpu().numpy()
        return on_grid

    def _precision(self, *, low: bool) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=low)

    @torch.inference_mode()
    def _advance(self, ends: dict[int, int]) -> None:
        """Make the features of each slot up to a stream position, partials of all slots in one batch."""
        fresh: dict[bool, list[tuple[_Slot, Tensor | None]]] = {}
        for slot, end in ends.items():
            held = self._slots[slot]
            assert end <= held.samples.end, f"slot {slot} holds {held.samples.end} samples, {end} asked"
            self._advance_voice(held, end)
            self._advance_mels(held, end)
            hop = held.care.local.partial_hop_samples
            voiced = self._voiced_partials(held, held.partials.end, end // hop)
            for partial in range(held.partials.end, end // hop):
                last = (partial + 1) * hop // ge2e.FRAME_STEP_SAMPLES
                mels = held.mels.read(last - ge2e.PARTIAL_FRAMES, last) if partial in voiced else None
                fresh.setdefault(held.care.bfloat16, []).append((held, mels))
        for low, partials in fresh.items():
            for at in range(0, len(partials), MAX_PARTIALS_A_BATCH):
                batch = partials[at : at + MAX_PARTIALS_A_BATCH]
                vectors = torch.zeros(len(batch), self._grid.embedding_dim, device=self._device)  # (P, D)
                heard = [(index, mels) for index, (_, mels) in enumerate(batch) if mels is not None]
                if heard:
                    with self._precision(low=low):
                        encoded = self._shapes.run(self.encode_partials, torch.stack([mels for _, mels in heard]))
                    vectors[[index for index, _ in heard]] = self._project(encoded.float())
                for (held, _), vector in zip(batch, vectors, strict=True):
                    held.partials.append(vector[None])

    def _voiced_partials(self, held: _Slot, first: int, last: int) -> set[int]:
        """Which of the partials [first, last) hold any voice activity that the slot's care minds."""
        if not held.care.silent_voice or first >= last:
            return set(range(first, last))
        spans = _spans(np.arange(first, last), held.care.local.partial_hop_samples)
        chunks = np.clip(spans // vad.CHUNK_SAMPLES, held.voice.end - held.voice.capacity, held.voice.end - 1)
        oldest = max(0, int(chunks[0, 0]))
        voice = held.voice.read(oldest, held.voice.end).cpu().numpy()
        return {
            partial
            for partial, (begin, end) in enumerate(np.maximum(chunks - oldest, 0), start=first)
            if not len(voice) or voice[begin : end + 1].max() >= held.care.silent_voice
        }

    def _advance_voice(self, held: _Slot, end: int) -> None:
        is_live = held.care is self._live_care
        while held.voice.end < (last := end // vad.CHUNK_SAMPLES):
            done = held.voice.end
            block_end = (done // vad.MEMORY_CHUNKS + 1) * vad.MEMORY_CHUNKS
            if is_live:
                last = min(last, block_end)
            start = done * vad.CHUNK_SAMPLES - vad.CONTEXT_SAMPLES
            sound = held.samples.read(start, last * vad.CHUNK_SAMPLES)
            chunks = sound.unfold(0, vad.CHUNK_SAMPLES + vad.CONTEXT_SAMPLES, vad.CHUNK_SAMPLES)[None]
            probabilities, held.voice_state = self._vad(chunks, held.voice_state)
            held.voice.append(probabilities[0])
            if is_live and last == block_end:
                fresh = self._vad.initial_state(1, self._device)
                hidden, cell = held.voice_state
                held.voice_state = torch.cat((hidden[:, 1:], fresh[0]), 1), torch.cat((cell[:, 1:], fresh[1]), 1)

    def _advance_mels(self, held: _Slot, end: int) -> None:
        done, count = held.mels.end, end // ge2e.FRAME_STEP_SAMPLES - held.mels.end
        if count > 0:
            overlap = ge2e.FRAME_SAMPLES - ge2e.FRAME_STEP_SAMPLES
            start = done * ge2e.FRAME_STEP_SAMPLES
            held.mels.append(self._mels(held.samples.read(start - overlap, start + count * ge2e.FRAME_STEP_SAMPLES)))


def _neighbours(indices: Sequence[int], windows: Sequence[DueWindow], hops: dict[int, int]) -> list[list[int]]:
    """The windows of these indices in runs of one slot whose windows follow each other a hop apart."""
    # In such a run, position in the list and end grow together.
    keyed = groupby(
        enumerate(indices),
        key=lambda item: (windows[item[1]].slot, windows[item[1]].end_samples - item[0] * hops[windows[item[1]].slot]),
    )
    return [[index for _, index in run] for _, run in keyed]


def _multiplies_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def _spans(partials: np.ndarray, hop_samples: int) -> np.ndarray:
    """Stream positions [from, to) of partials: (P,) → (P, 2)."""
    ends = (partials + 1) * hop_samples
    return np.stack([ends - ge2e.PARTIAL_SAMPLES, ends], axis=1)


def load_device(bundle: Bundle, device: str = "cpu") -> TorchDevice:
    """An engine for a bundle on a torch device ("cpu", "cuda", "cuda:1"). Unavailable if weights or device are not."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Unavailable("no CUDA device is available to torch; use --device cpu, or install a driver")
    return TorchDevice(bundle, device)

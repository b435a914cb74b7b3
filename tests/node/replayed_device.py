"""A device that listens to a loop of sound once, and says the same of it ever after: hours of a stream in minutes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.seams import AnalysisDevice, DueWindow, SlotKind, VoiceSample


class ReplayedDevice:
    """AnalysisDevice over another one. Its only stream is a loop of `loop_samples`, a multiple of a hop.

    The second round is listened to and kept; from the third on its windows come again, embeddings carried by noise.
    """

    def __init__(self, device: AnalysisDevice, loop_samples: int, on_window: Callable[[int], None]) -> None:
        """on_window: told the end of each window."""
        assert loop_samples % device.grid.hop_samples == 0 and loop_samples > device.grid.window_samples
        self._device = device
        self._loop_samples = loop_samples
        self._on_window = on_window
        self._kept: dict[int, WindowAnalysis] = {}
        self._draw = np.random.default_rng(0)

    @property
    def grid(self) -> FrameGrid:
        return self._device.grid

    def grid_of(self, kind: SlotKind) -> FrameGrid:
        return self._device.grid_of(kind)

    def open(self, slot: int, ring_samples: int, kind: SlotKind = SlotKind.LIVE) -> None:
        self._device.open(slot, ring_samples, kind)
        self._written = 0

    def write(self, slot: int, samples: FloatArray) -> None:
        if self._written < 2 * self._loop_samples:
            self._device.write(slot, samples)
        self._written += len(samples)

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        return [self._analyze(window) for window in windows]

    def analyze_voice(self, samples: FloatArray) -> VoiceSample:
        return self._device.analyze_voice(samples)

    def voice_parts(self, samples: FloatArray) -> Generator[None, None, VoiceSample]:
        return self._device.voice_parts(samples)

    def _analyze(self, window: DueWindow) -> WindowAnalysis:
        self._on_window(window.end_samples)
        start = window.end_samples - self.grid.window_samples
        if window.end_samples <= 2 * self._loop_samples:
            (heard,) = self._device.analyze([window])
            if window.end_samples > self._loop_samples:
                self._kept[window.end_samples % self._loop_samples] = heard
            return heard
        kept = self._kept[window.end_samples % self._loop_samples]
        noise = self._draw.normal(0, 0.15 / np.sqrt(kept.embeddings.shape[1]), kept.embeddings.shape)
        moved = kept.embeddings + noise * kept.embeddings.any(axis=1, keepdims=True)
        norms = np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6)
        return WindowAnalysis(start, kept.activity, (moved / norms).astype(np.float32), kept.clean_frames)

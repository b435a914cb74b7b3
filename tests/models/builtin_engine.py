"""What the engine's tests share: the builtin engine, loaded once, and a conversation of two people."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import soundfile
import torch

from models.analysis import FloatArray, WindowAnalysis
from models.bundle import Bundle, load_bundle
from models.seams import DueWindow
from models.torch_device import TorchDevice, load_device


@functools.cache
def bundle() -> Bundle:
    """The builtin bundle."""
    return load_bundle("builtin")


@functools.cache
def engine() -> TorchDevice:
    """The builtin engine on the CPU, shared by all tests: each opens the slots that it uses."""
    torch.set_num_threads(1)
    return load_device(bundle())


@functools.cache
def conversation() -> FloatArray:
    """The 30 s of two people that pyannote.audio installs with itself, found without importing it."""
    samples, rate = soundfile.read(sample_folder() / "sample.wav", dtype="float32")
    assert rate == 16_000
    found: FloatArray = samples
    return found


def sample_folder() -> Path:
    """Where pyannote.audio keeps its sample."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "sample"


def truth() -> list[tuple[float, float, str]]:
    """(start_s, end_s, speaker) of the sample's reference."""
    rows = [line.split() for line in (sample_folder() / "sample.rttm").read_text().splitlines() if line]
    return [(float(row[3]), float(row[3]) + float(row[4]), row[7]) for row in rows]


def analyze(samples: FloatArray, *, slot: int = 0, write_samples: int = 16_000) -> list[WindowAnalysis]:
    """All windows of some sound, written and analysed as a live stream would be."""
    device = engine()
    hop = device.grid.hop_samples
    device.open(slot, device.grid.window_samples + hop)
    found: list[WindowAnalysis] = []
    due = hop
    for at in range(0, len(samples), write_samples):
        device.write(slot, samples[at : at + write_samples])
        while due <= min(at + write_samples, len(samples)):
            found += device.analyze([DueWindow(slot, due)])
            due += hop
    return found


def assert_same(one: list[WindowAnalysis], other: list[WindowAnalysis], tolerance: float = 1e-4) -> None:
    """Two analyses of the same windows, equal up to rounding."""
    assert [window.start_samples for window in one] == [window.start_samples for window in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.activity, b.activity, atol=tolerance)
        np.testing.assert_allclose(a.embeddings, b.embeddings, atol=tolerance)
        np.testing.assert_array_equal(a.clean_frames, b.clean_frames)

"""`python -m tests.faults.faulty_node node …`: a node whose device fails as the file in SPEAKERD_TEST_DEVICE says.

Nothing in it, or no file: the device is well. `memory N`: there is memory for N windows at once, and with 0 for no clip
either. `lost`: every call fails from here on, as with a CUDA context that an error has poisoned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import node.app
from models.analysis import FloatArray, WindowAnalysis
from models.seams import DueWindow, VoiceSample
from node.engine import Engine, engine_loader
from node.null_engine import NullDevice
from speakerd.cli import main

ORDERS = Path(os.environ.get("SPEAKERD_TEST_DEVICE", "/nonexistent"))


class FaultyDevice(NullDevice):
    """Fails as it is told to."""

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """The null device's analysis, where there is memory for it."""
        self._obey(len(windows))
        return super().analyze(windows)

    def voice_parts(self, samples: FloatArray) -> Generator[None, None, VoiceSample]:
        """A clip takes as much as a window."""
        self._obey(1)
        return super().voice_parts(samples)

    def _obey(self, num_windows: int) -> None:
        what, _, count = (ORDERS.read_text().strip() if ORDERS.exists() else "").partition(" ")
        if what == "lost":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if what == "memory" and num_windows > int(count):
            raise MemoryError("CUDA out of memory")


def _loader(bundle: str, device: str, calibration: Path | None) -> Callable[[], Engine]:
    load = engine_loader(bundle, device, calibration)
    return lambda: replace(load(), device=FaultyDevice())


if __name__ == "__main__":
    node.app.engine_loader = _loader  # type: ignore[assignment]
    main()

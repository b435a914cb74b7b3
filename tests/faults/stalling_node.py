"""`python -m tests.faults.stalling_node node …`: a node that stands still, or whose device's thread dies, on a signal.

SIGUSR1: the event loop does nothing for as many seconds as SPEAKERD_TEST_STALL_S says. SIGUSR2: the next call on the
device ends its thread.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import node.app
from models.analysis import WindowAnalysis
from models.seams import DueWindow
from node.engine import Engine, engine_loader
from node.null_engine import NullDevice
from speakerd.cli import main

DIES = threading.Event()


class MortalDevice(NullDevice):
    """Ends the thread that it is called on."""

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        """The null device's analysis, while it lives."""
        if DIES.is_set():
            raise SystemExit
        return super().analyze(windows)


def _loader(bundle: str, device: str, calibration: Path | None) -> Callable[[], Engine]:
    load = engine_loader(bundle, device, calibration)
    return lambda: replace(load(), device=MortalDevice())


if __name__ == "__main__":
    stall_s = float(os.environ["SPEAKERD_TEST_STALL_S"])
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(stall_s))
    signal.signal(signal.SIGUSR2, lambda *_: DIES.set())
    node.app.engine_loader = _loader  # type: ignore[assignment]
    main()

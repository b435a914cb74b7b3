"""Generated checkpoints, made once a session, and pyannote's answers to the cases, each asked for once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.pyannote.networks import import_pyannote
from scripts.generate_checkpoint import SMALL, generate, read_voices
from tests.models.pyannote.reference import Answer, Case, theirs

RECIPES = {
    "plain": SMALL,
    # Other weights, more overlap, masks that keep it, gaps that are filled.
    "other": replace(
        SMALL,
        seed=2,
        noise=0.3,
        overlap_bias=1.0,
        exclude_overlap=False,
        min_duration_off=0.1,
        vbx={"threshold": 0.7, "Fa": 0.15, "Fb": 1.5},
        agglomerative={"method": "centroid", "threshold": 0.85, "min_cluster_size": 3},
    ),
}


@pytest.fixture(scope="session", autouse=True)
def _quiet_torch() -> None:
    torch.set_num_threads(1)
    import_pyannote("pyannote.audio")  # its import warns of decoders that we do without


@pytest.fixture(scope="session")
def checkpoints(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, as pyannote loads them (NAME/pyannote-METHOD) and as we do (NAME/bundle-METHOD).

    Processes that run tests side by side share it: who comes first makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / "checkpoints", base / "checkpoints" / "made"
    with (base / "checkpoints.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            voices = read_voices(audio / "librispeech" / "guests", 40)
            for name, recipe in RECIPES.items():
                generate(folder / name, voices, recipe)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def reference(audio: Path, checkpoints: Path) -> Callable[[Case], Answer]:
    """pyannote's own answer to a case."""
    known: dict[str, Answer] = {}

    def asked(case: Case) -> Answer:
        if str(case) not in known:
            folder = checkpoints / case.checkpoint / f"pyannote-{case.method}"
            known[str(case)] = theirs(folder, case.recording(audio), case.asked)
        return known[str(case)]

    return asked

"""Checkpoints of other people's making, read in a confined child into plain tensors. Nothing of them is ever run.

In comes a path of a pyannote checkpoint or of an .npz; out come tensors by name, and what the checkpoint says of its
network. What always holds: the file is read by models.checkpoint_child alone, in a process that can open nothing and
has bounded memory and time; a file that holds anything but plain values and known classes is refused.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import runtime
from models.checkpoint_child import START
from runtime.errors import InvalidRequest, TimedOut, TooLarge

MEMORY_BYTES_MAX = 24 << 30  # of addresses: importing torch alone reserves some, more where it is built for CUDA
CHECKPOINT_BYTES_MAX = 2 << 30
CPU_S_MAX = 120.0
WAIT_S_MAX = 600.0
HEADER_BYTES_MAX = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A network's weights as safetensors bytes, and how pyannote would build it."""

    safetensors: bytes
    tensors: tuple[str, ...]
    architecture: str
    hyperparameters: dict[str, Any]
    specifications: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """A pyannote checkpoint (pytorch_model.bin). InvalidRequest where it is none, or holds what could be code."""
    content, said = _read(path, "checkpoint")
    header = _header(content)
    return Checkpoint(
        content,
        tuple(name for name in header if name != "__metadata__"),
        said["architecture"],
        said["hyperparameters"],
        said["specifications"],
    )


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz by name. InvalidRequest where it is none, or holds objects."""
    from safetensors.numpy import load

    content, _ = _read(path, "arrays")
    return {name: np.asarray(array) for name, array in load(content).items()}


def _read(path: Path, kind: str) -> tuple[bytes, dict[str, Any]]:
    """What the child made of a file: safetensors, and what it says."""
    size = path.stat().st_size
    if size > CHECKPOINT_BYTES_MAX:
        raise TooLarge(f"{path.name} has {size >> 20} MiB; at most {CHECKPOINT_BYTES_MAX >> 20} are read")
    root = str(Path(runtime.__file__).resolve().parent.parent)
    numbers = [os.getpid(), MEMORY_BYTES_MAX, CPU_S_MAX]
    command = [sys.executable, "-I", "-B", "-c", START, *map(str, numbers), kind, root]
    with path.open("rb") as file:
        try:
            done = subprocess.run(
                command, stdin=file, capture_output=True, env={}, cwd="/", timeout=WAIT_S_MAX, check=False
            )
        except subprocess.TimeoutExpired:
            raise TimedOut(
                f"{path.name} was not read within {WAIT_S_MAX:g} s; it is no checkpoint of pyannote's"
            ) from None
    try:
        header = _header(done.stdout)
        said: dict[str, Any] = json.loads(header["__metadata__"]["said"])
    except (ValueError, KeyError, TypeError, struct.error):
        raise InvalidRequest(
            f"{path.name} could not be read (the reader ended with {done.returncode}): it is damaged, or does harm"
        ) from None
    if "error" in said:
        raise InvalidRequest(f"{path.name} is refused: {_reason(said['error'])}")
    return done.stdout, said


def _header(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    if length > HEADER_BYTES_MAX or 8 + length > len(content):
        raise ValueError("no safetensors")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header


def _reason(error: str) -> str:
    """The one line of torch's long advice that says what was found."""
    for line in error.splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return f"it holds more than weights ({line.strip()[:200]}), and nothing of it was run"
    return f"it is nothing that pyannote saves ({error.splitlines()[0][:200]})"

"""The child that reads a stranger's checkpoint: a file on stdin, safetensors on stdout, nothing else in reach.

A checkpoint is a pickle, so it is read by torch's own interpreter of pickles that builds tensors, plain values and the
few classes named here, and calls nothing else; and in a process that by then can open no file, socket or process, with
bounded memory and time. pyannote itself is not imported: its classes are stood in for by empty ones of the same names.

Run as `-c START PARENT MEMORY CPU_S KIND ROOT`, KIND "checkpoint" or "arrays". What goes out is a safetensors file, the
metadata of which holds under "said" a JSON object: {"architecture", "hyperparameters", "specifications"}, or {"error"}.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

START = (
    "import sys; sys.path.insert(0, sys.argv.pop()); "
    "from models.checkpoint_child import main; main(*map(int, sys.argv[1:3]), float(sys.argv[3]), sys.argv[4])"
)
DEPTH_MAX = 8
Reader = Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
PREFIX = "pyannote.audio.core."


class Specifications:
    """Stands in for pyannote.audio.core.task.Specifications: what a network's task is."""


class Introspection:
    """Stands in for pyannote.audio.core.model.Introspection, which checkpoints before 3.0 hold."""


class Problem(Enum):
    """Stands in for pyannote.audio.core.task.Problem."""

    BINARY_CLASSIFICATION = 0
    MONO_LABEL_CLASSIFICATION = 1
    MULTI_LABEL_CLASSIFICATION = 2
    REPRESENTATION = 3
    REGRESSION = 4


class Resolution(Enum):
    """Stands in for pyannote.audio.core.task.Resolution."""

    FRAME = 1
    CHUNK = 2


class Version(str):
    """Stands in for torch.torch_version.TorchVersion."""

    __slots__ = ()


ALLOWED: list[Any] = [
    (Specifications, f"{PREFIX}task.Specifications"),
    (Problem, f"{PREFIX}task.Problem"),
    (Resolution, f"{PREFIX}task.Resolution"),
    (Introspection, f"{PREFIX}model.Introspection"),
    (Version, "torch.torch_version.TorchVersion"),
]
"""All that a checkpoint may hold beside tensors, numbers, strings and containers of them."""
SPECIFIED = (
    "problem",
    "resolution",
    "duration",
    "min_duration",
    "warm_up",
    "classes",
    "powerset_max_classes",
    "permutation_invariant",
)
"""Fields of Specifications. Computed ones may be cached beside them."""


def main(parent_pid: int, memory_bytes_max: int, cpu_s_max: float, kind: str) -> None:
    """Read stdin, write stdout. Every outcome is a safetensors file; a child that is killed writes a part of one."""
    from runtime.media_child.confine import confine, shut

    confine(parent_pid, memory_bytes_max, cpu_s_max)
    read, save = _arrays_reader() if kind == "arrays" else _checkpoint_reader()
    shut(parent_pid)
    with os.fdopen(0, "rb", closefd=False) as file:
        tensors: dict[str, Any] = {}
        said: dict[str, Any] = {}
        try:
            tensors, said = read(file)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the file's fault, and the parent's to tell)
            said = {"error": f"{type(error).__name__}: {error}"[:2_000]}
            tensors = {}
    out = save(tensors, {"said": json.dumps(said)})
    with os.fdopen(1, "wb", closefd=False) as stdout:
        stdout.write(out)


def _checkpoint_reader() -> tuple[Reader, Any]:
    """What reads checkpoints, after it has read one of ours: loaders import as they work, and later there is none."""
    import torch
    from safetensors.torch import save

    torch.set_num_threads(1)
    ours = io.BytesIO()
    torch.save({"pyannote.audio": {"architecture": {"class": ""}}, "state_dict": {"warm": torch.zeros(1)}}, ours)
    ours.seek(0)
    save(_checkpoint(ours)[0])
    return _checkpoint, save


def _arrays_reader() -> tuple[Reader, Any]:
    """The same for arrays, which need no torch."""
    import numpy as np
    from safetensors.numpy import save

    ours = io.BytesIO()
    np.savez(ours, warm=np.zeros(1))
    ours.seek(0)
    save(_arrays(ours)[0])
    return _arrays, save


def _checkpoint(file: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    with torch.serialization.safe_globals(ALLOWED):
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    ours = loaded["pyannote.audio"]
    tensors = {str(name): tensor.clone().contiguous() for name, tensor in loaded["state_dict"].items()}
    wrong = [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]
    if wrong:
        raise ValueError(f"state_dict[{wrong[0][:80]!r}] is no tensor")
    return tensors, {
        "architecture": str(ours["architecture"]["class"]),
        "hyperparameters": plain(dict(loaded.get("hyper_parameters", {}))),
        "specifications": plain(_fields(ours.get("specifications"))),
    }


def _arrays(file: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    import numpy as np

    with np.load(file, allow_pickle=False) as arrays:
        return {name: np.ascontiguousarray(arrays[name]) for name in arrays.files}, {}


def _fields(specifications: Any) -> dict[str, Any]:
    # Networks with several tasks hold a tuple of these; the first is what there is in pyannote's own.
    if isinstance(specifications, (tuple, list)):
        specifications = specifications[0] if specifications else None
    held = vars(specifications) if isinstance(specifications, Specifications) else {}
    return {name: held[name] for name in SPECIFIED if name in held}


def plain(value: Any, depth: int = 0) -> Any:
    """The same as JSON knows it: enums by name, no None, nothing else than numbers, strings, lists and tables."""
    if depth > DEPTH_MAX:
        raise ValueError("nested too deep")
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool | int | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number that is not finite")
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value if item is not None]
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items() if item is not None}
    raise ValueError(f"a {type(value).__name__}, which is no plain value")


if __name__ == "__main__":
    sys.exit("this is run by models.checkpoints alone")

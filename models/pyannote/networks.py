"""pyannote's networks, built from a bundle: its own classes define them, weights come without unpickling anything.

In comes a bundle, out come pyannote.audio's `PyanNet` and `WeSpeakerResNet…` with the bundle's tensors in them. What
always holds: only classes of the bundle's allow-list are built, digests are checked before a file is read, every tensor
of the network comes from the file, and pyannote's telemetry is off before pyannote.audio is imported.
"""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from models.pyannote.bundle import NetworkSpec, PyannoteBundle
from runtime.errors import InvalidRequest

TELEMETRY_SWITCH = "PYANNOTE_METRICS_ENABLED"
_MODULES = {
    "PyanNet": "pyannote.audio.models.segmentation.PyanNet",
    "WeSpeakerResNet34": "pyannote.audio.models.embedding.wespeaker",
    "WeSpeakerResNet152": "pyannote.audio.models.embedding.wespeaker",
    "WeSpeakerResNet221": "pyannote.audio.models.embedding.wespeaker",
    "WeSpeakerResNet293": "pyannote.audio.models.embedding.wespeaker",
}


def import_pyannote(module: str) -> Any:
    """A module of pyannote.audio, its telemetry off whatever the environment says: nothing about a run leaves it."""
    os.environ[TELEMETRY_SWITCH] = "false"
    with warnings.catch_warnings():
        # It warns on import of decoders that it misses; sound is decoded elsewhere.
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def build_segmentation(bundle: PyannoteBundle) -> nn.Module:
    """pyannote's segmentation model with the bundle's weights, in eval mode on the CPU."""
    task = import_pyannote("pyannote.audio.core.task")
    given = dict(bundle.segmentation.specifications)
    given["problem"] = task.Problem[given["problem"]]
    given["resolution"] = task.Resolution[given["resolution"]]
    given["warm_up"] = tuple(given.get("warm_up", (0.0, 0.0)))
    network = _instance(bundle.segmentation)
    network.specifications = task.Specifications(**given)
    network.build()
    return _filled(network, bundle, "segmentation")


def build_embedding(bundle: PyannoteBundle) -> nn.Module:
    """pyannote's embedding model with the bundle's weights, in eval mode on the CPU."""
    return _filled(_instance(bundle.embedding), bundle, "embedding")


def _instance(spec: NetworkSpec) -> Any:
    network_class = getattr(import_pyannote(_MODULES[spec.architecture]), spec.architecture)
    taken = inspect.signature(network_class.__init__).parameters
    # As pyannote itself loads a checkpoint: hyperparameters that the class does not take are left out.
    return network_class(**{name: value for name, value in spec.hyperparameters.items() if name in taken})


def _filled(network: Any, bundle: PyannoteBundle, name: str) -> nn.Module:
    tensors = load_file(bundle.weights[name].verified_path())
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise InvalidRequest(f"{name}: the weights do not fit the hyperparameters in the manifest") from error
    missing = [tensor for tensor in missing if not tensor.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise InvalidRequest(
            f"{name}: tensors do not fit: {len(missing)} are missing, {len(unexpected)} are not the network's"
        )
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    filled: nn.Module = network
    return filled


def exact_kernels() -> None:
    """Have torch compute in full float32 on every device, as pyannote.audio does on every call."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

"""Make a checkpoint of pyannote's family, for tests and benchmarks: no gated weights, yet no nonsense either.

    python scripts/generate_checkpoint.py OUT --voices FOLDER [--size full] [--seed 1]

Segmentation is builtin's trained network (at full size with two more layers that pass on what they are given). The
voice network has random convolutions, their batch norms set by real speech, and a last layer fitted to tell apart the
speakers in FOLDER (one folder a speaker); the PLDA is fitted on them too. OUT/pyannote-METHOD is laid out as pyannote
itself loads it (`Pipeline.from_pretrained`), OUT/bundle-METHOD as speakerd does. The same arguments make the same one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from scipy.linalg import eigh
from torch import Tensor

from models.bundle import BUNDLES
from models.pyannote.networks import import_pyannote

Array = npt.NDArray[np.float64]
CROP_SAMPLES, CROPS_MAX = 48_000, 4
EMBEDDING_DIM, LDA_DIM = 256, 128
# How far a common offset pulls all embeddings together: it puts cosines where pyannote's thresholds expect them.
OFFSET = 1.0
# As community-1 and 3.1 have them.
VBX = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}
AGGLOMERATIVE = {"method": "centroid", "threshold": 0.7045654963945799, "min_cluster_size": 12}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Networks as pyannote builds them, and the tensors of the PLDA."""

    segmentation: Any
    embedding: Any
    plda: dict[str, Array]
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is made. num_bands: mel bands of the voice network, whose cost they set; 80 at full size.

    overlap_bias: added to the scores of two speakers at once. noise: share of noise in the segmentation's last layer.
    """

    seed: int = 1
    num_bands: int = 8
    extra_layers: int = 0
    duration_s: float = 10.0
    overlap_bias: float = 0.0
    noise: float = 0.0
    exclude_overlap: bool = True
    min_duration_off: float = 0.0
    vbx: Mapping[str, float] = field(default_factory=lambda: VBX)
    agglomerative: Mapping[str, Any] = field(default_factory=lambda: AGGLOMERATIVE)


SMALL = Recipe()
FULL = Recipe(num_bands=80, extra_layers=2)


def generate(folder: Path, voices: Mapping[str, list[npt.NDArray[np.float32]]], recipe: Recipe = SMALL) -> None:
    """Write folder/pyannote-METHOD and folder/bundle-METHOD for both methods. voices: recordings by speaker."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(_segmentation(recipe), *_embedding(recipe, voices), recipe)
    for method, parameters in (("VBxClustering", recipe.vbx), ("AgglomerativeClustering", recipe.agglomerative)):
        _write_for_pyannote(folder / f"pyannote-{method}", checkpoint, method, parameters)
        _write_bundle(folder / f"bundle-{method}", checkpoint, method, parameters)


def read_voices(folder: Path, count: int) -> dict[str, list[npt.NDArray[np.float32]]]:
    """The first recording of each of the first `count` speakers under a folder, as (N,) samples at 16 kHz."""
    found = {}
    for speaker in sorted(path for path in folder.iterdir() if path.is_dir())[:count]:
        samples, rate = soundfile.read(min(speaker.iterdir()), dtype="float32")
        assert rate == 16_000
        found[speaker.name] = [samples]
    return found


def pieces_as_voices(files: Iterable[Path], seconds: int = 9) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Where there are no labelled voices: each piece of a recording taken for a speaker of its own."""
    found = {}
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        assert rate == 16_000
        mono, length = samples.mean(axis=1), seconds * 16_000
        for at in range(0, min(len(mono), 40 * length) - length + 1, length):
            found[f"{file.name}-{at}"] = [mono[at : at + length]]
    return found


def _segmentation(recipe: Recipe) -> Any:
    from safetensors.torch import load_file

    tensors = dict(load_file(BUNDLES / "builtin" / "segmentation.safetensors"))
    tensors = {name: value for name, value in tensors.items() if not name.endswith((".n_", ".window_"))}
    hidden = tensors["lstm.weight_hh_l0"].shape[1]
    shrink = 0.25
    for layer in range(2, 2 + recipe.extra_layers):
        for direction, suffix in enumerate(("", "_reverse")):
            # Gates: input open, forget shut, output open; the cell takes its half of the layer below, shrunk, so that
            # tanh hardly bends it.
            taken = torch.zeros(4 * hidden, 2 * hidden)
            taken[2 * hidden : 3 * hidden, direction * hidden : (direction + 1) * hidden] = shrink * torch.eye(hidden)
            bias = torch.zeros(4 * hidden)
            bias[:hidden], bias[hidden : 2 * hidden], bias[3 * hidden :] = 10.0, -10.0, 10.0
            tensors[f"lstm.weight_ih_l{layer}{suffix}"] = taken
            tensors[f"lstm.weight_hh_l{layer}{suffix}"] = torch.zeros(4 * hidden, hidden)
            tensors[f"lstm.bias_ih_l{layer}{suffix}"] = bias
            tensors[f"lstm.bias_hh_l{layer}{suffix}"] = torch.zeros(4 * hidden)
    tensors["linear.0.weight"] = tensors["linear.0.weight"] / shrink**recipe.extra_layers
    chance = torch.Generator().manual_seed(recipe.seed)
    weight = tensors["classifier.weight"]
    tensors["classifier.weight"] = weight + recipe.noise * weight.std() * torch.randn(weight.shape, generator=chance)
    tensors["classifier.bias"] = tensors["classifier.bias"].clone()
    tensors["classifier.bias"][4:] += recipe.overlap_bias

    task = import_pyannote("pyannote.audio.core.task")
    network = import_pyannote("pyannote.audio.models.segmentation.PyanNet").PyanNet(
        lstm={"hidden_size": hidden, "num_layers": 2 + recipe.extra_layers, "bidirectional": True, "monolithic": True},
    )
    network.specifications = task.Specifications(
        problem=task.Problem.MONO_LABEL_CLASSIFICATION,
        resolution=task.Resolution.FRAME,
        duration=recipe.duration_s,
        warm_up=(0.0, 0.0),
        classes=["speaker#1", "speaker#2", "speaker#3"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    network.build()
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected and all(name.endswith((".n_", ".window_")) for name in missing), (missing, unexpected)
    return network.eval()


def _embedding(recipe: Recipe, voices: Mapping[str, list[npt.NDArray[np.float32]]]) -> tuple[Any, dict[str, Array]]:
    """The voice network and the tensors of its PLDA."""
    task = import_pyannote("pyannote.audio.core.task")
    wespeaker = import_pyannote("pyannote.audio.models.embedding.wespeaker")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = wespeaker.WeSpeakerResNet34(num_mel_bins=recipe.num_bands)
    network.specifications = task.Specifications(
        problem=task.Problem.REPRESENTATION, resolution=task.Resolution.CHUNK, duration=5.0
    )
    crops, speakers = _crops(voices)
    with torch.no_grad():
        _set_norms(network, crops[:: max(1, len(crops) // 24)])
        frames = [network.eval().resnet.pool(network.forward_frames(crop[None, None])) for crop in crops]
    statistics = torch.cat(frames).double().numpy()  # (C, P)
    projection, offset = _discriminants(statistics, speakers, np.random.default_rng(recipe.seed))
    with torch.no_grad():
        network.resnet.seg_1.weight.copy_(torch.from_numpy(projection.T))
        network.resnet.seg_1.bias.copy_(torch.from_numpy(offset))
    return network, _plda(statistics @ projection + offset, speakers)


def _crops(voices: Mapping[str, list[npt.NDArray[np.float32]]]) -> tuple[list[Tensor], npt.NDArray[np.int64]]:
    crops: list[Tensor] = []
    speakers = []
    chance = torch.Generator().manual_seed(1)
    for index, recordings in enumerate(voices.values()):
        starts = [(recording, at) for recording in recordings
                  for at in range(0, len(recording) - CROP_SAMPLES + 1, CROP_SAMPLES // 2)]  # fmt: skip
        for recording, at in starts[:CROPS_MAX]:
            # Louder and quieter, in more noise and less: else levels and noise are all that it tells apart.
            level, floor = 10 ** -torch.rand(2, generator=chance)
            noise = 1e-3 * floor * torch.randn(CROP_SAMPLES, generator=chance)
            crops.append(torch.from_numpy(recording[at : at + CROP_SAMPLES]) * level + noise)
            speakers.append(index)
    return crops, np.array(speakers)


def _set_norms(network: Any, crops: Iterable[Tensor]) -> None:
    """Set batch norms' means and variances by real speech: random convolutions fade out or blow up without."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average over what it sees
    network.train()
    for crop in crops:
        network.forward_frames(crop[None, None])
    network.eval()


def _discriminants(statistics: Array, speakers: npt.NDArray[np.int64], chance: Any) -> tuple[Array, Array]:
    """A last layer (P, D) and (D,) in which speakers lie apart, and all of them a little to one side."""
    mean = statistics.mean(axis=0)
    centred = statistics - mean
    num_axes = min(40, len(centred) - int(speakers.max()) - 2, centred.shape[1])
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    whiten = axes[:num_axes].T / scale[:num_axes] * np.sqrt(len(centred))
    white = centred @ whiten
    within, between = _scatter(white, speakers)
    power, directions = eigh(between, within + 0.2 * np.trace(within) / num_axes * np.eye(num_axes))
    kept = np.argsort(power)[::-1][: min(LDA_DIM - 4, int(speakers.max()), num_axes)]
    weights = np.sqrt(np.maximum(power[kept], 0) / (1 + np.maximum(power[kept], 0)))
    basis = np.linalg.qr(chance.standard_normal((EMBEDDING_DIM, EMBEDDING_DIM)))[0]
    projection = whiten @ directions[:, kept] * weights @ basis[: len(kept)]
    size = np.linalg.norm(centred @ projection, axis=1).mean()
    offset = OFFSET * size * basis[-1] - mean @ projection
    return projection, offset


def _plda(embeddings: Array, speakers: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Tensors as in pyannote's xvec_transform.npz and plda.npz, fitted on embeddings (C, D)."""
    mean1 = embeddings.mean(axis=0)
    units = _unit(embeddings - mean1) * np.sqrt(EMBEDDING_DIM)
    within, between = _scatter(units, speakers)
    ridge = 0.1 * np.trace(within) / EMBEDDING_DIM * np.eye(EMBEDDING_DIM)
    _, directions = eigh(between, within + ridge)
    lda = directions[:, ::-1][:, :LDA_DIM]
    mean2 = (units @ lda).mean(axis=0)
    features = _unit(units @ lda - mean2) * np.sqrt(LDA_DIM)
    within, between = _scatter(features, speakers)
    between += 1e-3 * np.eye(LDA_DIM)
    psi, axes = eigh(between, within + 0.1 * np.trace(within) / LDA_DIM * np.eye(LDA_DIM))
    return {
        "mean1": mean1, "mean2": mean2, "lda": lda,
        "mu": features.mean(axis=0), "tr": axes.T[::-1].copy(), "psi": psi[::-1].copy(),
    }  # fmt: skip


def _scatter(items: Array, labels: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Covariances within and between speakers."""
    means = np.stack([items[labels == label].mean(axis=0) for label in range(int(labels.max()) + 1)])
    rest, apart = items - means[labels], means - means.mean(axis=0)
    return rest.T @ rest / len(items), apart.T @ apart / len(means)


def _unit(items: Array) -> Array:
    unit: Array = items / np.linalg.norm(items, axis=1, keepdims=True)
    return unit


def _write_for_pyannote(folder: Path, made: Checkpoint, method: str, parameters: Mapping[str, Any]) -> None:
    import lightning

    for name, network in (("segmentation", made.segmentation), ("embedding", made.embedding)):
        checkpoint = {
            "state_dict": network.state_dict(),
            "hyper_parameters": _plain(network.hparams),
            "pytorch-lightning_version": lightning.__version__,
        }
        network.on_save_checkpoint(checkpoint)
        (folder / name).mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, folder / name / "pytorch_model.bin")
    (folder / "plda").mkdir(exist_ok=True)
    transform = {name: made.plda[name] for name in ("mean1", "mean2", "lda")}
    np.savez(folder / "plda" / "xvec_transform.npz", allow_pickle=False, **transform)
    np.savez(
        folder / "plda" / "plda.npz", allow_pickle=False, **{name: made.plda[name] for name in ("mu", "tr", "psi")}
    )
    config = {
        "dependencies": {"pyannote.audio": "4.0.0"},
        "pipeline": {
            "name": "pyannote.audio.pipelines.SpeakerDiarization",
            "params": {
                "clustering": method,
                "segmentation": "$model/segmentation",
                "segmentation_batch_size": 32,
                "embedding": "$model/embedding",
                "embedding_batch_size": 32,
                "embedding_exclude_overlap": made.recipe.exclude_overlap,
                "plda": "$model/plda",
            },
        },
        "params": {"clustering": dict(parameters), "segmentation": {"min_duration_off": made.recipe.min_duration_off}},
    }
    (folder / "config.yaml").write_text(json.dumps(config, indent=2))  # which is YAML too


def _write_bundle(folder: Path, made: Checkpoint, method: str, parameters: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file as save_tensors

    folder.mkdir(parents=True, exist_ok=True)
    for name, network in (("segmentation", made.segmentation), ("embedding", made.embedding)):
        tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_tensors(tensors, folder / f"{name}.safetensors")
    save_arrays({key: np.ascontiguousarray(value) for key, value in made.plda.items()}, folder / "plda.safetensors")
    given = dict(parameters)
    if "method" in given:
        given["linkage"] = given.pop("method")
    specifications = made.segmentation.specifications
    lines = [
        'id = "generated"', f'revision = "{made.recipe.seed}"', 'family = "pyannote"', "",
        *(
            f'[weights.{name}]\npackage_file = "{name}.safetensors"\nsha256 = "{_sha256(folder / name)}"\n'
            for name in ("segmentation", "embedding", "plda")
        ),
        '[segmentation]\narchitecture = "PyanNet"', _inline("hyperparameters", _plain(made.segmentation.hparams)),
        "[segmentation.specifications]", 'problem = "MONO_LABEL_CLASSIFICATION"', 'resolution = "FRAME"',
        f"duration = {made.recipe.duration_s}", f"classes = {json.dumps(specifications.classes)}",
        f"powerset_max_classes = {specifications.powerset_max_classes}", "permutation_invariant = true", "",
        '[embedding]\narchitecture = "WeSpeakerResNet34"', f'model_id = "generated-{made.recipe.num_bands}"',
        f'model_revision = "{made.recipe.seed}"', _inline("hyperparameters", _plain(made.embedding.hparams)), "",
        "[pipeline]", "segmentation_step = 0.1",
        f"embedding_exclude_overlap = {str(made.recipe.exclude_overlap).lower()}",
        f"min_duration_off = {made.recipe.min_duration_off}", "",
        "[clustering]", f'method = "{method}"',
        *(f"{key} = {json.dumps(value)}" for key, value in given.items()), "",
    ]  # fmt: skip
    (folder / "bundle.toml").write_text("\n".join(lines))


def _inline(name: str, table: Mapping[str, Any]) -> str:
    def value_of(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f"{k} = {value_of(v)}" for k, v in value.items()) + " }"
        return json.dumps(value)

    return f"{name} = {value_of(table)}"


def _plain(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those that say nothing."""
    return {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in hparams.items() if value is not None
    }


def _sha256(stem: Path) -> str:
    return hashlib.sha256(stem.with_suffix(".safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--voices", type=Path, help="a folder with one folder of recordings a speaker")
    source.add_argument(
        "--pieces-of", type=Path, nargs="+", metavar="FILE", help="recordings, where there are no voices"
    )
    parser.add_argument("--speakers", type=int, default=40)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    base = SMALL if given.size == "small" else FULL
    recipe = Recipe(seed=given.seed, num_bands=base.num_bands, extra_layers=base.extra_layers)
    voices = read_voices(given.voices, given.speakers) if given.voices else pieces_as_voices(given.pieces_of)
    generate(given.out, voices, recipe)


if __name__ == "__main__":
    main()

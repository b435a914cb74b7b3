"""A pyannote pipeline becomes a bundle of ours: weights as safetensors, all else in one manifest, digests pinned.

In comes a folder or a tarball in pyannote's format, out comes a folder with bundle.toml in the user's models folder.
What always holds: no network is needed; nothing of a checkpoint is run (models.checkpoints); the bundle appears whole
or not at all; what it says is what this engine then does, and a pipeline that it would run otherwise is refused here.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from models.bundle import MANIFEST, AnyBundle, load_bundle, models_folder
from models.bundle_archive import unpack
from models.checkpoints import Checkpoint, read_arrays, read_checkpoint
from models.pipeline_files import Pipeline, find_pipeline
from models.toml_text import toml_text
from runtime.errors import Conflict, InvalidRequest, NotFound

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SHIPPED_NAME = "builtin"
PLDA_ARRAYS = frozenset({"mean1", "mean2", "lda", "mu", "tr", "psi"})
IGNORED_TENSORS = ("loss_func.",)
"""What training left in a checkpoint and no network of ours has."""
HEADER = """\
# Made by `speakerd models import` out of pyannote's own files. Everything that decides a result of this bundle.
# Digests were taken at the import: that the files were the publisher's then is not known to us.
"""


def import_bundle(source: Path, name: str, *, replace: bool = False, revision: str = "", origin: str = "") -> AnyBundle:
    """Import a folder or tarball under a name, and load the bundle.

    revision: the publisher's, where it is known; else it is made of the weights' digests. origin: where it is from, to
    be written down. Conflict if there is one of that name and it is not to be replaced.
    """
    target = check_name(name, replace=replace)
    if not source.exists():
        raise NotFound(f"{source} is not there")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it gets there by being renamed.
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target.parent) as scratch:
        folder = source
        if not source.is_dir():
            folder = Path(scratch) / "unpacked"
            folder.mkdir()
            unpack(source, folder)
        made = Path(scratch) / "bundle"
        made.mkdir()
        _convert(find_pipeline(folder), made, name, revision=revision, origin=origin)
        bundle = load_bundle(made)
        for weights in bundle.weights.values():
            weights.verified_path()
        with _out_of_the_way(target):
            made.rename(target)
    return load_bundle(target)


def check_name(name: str, *, replace: bool) -> Path:
    """Where a bundle of this name goes. InvalidRequest for what is no name, Conflict where it is taken."""
    if not NAME.fullmatch(name) or name == SHIPPED_NAME:
        raise InvalidRequest(f"{name!r} is no name for it: say letters, digits and -_. and not `{SHIPPED_NAME}`")
    target = models_folder() / name
    if target.exists() and not replace:
        raise Conflict(f"there is a bundle {name} already, at {target}: say --replace, or another name with --as")
    return target


def _convert(pipeline: Pipeline, folder: Path, name: str, *, revision: str, origin: str) -> None:
    """Write weights and manifest into a folder."""
    settings, clustering = _pipeline(pipeline), _clustering(pipeline)  # before the work: they may refuse it
    with ThreadPoolExecutor(2) as readers:
        segmentation, embedding = readers.map(read_checkpoint, (pipeline.segmentation, pipeline.embedding))
    weights = {
        "segmentation": _write(folder, "segmentation", segmentation.safetensors),
        "embedding": _write(folder, "embedding", embedding.safetensors),
    }
    if pipeline.plda is not None:
        arrays = {key: array for file in pipeline.plda for key, array in read_arrays(file).items()}
        if missing := PLDA_ARRAYS - set(arrays):
            raise InvalidRequest(f"the PLDA lacks {', '.join(sorted(missing))}: it is not pyannote's")
        weights["plda"] = _write(folder, "plda", save({key: arrays[key] for key in sorted(PLDA_ARRAYS)}))
    table = {
        "id": name,
        "revision": revision[:64] or _digest_of_all(weights)[:12],
        "family": "pyannote",
        **({"source": {"origin": origin}} if origin else {}),
        "weights": {
            kind: {"package_file": f"{kind}.safetensors", "sha256": digest} for kind, digest in weights.items()
        },
        "segmentation": _network(segmentation),
        # Voiceprints are comparable within one network and one mean that is taken off them.
        "embedding": {
            "model_id": embedding.architecture.lower(),
            "model_revision": _digest_of_all({k: d for k, d in weights.items() if k != "segmentation"})[:12],
            **_network(embedding),
        },
        "pipeline": settings,
        "clustering": clustering,
    }
    (folder / MANIFEST).write_text(HEADER + toml_text(table))


def _write(folder: Path, kind: str, content: bytes) -> str:
    (folder / f"{kind}.safetensors").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _network(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "architecture": checkpoint.architecture,
        "hyperparameters": checkpoint.hyperparameters,
        "specifications": checkpoint.specifications,
    }


def _pipeline(pipeline: Pipeline) -> dict[str, Any]:
    given = pipeline.parameters
    segmentation = pipeline.settings.get("segmentation", {})
    if "threshold" in segmentation:
        raise InvalidRequest("the pipeline thresholds its segmentation: only powerset segmentation is read")
    return {
        "segmentation_step": _number(given.get("segmentation_step", 0.1), "segmentation_step"),
        "embedding_exclude_overlap": bool(given.get("embedding_exclude_overlap", False)),
        "min_duration_off": _number(segmentation.get("min_duration_off", 0.0), "min_duration_off"),
    }


def _clustering(pipeline: Pipeline) -> dict[str, Any]:
    method = str(pipeline.parameters.get("clustering", "VBxClustering"))
    given = pipeline.settings.get("clustering")
    if not isinstance(given, dict):
        raise InvalidRequest("the config lacks params.clustering: take the one of the hub's repository")
    if method == "VBxClustering":
        wanted: Mapping[str, type] = {"threshold": float, "Fa": float, "Fb": float}
    elif method == "AgglomerativeClustering":
        wanted = {"threshold": float, "min_cluster_size": int}
    else:
        raise InvalidRequest(f"clustering with {method[:80]} is not among VBxClustering, AgglomerativeClustering")
    table: dict[str, Any] = {"method": method}
    if method == "AgglomerativeClustering":
        table["linkage"] = str(given.get("method", "centroid"))
    for key, kind in wanted.items():
        if key not in given:
            raise InvalidRequest(f"the config lacks params.clustering.{key}")
        table[key] = kind(_number(given[key], key))
    return table


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} in the config is {str(value)[:80]!r}, which is no number")
    return float(value)


def _digest_of_all(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(digests[kind] for kind in sorted(digests)).encode()).hexdigest()


@contextmanager
def _out_of_the_way(target: Path) -> Iterator[None]:
    """Move what is there aside; put it back if what is to take its place does not come."""
    aside = target.with_name(f".replaced-{target.name}")
    if aside.exists():
        shutil.rmtree(aside)
    if target.exists():
        target.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    if aside.exists():
        shutil.rmtree(aside)

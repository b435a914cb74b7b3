"""Where the files of a pyannote pipeline lie: a folder as the hub has it, with its parts beside it, or a hub cache.

In comes a folder; out come the paths of its config, networks and PLDA, and the config's parameters. What always holds:
every file lies under the folder, or, where that is a snapshot in a hub cache, under the cache of its repositories; a
config is plain YAML of bounded size, and only what is named here is read of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runtime.errors import InvalidRequest, NotFound, TooLarge

CONFIG = "config.yaml"
NETWORK = "pytorch_model.bin"
PLDA = ("xvec_transform.npz", "plda.npz")
CONFIG_BYTES_MAX = 64 << 10
CONFIG_DEPTH_MAX = 6
PIPELINES = ("pyannote.audio.pipelines.SpeakerDiarization", "SpeakerDiarization")
CACHE_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline as it lies on disk. plda: the transform and the PLDA itself, None where clustering needs none.

    parameters: those of the pipeline (what it is built with); settings: what it was instantiated with.
    """

    config: Path
    segmentation: Path
    embedding: Path
    plda: tuple[Path, Path] | None
    parameters: Mapping[str, Any]
    settings: Mapping[str, Any]


def find_pipeline(folder: Path) -> Pipeline:
    """The pipeline in a folder. NotFound or InvalidRequest, saying what is missing."""
    root = folder.resolve()
    config = _config(root)
    table = _read(config)
    described = table.get("pipeline")
    if not isinstance(described, dict) or described.get("name") not in PIPELINES:
        raise InvalidRequest(
            f"{config.name} describes no pipeline for speaker diarization: its pipeline.name says what"
        )
    parameters = described.get("params")
    settings = table.get("params")
    if not isinstance(parameters, dict) or not isinstance(settings, dict):
        raise InvalidRequest(f"{config.name} lacks pipeline.params or params: take the one of the hub's repository")
    clustering = str(parameters.get("clustering", "VBxClustering"))
    plda = None
    if clustering == "VBxClustering":
        where = parameters.get("plda", "$model/plda")
        transform, matrices = (_part(root, config.parent, where, "plda", name) for name in PLDA)
        plda = (transform, matrices)
    return Pipeline(
        config=config,
        segmentation=_part(root, config.parent, parameters.get("segmentation"), "segmentation", NETWORK),
        embedding=_part(root, config.parent, parameters.get("embedding"), "embedding", NETWORK),
        plda=plda,
        parameters=parameters,
        settings=settings,
    )


def _config(root: Path) -> Path:
    """The one config of the folder: in it, in its only sub-folder that has one, or in a hub cache."""
    if (root / CONFIG).is_file():
        return root / CONFIG
    found = sorted(
        path for pattern in (f"*/{CONFIG}", f"*/*/{CONFIG}", f"*/snapshots/*/{CONFIG}") for path in root.glob(pattern)
    )
    # A cache holds the networks' repositories as well, which may have configs of their own.
    pipelines = [path for path in found if "pipeline" in _read(path)]
    if not pipelines:
        raise NotFound(f"{root} holds no {CONFIG} of a pipeline: name the folder that has it, or its tarball")
    if len(pipelines) > 1:
        named = ", ".join(str(path.parent.relative_to(root)) for path in pipelines[:5])
        raise InvalidRequest(f"{root} holds several pipelines ({named}): name the folder of one")
    return pipelines[0]


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise TooLarge(f"{path.name} is larger than {CONFIG_BYTES_MAX >> 10} KiB: it is no config of a pipeline")
    try:
        table = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{path.name} cannot be read: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(table, dict):
        raise InvalidRequest(f"{path.name} is no table")
    return table


def _part(root: Path, base: Path, where: object, kind: str, name: str) -> Path:
    """The file of one part of the pipeline, wherever copies of repositories are commonly put."""
    for candidate in _candidates(base, where, kind, name):
        if candidate.is_file():
            _refuse_outside(candidate, root)
            return candidate
    raise NotFound(
        f"the {kind} of the pipeline is missing: {where!r} was looked for as {kind}/{name} beside {CONFIG}, as a copy "
        f"of its repository there, and in a hub cache; put it at {kind}/{name}"
    )


def _candidates(base: Path, where: object, kind: str, name: str) -> Iterator[Path]:
    sub = ""
    if isinstance(where, dict):
        sub, where = str(where.get("subfolder") or ""), where.get("checkpoint", "")
    where = where.split("@")[0] if isinstance(where, str) else ""
    if where.startswith("$model/"):
        yield base / where.removeprefix("$model/") / name
    elif where:
        said = Path(where)
        if not said.is_absolute():
            yield base / said / sub / name
            yield base / said
        yield base / said.name / sub / name
        # base is snapshots/REVISION of a repository in a hub cache: the others are its neighbours.
        cached = CACHE_PREFIX + "--".join(said.parts)
        for cache in (base, base.parent, base.parent.parent.parent):
            yield from sorted(cache.glob(f"{cached}/snapshots/*/{name}"))
        yield base.parent / said.name / name
    yield base / kind / name


def _refuse_outside(path: Path, root: Path) -> None:
    """Links may lead anywhere within the folder, or within the hub cache that it is a snapshot in, and nowhere else."""
    allowed = root
    for parent in root.parents:
        if parent.name.startswith(CACHE_PREFIX):
            allowed = parent.parent
    if not path.resolve().is_relative_to(allowed):
        raise InvalidRequest(f"{path.name} is a link that leads out of {allowed}: copy the file itself")

"""A bundle of pyannote's family: its manifest, read and checked.

In comes the table of a `bundle.toml` whose `family` is "pyannote", out comes a frozen PyannoteBundle. Weights lie
beside the manifest as safetensors, under pyannote's own names of tensors, each pinned by digest. The manifest says
everything else that decides a result: the networks' classes and hyperparameters, the pipeline's parameters, those of
clustering. Importing this module does not import torch.

    id = "community-1"
    revision = "…"
    family = "pyannote"

    [weights.segmentation]              # and [weights.embedding]; [weights.plda] where clustering is VBx
    package_file = "segmentation.safetensors"
    sha256 = "…"

    [segmentation]                      # and [embedding], which adds model_id and model_revision
    architecture = "PyanNet"
    [segmentation.hyperparameters]      # as pyannote's checkpoint holds them
    [segmentation.specifications]       # problem, resolution, duration, …, enums by name

    [pipeline]
    segmentation_step = 0.1
    embedding_exclude_overlap = true
    min_duration_off = 0.0

    [clustering]                        # or method = "AgglomerativeClustering", linkage, threshold, min_cluster_size
    method = "VBxClustering"
    threshold = 0.6
    Fa = 0.07
    Fb = 0.8
    lda_dimension = 128

The PLDA's tensors are mean1, mean2 and lda of pyannote's `xvec_transform.npz`, and mu, tr and psi of its `plda.npz`, as
they are there. Tables [live], [live.clustering], [online], [online.clustering], [online.timeline] and [naming] may say
what live.toml says otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from models.analysis import FloatArray, FrameGrid
from models.bundle import Weights
from models.clustering import ClusteringParameters
from models.naming import NamingParameters
from models.online import OnlineParams
from models.online_clustering import OnlineClusteringParams
from models.pyannote.clustering import AgglomerativeParameters
from models.pyannote.vbx import VbxParameters
from models.timeline import TimelineParams
from runtime.errors import InvalidRequest
from runtime.units import SAMPLE_RATE_HZ

FAMILY = "pyannote"
SEGMENTATION_ARCHITECTURES = ("PyanNet",)
EMBEDDING_ARCHITECTURES = ("WeSpeakerResNet34", "WeSpeakerResNet152", "WeSpeakerResNet221", "WeSpeakerResNet293")
LIVE_DEFAULTS = Path(__file__).parent / "live.toml"


@dataclass(frozen=True, slots=True, eq=False)
class NetworkSpec:
    """One of pyannote's networks: the name of its class, and what that class is built with.

    specifications: fields of pyannote's Specifications, enums by name; empty for networks that need none.
    """

    architecture: str
    hyperparameters: Mapping[str, Any]
    specifications: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PipelineParameters:
    """What pyannote's SpeakerDiarization is built with. segmentation_step is a share of the window.

    lda_dimension: how many axes of the PLDA count; nothing where clustering is agglomerative.
    """

    segmentation_step: float
    embedding_exclude_overlap: bool
    min_duration_off: float
    clustering: VbxParameters | AgglomerativeParameters
    lda_dimension: int = 128


@dataclass(frozen=True, slots=True)
class LiveParameters:
    """How windows of live streams are heard, where powerset probabilities take the place of hard decisions.

    hop_samples, step_samples: of windows and frames. active_threshold: from which a frame is a local speaker's.
    clean_frames_min: least clean speech, in frames, for an embedding.
    """

    hop_samples: int
    step_samples: int
    active_threshold: float
    clean_frames_min: int


@dataclass(frozen=True, slots=True, eq=False)
class PyannoteBundle:
    """A bundle's manifest, read and checked.

    grid is that of live windows, file_grid that of a recording's: pyannote's own frames, windows a `segmentation_step`
    apart. voice_mean (D,) is taken off embeddings before their directions are compared with voices.
    """

    id: str
    revision: str
    model_id: str
    model_revision: str
    weights: Mapping[str, Weights]
    grid: FrameGrid
    file_grid: FrameGrid
    segmentation: NetworkSpec
    embedding: NetworkSpec
    pipeline: PipelineParameters
    live: LiveParameters
    clustering: ClusteringParameters
    online: OnlineParams
    naming: NamingParameters
    voice_mean: FloatArray
    family: str = field(default=FAMILY)

    def __repr__(self) -> str:
        return f"PyannoteBundle({self.id}@{self.revision}, {type(self.pipeline.clustering).__name__})"


def bundle_from_table(table: Mapping[str, Any], folder: Path) -> PyannoteBundle:
    """The bundle that a manifest's table describes; `folder` holds its weights.

    InvalidRequest where it asks for what this engine does not have; KeyError or TypeError where it is malformed.
    """
    weights = {
        name: Weights(folder / entry["package_file"], entry["sha256"]) for name, entry in table["weights"].items()
    }
    segmentation = _network(table["segmentation"], SEGMENTATION_ARCHITECTURES)
    embedding = _network(table["embedding"], EMBEDDING_ARCHITECTURES)
    pipeline = _pipeline(table)
    if isinstance(pipeline.clustering, VbxParameters) and "plda" not in weights:
        raise InvalidRequest("VBx needs the weights of a PLDA: name them in [weights.plda]")
    defaults = tomllib.loads(LIVE_DEFAULTS.read_text())
    live = LiveParameters(**_merged(defaults["live"], table.get("live", {}), LiveParameters))
    dimension = embedding_dimension(embedding)
    file_grid = _file_grid(segmentation, pipeline, dimension)
    evidence = _merged(defaults["live"]["clustering"], table.get("live", {}).get("clustering", {}))
    for name in ("within_variance", "between_variance"):
        evidence[name] = np.full(dimension, evidence[name] / dimension, np.float32)
    clustering = ClusteringParameters(**evidence)
    online = _merged(defaults["online"], table.get("online", {}))
    online["clustering"] = OnlineClusteringParams(**online["clustering"])
    online["timeline"] = TimelineParams(**online["timeline"])
    return PyannoteBundle(
        id=table["id"],
        revision=table["revision"],
        model_id=table["embedding"]["model_id"],
        model_revision=table["embedding"]["model_revision"],
        weights=MappingProxyType(weights),
        grid=FrameGrid(
            window_samples=file_grid.window_samples,
            hop_samples=live.hop_samples,
            step_samples=live.step_samples,
            num_frames=file_grid.window_samples // live.step_samples,
            num_local_speakers=file_grid.num_local_speakers,
            embedding_dim=dimension,
        ),
        file_grid=file_grid,
        segmentation=segmentation,
        embedding=embedding,
        pipeline=pipeline,
        live=live,
        clustering=clustering,
        online=OnlineParams(evidence=clustering, **online),
        naming=NamingParameters(**_merged(defaults["naming"], table.get("naming", {}))),
        voice_mean=_voice_mean(weights, dimension),
    )


def embedding_dimension(embedding: NetworkSpec) -> int:
    """How long the network's embeddings are: WeSpeaker's ResNets in pyannote are all built with 256."""
    assert embedding.architecture in EMBEDDING_ARCHITECTURES
    return 256


def num_frames(segmentation: NetworkSpec, num_samples: int) -> int:
    """Frames that PyanNet makes of so many samples."""
    count = (num_samples - 251) // int(segmentation.hyperparameters.get("sincnet", {}).get("stride", 10)) + 1
    for _ in range(2):
        count = (count - 3) // 3 + 1
        count = count - 5 + 1
    return (count - 3) // 3 + 1


def _network(table: Mapping[str, Any], allowed: tuple[str, ...]) -> NetworkSpec:
    if table["architecture"] not in allowed:
        raise InvalidRequest(f"networks of class {table['architecture']} are not among {', '.join(allowed)}")
    return NetworkSpec(
        table["architecture"],
        MappingProxyType(dict(table.get("hyperparameters", {}))),
        MappingProxyType(dict(table.get("specifications", {}))),
    )


def _pipeline(table: Mapping[str, Any]) -> PipelineParameters:
    given = dict(table["clustering"])
    method = given.pop("method")
    clustering: VbxParameters | AgglomerativeParameters
    if method == "VBxClustering":
        dimension = given.pop("lda_dimension", 128)
        clustering = VbxParameters(fa=given.pop("Fa"), fb=given.pop("Fb"), **given)
        return PipelineParameters(clustering=clustering, lda_dimension=dimension, **table["pipeline"])
    if method == "AgglomerativeClustering":
        if (linkage := given.pop("linkage")) != "centroid":
            raise InvalidRequest(f"agglomerative clustering with {linkage} linkage is not read, only centroid")
        return PipelineParameters(clustering=AgglomerativeParameters(**given), **table["pipeline"])
    raise InvalidRequest(f"clustering with {method} is not among VBxClustering, AgglomerativeClustering")


def _file_grid(segmentation: NetworkSpec, pipeline: PipelineParameters, dimension: int) -> FrameGrid:
    specifications = segmentation.specifications
    if specifications.get("powerset_max_classes") is None:
        raise InvalidRequest("only segmentation over powerset classes is read: pyannote's since 3.0")
    if segmentation.hyperparameters.get("sample_rate", SAMPLE_RATE_HZ) != SAMPLE_RATE_HZ:
        raise InvalidRequest(f"networks have to take {SAMPLE_RATE_HZ} Hz")
    if any(specifications.get("warm_up", (0.0, 0.0))):
        raise InvalidRequest("segmentation with a warm-up is not read")
    stride = int(segmentation.hyperparameters.get("sincnet", {}).get("stride", 10))
    window = round(specifications["duration"] * SAMPLE_RATE_HZ)
    step_s = pipeline.segmentation_step * specifications["duration"]
    if abs(step_s * SAMPLE_RATE_HZ - round(step_s * SAMPLE_RATE_HZ)) > 1e-6 or not 0 < step_s <= window:
        raise InvalidRequest("segmentation_step has to be a whole number of samples, and at most a window")
    hop = round(step_s * SAMPLE_RATE_HZ)
    if window % hop:
        raise InvalidRequest("a window has to be a whole number of steps")
    return FrameGrid(
        window_samples=window,
        hop_samples=hop,
        step_samples=27 * stride,
        num_frames=num_frames(segmentation, window),
        num_local_speakers=len(specifications["classes"]),
        embedding_dim=dimension,
        starts_at_zero=True,
    )


def _voice_mean(weights: Mapping[str, Weights], dimension: int) -> FloatArray:
    if "plda" not in weights or not weights["plda"].path.is_file():
        return np.zeros(dimension, np.float32)
    return np.asarray(load_file(weights["plda"].verified_path())["mean1"], np.float32).reshape(dimension)


def _merged(default: Mapping[str, Any], given: Mapping[str, Any], only: type | None = None) -> dict[str, Any]:
    """Defaults with what is given put over them, tables within tables as well; with `only`, that class's fields."""
    merged = dict(default)
    for name, value in given.items():
        merged[name] = _merged(merged[name], value) if isinstance(merged.get(name), dict) else value
    return merged if only is None else {f.name: merged[f.name] for f in fields(only) if f.init}

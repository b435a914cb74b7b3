"""A bundle: everything that decides a result, named, pinned and verified.

In comes the name of a bundle that ships with the package or was imported, or a path; out comes a frozen Bundle. Weights
are named by digest, and a file that does not match its digest is refused before anything reads it. Of bundles that may
not be shipped, the package has a manifest that says where they are published (models.bundle_sources).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from models.analysis import FrameGrid
from models.backend import Backend, load_backend
from models.clustering import ClusteringParameters
from models.confidence import ConfidenceParameters
from models.local_speakers import LocalParameters
from models.naming import NamingParameters
from models.online import OnlineParams
from models.online_clustering import OnlineClusteringParams
from models.slot_repair import RepairParameters
from models.timeline import TimelineParams
from runtime.errors import InvalidRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from models.pyannote.bundle import PyannoteBundle

BUNDLES = Path(__file__).parent / "bundles"
MANIFEST = "bundle.toml"
AnyBundle: TypeAlias = "Bundle | PyannoteBundle"


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights and the SHA-256 that it must have."""

    path: Path
    sha256: str

    def verified_path(self) -> Path:
        """The file's path, once its digest has been checked. Unavailable if it is missing or another."""
        if not self.path.is_file():
            raise Unavailable(f"weights {self.path.name} are missing; install the packages this bundle names")
        found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise Unavailable(
                f"weights {self.path.name} have digest {found[:12]}…, the bundle pins {self.sha256[:12]}…; "
                "restore the file, or name it in a bundle of its own"
            )
        return self.path


@dataclass(frozen=True, slots=True)
class FastParameters:
    """What a recording is spared in `fast` mode.

    hop_samples: from window to window. partial_hop_samples: from one embedded partial to the next. silent_voice: a
    window in which voice activity stays below this is not segmented, nobody speaks in it. bfloat16: networks multiply
    in bfloat16 where the processor does so natively.
    """

    hop_samples: int
    partial_hop_samples: int
    silent_voice: float
    bfloat16: bool


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A bundle's manifest, read and checked."""

    id: str
    revision: str
    model_id: str  # of the embedding: voiceprints are comparable within one model id and revision
    model_revision: str
    weights: Mapping[str, Weights]
    grid: FrameGrid
    local: LocalParameters
    fast: FastParameters
    live_silent_voice: float  # as silent_voice in `fast`, of windows of live streams
    backend: Backend
    clustering: ClusteringParameters
    online: OnlineParams
    naming: NamingParameters
    confidence: ConfidenceParameters


def list_bundles() -> list[str]:
    """Names of the bundles that can be loaded: those that ship whole, then those that were imported."""
    shipped = sorted(path.stem for path in BUNDLES.glob("*.toml") if path.stem not in list_published())
    imported = sorted(path.parent.name for path in models_folder().glob(f"[!.]*/{MANIFEST}"))
    return [*shipped, *imported]


def list_published() -> list[str]:
    """Names of the bundles whose weights their publisher alone gives out: to be pulled or imported."""
    return sorted(path.stem for path in BUNDLES.glob("*.toml") if "source" in tomllib.loads(path.read_text()))


def models_folder() -> Path:
    """Where imported bundles live: $SPEAKERD_MODELS, else the user's own data folder."""
    if said := os.environ.get("SPEAKERD_MODELS"):
        return Path(said).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "speakerd" / "models"


def load_bundle(name_or_path: str | Path) -> AnyBundle:
    """A bundle by name, or by the path of its TOML file or of the folder that holds its `bundle.toml`.

    NotFound or InvalidRequest, saying what to mend.
    """
    path = _manifest(name_or_path)
    try:
        table = tomllib.loads(path.read_text())
        if table.get("family") == "pyannote":
            from models.pyannote.bundle import bundle_from_table

            return bundle_from_table(table, path.parent)
        return _bundle_from_table(table, path.parent)
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise InvalidRequest(f"bundle {path.name} cannot be read: {error}") from error


def _manifest(name_or_path: str | Path) -> Path:
    """The manifest of a bundle. A name is that of an imported bundle or of one that ships, before it is a path."""
    name = str(name_or_path)
    if "/" not in name and (models_folder() / name / MANIFEST).is_file():
        return models_folder() / name / MANIFEST
    if name in list_published():
        raise Unavailable(
            f"bundle {name} is not on this machine: `speakerd models pull {name}` fetches it with your token, "
            f"`speakerd models import FOLDER --as {name}` takes a copy of its repository"
        )
    path = Path(name_or_path)
    if path.is_dir():
        path /= MANIFEST
    elif path.suffix != ".toml":
        path = BUNDLES / f"{name}.toml"
    if not path.is_file():
        raise NotFound(f"no bundle {name}; there are {', '.join([*list_bundles(), *list_published()])}")
    return path


def _bundle_from_table(table: dict[str, Any], folder: Path) -> Bundle:
    grid = table["grid"]
    weights = {name: _weights(entry, folder) for name, entry in table["weights"].items()}
    backend = load_backend(weights["backend"].verified_path())
    clustering = ClusteringParameters(
        within_variance=backend.within_variance, between_variance=backend.between_variance, **table["clustering"]
    )
    live = dict(table["online"])
    online_clustering = OnlineClusteringParams(**live.pop("clustering"))
    timeline = TimelineParams(**live.pop("timeline"))
    return Bundle(
        id=table["id"],
        revision=table["revision"],
        model_id=table["embedding"]["model_id"],
        model_revision=table["embedding"]["revision"],
        weights=MappingProxyType(weights),
        grid=FrameGrid(
            num_frames=grid["window_samples"] // grid["step_samples"],
            embedding_dim=backend.projection.shape[1],
            **grid,
        ),
        local=LocalParameters(repair=RepairParameters(**table["repair"]), **table["local"]),
        fast=FastParameters(**table["fast"]),
        live_silent_voice=table["silence"]["live_silent_voice"],
        backend=backend,
        clustering=clustering,
        online=OnlineParams(evidence=clustering, clustering=online_clustering, timeline=timeline, **live),
        naming=NamingParameters(**table["naming"]),
        confidence=ConfidenceParameters(**{name: tuple(said) for name, said in table["confidence"].items()}),
    )


def _weights(entry: dict[str, str], folder: Path) -> Weights:
    if "package_file" in entry:
        return Weights(folder / entry["package_file"], entry["sha256"])
    try:
        distribution = importlib.metadata.distribution(entry["distribution"])
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"the bundle needs the package {entry['distribution']}; install it") from error
    return Weights(Path(str(distribution.locate_file(entry["distribution_file"]))), entry["sha256"])

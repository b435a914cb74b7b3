"""Bundles: what ships loads, and what has been tampered with does not."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib

import pytest

from models.bundle import BUNDLES, Weights, list_bundles, load_bundle
from models.clustering import ClusteringParameters
from models.local_speakers import LocalParameters
from models.naming import NamingParameters
from models.online import OnlineParams
from models.online_clustering import OnlineClusteringParams
from models.slot_repair import RepairParameters
from models.timeline import TimelineParams
from runtime.errors import InvalidRequest, NotFound, Unavailable
from tests.models.builtin_engine import bundle


def test_builtin_ships_and_every_digest_holds():
    assert "builtin" in list_bundles()
    for weights in bundle().weights.values():
        assert weights.verified_path().is_file()
    grid = bundle().grid
    assert grid.hop_samples % grid.step_samples == 0
    assert grid.num_frames * grid.step_samples == grid.window_samples
    assert bundle().model_id == "ge2e-resemblyzer"


def test_weights_with_another_digest_are_refused(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"not what was pinned")
    with pytest.raises(Unavailable, match="digest"):
        Weights(path, "0" * 64).verified_path()


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(Unavailable, match=r"gone\.bin"):
        Weights(tmp_path / "gone.bin", "0" * 64).verified_path()


def test_a_bundle_with_one_changed_digest_does_not_load(tmp_path):
    backend = bundle().weights["backend"].sha256
    text = (BUNDLES / "builtin.toml").read_text().replace(backend, "f" * 64)
    text = text.replace('"builtin/', f'"{(BUNDLES / "builtin").as_posix()}/')
    (tmp_path / "tampered.toml").write_text(text)
    with pytest.raises(Unavailable, match="digest"):
        load_bundle(tmp_path / "tampered.toml")


def test_an_unknown_bundle_is_not_found_and_a_broken_one_says_what_is_missing(tmp_path):
    with pytest.raises(NotFound, match="builtin"):
        load_bundle("no-such-bundle")
    (tmp_path / "half.toml").write_text('id = "half"\nrevision = "1"\n')
    with pytest.raises(InvalidRequest, match="grid"):
        load_bundle(tmp_path / "half.toml")


def test_everything_that_decides_a_result_stands_in_the_bundle():
    table = tomllib.loads((BUNDLES / "builtin.toml").read_text())
    fitted = {"within_variance", "between_variance"}  # these come with the backend
    for kind, said in (
        (LocalParameters, table["local"] | {"repair": table["repair"]}),
        (RepairParameters, table["repair"]),
        (ClusteringParameters, table["clustering"]),
        (OnlineParams, table["online"] | {"evidence": table["clustering"]}),
        (OnlineClusteringParams, table["online"]["clustering"]),
        (TimelineParams, table["online"]["timeline"]),
        (NamingParameters, table["naming"]),
    ):
        assert {field.name for field in dataclasses.fields(kind) if field.init} - fitted == set(said)
    assert bundle().online.evidence is bundle().clustering
    assert bundle().online.timeline == TimelineParams(**table["online"]["timeline"])


def test_loading_a_bundle_and_clustering_need_no_torch():
    check = (
        "import sys, models.bundle, models.diarize, models.naming, models.enrolment\n"
        "models.bundle.load_bundle('builtin')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

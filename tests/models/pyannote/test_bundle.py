"""Bundles of pyannote's family: what they take, what they refuse, and that nothing is unpickled or reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import load_bundle
from models.pyannote.bundle import PyannoteBundle, num_frames
from models.pyannote.device import PyannoteDevice
from models.pyannote.file import frame_clock
from models.pyannote.networks import TELEMETRY_SWITCH, build_embedding, build_segmentation, import_pyannote
from runtime.errors import InvalidRequest, Unavailable


def changed(checkpoints: Path, tmp_path: Path, old: str, new: str) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(checkpoints / "plain" / "bundle-VBxClustering", folder)
    text = (folder / "bundle.toml").read_text()
    assert old in text
    (folder / "bundle.toml").write_text(text.replace(old, new))
    return folder


def loaded(folder: Path) -> PyannoteBundle:
    bundle = load_bundle(folder)
    assert isinstance(bundle, PyannoteBundle)
    return bundle


def test_geometry_is_that_of_the_networks(checkpoints: Path) -> None:
    bundle = loaded(checkpoints / "plain" / "bundle-VBxClustering")
    network = build_segmentation(bundle)
    field = network.receptive_field  # type: ignore[union-attr]
    clock = frame_clock(bundle)
    assert bundle.file_grid.num_frames == network.num_frames(160_000) == 589  # type: ignore[operator]
    assert (clock.step_samples, clock.field_samples) == (round(field.step * 16_000), round(field.duration * 16_000))  # type: ignore[union-attr, operator]
    for samples in (80_000, 112_345, 160_000):
        assert num_frames(bundle.segmentation, samples) == network.num_frames(samples)  # type: ignore[operator]


def test_the_least_sound_for_an_embedding_is_what_pyannote_finds_by_trial(checkpoints: Path) -> None:
    verification = import_pyannote("pyannote.audio.pipelines.speaker_verification")
    bundle = loaded(checkpoints / "plain" / "bundle-VBxClustering")
    theirs = verification.PyannoteAudioPretrainedSpeakerEmbedding(build_embedding(bundle))
    ours = PyannoteDevice(bundle)._mels.length_samples
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deviation of one frame, of which torch warns, is an embedding to pyannote
        assert theirs.min_num_samples == ours == 400


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('architecture = "PyanNet"', 'architecture = "SSeRiouSS"', "not among"),
        ('architecture = "WeSpeakerResNet34"', 'architecture = "os.system"', "not among"),
        ('method = "VBxClustering"', 'method = "OracleClustering"', "not among"),
        ("powerset_max_classes = 2", "", "powerset"),
        ("segmentation_step = 0.1", "segmentation_step = 0.15", "whole number of steps"),
        ("sample_rate = 16000", "sample_rate = 8000", "16000"),
        ("[weights.plda]", "[weights.other]", "PLDA"),
        ("[pipeline]", "[pipeline]\nunknown = 1", "cannot be read"),
    ],
)
def test_what_the_engine_has_not_is_refused(old: str, new: str, said: str, checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=said):
        load_bundle(changed(checkpoints, tmp_path, old, new))


def test_a_manifest_may_say_how_live_streams_are_heard(checkpoints: Path, tmp_path: Path) -> None:
    said = (
        "[live]\nhop_samples = 15_360\n[live.clustering]\nwithin_variance = 0.5\n[naming]\nmargin_min = 0.2\n[pipeline]"
    )
    bundle = loaded(changed(checkpoints, tmp_path, "[pipeline]", said))
    assert bundle.grid.hop_samples == 15_360 and bundle.naming.margin_min == 0.2
    assert np.allclose(bundle.clustering.within_variance.sum(), 0.5) and bundle.clustering.passes == 3


def test_weights_that_are_others_are_refused_before_they_are_read(checkpoints: Path, tmp_path: Path) -> None:
    folder = changed(checkpoints, tmp_path, "[pipeline]", "[pipeline]")
    weights = folder / "embedding.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Unavailable, match="digest"):
        PyannoteDevice(loaded(folder))


def test_weights_that_do_not_fit_the_manifest_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    bundle = loaded(changed(checkpoints, tmp_path, "num_layers = 2, bidirectional", "num_layers = 3, bidirectional"))
    with pytest.raises(InvalidRequest, match="missing"):
        build_segmentation(bundle)
    bundle = loaded(changed(checkpoints, tmp_path / "two", "num_mel_bins = 8", "num_mel_bins = 16"))
    with pytest.raises(InvalidRequest, match="hyperparameters"):
        build_embedding(bundle)


def test_nothing_is_unpickled(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was unpickled")

    monkeypatch.setattr(torch, "load", refused)
    monkeypatch.setattr(np, "load", refused)
    PyannoteDevice(loaded(checkpoints / "plain" / "bundle-VBxClustering"))


def test_pyannotes_telemetry_is_off_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TELEMETRY_SWITCH, "true")
    metrics = import_pyannote("pyannote.audio.telemetry.metrics")
    assert os.environ[TELEMETRY_SWITCH] == "false"
    assert not metrics.is_metrics_enabled()


def test_no_span_is_ever_started(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = import_pyannote("pyannote.audio.telemetry.metrics")

    def started(name: str) -> None:
        raise AssertionError(f"{name} would be reported")

    monkeypatch.setattr(metrics, "tracer", type("Tracer", (), {"start_as_current_span": staticmethod(started)}))
    monkeypatch.setenv(TELEMETRY_SWITCH, "true")
    PyannoteDevice(loaded(checkpoints / "plain" / "bundle-VBxClustering"))
    import_pyannote("pyannote.audio").Pipeline.from_pretrained(checkpoints / "plain" / "pyannote-VBxClustering")


def test_reading_a_bundle_loads_neither_torch_nor_pyannote(checkpoints: Path) -> None:
    code = (
        "import sys\nfrom models.bundle import load_bundle\nfrom models.pyannote.file import PyannoteFile\n"
        f"PyannoteFile(load_bundle({str(checkpoints / 'plain' / 'bundle-VBxClustering')!r}))\n"
        "print([name for name in ('torch', 'pyannote', 'lightning') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

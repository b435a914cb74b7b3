"""A client made from the .proto files alone, in another language, drives a standalone node: the contract is enough."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="module")
def node_modules() -> Path:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node.js and npm are not on this machine")
    modules = HERE / "node_modules"
    if not modules.exists():
        installed = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert installed.returncode == 0, installed.stderr
    return modules


def standard_services(path: Path) -> Path:
    files = descriptor_pb2.FileDescriptorSet()
    for module in (health_pb2, reflection_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    path.write_bytes(files.SerializeToString())
    return path


@pytest.fixture(scope="module")
def recordings(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clip of one person to enrol, and raw PCM of other utterances of that person."""
    folder = tmp_path_factory.mktemp("interop")
    utterances = sorted((audio / "librispeech" / "members" / "2609").glob("*.flac"))
    clip = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in utterances[:3]])
    speech = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in utterances[4:8]])
    soundfile.write(folder / "clip.flac", clip[: 16_000 * 20], 16_000)
    (folder / "speech.s16le").write_bytes((speech[: 16_000 * 20] * 32767).astype("<i2").tobytes())
    return folder / "clip.flac", folder / "speech.s16le"


def test_a_client_generated_from_the_proto_enrols_streams_evicts_and_streams_again(
    node_modules: Path, recordings: tuple[Path, Path], tmp_path: Path
) -> None:
    clip, speech = recordings
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "speakerd", "node", "--standalone", "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert node.stdout is not None
        ready = node.stdout.readline()
        assert ready.startswith("ready grpc="), (tmp_path / "node.log").read_text()
        address = ready.split()[1].removeprefix("grpc=")
        standard = standard_services(tmp_path / "standard.pb")
        arguments = [address, ROOT / "proto", standard, clip, "Ada Lovelace", speech]
        ran = subprocess.run(
            ["node", HERE / "client.js", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stderr
        seen = json.loads(ran.stdout)
    finally:
        node.terminate()
        node.communicate(timeout=30)
    assert node.returncode == 0

    assert seen["health"] == seen["ready"] == "SERVING"
    assert "speakerd.v1.Node" in seen["services"]
    assert seen["described"]["standalone"] is True
    assert seen["enrolled"]["analysis"]["numSpeakers"] == 1
    assert seen["evicted"]["wasHeld"] is True

    said = {turn["speaker"] for turn in seen["known"]["turns"]}
    named = {turn["label"] for turn in seen["known"]["turns"]} | {
        relabel["label"] for relabel in seen["known"]["relabels"]
    }
    assert said, "no turns at all"
    assert "Ada Lovelace" in named
    assert [speaker["label"] for speaker in seen["known"]["closed"]["speakers"]] == ["Ada Lovelace"]

    labels = {turn["label"] for turn in seen["unknown"]["turns"]}
    assert labels == {"spk_0"}
    assert seen["unknown"]["relabels"] == []

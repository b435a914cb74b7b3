"""Bundles taken over from pyannote's own files: whole, pinned, and without running anything that a stranger wrote."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import models.bundle_archive
import models.bundle_import
from models.bundle import list_bundles, load_bundle
from models.bundle_archive import unpack
from models.bundle_hub import HuggingFaceHub, fetch_bundle, published_parts, read_token
from models.bundle_import import import_bundle
from models.checkpoints import Checkpoint, read_arrays, read_checkpoint
from models.pipeline_files import find_pipeline
from models.pyannote.bundle import PyannoteBundle
from models.toml_text import toml_text
from runtime.errors import (
    Conflict,
    Denied,
    InvalidRequest,
    NotFound,
    SpeakerdError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from scripts import verify_bundle
from speakerd.cli import app
from tests.models.builtin_engine import sample_folder

TOKEN = "hf_not_a_real_token"


@pytest.fixture(autouse=True)
def _own_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEAKERD_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(autouse=True)
def _files_are_read_once(monkeypatch: pytest.MonkeyPatch, _read: dict[str, Checkpoint]) -> None:
    """A child that imports torch for each checkpoint is most of what an import takes: none for what was read before."""

    def once(path: Path) -> Checkpoint:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in _read:
            _read[digest] = read_checkpoint(path)
        return _read[digest]

    monkeypatch.setattr(models.bundle_import, "read_checkpoint", once)


@pytest.fixture(scope="module")
def _read() -> dict[str, Checkpoint]:
    return {}


@pytest.fixture
def pipeline(checkpoints: Path, tmp_path: Path) -> Path:
    """A pipeline as community-1's repository is laid out."""
    return Path(shutil.copytree(checkpoints / "plain" / "pyannote-VBxClustering", tmp_path / "community"))


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as out:
        out.add(folder, "copy")
    return archive


class Harmful:
    """Unpickled the ordinary way, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


def test_a_folder_becomes_a_bundle_of_the_same_weights(pipeline: Path, checkpoints: Path) -> None:
    bundle = import_bundle(pipeline, "mine")
    wanted = load_bundle(checkpoints / "plain" / "bundle-VBxClustering")
    assert isinstance(bundle, PyannoteBundle)
    assert isinstance(wanted, PyannoteBundle)
    assert bundle.pipeline == wanted.pipeline
    assert dict(bundle.segmentation.specifications)["powerset_max_classes"] == 2
    assert bundle.segmentation.hyperparameters["lstm"] == wanted.segmentation.hyperparameters["lstm"]
    assert bundle.file_grid == wanted.file_grid
    np.testing.assert_allclose(bundle.voice_mean, wanted.voice_mean)
    assert "mine" in list_bundles()
    assert load_bundle("mine").id == "mine"
    theirs = torch.load(pipeline / "embedding" / "pytorch_model.bin", weights_only=False)["state_dict"]
    from safetensors.torch import load_file

    ours = load_file(bundle.weights["embedding"].verified_path())
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_tarball_is_as_good_as_a_folder_and_pins_the_same_digests(pipeline: Path, tmp_path: Path) -> None:
    one = import_bundle(pipeline, "one")
    other = import_bundle(packed(pipeline, tmp_path / "copy.tar.gz"), "other")
    assert {name: w.sha256 for name, w in one.weights.items()} == {n: w.sha256 for n, w in other.weights.items()}
    # Voiceprints of the same weights are comparable, whatever the bundle is called.
    assert (one.model_id, one.model_revision) == (other.model_id, other.model_revision)


def test_a_name_that_is_taken_is_kept_unless_it_is_to_be_replaced(pipeline: Path, tmp_path: Path) -> None:
    import_bundle(pipeline, "mine", revision="first")
    with pytest.raises(Conflict, match="--replace"):
        import_bundle(pipeline, "mine")
    (pipeline / "plda" / "plda.npz").rename(tmp_path / "elsewhere.npz")
    with pytest.raises(NotFound, match="plda"):
        import_bundle(pipeline, "mine", replace=True)
    assert load_bundle("mine").revision == "first"
    (tmp_path / "elsewhere.npz").rename(pipeline / "plda" / "plda.npz")
    assert import_bundle(pipeline, "mine", replace=True, revision="second").revision == "second"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["mine"]
    for name in ("builtin", "../up", ".hidden", "a/b"):
        with pytest.raises(InvalidRequest, match="no name"):
            import_bundle(pipeline, name)


def test_parts_are_found_where_repositories_are_commonly_put(checkpoints: Path, tmp_path: Path) -> None:
    theirs = checkpoints / "plain" / "pyannote-AgglomerativeClustering"
    config = (theirs / "config.yaml").read_text()
    named = config.replace("$model/segmentation", "pyannote/segmentation-3.0")
    beside = tmp_path / "beside"
    shutil.copytree(theirs / "segmentation", beside / "segmentation-3.0")
    shutil.copytree(theirs / "embedding", beside / "embedding")
    (beside / "config.yaml").write_text(named)
    assert find_pipeline(beside).segmentation == beside / "segmentation-3.0" / "pytorch_model.bin"
    # A hub cache: snapshots are links into blobs.
    cache = tmp_path / "hub"
    own = cache / "models--pyannote--speaker-diarization-3.1" / "snapshots" / "c0ffee"
    part = cache / "models--pyannote--segmentation-3.0" / "snapshots" / "beef"
    for folder in (own, part, part.parent.parent / "blobs"):
        folder.mkdir(parents=True)
    shutil.copytree(theirs / "embedding", own / "embedding")
    (own / "config.yaml").write_text(named)
    shutil.copy(theirs / "segmentation" / "pytorch_model.bin", part.parent.parent / "blobs" / "abc")
    (part / "pytorch_model.bin").symlink_to("../../blobs/abc")
    assert import_bundle(own, "cached").id == "cached"
    assert find_pipeline(cache).segmentation == part / "pytorch_model.bin"
    (own / "embedding" / "pytorch_model.bin").unlink()
    (own / "embedding" / "pytorch_model.bin").symlink_to("/etc/hostname")
    with pytest.raises(InvalidRequest, match="leads out"):
        find_pipeline(own)


def test_a_checkpoint_that_would_run_code_is_refused_and_nothing_of_it_runs(pipeline: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = pipeline / "segmentation" / "pytorch_model.bin"
    whole = torch.load(file, weights_only=False)
    torch.save(whole | {"callbacks": Harmful(mark)}, file)
    with pytest.raises(InvalidRequest, match="nothing of it was run"):
        import_bundle(pipeline, "harm")
    assert not mark.exists()
    assert not (tmp_path / "models" / "harm").exists()
    torch.load(file, weights_only=False)  # as pyannote reads it: the mark would have been seen
    assert mark.exists()


def test_arrays_that_hold_objects_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    np.savez(tmp_path / "plda.npz", mu=np.array([Harmful(mark)], object))
    with pytest.raises(InvalidRequest, match="refused"):
        read_arrays(tmp_path / "plda.npz")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", marks=pytest.mark.deep, id="nothing"),
        pytest.param(b"junk" * 64, id="junk"),
        pytest.param(b"PK\x03\x04" + bytes(64), marks=pytest.mark.deep, id="half an archive"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"pytorch_model\.bin"):
        read_checkpoint(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../config.yaml", tarfile.REGTYPE, "leads out of it"),
        ("/etc/config.yaml", tarfile.REGTYPE, "leads out of it"),
        ("a/config.yaml", tarfile.SYMTYPE, "is a link"),
        ("a/config.yaml", tarfile.LNKTYPE, "is a link"),
        ("a/config.yaml", tarfile.CHRTYPE, "is no file"),
    ],
)
def test_a_tarball_that_reaches_out_is_refused(tmp_path: Path, name: str, kind: bytes, message: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "bad.tar", "w") as out:
        out.addfile(entry, io.BytesIO())
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(InvalidRequest, match=message):
        unpack(tmp_path / "bad.tar", folder)
    assert not list(folder.rglob("*"))


def test_a_tarball_that_unfolds_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.bundle_archive, "UNPACKED_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(models.bundle_archive, "ENTRIES_MAX", 50)
    for number, (count, size) in enumerate(((3, 600_000), (60, 1))):
        archive, folder = tmp_path / f"bomb{number}.tar.gz", tmp_path / f"out{number}"
        folder.mkdir()
        with tarfile.open(archive, "w:gz") as out:
            for index in range(count):
                entry = tarfile.TarInfo(f"{index}/padding")
                entry.size = size
                out.addfile(entry, io.BytesIO(bytes(size)))
        with pytest.raises(TooLarge):
            unpack(archive, folder)
    (tmp_path / "none.tar").write_bytes(b"no tarball at all")
    with pytest.raises(InvalidRequest, match="no tarball"):
        unpack(tmp_path / "none.tar", tmp_path / "out0")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pyannote.audio.pipelines.SpeakerDiarization", "os.system", "no pipeline for speaker diarization"),
        ("VBxClustering", "OracleClustering", "OracleClustering"),
        ('"threshold": 0.6', '"threshold": "high"', "no number"),
        ('"4.0.0"', "!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(pipeline: Path, old: str, new: str, message: str) -> None:
    config = pipeline / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(SpeakerdError, match=message):
        import_bundle(pipeline, "odd")


def test_tables_survive_being_written() -> None:
    import tomllib

    table = {
        "a": 'quote " and \\ and \n',
        "b": [1, 2.5, True, "x"],
        "t": {"u": {"v": 1e-7, "odd key": "ä\x7f"}, "empty": {}},
    }
    assert tomllib.loads(toml_text(table)) == table


def test_the_command_line_lists_imports_and_verifies(pipeline: Path, tmp_path: Path) -> None:
    run = CliRunner()
    listed = json.loads(run.invoke(app, ["models", "list", "--json"]).stdout)
    assert {row["id"]: row["state"] for row in listed["bundles"]} == {
        "builtin": "ready",
        "3.1": "not here: pull or import it",
        "community-1": "not here: pull or import it",
    }
    with pytest.raises(Unavailable, match="speakerd models pull community-1"):
        load_bundle("community-1")
    told = run.invoke(app, ["models", "import", str(pipeline), "--as", "community-1", "--json"])
    assert told.exit_code == 0, told.output
    folder = Path(json.loads(told.stdout)["folder"])
    assert load_bundle("community-1").id == "community-1"
    assert run.invoke(app, ["models", "verify", "community-1", "--json"]).exit_code == 0
    with (folder / "embedding.safetensors").open("ab") as weights:
        weights.write(b"x")
    broken = run.invoke(app, ["models", "verify", "community-1", "--json"])
    assert broken.exit_code == 1
    bad = [weights for weights in json.loads(broken.stdout)["bundles"][0]["weights"] if not weights["ok"]]
    assert [weights["name"] for weights in bad] == ["embedding"]


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: a gated repository, for those with the token and with the conditions accepted."""

    repositories: dict[str, Path]
    accepted = True
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self, *, with_body: bool) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        _, _, file = rest.partition("/")
        content = self.repositories.get(repository, Path("/nowhere")) / file
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "GatedRepo" if repository in self.repositories else "RepoNotFound")
        elif not self.accepted:
            self._refuse(403, "GatedRepo")
        elif not content.is_file():
            self._refuse(404, "EntryNotFound")
        else:
            body = content.read_bytes()
            self.send_response(200)
            for key, value in (("ETag", '"abc"'), ("X-Repo-Commit", "c" * 40), ("Content-Length", str(len(body)))):
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(pipeline: Path) -> Iterator[str]:
    handler = type("Handler", (_Hub,), {"repositories": {"pyannote/speaker-diarization-community-1": pipeline}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bundle_is_pulled_with_the_users_token_and_pinned(hub: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    arguments = ["models", "pull", "community-1", "--token-file", str(tmp_path / "token"), "--endpoint", hub, "--json"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["revision"] == "c" * 40
    assert load_bundle("community-1").revision == "c" * 40
    assert TOKEN not in told.output


def test_what_stands_in_the_way_of_a_pull_is_said_with_what_to_do(hub: str, tmp_path: Path) -> None:
    def pull(token: str | None, endpoint: str = hub) -> None:
        fetch_bundle(HuggingFaceHub(token, endpoint), "community-1", tmp_path / "into", lambda file: None)

    with pytest.raises(Unauthenticated, match=r"accept the conditions at .*HF_TOKEN or --token-file"):
        pull(None)
    with pytest.raises((Unauthenticated, Denied), match=r"token|conditions"):
        pull("hf_of_somebody_else")
    with pytest.raises(Unavailable, match="cannot be reached from here"):
        pull(TOKEN, "http://127.0.0.1:9")
    with pytest.raises(NotFound, match="not published"):
        published_parts("unheard-of")
    (tmp_path / "token").write_text("two words")
    with pytest.raises(InvalidRequest, match="holds no token"):
        read_token(tmp_path / "token")


@pytest.mark.deep
def test_the_script_for_owners_of_weights_finds_no_difference(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("wav", "rttm"):
        shutil.copy(sample_folder() / f"sample.{suffix}", tmp_path)
    out = tmp_path / "found.json"
    pipeline = str(checkpoints / "plain" / "pyannote-AgglomerativeClustering")
    arguments = [pipeline, "--audio", str(tmp_path), "--seconds", "15", "--json", str(out)]
    # Weights that were made in seconds say nothing of how far `fast` is from `exact`.
    monkeypatch.setattr(verify_bundle, "FAST_POINTS_MAX", 100.0)
    assert verify_bundle.main(arguments) == 0
    found = json.loads(out.read_text())
    assert [row["is_identical"] for row in found["recordings"]] == [True, True]
    assert [row["exact"] for row in found["recordings"]] == [row["pyannote"] for row in found["recordings"]]
    # A peer that says something else is seen.
    monkeypatch.setattr(verify_bundle, "_theirs", lambda *_: [(0, 9, 0)])
    assert verify_bundle.main(arguments) == 1

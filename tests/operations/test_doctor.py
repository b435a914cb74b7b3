"""`speakerd doctor` names what is broken, and what mends it: a real fleet that is broken in one way after another."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from controlplane.doctor import look
from models.bundle import BUNDLES
from node.doctor import look as look_at_node
from runtime.certificates import Authority
from speakerd.cli.doctor_machine import engine
from speakerd.cli.doctor_server import port, skew
from tests.faults.storage import SmallDisk, small_disk
from tests.speakerd.running import RunningUp, eventually, speakerd

MEGABYTES = 400
"""More than what counts as about to be full."""


def diagnosis(data: Path, *more: str, problems: bool) -> dict[str, dict[str, Any]]:
    """The report by name; the exit code says whether there are problems."""
    ran = speakerd("doctor", "--json", *more, data=data)
    report = json.loads(ran.stdout)
    found = {check["name"]: check for check in report["checks"]}
    bad = {name: check for name, check in found.items() if check["verdict"] == "problem"}
    assert (ran.returncode, report["ok"]) == ((1, False) if problems else (0, True)), (bad, ran.stderr)
    assert all(check["mend"] for check in found.values() if check["verdict"] != "ok"), found
    assert "Traceback" not in ran.stderr
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def disk() -> Iterator[SmallDisk]:
    with small_disk(MEGABYTES) as made:
        yield made


@pytest.fixture(scope="module")
def up(disk: SmallDisk) -> Iterator[RunningUp]:
    grpc, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    running = RunningUp(disk.folder / "data", "--grpc", grpc, "--http", http, "--drain-s", "1")
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def redis_of(up: RunningUp) -> psutil.Process:
    (found,) = [one for one in up.daemon("controlplane").children() if "redis" in one.name()]
    return found


def test_a_fleet_that_is_well_has_nothing_to_mend(up: RunningUp) -> None:
    found = diagnosis(up.data, problems=False)
    for name in ("Python", "torch", "server (gRPC)", "server (HTTP)", "clock of the server",
                 "Redis", "Redis, says the server", "nodes", "keys", "database", "recordings", "media store",
                 "erasure journal", "audit checkpoints", "clock"):  # fmt: skip
        assert found[name]["verdict"] == "ok", found[name]
    # How much there is of these is the machine's.
    assert {found[name]["verdict"] for name in ("memory", "open files")} <= {"ok", "note"}


def test_a_redis_that_does_not_answer_and_one_that_died_are_named(up: RunningUp) -> None:
    redis = redis_of(up)
    redis.suspend()
    try:
        found = diagnosis(up.data, problems=True)
        assert found["Redis"]["verdict"] == "problem" and "does not answer" in found["Redis"]["found"]
        assert "starts it again" in found["Redis"]["mend"]
        assert found["Redis, says the server"]["verdict"] == "problem"
    finally:
        redis.resume()
        redis.kill()

    def is_back() -> bool:
        found = diagnosis_of_any(up.data)
        return found["Redis"]["verdict"] == found["Redis, says the server"]["verdict"] == "ok"

    assert eventually(is_back, 60.0)
    died = diagnosis_of_any(up.data)["Redis of late"]
    assert died["verdict"] == "note" and re.search(r"died \d+ times", died["found"]) and died["mend"]


def diagnosis_of_any(data: Path) -> dict[str, dict[str, Any]]:
    report = json.loads(speakerd("doctor", "--json", data=data).stdout)
    return {check["name"]: check for check in report["checks"]}


def test_a_full_disk_is_named(up: RunningUp, disk: SmallDisk) -> None:
    disk.fill()
    try:
        found = diagnosis(up.data, problems=True)
        assert found["disk"]["verdict"] == "problem"
        assert "No space left" in found["disk"]["found"] and "make room" in found["disk"]["mend"]
        assert found["recordings"]["verdict"] == "problem" and "No space left" in found["recordings"]["found"]
    finally:
        disk.relieve()
    assert diagnosis_of_any(up.data)["disk"]["verdict"] != "problem"


def test_a_port_that_somebody_took_is_named_with_whoever_has_it(up: RunningUp) -> None:
    address = up.ready.split("grpc=")[1]
    host, _, port = address.partition(":")
    if up.process.poll() is None:  # a second try finds it stopped
        assert up.stop() == 0
    with closing(socket.socket()) as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((host, int(port)))
        squatter.listen()
        # The fleet does not start, and says why; the doctor says who.
        started = speakerd("up", "--device", "null", "--grpc", address, data=up.data)
        assert started.returncode == 1 and f"cannot listen on {address}" in started.stderr
        found = diagnosis(up.data, problems=True)["port of gRPC"]
        assert found["verdict"] == "problem" and f"(pid {os.getpid()})" in found["found"]
        assert "another port with --grpc" in found["mend"]
    assert diagnosis_of_any(up.data)["port of gRPC"]["verdict"] == "ok"


def test_a_bundle_that_is_gone_or_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEAKERD_MODELS", str(tmp_path))
    folder = tmp_path / "mine"
    shutil.copytree(BUNDLES / "builtin", folder / "builtin")
    (folder / "bundle.toml").write_text((BUNDLES / "builtin.toml").read_text().replace('"builtin"', '"mine"', 1))
    weights = folder / "builtin" / "segmentation.safetensors"
    assert {check.verdict for check in engine("mine", "cpu")} == {"ok"}
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    (damaged,) = [check for check in engine("mine", "cpu") if check.verdict == "problem"]
    assert damaged.name == "mine: segmentation" and "speakerd models import" in damaged.mend
    shutil.rmtree(folder)
    (gone,) = engine("mine", "cpu")
    assert (gone.name, gone.verdict) == ("bundle mine", "problem") and "speakerd models import" in gone.mend


@pytest.mark.deep
def test_what_was_last_run_is_what_is_looked_at(tmp_path: Path) -> None:
    ran = speakerd("up", "--bundle", "gone", data=tmp_path)
    assert ran.returncode == 1
    found = diagnosis(tmp_path, problems=True)["bundle gone"]
    assert "no bundle gone" in found["found"]


def test_certificates_that_run_out_are_named(tmp_path: Path) -> None:
    authority = Authority.open_or_make(tmp_path / "pki", "fleet.test")
    # They are good from a little before they are made, and so can have run out since.
    for lifetime, verdict in (
        (timedelta(days=90), "ok"),
        (timedelta(days=3), "note"),
        (timedelta(seconds=-1), "problem"),
    ):
        certificate, key = authority.issue_files("controlplane", "one", [], lifetime)
        (tmp_path / "speakerd.toml").write_text(
            f'[controlplane]\ntls_cert = "{certificate}"\ntls_key = "{key}"\ntls_ca = "{tmp_path / "pki" / "ca.crt"}"\n'
        )
        rows = {row["name"]: row for row in look(tmp_path, tmp_path / "speakerd.toml", is_running=False)}
        assert rows["control plane: tls_cert"]["verdict"] == verdict, rows


def test_a_node_that_cannot_join_is_told_why(tmp_path: Path) -> None:
    file = tmp_path / "speakerd.toml"
    with closing(socket.socket()) as plane, closing(socket.socket()) as squatter:
        plane.bind(("127.0.0.1", 0))
        plane.listen()
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = f"127.0.0.1:{squatter.getsockname()[1]}"
        address = f"127.0.0.1:{plane.getsockname()[1]}"
        file.write_text(
            f'[node]\ncontrolplane = "{address}"\nfleet_key_file = "{tmp_path / "fleet.key"}"\nlisten = "{taken}"\n'
        )
        rows = {row["name"]: row for row in look_at_node(file)}
        assert rows["node: control plane"]["verdict"] == "ok"
        assert rows["node: fleet key"]["verdict"] == "problem" and "fleet.key" in rows["node: fleet key"]["mend"]
        assert port("node", taken).verdict == "problem"
    assert {row["name"]: row for row in look_at_node(file)}["node: control plane"]["verdict"] == "problem"
    assert look_at_node(None) == []


def test_a_database_and_a_redis_that_are_away_are_named_and_no_password_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("postgresql+asyncpg://me:s3cret@127.0.0.1:1/voices\n")
    monkeypatch.setenv("SPEAKERD_DATABASE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("SPEAKERD_REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    rows = {row["name"]: row for row in look(tmp_path, None, is_running=False)}
    assert rows["database"]["verdict"] == rows["Redis"]["verdict"] == "problem"
    assert "database_url" in rows["database"]["mend"] and "redis_url" in rows["Redis"]["mend"]
    assert "s3cret" not in json.dumps(rows)


def test_urls_that_nobody_can_read_are_named_and_cost_no_other_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEAKERD_DATABASE_URL", "postgresql://me:s3cret@[db/voices")
    monkeypatch.setenv("SPEAKERD_REDIS_URL", "redis://:s3cret@[x")
    rows = {row["name"]: row for row in look(tmp_path, None, is_running=False)}
    assert rows["database"]["verdict"] == rows["Redis"]["verdict"] == "problem"
    assert {"recordings", "erasure journal"} <= rows.keys()
    assert "s3cret" not in json.dumps(rows)


@pytest.mark.parametrize(("ahead_s", "verdict"), [(0.4, "ok"), (-2.0, "note"), (60.0, "problem")])
def test_clocks_that_differ_are_named(ahead_s: float, verdict: str) -> None:
    check = skew("clock of the server", ahead_s)
    assert check.verdict == verdict and bool(check.mend) == (verdict != "ok")

"""compose.yaml: valid, and every variable in it a setting that its daemon takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import ROOT, Accepts

COMPOSE = ROOT / "deploy" / "compose.yaml"
GPU = ROOT / "deploy" / "compose.gpu.yaml"
SECRETS = {
    "database_url": "postgresql+asyncpg://speakerd:secret@database/speakerd",
    "redis_url": "redis://:secret@redis:6379/0",
    "kek": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
}
OURS = ("controlplane", "worker", "node-1", "node-2")


def read(file: Path) -> dict[str, Any]:
    """The file, with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", file.read_text())
    assert "${" not in text, "a variable without a default"
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize("file", [COMPOSE, GPU], ids=lambda file: file.name)
def test_it_is_a_compose_file(file: Path) -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [COMPOSE, GPU, *sorted((ROOT / "deploy" / "helm").rglob("values*.yaml"))], ids=str)
def test_the_linter_of_yaml_finds_nothing(file: Path) -> None:
    rules = "{extends: default, rules: {line-length: {max: 130}, document-start: disable, truthy: {check-keys: false}}}"
    rules = rules.replace("rules: {", "rules: {comments: {min-spaces-from-content: 1}, ")
    linter = Path(sys.executable).with_name("yamllint")
    done = subprocess.run([linter, "--strict", "-d", rules, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", OURS)
def test_what_a_service_of_ours_is_told_its_daemon_takes(name: str, accepts: Accepts) -> None:
    service = read(COMPOSE)["services"][name]
    (daemon,) = service["command"]
    given = set(service["secrets"]) & SECRETS.keys()
    settings = accepts(daemon, service["environment"], {secret: SECRETS[secret] for secret in given})
    assert settings.tls_cert is not None
    drain_s = float(service["environment"]["SPEAKERD_DRAIN_S"])
    assert float(service["stop_grace_period"].removesuffix("s")) >= drain_s + 15
    if daemon == "controlplane":
        assert given == set(SECRETS), "passwords are in files"


def test_a_misspelt_setting_is_found(accepts: Accepts) -> None:
    environment = dict(read(COMPOSE)["services"]["node-1"]["environment"])
    environment["SPEAKERD_DRAINS"] = environment.pop("SPEAKERD_DRAIN_S")
    with pytest.raises(AssertionError, match="no such setting"):
        accepts("node", environment, {})


def test_no_two_nodes_are_the_same() -> None:
    nodes = [read(COMPOSE)["services"][name]["environment"] for name in OURS if name.startswith("node")]
    for setting in ("SPEAKERD_NODE_ID", "SPEAKERD_ADVERTISE", "SPEAKERD_ADVERTISE_STREAMS", "SPEAKERD_TLS_KEY"):
        assert len({node[setting] for node in nodes}) == len(nodes), setting


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_may_do_nothing_that_it_need_not(name: str) -> None:
    service = read(COMPOSE)["services"][name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"] == ["CMD", "speakerd", "health", "ready"]


def test_every_service_is_bounded_and_healthy_before_others_lean_on_it() -> None:
    services = read(COMPOSE)["services"]
    for name, service in services.items():
        assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys(), name
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            ends = how["condition"] == "service_completed_successfully"
            assert ends or (how["condition"] == "service_healthy" and "healthcheck" in services[other]), (name, other)


def test_no_secret_stands_in_the_file_and_every_one_is_made() -> None:
    compose = read(COMPOSE)
    making = (ROOT / "deploy" / "compose-secrets.sh").read_text()
    for name, secret in compose["secrets"].items():
        made = Path(secret["file"]).name
        # Certificates are named by `speakerd certs init`.
        assert f"write {made} " in making or secret["file"].startswith("secrets/certs/"), name
    for name, service in compose["services"].items():
        assert set(service.get("secrets", [])) <= compose["secrets"].keys(), name
        for variable in service.get("environment", {}):
            assert not re.search("PASSWORD$|SECRET|KEK$|_URL$", variable) or variable in (
                "SPEAKERD_SECRETS_DIR", "SPEAKERD_MEDIA_URL", "AWS_ENDPOINT_URL"
            ), variable  # fmt: skip


def test_devices_are_asked_for_by_nodes_alone_and_each_has_its_own() -> None:
    services, base = read(GPU)["services"], read(COMPOSE)["services"]
    assert services.keys() == {name for name in base if name.startswith("node")}
    devices = [
        service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for service in services.values()
    ]
    assert len({json.dumps(device) for device in devices}) == len(devices)
    assert all(service["environment"] == {"SPEAKERD_DEVICE": "cuda"} for service in services.values())

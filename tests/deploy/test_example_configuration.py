"""The example configuration is one that the daemons take, and says what the defaults are."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from controlplane.config import ControlPlaneSettings
from node.config import NodeSettings
from runtime.config import DaemonSettings, load

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "deploy" / "speakerd.example.toml"
# What has no default, or no one default for every machine.
EXAMPLES_ONLY = {"data", "controlplane", "fleet_key_file", "node_id", "listen", "metrics"}


@pytest.mark.parametrize(
    ("kind", "section"), [(ControlPlaneSettings, "controlplane"), (NodeSettings, "node")], ids=["controlplane", "node"]
)
def test_the_example_is_taken_and_tells_the_defaults(kind: type[DaemonSettings], section: str) -> None:
    settings = load(kind, section=section, file=EXAMPLE, flags={})
    said = tomllib.loads(EXAMPLE.read_text())[section]
    assert said, "the example says nothing"
    for name in said.keys() - EXAMPLES_ONLY:
        assert getattr(settings, name) == kind.model_fields[name].default, name

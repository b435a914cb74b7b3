"""What tests of images, compose and chart share: the daemons' settings, asked as a container would."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from controlplane.config import ControlPlaneSettings
from node.config import NodeSettings
from runtime.config import DaemonSettings, load

ROOT = Path(__file__).resolve().parent.parent.parent
DAEMONS: dict[str, type[DaemonSettings]] = {"controlplane": ControlPlaneSettings, "node": NodeSettings}
BESIDE_SETTINGS = {"SPEAKERD_DATA", "SPEAKERD_HTTP", "SPEAKERD_MODELS", "SPEAKERD_SECRETS_DIR"}
"""What the images set for whatever runs in them, and what is read beside settings."""

Accepts = Callable[[str, Mapping[str, str], Mapping[str, str]], DaemonSettings]


@pytest.fixture
def accepts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Accepts:
    """The settings that a daemon makes of an environment: accepts(daemon, variables, files of SPEAKERD_SECRETS_DIR).

    Fails on a variable that no setting is called like: the daemon would not notice that it was misspelt.
    """

    def accept(daemon: str, variables: Mapping[str, str], secrets: Mapping[str, str]) -> DaemonSettings:
        kind = DAEMONS[daemon]
        known = {f"SPEAKERD_{name.upper()}" for name in kind.model_fields} | BESIDE_SETTINGS
        ours = {name: value for name, value in variables.items() if name.startswith("SPEAKERD_")}
        assert not ours.keys() - known, "no such setting"
        for name in [name for name in os.environ if name.startswith(("SPEAKERD_", "REDIS_"))]:
            monkeypatch.delenv(name)
        folder = tmp_path / "secrets"
        folder.mkdir(exist_ok=True)
        if "SPEAKERD_SECRETS_DIR" in ours:
            ours["SPEAKERD_SECRETS_DIR"] = str(folder)
        for name, value in secrets.items():
            assert name in kind.model_fields, f"no setting takes the secret {name}"
            (folder / name).write_text(value)
        for name, value in ours.items():
            monkeypatch.setenv(name, value)
        return load(kind, section=daemon, file=None, flags={})

    return accept

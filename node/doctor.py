"""What the doctor looks at of a node: settings, the fleet's key, certificates, and whether its control plane is there.

In: a configuration file, the environment. Out: rows of plain values. What always holds: no engine is loaded, and no
secret is told.
"""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path

from node.config import NodeSettings
from runtime.config import load
from runtime.diagnosis import Row, certificates, ok, problem
from runtime.errors import SpeakerdError

ASK_S = 5.0


def look(config: Path | None) -> list[Row]:
    """Everything, or nothing where no node is to run here. The entry point `speakerd.offline:doctor-node`."""
    if not _is_wanted(config):
        return []
    try:
        settings = load(NodeSettings, section="node", file=config, flags={})
    except SpeakerdError as error:
        return [problem("node: configuration", str(error), "mend the setting that is named")]
    rows = [ok("node: configuration", "can be read"), *certificates(settings, "node")]
    if settings.fleet_key_file is not None:
        rows.append(_fleet_key(settings.fleet_key_file))
    if settings.controlplane is not None:
        rows.append(_control_plane(settings.controlplane))
    return rows


def _is_wanted(config: Path | None) -> bool:
    if os.environ.get("SPEAKERD_CONTROLPLANE"):
        return True
    try:
        return config is not None and "node" in tomllib.loads(config.read_text())
    except (OSError, ValueError):
        return False  # told by whoever needs the file


def _fleet_key(file: Path) -> Row:
    try:
        is_there = len(file.read_text().strip()) >= 16
    except OSError as error:
        return problem(
            "node: fleet key", f"cannot read {file}: {error.strerror}", "copy the control plane's DATA/fleet.key"
        )
    if not is_there:
        return problem("node: fleet key", f"{file} holds no key", "copy the control plane's DATA/fleet.key")
    return ok("node: fleet key", f"{file} holds one")


def _control_plane(address: str) -> Row:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_S).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no HOST:PORT"
        mend = "see that it runs, and that its gRPC port (or fleet_grpc) can be reached from here"
        return problem("node: control plane", f"{address} cannot be reached ({why})", mend)
    return ok("node: control plane", f"{address} can be reached")

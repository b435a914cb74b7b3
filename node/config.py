"""The settings of a node: the table [node] of the configuration file, SPEAKERD_* variables, flags.

What always holds: a node either runs standalone, or has a control plane and the fleet's key.
"""

from __future__ import annotations

import socket
from pathlib import Path

from pydantic import Field, model_validator

from runtime.config import DaemonSettings


class NodeSettings(DaemonSettings):
    """What an operator may decide about a node."""

    listen: str = "127.0.0.1:0"
    metrics: str = "127.0.0.1:0"
    # A port of their own for the streams of the public: Diarize and health alone, no client certificates. With TLS in a
    # fleet there is one in any case, by default on a free port beside `listen`.
    stream_listen: str | None = None
    # Where others reach the node, when that is not what it listens on (behind NAT, in a pod): the control plane, and
    # those who stream.
    advertise: str | None = None
    advertise_streams: str | None = None
    node_id: str = Field(
        default_factory=lambda: f"node-{socket.gethostname()}"[:64], pattern=r"^[A-Za-z0-9_.:-]{1,64}$"
    )
    # Where the node runs, as clients name it when they ask for one nearby.
    zone: str = Field(default="", pattern=r"^[A-Za-z0-9_.:-]{0,64}$")
    controlplane: str | None = None
    fleet_key_file: Path | None = None
    standalone: bool = False
    bundle: str = "builtin"
    # What `speakerd calibrate` has fitted, in place of the bundle's own.
    calibration: Path | None = None
    device: str = Field(default="cpu", pattern=r"^(cpu|null|cuda(:\d+)?)$")
    # Live streams at once. Absent: as many as the machine is found to carry when the node starts (node.capacity).
    streams_max: int | None = Field(default=None, ge=1, le=4096)
    # Where that is remembered, so that it is measured once for an engine and a machine.
    capacity_file: Path | None = None
    # A live window that has waited so long is left out for a newer one of its stream; 0: never.
    late_s: float = Field(default=2.0, ge=0.0, le=60.0)
    files_max: int = Field(default=2, ge=1, le=256)
    drain_s: float = Field(default=10.0, ge=0.0, le=3600.0)
    insecure: bool = False

    @model_validator(mode="after")
    def _alone_or_in_a_fleet(self) -> NodeSettings:
        if self.standalone and self.controlplane:
            raise ValueError("a standalone node has no control plane: give --standalone or --controlplane, not both")
        if not self.standalone and not (self.controlplane and (self.fleet_key_file or self.tls_cert)):
            raise ValueError(
                "give --controlplane HOST:PORT and --fleet-key-file FILE (or certificates: --tls-cert, --tls-key, "
                "--tls-ca), or --standalone"
            )
        return self

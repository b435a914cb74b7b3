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

    listen: str = Field("127.0.0.1:0", description="HOST:PORT of gRPC, for control planes; port 0 takes a free one.")
    metrics: str = Field("127.0.0.1:0", description="HOST:PORT of /metrics and health over HTTP.")
    stream_listen: str | None = Field(
        None,
        description="HOST:PORT of a port of their own for the streams of the public: Diarize and health alone, no "
        "client certificates. Absent: with TLS in a fleet a free port beside `listen`, else none.",
    )
    advertise: str | None = Field(
        None,
        description="HOST:PORT at which the control plane reaches this node, where that is not `listen` (NAT, a pod).",
    )
    advertise_streams: str | None = Field(
        None, description="HOST:PORT at which clients reach this node's streams, where that is not what it listens on."
    )
    node_id: str = Field(
        default_factory=lambda: f"node-{socket.gethostname()}"[:64],
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$",
        description="Who this node is, unique in the fleet. Absent: node-HOSTNAME.",
    )
    zone: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.:-]{0,64}$",
        description="Where the node runs, as clients name it when they ask for one nearby.",
    )
    controlplane: str | None = Field(None, description="HOST:PORT of the control plane's gRPC for nodes.")
    fleet_key_file: Path | None = Field(
        None, description="File with the secret that nodes show where there are no certificates."
    )
    standalone: bool = Field(False, description="Run without lease and control plane.")
    bundle: str = Field("builtin", description="Bundle of weights: a name of `speakerd models list`, or a folder.")
    calibration: Path | None = Field(
        None, description="What `speakerd calibrate` has fitted, in place of the bundle's own."
    )
    device: str = Field(
        "cpu", pattern=r"^(cpu|null|cuda(:\d+)?)$", description="cpu, cuda, cuda:N, or null (no model, for tests)."
    )
    streams_max: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Live streams at once; more are refused. Absent: as many as the machine is found to carry when the "
        "node starts.",
    )
    capacity_file: Path | None = Field(
        None, description="Where that is remembered, so that it is measured once for an engine and a machine."
    )
    late_s: float = Field(
        2.0,
        ge=0.0,
        le=60.0,
        description="A live window that has waited so long is left out for a newer one of its stream; 0: never.",
    )
    files_max: int = Field(2, ge=1, le=256, description="Recordings at once; more are refused.")
    drain_s: float = Field(10.0, ge=0.0, le=3600.0, description="How long streams may go on after SIGTERM.")
    insecure: bool = Field(False, description="Allow plain text on addresses that are not loopback.")

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

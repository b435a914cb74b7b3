"""What can be set of a control plane. In: file, `SPEAKERD_*`, flags. Out: one frozen object.

Times are seconds here, as everywhere in configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, model_validator

from controlplane.guarded_http import UrlPolicy
from controlplane.scryon_settings import ScryonSettings
from controlplane.speaker_checks import SpeakerLimits
from runtime.media import PreflightLimits

ROLES = ("grpc", "http", "worker")


class ControlPlaneSettings(ScryonSettings):
    """Settings of `speakerd controlplane`; section [controlplane] of the file."""

    SECRETS: ClassVar[frozenset[str]] = frozenset({"database_url", "redis_url", "kek", "transcriber_key"})

    data: Path = Field(description="Folder of keys, database, blobs and Redis.")
    grpc: str = Field("127.0.0.1:7600", description="HOST:PORT of gRPC.")
    fleet_grpc: str | None = Field(
        None, description="HOST:PORT of gRPC for nodes. Absent: that of `grpc`, or with TLS a free port beside it."
    )
    http: str = Field("127.0.0.1:7680", description="HOST:PORT of HTTP.")
    health: str = Field(
        "127.0.0.1:0",
        description="HOST:PORT of gRPC health, of a process that has not the role grpc; it serves no more.",
    )
    metrics: str | None = Field(
        None,
        description="HOST:PORT of /metrics and health for operators alone; HTTP's port then shows no metrics. Absent: "
        "on HTTP's port, or without the role http on a free port of this machine.",
    )
    public_url: str | None = Field(
        None, description="Where clients reach HTTP, as in https://HOST; absent: as each request says in its Host."
    )
    http_rate_limits: dict[str, int] = Field(
        default_factory=dict,
        description="Calls a minute and API key, by kind, as in {'pyannoteai.submit' = 100}; 0: no limit.",
    )
    database_url: str | None = Field(None, description="SQLAlchemy URL; absent: SQLite in the data folder.")
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("redis_url", "SPEAKERD_REDIS_URL", "REDIS_URL"),
        description="Redis; absent: one of our own.",
    )
    kek: SecretStr | None = Field(
        None, description="Key-encryption keys, base64, the one that wraps first, commas between; absent: kek_source."
    )
    kek_source: str = Field("file", description="`file`, or an installed entry point of the group speakerd.kek.")
    kek_file: Path | None = Field(None, description="File of key-encryption keys; absent: kek.key in the data folder.")
    roles: tuple[str, ...] = Field(
        ROLES, description="What this process does: grpc (callers and nodes), http (the edge), worker (jobs)."
    )
    insecure: bool = Field(False, description="Allow plain text on addresses that are not loopback.")
    drain_s: float = Field(10.0, ge=0.0, le=3600.0, description="How long calls and jobs may go on after SIGTERM.")

    node_lease_s: float = Field(9.0, gt=0.0, description="How long a node may rely on a lease, from its sending.")
    lease_s: float = Field(
        10.0, gt=0.0, description="How long the control plane waits for a silent node, from receipt."
    )
    renew_s: float = Field(2.0, gt=0.0, description="How often a node renews.")
    hold_s: float = Field(4.0, gt=0.0, description="How long an eviction may stay unapplied before leases are held.")
    reconcile_s: float = Field(5.0, gt=0.0, description="How often desired and observed are compared.")
    log_entries_kept: int = Field(
        100_000,
        ge=0,
        description="How much of the fleet log is kept beyond what all nodes have applied; behind it, a snapshot.",
    )
    push_timeout_s: float = Field(1.5, gt=0.0, description="How long one command to a node may take.")
    analyze_timeout_s: float = Field(60.0, gt=0.0, description="How long a node may take over an enrolment's clips.")
    ticket_s: float = Field(60.0, ge=1.0, le=600.0, description="How long a stream ticket is good.")
    slot_s: float = Field(
        10.0, gt=0.0, description="How long a placed stream holds its slot until the node reports it."
    )

    relay_streams_max: int = Field(
        350, ge=0, description="How many live streams of WebSocket clients this process carries at once."
    )

    transcriber_url: str | None = Field(
        None, description="An endpoint that speaks OpenAI's dialect, as in http://HOST/v1; absent: deltas have no text."
    )
    transcriber_model: str = Field("whisper-1", description="The model to ask it for.")
    transcriber_key: SecretStr | None = Field(None, description="Its API key.")

    require_consent: bool = Field(False, description="Refuse enrolments without a full name, a purpose and a text.")
    chore_s: float = Field(60.0, gt=0.0, description="How often expired licences and what is overdue are looked for.")
    tombstone_days: float = Field(30.0, ge=0.0, description="How long what is left of an erased voice is listed.")
    pending_days: float = Field(
        30.0, gt=0.0, description="How long a voice may wait for a node to listen before it fails."
    )

    fetch_networks: tuple[str, ...] = Field(
        (), description="Networks (CIDR) that recordings may be fetched from besides public addresses."
    )
    webhook_signature: Literal["hex", "base64"] = Field("hex", description="How X-Signature of webhooks is written.")
    fetch_ports: tuple[int, ...] = Field((443, 8443), description="Ports that urls may name.")
    fetch_plain_http: bool = Field(False, description="Fetch from http:// as well as from https://.")
    drive: str | None = Field(
        None, description="An installed entry point of the group speakerd.drives that drive references are read by."
    )
    drive_folder: Path | None = Field(None, description="A folder that drive references (file_id) are read from.")
    preflight: PreflightLimits = Field(
        default_factory=PreflightLimits, description="What a recording for enrolment has to be; a table of its own."
    )
    speaker_checks: SpeakerLimits = Field(
        default_factory=SpeakerLimits, description="What an engine has to hear in it; a table of its own."
    )

    jobs_at_once: int = Field(4, ge=1, le=256, description="Jobs that one worker works on at once.")
    job_attempts: int = Field(5, ge=1, description="How often a job is tried whose node, url or worker failed.")
    result_s: float = Field(24 * 3600.0, gt=0.0, description="How long a job's result is kept after its end.")
    voiceprint_s_max: float = Field(
        30.0, gt=0.0, le=119.0, description="Longest recording that a job makes a voiceprint of."
    )
    media_url: str | None = Field(
        None, description="Folder or object-store URL of uploaded recordings; absent: DATA/media."
    )
    media_direct: bool = Field(
        False,
        description="Signed urls are the object store's own; what comes that way is encrypted by that store alone.",
    )

    erasure_journal: str | None = Field(
        None,
        description="Path or object-store URL of the erasure journal; absent: DATA/erasure-journal. Never in a backup.",
    )
    audit_checkpoints: str | None = Field(
        None, description="Folder or object-store URL of signed audit checkpoints; absent: DATA/audit-checkpoints."
    )
    audit_verify_s: float = Field(
        86_400.0,
        ge=0.0,
        description="How often the audit, its checkpoints, the erasure journal and what is left of erased voices are "
        "checked against each other, by one control plane at a time, as `audit verify` does; 0: never.",
    )
    restored: bool = Field(
        False, description="The database was restored by other means than `speakerd restore`: begin a new epoch."
    )
    accept_journal_loss: bool = Field(
        False, description="Start although the erasure journal is missing, damaged or another one; audited."
    )

    @model_validator(mode="after")
    def _networks_are_networks(self) -> Self:
        self.url_policy()
        return self

    def url_policy(self) -> UrlPolicy:
        """What strangers may make us call."""
        return UrlPolicy.of(self.fetch_networks, self.fetch_ports, plain=self.fetch_plain_http)

    @model_validator(mode="after")
    def _leases_nest(self) -> Self:
        # The node has to let go before the control plane stops waiting for it: that order is what fencing rests on.
        if not self.renew_s < self.node_lease_s < self.lease_s:
            raise ValueError("renew_s < node_lease_s < lease_s has to hold")
        return self

    @model_validator(mode="after")
    def _roles_are_roles(self) -> Self:
        if not self.roles or set(self.roles) - set(ROLES):
            raise ValueError(f"roles: one or more of {', '.join(ROLES)}")
        return self

    def resolved_media(self) -> str:
        """Where uploaded recordings lie."""
        return self.media_url or str((self.data / "media").resolve())

    def resolved_erasure_journal(self) -> str:
        """Where the erasure journal is."""
        return self.erasure_journal or str((self.data / "erasure-journal").resolve())

    def resolved_audit_checkpoints(self) -> str:
        """Where signed checkpoints go."""
        return self.audit_checkpoints or str((self.data / "audit-checkpoints").resolve())

    def resolved_database_url(self) -> str:
        """The database to open."""
        return self.database_url or f"sqlite+aiosqlite:///{(self.data / 'speakerd.db').resolve()}"

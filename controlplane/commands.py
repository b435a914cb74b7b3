"""`speakerd controlplane`: from flags to a running control plane."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.loading import loading


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("controlplane", help="Run the control plane: voices, consent, erasure, fleet, placement.")(controlplane)


def controlplane(
    *,
    data: Annotated[Path | None, typer.Option(help="Folder of keys, database, recordings and Redis.")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT of gRPC; port 0 takes a free one.")] = None,
    fleet_grpc: Annotated[
        str | None, typer.Option(help="HOST:PORT of gRPC for nodes. Default: that of --grpc; with TLS, one beside it.")
    ] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT of HTTP; port 0 takes a free one.")] = None,
    database_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL. Default: SQLite in the data folder.")
    ] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis. Default: REDIS_URL, else one of our own.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="HOST:PORT of /metrics and health. Default: on the port of --http.")
    ] = None,
    drain_s: Annotated[float | None, typer.Option(help="How long to let calls end on SIGTERM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of this control plane, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="The fleet's authority.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow plain text beyond this machine.", show_default=False)
    ] = None,
    erasure_journal: Annotated[
        str | None, typer.Option(help="Path or object-store URL of the erasure journal. Default: in the data folder.")
    ] = None,
    audit_checkpoints: Annotated[
        str | None, typer.Option(help="Folder or object-store URL of signed audit checkpoints. Default: likewise.")
    ] = None,
    restored: Annotated[
        bool | None,
        typer.Option(
            "--restored",
            help="The database was restored by other means than `speakerd restore`: nodes forget and begin anew.",
            show_default=False,
        ),
    ] = None,
    accept_journal_loss: Annotated[
        bool | None,
        typer.Option(
            "--accept-journal-loss",
            help="Start although the erasure journal is missing, damaged or another one; goes into the audit.",
            show_default=False,
        ),
    ] = None,
    roles: Annotated[
        str | None, typer.Option(help="What this process does, commas between: grpc, http, worker. Default: all.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with a table `controlplane`.")] = None,
) -> None:
    """Run until SIGTERM or SIGINT."""
    # Daemon code is imported by the daemon's command alone, so that other commands start fast.
    with loading():
        from controlplane import daemon
        from controlplane.config import ControlPlaneSettings
        from runtime import logs
        from runtime.config import load
        from runtime.errors import SpeakerdError

    flags = {
        "data": data,
        "grpc": grpc,
        "fleet_grpc": fleet_grpc,
        "http": http,
        "database_url": database_url,
        "redis_url": redis_url,
        "metrics": metrics,
        "drain_s": drain_s,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_ca": tls_ca,
        "insecure": insecure,
        "erasure_journal": erasure_journal,
        "audit_checkpoints": audit_checkpoints,
        "restored": restored,
        "accept_journal_loss": accept_journal_loss,
        "roles": None if roles is None else [role.strip() for role in roles.split(",")],
        "log_level": log_level,
    }
    try:
        settings = load(ControlPlaneSettings, section="controlplane", file=config, flags=flags)
        logs.configure(settings.log_level, service="controlplane")
        with loading():
            edge = daemon.find_http() if "http" in settings.roles else None
        code = daemon.run(settings, edge)
    except SpeakerdError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(code)

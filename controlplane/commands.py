"""`speakerd controlplane`: reads the settings, builds the daemon, runs it until a signal.

Prints one line on stdout when it serves, `ready http=http://HOST:PORT grpc=HOST:PORT`; logs go to stderr. The edge
stands above this package and is therefore found by its entry point, not imported.
"""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from controlplane.app import ControlPlane, HttpBuilder
from controlplane.config import ControlPlaneSettings
from runtime import logs
from runtime.clock import SystemClock
from runtime.config import load
from runtime.errors import SpeakerdError, Unavailable
from runtime.lifecycle import Part, run_daemon

HTTP_GROUP = "speakerd.http"


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
        code = _run(settings)
    except SpeakerdError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


def find_http() -> HttpBuilder:
    """The installed edge. Raises Unavailable when there is none."""
    for point in entry_points(group=HTTP_GROUP):
        builder: HttpBuilder = point.load()
        return builder
    raise Unavailable("no HTTP edge is installed: pip install speakerd[controlplane]")


def _run(settings: ControlPlaneSettings) -> int:
    # Database, recordings, Redis: what we and our children write is our user's alone, whatever the folder permits.
    os.umask(0o077)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(settings))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))


async def serve(settings: ControlPlaneSettings) -> int:
    """Run the daemon; its exit code."""
    plane = ControlPlane(settings, SystemClock())
    edge = find_http()(plane) if "http" in settings.roles else None

    def ready() -> None:
        plane.tell_started()
        said = [] if edge is None else [f"http={edge.url}"]
        if "grpc" not in settings.roles:
            said.append(f"health={plane.grpc_address}")
        else:
            said.append(f"grpc={plane.grpc_address}")
            if plane.fleet_address != plane.grpc_address:
                said.append(f"fleet={plane.fleet_address}")
        if plane.metrics_address:
            said.append(f"metrics={plane.metrics_address}")
        print(" ".join(("ready", *said)), flush=True)

    parts: list[Part] = [plane] if edge is None else [plane, edge]
    with plane.health.watchdog(settings.stall_s):
        return await run_daemon(parts, drain_s=settings.drain_s, ready=ready)

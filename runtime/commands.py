"""`speakerd certs`: certificates for a fleet that has no authority of its own yet."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from runtime.certificates import Authority, CertificateReport, describe
from runtime.tls import CONTROL_PLANE, EDGE, NODE

TRUST_DOMAIN = "speakerd.internal"

app = typer.Typer(no_args_is_help=True, help="Certificates between control plane and nodes: make, renew, look at.")


def register(root: typer.Typer) -> None:
    """Add the command group `certs`."""
    root.add_typer(app, name="certs")


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where authority, certificates and keys lie.")],
    *,
    trust_domain: Annotated[str, typer.Option(help="What the fleet is called: a DNS name.")] = TRUST_DOMAIN,
    node: Annotated[list[str] | None, typer.Option(metavar="ID", help="A node's id. Repeat it for each.")] = None,
    controlplane: Annotated[list[str] | None, typer.Option(metavar="ID", help="A control plane's id.")] = None,
    edge: Annotated[list[str] | None, typer.Option(metavar="ID", help="An edge's id.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="DNS name or address under which clients dial the control plane."),
    ] = None,
    days: Annotated[float, typer.Option(min=0.001, max=825, help="How long certificates are good.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """Make an authority, and certificates for a control plane and nodes.

    Run it again to renew them: the authority stays, and daemons that run take the new files by themselves. Keep ca.key
    away from the daemons; each of them gets ca.crt and its own pair.
    """
    authority = Authority.open_or_make(folder, trust_domain)
    lifetime = timedelta(days=days)
    reports = [describe(folder / "ca.crt")]
    for role, ids, hosts in (
        (CONTROL_PLANE, controlplane or ["cp"], [*(host or []), "localhost", "127.0.0.1"]),
        (NODE, node or [], ["localhost", "127.0.0.1"]),
        (EDGE, edge or [], ["localhost", "127.0.0.1"]),
    ):
        for peer_id in ids:
            cert, _ = authority.issue_files(role, peer_id, list(dict.fromkeys(hosts)), lifetime)
            reports.append(describe(cert))
    _say(reports, as_json)


@app.command("show")
def show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Certificates, or folders of them.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
) -> None:
    """Whom certificates are for, and until when. Exit code 1 when one has expired."""
    found = [path for file in files for path in (sorted(file.glob("*.crt")) if file.is_dir() else [file])]
    reports = [describe(path) for path in found]
    _say(reports, as_json)
    if any(report.not_after <= datetime.now(UTC) for report in reports):
        raise typer.Exit(1)


def _say(reports: list[CertificateReport], as_json: bool) -> None:
    now = datetime.now(UTC)
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {
                        "file": report.file,
                        "name": report.name,
                        "hosts": report.hosts,
                        "authority": report.is_authority,
                        "not_before": report.not_before.isoformat(),
                        "not_after": report.not_after.isoformat(),
                        "sha256": report.fingerprint,
                    }
                    for report in reports
                ]
            )
        )
        return
    for report in reports:
        left = report.not_after - now
        state = "EXPIRED" if left <= timedelta() else f"{left.total_seconds() / 86_400:.1f} days left"
        typer.echo(f"{report.file}  {report.name}  {state}  {', '.join(report.hosts)}".rstrip())

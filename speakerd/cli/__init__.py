"""The command line: `speakerd`.

Commands for people and for scripts (`--json` on each). Results go to stdout; an error is one line on stderr, exit
code 1, or 2 where the command line itself cannot be understood.
"""

from __future__ import annotations

import os

# Daemons start here too, and start children. gRPC's fork handlers would look at each of those, and say so on stderr
# among the JSON lines.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from pathlib import Path
from typing import Annotated

import typer

from speakerd import __version__
from speakerd.cli import fleet_view
from speakerd.cli.audit import audit_commands, fleet_commands
from speakerd.cli.connection import trust_servers_of
from speakerd.cli.demo import demo
from speakerd.cli.diarize import diarize
from speakerd.cli.doctor import doctor
from speakerd.cli.erase import erase
from speakerd.cli.group import TLS_CA_FLAG, SpeakerdGroup
from speakerd.cli.health import health
from speakerd.cli.jobs import jobs_commands
from speakerd.cli.people import enroll
from speakerd.cli.stream import stream
from speakerd.cli.tenants import keys_commands, tenants_commands, users_commands
from speakerd.cli.up import up
from speakerd.cli.voices import voices_commands

app = typer.Typer(
    cls=SpeakerdGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Who is speaking, by name: live and in recordings, on your own machines.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            TLS_CA_FLAG,
            envvar="SPEAKERD_SERVER_CA",
            metavar="FILE",
            help="The authority of a server that speaks TLS. May stand behind the command too.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Keep the options of `speakerd` itself in one place."""
    trust_servers_of(tls_ca)


for command in (up, enroll, erase, stream, diarize, demo, doctor, health):
    app.command()(command)
app.add_typer(voices_commands, name="voices")
app.add_typer(jobs_commands, name="jobs")
app.add_typer(tenants_commands, name="tenants")
app.add_typer(users_commands, name="users")
app.add_typer(keys_commands, name="keys")
app.add_typer(audit_commands, name="audit")
fleet_view.register(fleet_commands)
app.add_typer(fleet_commands, name="fleet")


def main() -> None:
    """Run the command line of this process."""
    app()

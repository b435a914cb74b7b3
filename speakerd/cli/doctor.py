"""`speakerd doctor`: what this machine and its servers have and lack, and what to do about each lack.

In: a data folder, and a configuration file where there is one. Out: a line a thing, ok, note or problem, and the cure;
exit code 1 where there is a problem. What always holds: nothing is changed, and whatever is broken, the report comes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from speakerd.cli import doctor_machine as machine
from speakerd.cli import doctor_server as servers
from speakerd.cli.connection import DataOption, data_folder, read_endpoints, read_plan
from speakerd.cli.findings import PROBLEM, Check, guarded, note
from speakerd.cli.group import load_installed
from speakerd.cli.output import JsonFlag, Output
from speakerd.errors import SpeakerdError

OFFLINE_GROUP = "speakerd.offline"
ANY = "127.0.0.1:0"
STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


def doctor(
    *,
    data: DataOption = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The daemons' TOML file, if they have one.", show_default=False)
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where HTTP is to be served. Default: as it was last.")
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where gRPC is to be served. Default: as it was last.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Look at this machine and its servers: packages, weights, device, memory, disk, Redis, SQL, stores, ports,
    certificates, clocks; say what to mend. Exit code 1 where something will not work.
    """
    out = Output(as_json=as_json)
    folder = data_folder(data)
    endpoints = read_endpoints(folder)
    plan = read_plan(folder)
    looks: list[tuple[str, Callable[[], Iterable[Check]]]] = [
        ("Python", machine.python),
        ("packages", machine.packages),
        ("memory", machine.memory),
        ("disk", lambda: machine.disk(folder)),
        ("open files", machine.open_files),
        ("engine", lambda: machine.engine(plan.get("bundle"), plan.get("device"))),
    ]
    if endpoints is not None:
        looks.append(("server", lambda: servers.running(folder, endpoints)))
    else:
        said = _addresses(config) if config is not None else plan
        wanted = {"http": http or said.get("http") or ANY, "grpc": grpc or said.get("grpc") or ANY, **said}
        looks.append(("ports", lambda: [servers.port(name, wanted[name]) for name in wanted if name in servers.PORTS]))
    looks += [
        ("control plane", lambda: _control_plane(folder, config, is_running=endpoints is not None)),
        ("node", lambda: _node(config)),
        ("Redis of late", lambda: servers.deaths_of_redis(folder)),
        ("clock", machine.clock),
    ]
    checks: list[Check] = []
    with out.working("looking"):
        for name, look in looks:
            checks += guarded(name, look)
    bad = [check for check in checks if check.verdict == PROBLEM]
    out.result({"ok": not bad, "checks": [asdict(check) for check in checks]})
    out.table(
        ("what", "", "found", "what to do"),
        ((check.name, Text(check.verdict, style=STYLES[check.verdict]), check.found, check.mend) for check in checks),
    )
    out.say(
        f"{len(bad)} problems: {', '.join(check.name for check in bad)}" if bad else "nothing to mend",
        style="red" if bad else "green",
    )
    if bad:
        raise typer.Exit(1)


def _addresses(config: Path) -> dict[str, str]:
    """Where daemons are to listen, as their file says; what cannot be read is told where the settings are."""
    try:
        tables = tomllib.loads(config.read_text())
    except (OSError, ValueError):
        return {}
    plane, node = tables.get("controlplane", {}), tables.get("node", {})
    found = {name: plane.get(name) for name in ("http", "grpc", "fleet_grpc", "metrics")}
    found |= {
        "node": node.get("listen"),
        "node_streams": node.get("stream_listen"),
        "node_metrics": node.get("metrics"),
    }
    return {name: address for name, address in found.items() if isinstance(address, str)}


def _node(config: Path | None) -> Iterator[Check]:
    try:
        look: Callable[..., list[dict[str, Any]]] = load_installed(
            OFFLINE_GROUP, "doctor-node", extra="node", what_for="running a node here"
        )
    except SpeakerdError:
        return  # the packages above tell it
    for row in look(config):
        yield Check(**row)


def _control_plane(folder: Path, config: Path | None, *, is_running: bool) -> Iterator[Check]:
    try:
        look: Callable[..., list[dict[str, Any]]] = load_installed(
            OFFLINE_GROUP, "doctor", extra="controlplane", what_for="running a control plane here"
        )
    except SpeakerdError as error:
        yield note("control plane", error.message, "nothing, where none is to run on this machine")
        return
    for row in look(folder, config, is_running=is_running):
        yield Check(**row)

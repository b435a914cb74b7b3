"""`speakerd audit`: is everything whole, and how do erasures stand. `speakerd fleet destroyed`: a machine is gone.

`audit verify` ends with 1 when anything is wrong, one line for each thing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from speakerd.cli.connection import (
    Connection,
    DataOption,
    KeyOption,
    ServerOption,
    data_folder,
    find_connection,
)
from speakerd.cli.erase import erasure_as_json, is_erased
from speakerd.cli.group import load_installed
from speakerd.cli.output import JsonFlag, Output
from speakerd.errors import SpeakerdError
from speakerd.v1 import audit_pb2, people_pb2

OFFLINE_GROUP = "speakerd.offline"
BROKEN = "not whole"

audit_commands = typer.Typer(no_args_is_help=True, help="The audit: verify it, list erasures.")
fleet_commands = typer.Typer(invoke_without_command=True, help="The fleet as a live table; and what is known of nodes.")


@dataclass(frozen=True, slots=True)
class _Found:
    """A verdict, wherever it comes from."""

    ok: bool
    num_rows: int
    num_checkpoints: int
    num_erasures: int
    problems: Sequence[str]
    notes: Sequence[str]
    nodes: Sequence[tuple[str, bool, str]]


@audit_commands.command("verify")
def verify(
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR", help="Checkpoints that were kept elsewhere, besides those of the control plane."
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Read the database itself; no node is asked, no daemon has to run.")
    ] = False,
    database_url: Annotated[str | None, typer.Option(help="With --offline: the database, if not DATA's.")] = None,
    journal: Annotated[str | None, typer.Option(help="With --offline: the erasure journal, if not DATA's.")] = None,
    checkpoints: Annotated[str | None, typer.Option(help="With --offline: the checkpoints, if not DATA's.")] = None,
    trust: Annotated[
        list[str] | None, typer.Option(help="With --offline: a public key (base64) whose checkpoints count.")
    ] = None,
    skip_nodes: Annotated[bool, typer.Option("--skip-nodes", help="Do not ask the nodes what they hold.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check the chain, the triggers, the checkpoints and every erasure; ask every node what it holds."""
    out = Output(as_json=as_json)
    given = _contents(against)
    if offline:
        check: Callable[..., dict[str, Any]] = load_installed(
            OFFLINE_GROUP, "audit", extra="controlplane", what_for="`speakerd audit verify --offline`"
        )
        said = check(
            data_folder(data),
            given=given,
            database_url=database_url,
            journal=journal,
            checkpoints=checkpoints,
            trust=tuple(trust or ()),
        )
        found = _Found(**{**said, "nodes": ()})
    else:
        if database_url or journal or checkpoints or trust:
            raise typer.BadParameter("--database-url, --journal, --checkpoints and --trust go with --offline")
        connection = find_connection(server, key, data)
        with out.working("checking"):
            found = asyncio.run(_verify(connection, given, skip_nodes=skip_nodes))
    out.result(
        {
            "ok": found.ok,
            "rows": found.num_rows,
            "checkpoints": found.num_checkpoints,
            "erasures": found.num_erasures,
            "problems": list(found.problems),
            "notes": list(found.notes),
            "nodes": [{"node_id": node_id, "ok": ok, "error": error} for node_id, ok, error in found.nodes],
        }
    )
    summary = f"{found.num_rows} rows, {found.num_checkpoints} checkpoints, {found.num_erasures} erasures"
    asked = f", {len(found.nodes)} nodes asked" if not offline and not skip_nodes else ", no node asked"
    if found.ok:
        out.say(f"whole: {summary}{asked}", style="green")
    for problem in found.problems:
        out.say(problem, style="red")
    for note in found.notes:
        out.say(f"  note: {note}", style="yellow")
    if not found.ok:
        if as_json:
            raise typer.Exit(1)
        raise SpeakerdError("invalid", f"{BROKEN}: {found.problems[0]}" + _more(found.problems))


@audit_commands.command("list")
def list_erasures(
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List erasures, newest first."""
    out = Output(as_json=as_json)
    found = asyncio.run(_erasures(find_connection(server, key, data), limit))
    out.result({"erasures": [erasure_as_json(erasure) for erasure in found]})
    if not found:
        out.say("no voice was ever erased")
        return
    out.table(
        ("requested", "voice id", "state", "why", "by", "residual nodes", "audit id"),
        (
            (
                erasure.requested_at.ToDatetime().strftime("%Y-%m-%d %H:%M"),
                erasure.voice_id or "(unknown: lost with a restore)",
                Text("erased" if is_erased(erasure) else "erasing", style="green" if is_erased(erasure) else "yellow"),
                erasure.trigger,
                erasure.trigger_user or erasure.source,
                ", ".join(erasure.residual_node_ids),
                erasure.audit_id,
            )
            for erasure in found
        ),
    )


@fleet_commands.command("destroyed")
def destroyed(
    node_id: Annotated[str, typer.Argument(metavar="NODE_ID", help="The node whose machine is gone.")],
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    by: Annotated[str, typer.Option("--by", metavar="ID", help="Who says so; kept in the audit for good.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Say that a machine was destroyed or its memory cleared: erasures name it as residual no more."""
    out = Output(as_json=as_json)
    count = asyncio.run(_destroyed(find_connection(server, key, data), node_id, by))
    out.result({"node_id": node_id, "erasures_cleared": count})
    out.say(f"{node_id} is taken for destroyed; {count} erasures named it, and no longer do", style="green")


def _contents(against: Path | None) -> list[bytes]:
    if against is None:
        return []
    if not against.exists():
        raise SpeakerdError("not_found", f"{against}: no such file or folder")
    files = sorted(against.glob("*.json")) if against.is_dir() else [against]
    if not files:
        raise SpeakerdError("invalid", f"{against}: holds no checkpoints (*.json)")
    return [file.read_bytes() for file in files]


def _more(problems: Sequence[str]) -> str:
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""


async def _verify(connection: Connection, given: Sequence[bytes], *, skip_nodes: bool) -> _Found:
    async with connection.open() as client:
        said = await client.verify_audit(checkpoints=given, skip_inventory=skip_nodes)
    return _Found(
        ok=said.ok,
        num_rows=said.num_rows,
        num_checkpoints=said.num_checkpoints,
        num_erasures=said.num_erasures,
        problems=list(said.problems),
        notes=list(said.notes),
        nodes=[(node.node_id, node.ok, node.error) for node in said.nodes],
    )


async def _erasures(connection: Connection, limit: int) -> list[people_pb2.Erasure]:
    async with connection.open() as client:
        return await client.erasures(limit=limit)


async def _destroyed(connection: Connection, node_id: str, by: str) -> int:
    async with connection.open() as client:
        answer: audit_pb2.AssertDestroyedResponse = await client.assert_destroyed(node_id, trigger_user=by)
        return answer.num_erasures

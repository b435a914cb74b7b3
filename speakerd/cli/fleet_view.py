"""`speakerd fleet`, and `fleet nodes|load|lag|warm`: the fleet as placement sees it, and where a voice is warm.

`speakerd fleet` alone is a table that lives: it is asked for again and drawn anew until Ctrl-C, and goes on over
failures of the server, which it tells in its title. Where stdout is no terminal, and with --once or --json, it is told
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from speakerd.cli.connection import Connection, DataOption, KeyOption, ServerOption, find_connection
from speakerd.cli.output import JsonFlag, Output
from speakerd.errors import SpeakerdError
from speakerd.v1 import node_pb2, people_pb2, streams_pb2

LOAD_HIGH = 0.8
LAG_HIGH_MS = 1_000
BAR_CELLS = 8

_STYLES = {"healthy": "green", "warning": "yellow", "stale": "red"}


def register(commands: typer.Typer) -> None:
    """Add the commands to `speakerd fleet`."""
    commands.callback()(live)
    for command in (nodes, load, lag, warm):
        commands.command()(command)


def live(
    context: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Tell it once, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.2, max=3600.0, help="Seconds between two looks.")] = 1.0,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Without a command: the fleet as a live table, until Ctrl-C: state, load, voices, what is behind, and lag."""
    if context.invoked_subcommand is not None:
        return
    connection = find_connection(server, key, data)
    if once or as_json or not sys.stdout.isatty():
        fleet = asyncio.run(_nodes(connection))
        out = Output(as_json=as_json)
        out.result(_fleet_as_json(fleet))
        if not as_json:
            out.show(_table(fleet))
        return
    with contextlib.suppress(KeyboardInterrupt):  # how one ends it
        asyncio.run(_follow(connection, every))


async def _follow(connection: Connection, every_s: float) -> None:
    async with connection.open() as client:
        # The first answer has to come: a wrong key or address is told as every command tells it.
        table = _table(await client.nodes())
        with Live(table, auto_refresh=False) as drawn:
            while True:
                drawn.update(table, refresh=True)
                await asyncio.sleep(every_s)
                try:
                    table = _table(await client.nodes())
                except SpeakerdError as error:
                    table.title = Text(
                        f"{time.strftime('%H:%M:%S')}  {error.message}; this is what was last known", "red"
                    )


def _table(fleet: streams_pb2.ListNodesResponse) -> Table:
    """The fleet at a glance."""
    serving = [node for node in fleet.nodes if _takes_streams(node)]
    streams = sum(node.load.streams + node.reserved for node in serving)
    slots = sum(node.load.streams_max for node in serving)
    title = Text(f"{time.strftime('%H:%M:%S')}  {len(serving)} of {len(fleet.nodes)} nodes take streams, ")
    title.append(f"{streams} of {slots} slots taken, head of the log {fleet.head}")
    if not fleet.redis_up:
        title.append("; Redis is away: this is what one control plane has heard itself", style="yellow")
    names = ("node", "state", "heard", "streams", "load", "files", "voices warm", "behind", "queued", "lag p99", "")
    table = Table(*names, title=title, title_justify="left", title_style="")
    for node in sorted(fleet.nodes, key=lambda node: node.node_id):
        behind = _behind(node, fleet)
        load = (node.load.streams + node.reserved) / node.load.streams_max if node.load.streams_max else 0.0
        lag_ms = node.load.lag_p99_ms
        table.add_row(
            Text(node.node_id + (f" ({node.zone})" if node.zone else "")),
            Text(_state(node), style="green" if _takes_streams(node) else "yellow"),
            Text(f"{node.age_ms / 1000:.1f} s ago", style=_STYLES[_health(node)]),
            Text(f"{node.load.streams + node.reserved}/{node.load.streams_max}"),
            Text(f"{_bar(load)} {load:4.0%}", style="green" if load < LOAD_HIGH else "red"),
            Text(f"{node.load.files}/{node.load.files_max}"),
            Text(str(node.load.voices)),
            Text(str(behind), style="yellow" if behind else ""),
            Text(str(node.load.queued_windows)),
            Text(f"{lag_ms} ms", style="" if lag_ms < LAG_HIGH_MS else "yellow"),
            Text(", ".join(_remarks(node))),
        )
    return table


def _bar(share: float) -> str:
    full = round(min(1.0, share) * BAR_CELLS)
    return "█" * full + "░" * (BAR_CELLS - full)


def _fleet_as_json(fleet: streams_pb2.ListNodesResponse) -> dict[str, object]:
    return {"head": fleet.head, "redis_up": fleet.redis_up, "nodes": [_as_json(node, fleet) for node in fleet.nodes]}


def nodes(
    *, server: ServerOption = None, key: KeyOption = None, data: DataOption = None, as_json: JsonFlag = False
) -> None:
    """Every node: its state, how lately it was heard, its load, and how far it is."""
    out, fleet = _asked(server, key, data, as_json=as_json)
    out.result(_fleet_as_json(fleet))
    out.table(
        ("node", "state", "heard", "zone", "address", "model", "streams", "files", "behind", ""),
        (
            (
                node.node_id,
                _state(node),
                Text(f"{node.age_ms / 1000:.1f} s ago", style=_STYLES[_health(node)]),
                node.zone or "-",
                node.address,
                node.model,
                f"{node.load.streams + node.reserved}/{node.load.streams_max}",
                f"{node.load.files}/{node.load.files_max}",
                str(_behind(node, fleet)),
                ", ".join(_remarks(node)),
            )
            for node in fleet.nodes
        ),
        title="" if fleet.redis_up else "Redis is away: this is what one control plane has heard itself",
    )


def load(
    *, server: ServerOption = None, key: KeyOption = None, data: DataOption = None, as_json: JsonFlag = False
) -> None:
    """How much of the fleet is taken, and what is left for new streams."""
    out, fleet = _asked(server, key, data, as_json=as_json)
    serving = [node for node in fleet.nodes if _takes_streams(node)]
    taken = sum(node.load.streams + node.reserved for node in serving)
    slots = sum(node.load.streams_max for node in serving)
    worst_ms = max((node.load.lag_p99_ms for node in serving), default=0)
    out.result(
        {"nodes_serving": len(serving), "nodes": len(fleet.nodes), "streams": taken, "slots": slots, "lag_ms": worst_ms}
    )
    share = taken / slots if slots else 1.0
    out.say(
        f"{len(serving)} of {len(fleet.nodes)} nodes take streams; {taken} of {slots} slots are taken ({share:.0%}); "
        f"windows are late by {worst_ms} ms at most (99th percentile, worst node)",
        style="green" if share < 0.8 else "yellow",
    )


def lag(
    *, server: ServerOption = None, key: KeyOption = None, data: DataOption = None, as_json: JsonFlag = False
) -> None:
    """How many changes of the fleet log each node has still to apply."""
    out, fleet = _asked(server, key, data, as_json=as_json)
    out.result({"head": fleet.head, "behind": {node.node_id: _behind(node, fleet) for node in fleet.nodes}})
    out.table(
        ("node", "applied", "behind"),
        (
            (
                node.node_id,
                str(node.cursor),
                Text(str(_behind(node, fleet)), style="yellow" if _behind(node, fleet) else ""),
            )
            for node in fleet.nodes
        ),
        title=f"head of the log: {fleet.head}",
    )


def warm(
    voice_id: Annotated[str, typer.Argument(metavar="VOICE_ID")],
    node_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[NODE_ID]...", help="With --send: these alone.")
    ] = None,
    *,
    send: Annotated[
        bool, typer.Option("--send", help="Send the voice to the nodes again.", show_default=False)
    ] = False,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Where a voice is warm, and why a node that could hold it does not."""
    out = Output(as_json=as_json)
    found = asyncio.run(_warmth(find_connection(server, key, data), voice_id, node_ids or (), send=send))
    said = {
        "warm_node_ids": list(found.warm_node_ids),
        "candidate_node_ids": list(found.candidate_node_ids),
        "stale_node_ids": list(found.stale_node_ids),
    }
    outcomes = [{"node_id": one.node_id, "ok": one.ok, "error": one.error} for one in found.outcomes]
    out.result({**said, "outcomes": outcomes})
    for name, ids in said.items():
        out.say(f"{name.removesuffix('_node_ids'):10} {', '.join(ids) or '-'}")
    for one in found.outcomes:
        out.say(f"{one.node_id}: {'sent' if one.ok else one.error}", style="green" if one.ok else "yellow")


def _asked(
    server: str | None, key: str | None, data: Any, *, as_json: bool
) -> tuple[Output, streams_pb2.ListNodesResponse]:
    return Output(as_json=as_json), asyncio.run(_nodes(find_connection(server, key, data)))


async def _nodes(connection: Connection) -> streams_pb2.ListNodesResponse:
    async with connection.open() as client:
        return await client.nodes()


async def _warmth(
    connection: Connection, voice_id: str, node_ids: Sequence[str], *, send: bool
) -> people_pb2.WarmStatus:
    async with connection.open() as client:
        return await client.warm(voice_id, node_ids) if send else await client.warmth(voice_id)


def _as_json(node: streams_pb2.NodeStatus, fleet: streams_pb2.ListNodesResponse) -> dict[str, object]:
    return {
        "node_id": node.node_id,
        "incarnation": node.incarnation,
        "state": _state(node),
        "health": _health(node),
        "age_ms": node.age_ms,
        "zone": node.zone,
        "address": node.address,
        "model": node.model,
        "streams": node.load.streams,
        "reserved": node.reserved,
        "streams_max": node.load.streams_max,
        "files": node.load.files,
        "files_max": node.load.files_max,
        "voices": node.load.voices,
        "queued_windows": node.load.queued_windows,
        "lag_ms": node.load.lag_p99_ms,
        "cursor": node.cursor,
        "behind": _behind(node, fleet),
        "faults": node.faults,
        "doubted": node.doubted,
    }


def _state(node: streams_pb2.NodeStatus) -> str:
    return node_pb2.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower().replace("unspecified", "gone")


def _health(node: streams_pb2.NodeStatus) -> str:
    name = streams_pb2.NodeStatus.Health.Name(node.health).removeprefix("HEALTH_").lower()
    return name if name in _STYLES else "stale"


def _takes_streams(node: streams_pb2.NodeStatus) -> bool:
    return node.state == node_pb2.NODE_STATE_SERVING and _health(node) != "stale"


def _behind(node: streams_pb2.NodeStatus, fleet: streams_pb2.ListNodesResponse) -> int:
    return max(0, fleet.head - node.cursor)


def _remarks(node: streams_pb2.NodeStatus) -> list[str]:
    remarks = ["being repaired"] if node.doubted else []
    return [*remarks, f"{node.faults} streams left it as failed"] if node.faults else remarks

"""`speakerd erase`: a person's voice, or every voice of a tenant, with or without waiting for the proof."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from speakerd.cli.connection import Connection, DataOption, KeyOption, ServerOption, find_connection
from speakerd.cli.output import JsonFlag, Output
from speakerd.cli.people import voice_id_of
from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.v1 import people_pb2

PROOF_WAIT_S = 30.0
SOURCE = "cli"

TriggerOption = Annotated[
    str,
    typer.Option(help="user_request, license_revoked, license_expired or platform_decision.", show_default=False),
]
UserOption = Annotated[
    str, typer.Option("--by", metavar="ID", help="Who asks, as your system calls them; kept in the audit for good.")
]
ReasonOption = Annotated[str, typer.Option(help="Why, in words; kept sealed, the audit keeps a keyed hash of it.")]


def erase(
    who: Annotated[
        str | None, typer.Argument(metavar="NAME|ID", help="The person's name, or the voice id.", show_default=False)
    ] = None,
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every node has proven it.")] = False,
    trigger: TriggerOption = "",
    by: UserOption = "",
    reason: ReasonOption = "",
    all_of: Annotated[
        str, typer.Option("--all-of", metavar="TENANT", help="Erase every voice of your tenant; write its id out.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Erase a person's voice: nothing names it from now on."""
    out = Output(as_json=as_json)
    if (who is None) == (not all_of):
        raise typer.BadParameter("say whose voice to erase: NAME or ID, or --all-of TENANT")
    connection = find_connection(server, key, data)
    asking = {"trigger": trigger, "trigger_user": by, "reason": reason, "source": SOURCE}
    if who is None:
        with out.working(f"erasing every voice of {all_of}"):
            erasures = asyncio.run(_erase_all(connection, all_of, asking, wait=wait))
        out.result({"erasures": [erasure_as_json(erasure) for erasure in erasures]})
    else:
        with out.working(f"erasing {who}"):
            erasures = [asyncio.run(_erase(connection, who, asking, wait_s=PROOF_WAIT_S if wait else 0.0))]
        out.result(erasure_as_json(erasures[0]))
    for erasure in erasures:
        name = f"{who} ({erasure.voice_id})" if who else erasure.voice_id
        out.say(f"{'erased' if is_erased(erasure) else 'erasing'} {name}, audit {erasure.audit_id}", style="green")
        if erasure.residual_node_ids:
            out.say(f"  still in the memory of fenced nodes: {', '.join(erasure.residual_node_ids)}", style="yellow")
    if not erasures:
        out.say("there was no voice to erase")
    late = [erasure for erasure in erasures if not is_erased(erasure)]
    if wait and late:
        raise SpeakerdError(
            "timeout", f"not proven after {PROOF_WAIT_S:.0f} s: look again with audit {late[0].audit_id}"
        )


def is_erased(erasure: people_pb2.Erasure) -> bool:
    """Whether an erasure is proven."""
    return erasure.state == people_pb2.Erasure.STATE_ERASED


def erasure_as_json(erasure: people_pb2.Erasure) -> dict[str, Any]:
    """An erasure as plain values."""
    return {
        "voice_id": erasure.voice_id,
        "audit_id": erasure.audit_id,
        "state": "erased" if is_erased(erasure) else "erasing",
        "revision": erasure.revision,
        "requested_at": erasure.requested_at.ToJsonString(),
        "erased_at": erasure.erased_at.ToJsonString() if erasure.HasField("erased_at") else None,
        "trigger": erasure.trigger,
        "trigger_user": erasure.trigger_user,
        "source": erasure.source,
        "nodes": [{"node_id": node.node_id, "evicted": node.ok, "error": node.error} for node in erasure.nodes],
        "replicas_evicted": erasure.replicas_evicted,
        "residual_node_ids": list(erasure.residual_node_ids),
        "blob_bytes_deleted": erasure.blob_bytes_deleted,
        "blobs_pending": erasure.blobs_pending,
    }


async def _erase(connection: Connection, who: str, asking: dict[str, str], *, wait_s: float) -> people_pb2.Erasure:
    async with connection.open() as client:
        return await client.erase(await voice_id_of(client, who), wait_s=wait_s, **asking)


async def _erase_all(
    connection: Connection, tenant_id: str, asking: dict[str, str], *, wait: bool
) -> list[people_pb2.Erasure]:
    async with connection.open() as client:
        erasures = [erasure async for erasure in client.erase_all(tenant_id, **asking)]
        if not wait:
            return erasures
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(_proven(client, erasure)) for erasure in erasures]
        return [one.result() for one in waits]


async def _proven(client: Client, erasure: people_pb2.Erasure) -> people_pb2.Erasure:
    # Repeating the request gives the same erasure, and waits for it.
    return erasure if is_erased(erasure) else await client.erase(erasure.voice_id, wait_s=PROOF_WAIT_S)

"""`speakerd voices`: list people, rename and share voices, take consent back, give it anew, hand over what is held."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from speakerd.administration import Administration, timestamp
from speakerd.cli.connection import DataOption, KeyOption, ServerOption, find_connection
from speakerd.cli.output import JsonFlag, Output
from speakerd.cli.people import list_voices, state_of, voice_as_json
from speakerd.errors import SpeakerdError
from speakerd.v1 import people_pb2

voices_commands = typer.Typer(help="Enrolled people and their voices. Alone: list them.")

ResultT = TypeVar("ResultT")
VoiceArgument = Annotated[str, typer.Argument(metavar="ID", help="The voice id, as `speakerd voices` has it.")]


@voices_commands.callback(invoke_without_command=True)
def voices(
    context: typer.Context,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List enrolled people."""
    if context.invoked_subcommand is None:
        list_voices(server, key, data, as_json=as_json)


@voices_commands.command("list")
def list_command(
    server: ServerOption = None, key: KeyOption = None, data: DataOption = None, as_json: JsonFlag = False
) -> None:
    """List enrolled people."""
    list_voices(server, key, data, as_json=as_json)


@voices_commands.command("rename")
def rename(
    voice_id: VoiceArgument,
    name: Annotated[str, typer.Argument(help="What turns of this person are labelled with from now on.")],
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Call a person something else."""
    out = Output(as_json=as_json)
    voice = _with(server, key, data, lambda admin: admin.update_voice(voice_id, label=name))
    out.result({"voice": voice_as_json(voice)})
    out.say(f"{voice.voice_id} is called {voice.label} now", style="green")


@voices_commands.command("share")
def share(
    voice_id: VoiceArgument,
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a user's voice to the whole tenant."""
    out = Output(as_json=as_json)
    voice = _with(server, key, data, lambda admin: admin.share_voice(voice_id))
    out.result({"voice": voice_as_json(voice)})
    out.say(f"{voice.label} ({voice.voice_id}) is for the whole tenant now", style="green")


@voices_commands.command("withdraw")
def withdraw(
    voice_id: VoiceArgument,
    *,
    opt_out: Annotated[bool, typer.Option("--opt-out", help="Refuse this person until they agree anew.")] = False,
    erase: Annotated[bool, typer.Option("--erase", help="Erase the voice, in place of freezing it.")] = False,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take consent back: nothing names the person from now on."""
    out = Output(as_json=as_json)
    answer = _with(server, key, data, lambda admin: admin.withdraw_consent(voice_id, opt_out=opt_out, erase=erase))
    audit_id = answer.erasure.audit_id or None
    out.result({"voice": voice_as_json(answer.voice), "audit_id": audit_id})
    out.say(f"{voice_id}: {state_of(answer.voice)}" + (f", audit {audit_id}" if audit_id else ""), style="green")


@voices_commands.command("consent")
def consent(
    voice_id: VoiceArgument,
    *,
    name: Annotated[str, typer.Option("--name", help="Who agrees: the full name.")],
    purpose: Annotated[str, typer.Option(help="What for.")],
    text: Annotated[str, typer.Option(help="What is agreed to, word for word.")],
    version: Annotated[str, typer.Option(help="Which wording it is, in your own count.")] = "",
    given_at: Annotated[str, typer.Option(metavar="ISO-TIME", help="When. Default: now.")] = "",
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Keep a consent that was given anew; a voice that was frozen is used again."""
    out = Output(as_json=as_json)
    agreed = people_pb2.Consent(
        full_name=name, purpose=purpose, text=text, version=version, given_at=moment(given_at) if given_at else None
    )
    voice = _with(server, key, data, lambda admin: admin.give_consent(voice_id, agreed))
    out.result({"voice": voice_as_json(voice)})
    out.say(f"{voice_id}: {state_of(voice)}", style="green")


@voices_commands.command("export")
def export(
    voice_id: VoiceArgument,
    *,
    to: Annotated[Path, typer.Option("--out", metavar="FILE.zip", help="Where to; it must not exist.")],
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write all that is held on a person into one zip file: recordings, consents, voiceprints, audit."""
    out = Output(as_json=as_json)
    if to.exists():
        raise SpeakerdError("conflict", f"{to} exists: name another file")
    connection = find_connection(server, key, data)

    async def run() -> int:
        async with Administration(connection.address, connection.key, tls=connection.tls) as admin:
            return await _written(admin, voice_id, to)

    with out.working("collecting"):
        size = asyncio.run(run())
    out.result({"voice_id": voice_id, "file": str(to), "bytes": size})
    out.say(f"wrote {to} ({size} bytes): it holds a person's voice in the clear, so take care of it", style="green")


def moment(text: str) -> Any:
    """An ISO time as a Timestamp; without a zone it is this machine's. Raises a usage error."""
    try:
        return timestamp(datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise typer.BadParameter(f"{text!r}: write a time such as 2026-11-21T14:00:00+01:00") from None


async def _written(admin: Administration, voice_id: str, to: Path) -> int:
    part = to.with_name(f".{to.name}.part")
    size = 0
    try:
        # A person's voice in the clear: for this user alone, and whole or not at all.
        number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(number, "wb") as file:
            async for piece in admin.export_voice(voice_id):
                size += file.write(piece)
        part.rename(to)
    except OSError as error:
        raise SpeakerdError("invalid", f"cannot write {to}: {(error.strerror or 'failed').lower()}") from None
    finally:
        part.unlink(missing_ok=True)
    return size


def _with(
    server: str | None, key: str | None, data: Any, ask: Callable[[Administration], Awaitable[ResultT]]
) -> ResultT:
    connection = find_connection(server, key, data)

    async def run() -> ResultT:
        async with Administration(connection.address, connection.key, tls=connection.tls) as admin:
            return await ask(admin)

    return asyncio.run(run())

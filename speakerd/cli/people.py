"""`speakerd enroll`, `voices`: people and their voices, at a control plane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from speakerd.cli.connection import Connection, DataOption, KeyOption, ServerOption, find_connection
from speakerd.cli.output import JsonFlag, Output
from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.strangers import is_stranger
from speakerd.v1 import people_pb2

READY_WAIT_S = 30.0

EnrollOption = Annotated[
    list[str] | None,
    typer.Option(
        "--enroll",
        metavar="NAME=FILE",
        help="Enrol this person first. Repeat it for more people, or for more recordings of one.",
        show_default=False,
    ),
]


def enroll(
    name: Annotated[str, typer.Argument(help="What turns of this person are labelled with.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Recordings of this person alone, 5 to 30 s.")],
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    voice_id: Annotated[str, typer.Option(help="Enrol this existing voice anew, in place.")] = "",
    add: Annotated[bool, typer.Option("--add", help="With --voice-id: keep the recordings that it has.")] = False,
    scope: Annotated[str, typer.Option(help="For whom: tenant, or user (the one that the key stands for).")] = "",
    subject: Annotated[str, typer.Option(help="Your own id for the person, so that an opt-out is remembered.")] = "",
    consent_name: Annotated[str, typer.Option(help="Who consented: the full name.")] = "",
    consent_purpose: Annotated[str, typer.Option(help="What for.")] = "",
    consent_text: Annotated[str, typer.Option(help="What was agreed to, word for word.")] = "",
    consent_version: Annotated[str, typer.Option(help="Which wording it is, in your own count.")] = "",
    consent_audio: Annotated[Path | None, typer.Option(help="The person speaking their consent.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Enrol a person by voice. In RTTM files, blanks in the name become `_`."""
    out = Output(as_json=as_json)
    _nameable(name)
    consent = None
    if consent_name or consent_purpose or consent_text:
        consent = people_pb2.Consent(
            full_name=consent_name, purpose=consent_purpose, text=consent_text, version=consent_version
        )
    spec = people_pb2.VoiceSpec(
        voice_id=voice_id, label=name, consent=consent, scope=_scope(scope), subject=subject, add_clips=add
    )
    connection = find_connection(server, key, data)
    with out.progress() as progress:
        if progress.disable:
            out.note(f"enrolling {name} …")
        task = progress.add_task(f"sending {name}", total=None)

        def on_sent(sent: int, whole: int) -> None:
            if sent < whole:
                progress.update(task, completed=sent, total=whole)
            else:  # how long the listening takes is not known
                progress.update(task, description=f"listening to {name}", total=None)

        answer = asyncio.run(_enroll(connection, spec, files, consent_audio, on_sent))
    voice = answer.voice
    out.say(f"enrolled {voice.label or name} as {voice.voice_id}: {state_of(voice)}", style="green")
    if answer.HasField("analysis"):
        out.say(f"  clean speech {answer.analysis.net_speech_ms / 1000:.1f} s")
    for warning in (*answer.preflight.warnings, *answer.analysis.warnings, *([answer.note] if answer.note else [])):
        out.say(f"  note: {warning}", style="yellow")
    out.result(
        {
            "voice": voice_as_json(voice),
            "enrolled_on": list(answer.enrolled_on),
            "warnings": [*answer.preflight.warnings, *answer.analysis.warnings],
            "note": answer.note,
        }
    )


def list_voices(server: str | None, key: str | None, data: Path | None, *, as_json: bool) -> None:
    """List enrolled people."""
    out = Output(as_json=as_json)
    found = asyncio.run(_voices(find_connection(server, key, data)))
    out.result({"voices": [voice_as_json(voice) for voice in found]})
    if not found:
        out.say("nobody is enrolled: speakerd enroll NAME FILE")
        return
    out.table(
        ("name", "voice id", "for", "state", "clean speech", "enrolled"),
        (
            (
                voice.label,
                voice.voice_id,
                scope_of(voice),
                Text(state_of(voice), style="green" if voice.state == people_pb2.Voice.STATE_READY else "yellow"),
                f"{voice.net_speech_ms / 1000:.1f} s" if voice.net_speech_ms else "",
                voice.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M") if voice.HasField("created_at") else "",
            )
            for voice in found
        ),
    )


def people_to_enroll(enrolments: Sequence[str]) -> dict[str, list[Path]]:
    """NAME=FILE arguments by name, files in order. Raises a usage error for one that is written otherwise."""
    people: dict[str, list[Path]] = {}
    for enrolment in enrolments:
        name, _, file = enrolment.partition("=")
        if not name.strip() or not file:
            raise typer.BadParameter(f"--enroll {enrolment!r}: write NAME=FILE, for example alice=alice.wav")
        _nameable(name)
        people.setdefault(name.strip(), []).append(Path(file))
    for files in people.values():
        missing_files([*files])
    return people


def missing_files(files: Sequence[Path]) -> None:
    """Raise an error that names the first file that is not there or is a folder."""
    for file in files:
        if not file.exists():
            raise SpeakerdError("not_found", f"{file}: no such file")
        if file.is_dir():
            raise SpeakerdError("invalid", f"{file}: is a folder; name the recordings in it")


async def enroll_all(client: Client, people: dict[str, list[Path]], out: Output) -> list[people_pb2.Voice]:
    """Enrol people and wait until a node holds each of them."""
    enrolled = []
    for number, (name, files) in enumerate(people.items(), start=1):
        with out.working(f"enrolling {name} ({number} of {len(people)})"):
            voice = await enroll_or_renew(client, name, files)
            enrolled.append(voice)
        out.note(f"enrolled {name} ({voice.net_speech_ms / 1000:.1f} s of clean speech)")
    return enrolled


async def enroll_or_renew(client: Client, name: str, files: Sequence[Path]) -> people_pb2.Voice:
    """Enrol a person, in place of the voice of that name if there is one, and wait until a node holds it."""
    try:
        enrolled_before = await _called(client, name)
        if len(enrolled_before) > 1:
            raise _ambiguous(name, enrolled_before)
        # Enrolled beside itself, a voice is its own rival, and neither of the two is named.
        voice_id = enrolled_before[0].voice_id if enrolled_before else ""
        answer = await client.enroll(name, files, voice_id=voice_id)
    except SpeakerdError as error:
        where = ", ".join(str(file) for file in files)
        raise SpeakerdError(error.cause, f"{name} ({where}): {error.message}") from None
    return await _ready(client, answer.voice)


def state_of(voice: people_pb2.Voice) -> str:
    """A voice's state, in a word and why."""
    state = people_pb2.Voice.State.Name(voice.state).removeprefix("STATE_").lower()
    return f"{state} ({voice.state_reason})" if voice.state_reason else state


def scope_of(voice: people_pb2.Voice) -> str:
    """For whom a voice is, in a word."""
    scope = people_pb2.VoiceScope.Name(voice.scope).removeprefix("VOICE_SCOPE_").lower()
    return f"{scope} {voice.owner_user_id}" if voice.scope == people_pb2.VOICE_SCOPE_USER else scope


def voice_as_json(voice: people_pb2.Voice) -> dict[str, Any]:
    """A voice as plain values."""
    return {
        "voice_id": voice.voice_id,
        "label": voice.label,
        "state": people_pb2.Voice.State.Name(voice.state).removeprefix("STATE_").lower(),
        "state_reason": voice.state_reason,
        "generation": voice.generation,
        "net_speech_s": voice.net_speech_ms / 1000,
        "model": voice.model,
        "scope": people_pb2.VoiceScope.Name(voice.scope).removeprefix("VOICE_SCOPE_").lower(),
        "owner_user_id": voice.owner_user_id or None,
        "created_at": voice.created_at.ToJsonString() if voice.HasField("created_at") else None,
    }


async def voice_id_of(client: Client, who: str) -> str:
    """The id of the one voice that a person named: by its label, or by the id itself."""
    named = await _called(client, who)
    if len(named) > 1:
        raise _ambiguous(who, named)
    if named:
        return named[0].voice_id
    try:
        return (await client.voice(who)).voice_id
    except SpeakerdError as error:
        if error.cause in {"not_found", "invalid"}:
            raise SpeakerdError("not_found", f"nobody called {who} is enrolled: see `speakerd voices`") from None
        raise


async def _ready(client: Client, voice: people_pb2.Voice) -> people_pb2.Voice:
    # The control plane has no call that waits for this, so it is asked again, with growing pauses, within a bound.
    pause_s, waited_s = 0.05, 0.0
    while voice.state == people_pb2.Voice.STATE_PENDING and waited_s < READY_WAIT_S:
        await asyncio.sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(1.0, pause_s * 2)
        voice = await client.voice(voice.voice_id)
    if voice.state != people_pb2.Voice.STATE_READY:
        raise SpeakerdError("unavailable", f"{voice.label} is not ready: {state_of(voice)}")
    return voice


async def _enroll(
    connection: Connection,
    spec: people_pb2.VoiceSpec,
    files: Sequence[Path],
    consent_audio: Path | None,
    on_sent: Callable[[int, int], None],
) -> people_pb2.EnrollVoiceResponse:
    missing_files([*files, *([consent_audio] if consent_audio else [])])
    name, voice_id = spec.label, spec.voice_id
    async with connection.open() as client:
        for voice in [] if voice_id else await _called(client, name):
            raise SpeakerdError(
                "conflict",
                f"{name} is enrolled already: say --voice-id {voice.voice_id} to enrol that voice anew, "
                "or give another person another name",
            )
        return await client.enroll_as(spec, list(files), consent_clip=consent_audio, on_sent=on_sent)


async def _voices(connection: Connection) -> list[people_pb2.Voice]:
    async with connection.open() as client:
        return await client.voices()


async def _called(client: Client, name: str) -> list[people_pb2.Voice]:
    """The voices with this name. An empty one is nobody's, though it lists everybody."""
    if not name.strip():
        raise SpeakerdError("invalid", "the name is empty: say who is meant")
    gone = (people_pb2.Voice.STATE_ERASING, people_pb2.Voice.STATE_ERASED)
    return [voice for voice in await client.voices(label=name) if voice.state not in gone]


def _ambiguous(name: str, voices: Sequence[people_pb2.Voice]) -> SpeakerdError:
    ids = ", ".join(voice.voice_id for voice in voices)
    return SpeakerdError("conflict", f"{len(voices)} voices are called {name}: say which by its id ({ids})")


def _scope(said: str) -> people_pb2.VoiceScope.ValueType:
    scopes = {"": "UNSPECIFIED", "user": "USER", "tenant": "TENANT"}
    if said not in scopes:
        raise typer.BadParameter(f"--scope {said!r}: user or tenant")
    return people_pb2.VoiceScope.Value(f"VOICE_SCOPE_{scopes[said]}")


def _nameable(name: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise typer.BadParameter("the name is not valid UTF-8: say it in the terminal's encoding")
    if is_stranger(name):
        raise typer.BadParameter(f"{name!r} is what strangers are called: choose another name")

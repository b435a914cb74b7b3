"""`speakerd jobs`: recordings that are heard while nobody waits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from google.protobuf.json_format import MessageToDict

from speakerd.cli.connection import DataOption, KeyOption, ServerOption, find_connection
from speakerd.cli.output import JsonFlag, Output
from speakerd.cli.result_files import Results, formats_of, write_format
from speakerd.errors import SpeakerdError
from speakerd.jobs_client import ENDS, JobsClient
from speakerd.rttm import RttmTurn, write_rttm, write_whole
from speakerd.timeline import join_touching, spoken_turn
from speakerd.v1 import jobs_pb2, node_pb2

jobs_commands = typer.Typer(no_args_is_help=True, help="Jobs: recordings that are heard while nobody waits.")

ResultT = TypeVar("ResultT")
KINDS = {"diarize": 1, "identify": 2, "voiceprint": 3}
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
RttmOption = Annotated[
    Path | None, typer.Option("--rttm", metavar="FILE", help="Write the turns as RTTM.", show_default=False)
]
ToOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--to",
        metavar="FILE",
        help="Write what it gave, as the ending says: .rttm, .json, .srt, .svg or .png; may be repeated.",
        show_default=False,
    ),
]


@jobs_commands.command("submit")
def submit(
    recording: Annotated[str, typer.Argument(metavar="FILE|URL", help="A recording here, or an https:// url.")],
    *,
    kind: Annotated[str, typer.Option(help="diarize, identify or voiceprint.")] = "diarize",
    voiceprint: Annotated[
        list[str] | None,
        typer.Option("--voiceprint", metavar="NAME=FILE", help="Identify: whom to look for; may be repeated."),
    ] = None,
    enrolled: Annotated[bool, typer.Option("--enrolled", help="Identify: look for everybody enrolled too.")] = False,
    threshold: Annotated[float, typer.Option(min=0, max=100, help="Identify: least score of a match.")] = 0.0,
    num_speakers: Annotated[int, typer.Option(min=0, help="How many speakers there are; 0: find out.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask for a job; its id comes back at once."""
    out = Output(as_json=as_json)
    if kind not in KINDS:
        raise typer.BadParameter(f"--kind {kind!r}: write diarize, identify or voiceprint")
    request = jobs_pb2.CreateJobRequest(
        kind=KINDS[kind],  # type: ignore[arg-type]
        options=node_pb2.FileOpen(num_speakers=num_speakers),
        voiceprints=[_sent(one) for one in voiceprint or ()],
    )
    if kind == "identify":
        request.matching.CopyFrom(jobs_pb2.JobMatching(threshold=threshold, everybody=enrolled))

    async def ask(client: JobsClient) -> jobs_pb2.Job:
        if "://" in recording:
            request.url = recording
        else:
            request.media_key = f"cli/{secrets.token_hex(8)}"
            with out.working(f"sending {Path(recording).name}"):
                await client.upload(request.media_key, Path(recording))
        job = await client.create(request)
        return await _last(client, job.job_id, out) if wait else job

    job = _with(server, key, data, ask)
    _show(out, job)


@jobs_commands.command("get")
def get(
    job_id: JobArgument,
    *,
    rttm: RttmOption = None,
    to: ToOption = None,
    voiceprint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the voiceprint, for `submit --voiceprint`.")
    ] = None,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """A job, and what it gave."""
    out = Output(as_json=as_json)
    for file in to or ():
        formats_of(file.suffix.removeprefix("."))

    async def ask(client: JobsClient) -> jobs_pb2.Job:
        job = await client.job(job_id)
        if job.result_is_long:
            job.result.CopyFrom(await client.result(job_id))
        return job

    job = _with(server, key, data, ask)
    if rttm is not None:
        _require(job.HasField("result"), "this job has no result to write")
        write_rttm(rttm, [RttmTurn(turn.start_ms, turn.end_ms, turn.label) for turn in job.result.turns])
    if to:
        _require(job.HasField("result"), "this job has no result to write")
        turns = join_touching(map(spoken_turn, job.result.turns))
        details = MessageToDict(job.result, preserving_proto_field_name=True)
        results = Results(turns, job.result.duration_ms, f"job {job.job_id}", details)
        for file in to:
            out.note(f"written to {write_format(results, file, file.suffix[1:].lower())}")
    if voiceprint is not None:
        _require(bool(job.voiceprint), "this job gave no voiceprint")
        write_whole(voiceprint, base64.b64encode(job.voiceprint).decode() + "\n")
    _show(out, job)


@jobs_commands.command("list")
def list_jobs(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most that are shown.")] = 20,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """The tenant's jobs, newest first."""
    out = Output(as_json=as_json)
    found = _with(server, key, data, lambda client: client.jobs(limit=limit))
    out.result({"jobs": [_as_json(job) for job in found]})
    out.table(
        ("job", "kind", "state", "made", "audio"),
        ((job.job_id, _kind(job), _state(job), job.created_at.ToJsonString(), _audio(job)) for job in found),
    )


@jobs_commands.command("cancel")
def cancel(
    job_id: JobArgument,
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """End a job that has not ended."""
    _show(Output(as_json=as_json), _with(server, key, data, lambda client: client.cancel(job_id)))


@jobs_commands.command("watch")
def watch(
    job_id: JobArgument,
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Follow a job to its end. Exit code 1 unless it succeeded."""
    out = Output(as_json=as_json)
    job = _with(server, key, data, lambda client: _last(client, job_id, out))
    _show(out, job)
    if job.state != jobs_pb2.Job.STATE_SUCCEEDED:
        raise typer.Exit(1)


async def _last(client: JobsClient, job_id: str, out: Output) -> jobs_pb2.Job:
    """Follow a job to its end, with a bar and the time left where there is a terminal, else with a line a change."""
    last = jobs_pb2.Job()
    with out.progress() as progress:
        task = progress.add_task(job_id, total=None)
        async for job in client.watch(job_id):
            last = job
            if job.state in ENDS:
                break
            done_ms, all_ms = job.progress.processed_ms, job.progress.duration_ms
            progress.update(task, description=f"{job_id} {_state(job)}", completed=done_ms, total=all_ms or None)
            if progress.disable:
                out.note(f"{_state(job)} {_audio(job)}".rstrip())
    return last


def _with(
    server: str | None, key: str | None, data: Path | None, ask: Callable[[JobsClient], Awaitable[ResultT]]
) -> ResultT:
    connection = find_connection(server, key, data)

    async def run() -> ResultT:
        async with JobsClient(connection.address, connection.key, tls=connection.tls) as client:
            return await ask(client)

    return asyncio.run(run())


def _sent(said: str) -> jobs_pb2.JobVoiceprint:
    name, _, file = said.partition("=")
    if not name or not file:
        raise typer.BadParameter(f"--voiceprint {said!r}: write NAME=FILE")
    try:
        return jobs_pb2.JobVoiceprint(label=name, voiceprint=base64.b64decode(Path(file).read_text().strip()))
    except (OSError, ValueError, binascii.Error):
        raise typer.BadParameter(f"--voiceprint: {file} is no file that `jobs get --voiceprint` wrote") from None


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise SpeakerdError("not_found", otherwise)


def _show(out: Output, job: jobs_pb2.Job) -> None:
    out.result(_as_json(job))
    out.say(f"{job.job_id} {_kind(job)} {_state(job)} {_audio(job)}".rstrip())
    for text in (job.error, job.warning, *job.result.warnings):
        if text:
            out.say(text, style="yellow")
    for turn in job.result.turns:
        out.say(f"{turn.start_ms / 1000:9.2f} {turn.end_ms / 1000:9.2f}  {turn.label}")


def _as_json(job: jobs_pb2.Job) -> dict[str, Any]:
    said: dict[str, Any] = MessageToDict(job, preserving_proto_field_name=True)
    return said | {"kind": _kind(job), "state": _state(job)}


def _kind(job: jobs_pb2.Job) -> str:
    return jobs_pb2.CreateJobRequest.Kind.Name(job.kind).removeprefix("KIND_").lower()


def _state(job: jobs_pb2.Job) -> str:
    return jobs_pb2.Job.State.Name(job.state).removeprefix("STATE_").lower()


def _audio(job: jobs_pb2.Job) -> str:
    done, whole = job.progress.processed_ms / 1000, job.progress.duration_ms / 1000
    return f"{done:.0f} of {whole:.0f} s" if whole else ""

"""`speakerd stream`: recordings or the microphone through a node, turns as they come, RTTM at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from speakerd.cli.connection import Connection, KeyOption, ServerOption, ServersDataOption, find_connection
from speakerd.cli.failures import failure_of
from speakerd.cli.live import matches_as_json, own_server, stream_sound
from speakerd.cli.output import JsonFlag, Output, results_folder
from speakerd.cli.people import EnrollOption, enroll_all, people_to_enroll
from speakerd.cli.recording import Microphone, Recording, read_recording
from speakerd.cli.result_files import FormatOption, Results, formats_of, write_results
from speakerd.cli.turn_printer import TurnPrinter
from speakerd.cli.up import run_until_signal, stop_signals
from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.live_stream import StreamOptions
from speakerd.rttm import write_rttm
from speakerd.timeline import SpeechTimeline


def stream(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE…]", help="Recordings, one after another.")
    ] = None,
    *,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write DIR/STEM.rttm, or as --format says.")
    ] = None,
    formats: FormatOption = "rttm",
    mic: Annotated[bool, typer.Option("--mic", help="Stream the microphone, until Ctrl-C.")] = False,
    latency: Annotated[float, typer.Option(min=0.5, max=5.0, help="Seconds after which a turn is final.")] = 2.0,
    realtime: Annotated[
        bool, typer.Option("--realtime/--no-realtime", help="At the pace of speech, or as fast as the engine allows.")
    ] = True,
    enroll: EnrollOption = None,
    exclusive: Annotated[bool, typer.Option("--exclusive", help="One speaker at a time.")] = False,
    resume: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Seconds to look for a node to go on at when one is lost.")
    ] = 60.0,
    server: ServerOption = None,
    key: KeyOption = None,
    data: ServersDataOption = None,
    device: Annotated[str | None, typer.Option(help="Of a server of our own: cpu, cuda or null.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Of a server of our own. Default: builtin.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Stream recordings, or the microphone, through a node, and print who speaks as it comes.

    Without --server (or --data) a server of our own runs for as long as the command, in a temporary folder, and knows
    only the people named with --enroll. With a server, those stay enrolled there. Final turns, with late recognitions
    applied, are written to DIR/STEM.rttm; blanks in names become `_` there.
    """
    if mic == bool(files):
        raise typer.BadParameter("name recordings, or say --mic: one of the two")
    wanted = formats_of(formats)
    for suffix in wanted:
        distinct_stems(files or [], f".{suffix}")
    streaming = _Streaming(
        out=Output(as_json=as_json),
        options=StreamOptions(latency_ms=round(latency * 1000), exclusive=exclusive, resume_s=resume),
        realtime=realtime,
        out_dir=out_dir,
        formats=wanted,
    )
    people = people_to_enroll(enroll or [])
    results_folder(out_dir)
    where = None if server is None and data is None else find_connection(server, key, data)
    if where is not None and (device or bundle):
        raise typer.BadParameter("--device and --bundle are the server's to choose: leave them out with --server")
    failures = run_until_signal(_run(streaming, files or [], people, where, device=device, bundle=bundle))
    if failures:
        raise typer.Exit(1)


def distinct_stems(files: Sequence[Path], suffix: str) -> None:
    """Refuse recordings whose results would be written to one file. Raises SpeakerdError naming them."""
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(file.stem, file)
        if other is not file:
            raise SpeakerdError(
                "conflict",
                f"{other} and {file} would both be written to {file.stem}{suffix}: rename one, or run twice",
            )


@dataclass(frozen=True, slots=True)
class _Streaming:
    """How each recording is streamed, and where its turns go."""

    out: Output
    options: StreamOptions
    realtime: bool
    out_dir: Path | None
    formats: Sequence[str]


async def _run(
    streaming: _Streaming,
    files: Sequence[Path],
    people: dict[str, list[Path]],
    where: Connection | None,
    *,
    device: str | None,
    bundle: str | None,
) -> int:
    """Stream all recordings, or the microphone when there are none. Returns how many failed."""
    out = streaming.out
    stopping = asyncio.Event()
    sources: Sequence[Path | Recording | Microphone] = files
    if not files:
        sources = [Microphone(time.strftime("mic-%Y%m%d-%H%M%S"), stopping)]
    elif len(files) == 1:
        # A single recording that cannot be read is told before anything is brought up for it.
        sources = [await asyncio.to_thread(read_recording, files[0])]
    results: list[dict[str, Any]] = []
    async with contextlib.AsyncExitStack() as stack:
        if where is None:
            where = await stack.enter_async_context(own_server(out, device=device, bundle=bundle))
        client = await stack.enter_async_context(where.open())
        await enroll_all(client, people, out)
        if not files:
            stack.enter_context(stop_signals(stopping))
        for source in sources:
            try:
                results.append(await _stream(streaming, client, source))
            except (SpeakerdError, OSError) as error:
                failure = failure_of(error)
                out.error(failure.message if str(source) in failure.message else f"{source}: {failure.message}")
                results.append({"file": str(source), "error": {"cause": failure.cause, "message": failure.message}})
    out.result({"files": results})
    return sum("error" in result for result in results)


async def _stream(streaming: _Streaming, client: Client, source: Path | Recording | Microphone) -> dict[str, Any]:
    out = streaming.out
    sound = await asyncio.to_thread(read_recording, source) if isinstance(source, Path) else source
    out.say(str(sound), style="bold")
    timeline = SpeechTimeline()
    try:
        with out.progress() as progress:
            task = progress.add_task("streaming", total=sound.duration_ms)
            streamed = await stream_sound(
                client,
                sound,
                streaming.options,
                realtime=streaming.realtime,
                on_event=TurnPrinter(out, progress, task).take,
                timeline=timeline,
            )
    except SpeakerdError:
        # Hours of a live stream are not thrown away because its end went wrong.
        if streaming.out_dir is not None and timeline.turns():
            rttm = streaming.out_dir / f"{sound.stem}.rttm"
            write_rttm(rttm, timeline.rttm_turns())
            out.note(f"the turns until it broke off are in {rttm}", style="yellow")
        raise
    turns = streamed.timeline.turns()
    result: dict[str, Any] = {
        "file": str(sound),
        "duration": streamed.closed.duration_ms / 1000,
        "turns": streamed.timeline.as_json(),
        "speakers": sorted({turn.label for turn in turns}),
        "matches": matches_as_json(streamed.closed),
        "skipped_windows": streamed.closed.skipped_windows,
    }
    if streamed.closed.skipped_windows:
        out.note(f"{streamed.closed.skipped_windows} windows were skipped: the node was late", style="yellow")
    results = Results(turns, streamed.closed.duration_ms, str(sound), dict(result))
    for path in write_results(results, sound.stem, streaming.out_dir, streaming.formats):
        result[path.suffix[1:]] = str(path)
        out.note(f"written to {path}")
    return result

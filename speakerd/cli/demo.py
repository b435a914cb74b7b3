"""`speakerd demo`: everything brought up, two people enrolled by voice, and a live stream that names them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from speakerd.cli.live import StreamedFile, matches_as_json, own_server, stream_sound
from speakerd.cli.output import JsonFlag, Output
from speakerd.cli.people import enroll_all
from speakerd.cli.recording import Recording, read_recording
from speakerd.cli.sample_conversation import SampleConversation, cut_sample, error_rate
from speakerd.cli.turn_printer import TurnPrinter, clock
from speakerd.cli.up import run_until_signal
from speakerd.errors import SpeakerdError
from speakerd.live_stream import StreamOptions
from speakerd.rttm import write_rttm

NEXT = """
Try next:
  speakerd stream --mic --enroll YOU=you.wav     your own voice, live (10 s of you alone in you.wav)
  speakerd diarize meeting.m4a --out results     who spoke when in a recording
  speakerd up                                    keep a server running; then `speakerd enroll NAME FILE`,
                                                 `speakerd stream FILE --data ~/.local/share/speakerd`
  speakerd doctor                                what this machine has, and what would make it faster
"""


def demo(
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Keep the recordings there, and the turns as RTTM."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu.")] = None,
    realtime: Annotated[
        bool | None,
        typer.Option("--realtime/--no-realtime", help="At the pace of speech. Default: on a terminal only."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """See it work: two people are enrolled by voice, and a live stream tells which of them is speaking.

    The conversation is the one that pyannote.audio installs with itself. Everything runs in a temporary folder and is
    gone afterwards, but for what --out keeps.
    """
    out = Output(as_json=as_json)
    realtime = sys.stdout.isatty() if realtime is None else realtime
    with tempfile.TemporaryDirectory(prefix="speakerd-demo-") as folder:
        sample = cut_sample(Path(folder) if out_dir is None else out_dir)
        streamed = run_until_signal(_demo(out, sample, device, realtime=realtime))
    heard = streamed.timeline.rttm_turns()
    error = error_rate(sample.reference, heard)
    named = [turn for turn in streamed.timeline.turns() if turn.voice_id]
    _show(out, sample, streamed, error)
    result: dict[str, Any] = {
        "turns": streamed.timeline.as_json(),
        "reference": [
            {"start": turn.start_ms / 1000, "end": turn.end_ms / 1000, "label": turn.label} for turn in sample.reference
        ],
        "error_rate": round(error, 4),
        "named_turns": len(named),
        "matches": matches_as_json(streamed.closed),
    }
    if out_dir is not None:
        write_rttm(out_dir / "demo.rttm", heard)
        write_rttm(out_dir / "reference" / "demo.rttm", sample.reference)
        result["rttm"] = str(out_dir / "demo.rttm")
    out.result(result)
    if not named:
        raise SpeakerdError("internal", "nobody was recognised: run `speakerd doctor`, and report this with its output")
    out.say(NEXT)


async def _demo(out: Output, sample: SampleConversation, device: str | None, *, realtime: bool) -> StreamedFile:
    recording: Recording = read_recording(sample.rest)
    async with own_server(out, device=device) as connection, connection.open() as client:
        await enroll_all(client, {name: [clip] for name, clip in sample.enrolment.items()}, out)
        out.say("Streaming the second half of their conversation:", style="bold")
        with out.progress() as progress:
            printer = TurnPrinter(out, progress, progress.add_task("streaming", total=recording.duration_ms))
            return await stream_sound(client, recording, StreamOptions(), realtime=realtime, on_event=printer.take)


def _show(out: Output, sample: SampleConversation, streamed: StreamedFile, error: float) -> None:
    rows: list[tuple[str | Text, ...]] = []
    for turn in sample.reference:
        label = streamed.timeline.label(turn.start_ms / 1000, turn.end_ms / 1000)
        found = Text(label or "nobody", style="green" if label == turn.label else "red")
        rows.append((f"{clock(turn.start_ms)} – {clock(turn.end_ms)}", turn.label, found))
    out.say()
    out.table(("when", "who spoke", "speakerd says"), rows)
    out.say(f"{error:.1%} of the speech was missed, made up, or given to the wrong name.")

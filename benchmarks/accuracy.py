"""Score `speakerd diarize` and `speakerd stream` on labelled conversations, as a user would run them.

    python benchmarks/accuracy.py CONVERSATIONS [--latency 2.0] [--json OUT] [--keep DIR]

CONVERSATIONS holds NAME.flac (or .wav), NAME.rttm, optionally NAME.json ({"enrolled": [...], "guests": [...]}), and
enroll/LABEL.flac: one recording of each person to enrol. DER maps labels optimally. IER asks enrolled people to be
called by their own label, and maps the other labels only. Overlap is scored, the collar is 0. "Guests named" is the
share of the speech of people who are not enrolled, or do not take part as such, at which somebody enrolled is said to
speak who does not. Streams are scored twice: as their transcript stands at the end, and as their final turns were told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate
from pyannote.metrics.identification import IdentificationErrorRate

from speakerd.cli.live import own_server, stream_sound
from speakerd.cli.output import Output
from speakerd.cli.people import enroll_all
from speakerd.cli.recording import read_recording
from speakerd.live_stream import Event, StreamOptions
from speakerd.rttm import write_rttm
from speakerd.timeline import SpeechTimeline
from speakerd.v1 import node_pb2


@dataclass(frozen=True, slots=True)
class Score:
    """Error rates are fractions of the speech in the reference; durations are seconds."""

    name: str
    der: float
    ier: float
    missed_s: float
    false_alarm_s: float
    confusion_s: float
    speech_s: float
    guests_s: float
    guests_named_s: float


def read_rttm(path: Path) -> Annotation:
    """The SPEAKER lines of an RTTM file."""
    annotation = Annotation(uri=path.stem)
    for number, line in enumerate(path.read_text().splitlines()):
        field = line.split()
        if field and field[0] == "SPEAKER":
            start_s, length_s = float(field[3]), float(field[4])
            annotation[Segment(start_s, start_s + length_s), number] = field[7]
    return annotation


def name_guests(reference: Annotation, hypothesis: Annotation, enrolled: set[str]) -> Annotation:
    """Put on anonymous labels the guests whom they overlap most, one to one; leave enrolled labels alone."""
    anonymous = hypothesis.subset(enrolled, invert=True)
    mapping = DiarizationErrorRate().optimal_mapping(reference.subset(enrolled, invert=True), anonymous)
    return hypothesis.rename_labels({label: mapping.get(label, f"nobody:{label}") for label in anonymous.labels()})


def guests_named(
    reference: Annotation, hypothesis: Annotation, guests: set[str], people: set[str]
) -> tuple[float, float]:
    """Seconds in which guests speak, and in how many of them somebody of `people` is said to speak who does not."""
    spoken = reference.subset(guests).get_timeline().support()
    wrong = Timeline()
    for person in people & set(hypothesis.labels()):
        said = hypothesis.label_timeline(person).support()
        true = reference.label_timeline(person).support() if person in reference.labels() else Timeline()
        for segment in said.crop(spoken):
            wrong = wrong.update(true.gaps(support=segment))
    return spoken.duration(), wrong.support().duration()


def score(references: Path, hypotheses: Path) -> list[Score]:
    """Score every reference in a folder against the RTTM of the same name; a missing one is all missed.

    The last row, "ALL", is weighted by speech.
    """
    der, ier, rows = DiarizationErrorRate(), IdentificationErrorRate(), []
    people = {clip.stem for clip in (references / "enroll").glob("*.*")}
    guests_s = guests_named_s = 0.0
    for path in sorted(references.glob("*.rttm")):
        reference = read_rttm(path)
        found = hypotheses / path.name
        hypothesis = read_rttm(found) if found.exists() else Annotation(uri=path.stem)
        meta = path.with_suffix(".json")
        enrolled = set(json.loads(meta.read_text())["enrolled"]) if meta.exists() else set()
        end_s = max([0.0, *(segment.end for side in (reference, hypothesis) for segment in side.get_timeline())])
        uem = Timeline([Segment(0, end_s)])
        detail = der(reference, hypothesis, uem=uem, detailed=True)
        named = ier(reference, name_guests(reference, hypothesis, enrolled), uem=uem)
        guests = guests_named(reference, hypothesis, set(reference.labels()) - enrolled, people | enrolled)
        guests_s, guests_named_s = guests_s + guests[0], guests_named_s + guests[1]
        rows.append(_row(path.stem, detail["diarization error rate"], named, detail, guests))
    if not rows:
        raise SystemExit(f"no references: {references} holds no .rttm file")
    total = der.accumulated_
    rows.append(_row("ALL", abs(der), abs(ier), total, (guests_s, guests_named_s)))
    return rows


def _row(name: str, der: float, ier: float, detail: dict[str, float], guests: tuple[float, float]) -> Score:
    parts = (detail["missed detection"], detail["false alarm"], detail["confusion"], detail["total"])
    return Score(name, float(der), float(ier), *(float(part) for part in (*parts, *guests)))


def enrolment_flags(conversations: Path) -> list[str]:
    """`--enroll LABEL=FILE` for each recording in the folder `enroll`."""
    clips = sorted((conversations / "enroll").glob("*.*"))
    return [flag for clip in clips for flag in ("--enroll", f"{clip.stem}={clip}")]


def run(command: str, conversations: Path, out: Path, options: Sequence[str]) -> float:
    """Run a speakerd command over every conversation. Returns wall seconds."""
    files = sorted(path for path in conversations.iterdir() if path.suffix in (".flac", ".wav"))
    argv = [sys.executable, "-m", "speakerd", command, *map(str, files), "--out", str(out), *options]
    began_s = time.monotonic()
    subprocess.run([*argv, *enrolment_flags(conversations)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began_s


async def stream_all(conversations: Path, out: Path, told: Path, latency_s: float) -> None:
    """Stream each as `speakerd stream` does: transcripts go to `out`, final turns as they were told to `told`."""
    quiet = Output(as_json=True)
    clips = sorted((conversations / "enroll").glob("*.*"))
    options = StreamOptions(latency_ms=round(latency_s * 1000))
    for folder in (out, told):
        folder.mkdir(parents=True, exist_ok=True)
    async with own_server(quiet) as where, where.open() as client:
        await enroll_all(client, {clip.stem: [clip] for clip in clips}, quiet)
        for file in sorted(path for path in conversations.iterdir() if path.suffix in (".flac", ".wav")):
            said = SpeechTimeline()

            def take(event: Event, said: SpeechTimeline = said) -> None:
                if isinstance(event, node_pb2.Turns):
                    said.take(event)

            streamed = await stream_sound(client, read_recording(file), options, realtime=False, on_event=take)
            write_rttm(out / f"{file.stem}.rttm", streamed.timeline.rttm_turns())
            write_rttm(told / f"{file.stem}.rttm", said.rttm_turns())


def show(title: str, rows: Sequence[Score], wall_s: float) -> None:
    """Print one table."""
    print(f"{title} ({wall_s:.0f} s)")
    for row in rows:
        print(
            f"  {row.name:<12} DER {100 * row.der:6.2f} %  IER {100 * row.ier:6.2f} %  missed {row.missed_s:6.1f} s"
            f"  false alarm {row.false_alarm_s:6.1f} s  confusion {row.confusion_s:6.1f} s  of {row.speech_s:7.1f} s"
            f"  guests named {row.guests_named_s:5.1f} of {row.guests_s:5.1f} s"
        )


def _scored(what: str, conversations: Path, kept: Path, wall_s: float) -> list[dict[str, float | str]]:
    rows = score(conversations, kept / what)
    show(what, rows, wall_s)
    return [asdict(row) for row in rows]


def main() -> None:
    """Run, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds, of the stream")
    parser.add_argument("--json", type=Path, help="write the scores here")
    parser.add_argument("--keep", type=Path, help="leave the RTTMs in this folder")
    parser.add_argument("--only", choices=("diarize", "stream"), help="run one of the two")
    arguments = parser.parse_args()

    results: dict[str, list[dict[str, float | str]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = arguments.keep or Path(scratch)
        if arguments.only in (None, "diarize"):
            wall_s = run("diarize", arguments.conversations, kept / "diarize", [])
            results["diarize"] = _scored("diarize", arguments.conversations, kept, wall_s)
        if arguments.only in (None, "stream"):
            began_s = time.monotonic()
            asyncio.run(stream_all(arguments.conversations, kept / "stream", kept / "as told", arguments.latency))
            for what in ("stream", "as told"):
                results[what] = _scored(what, arguments.conversations, kept, time.monotonic() - began_s)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

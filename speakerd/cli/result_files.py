"""The files that results are written to: one a recording and a format, all under DIR/STEM.SUFFIX.

In come formats as they are said on a command line, and turns; out come files that appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from speakerd.errors import SpeakerdError
from speakerd.rttm import RttmTurn, write_rttm, write_whole
from speakerd.srt import write_srt
from speakerd.timeline import SpokenTurn
from speakerd.timeline_picture import write_png, write_svg

FORMATS = ("rttm", "json", "srt", "svg", "png")

FormatOption = Annotated[
    str,
    typer.Option(
        "--format", help="What to write: rttm, json, srt (subtitles), svg or png (a picture); several with commas."
    ),
]


@dataclass(frozen=True, slots=True)
class Results:
    """What is written of a recording. details: what the JSON holds. title: heads the picture."""

    turns: Sequence[SpokenTurn]
    duration_ms: int
    title: str
    details: Any


def formats_of(text: str) -> list[str]:
    """The formats that were said. Raises a usage error for an unknown one, SpeakerdError where one cannot be drawn."""
    wanted = list(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    if not wanted or any(part not in FORMATS for part in wanted):
        raise typer.BadParameter(f"--format {text!r}: say one or several of {', '.join(FORMATS)}, as in rttm,png")
    if "png" in wanted and find_spec("PIL") is None:
        # Told before any work is done.
        raise SpeakerdError("unavailable", "a picture as PNG needs Pillow: pip install 'speakerd[picture]', or say svg")
    return wanted


def write_results(results: Results, stem: str, out_dir: Path | None, formats: Sequence[str]) -> list[Path]:
    """Write every format; the files, in the order of the formats. None to write to: none are written."""
    if out_dir is None:
        return []
    return [write_format(results, out_dir / f"{stem}.{suffix}", suffix) for suffix in formats]


def write_format(results: Results, path: Path, suffix: str) -> Path:
    """Write one file."""
    turns = [RttmTurn(turn.start_ms, turn.end_ms, turn.label) for turn in results.turns]
    match suffix:
        case "rttm":
            write_rttm(path, turns)
        case "json":
            write_whole(path, json.dumps(results.details, ensure_ascii=False, indent=1) + "\n")
        case "srt":
            write_srt(path, turns)
        case "svg":
            write_svg(path, turns, duration_ms=results.duration_ms, title=results.title)
        case "png":
            write_png(path, turns, duration_ms=results.duration_ms, title=results.title)
        case _:
            raise AssertionError(f"a format of {FORMATS}")
    return path

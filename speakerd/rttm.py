"""RTTM: the line format in which diarizations are written and scored.

In come turns; out come lines `SPEAKER <uri> 1 <start> <length> <NA> <NA> <label> <NA> <NA>`, seconds with milliseconds.
Fields are separated by blanks, so blanks within a uri or a label become `_`. Files appear whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RttmTurn:
    """A line of an RTTM. Times are milliseconds, half-open."""

    start_ms: int
    end_ms: int
    label: str


def rttm_field(text: str) -> str:
    """A name as it can stand in an RTTM field: blanks become `_`, and nothing at all becomes `<NA>`."""
    return "_".join(text.split()) or "<NA>"


def rttm_line(uri: str, turn: RttmTurn) -> str:
    """One line, without a line end."""
    start, length = turn.start_ms / 1000, (turn.end_ms - turn.start_ms) / 1000
    return f"SPEAKER {rttm_field(uri)} 1 {start:.3f} {length:.3f} <NA> <NA> {rttm_field(turn.label)} <NA> <NA>"


def parse_rttm(text: str) -> list[RttmTurn]:
    """The SPEAKER lines of an RTTM, in order. Raises ValueError, saying which line, on one that cannot be read."""
    turns = []
    for number, line in enumerate(text.splitlines(), start=1):
        field = line.split()
        if not field or field[0] != "SPEAKER":
            continue
        try:
            start_ms, length_ms, label = round(float(field[3]) * 1000), round(float(field[4]) * 1000), field[7]
        except (IndexError, ValueError, OverflowError):  # the last: a time that is infinite
            raise ValueError(f"line {number} is no RTTM line") from None
        turns.append(RttmTurn(start_ms, start_ms + length_ms, label))
    return turns


def write_rttm(path: Path, turns: Iterable[RttmTurn]) -> None:
    """Write the turns of the recording named by the file's stem."""
    write_whole(path, "".join(rttm_line(path.stem, turn) + "\n" for turn in turns))


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new, never a part.

    What no text can hold, as names of files that are not UTF-8 come, is written as `?`.
    """
    write_whole_bytes(path, text.encode(errors="replace"))


def write_whole_bytes(path: Path, content: bytes) -> None:
    """The same of any file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        # mkstemp makes files that only we can read; these are results, and follow the user's umask as others do.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

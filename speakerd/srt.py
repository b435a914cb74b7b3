"""SRT: turns as subtitles, for players and editors that show who speaks.

In come turns; out come numbered cues in order, one a turn, each with the speaker's name. Turns that overlap stay two
cues, which players stack. Names are written as they are, but for line ends, which would end the cue, and characters
that no player shows and a terminal might obey.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from speakerd.rttm import RttmTurn, write_whole


def srt_text(turns: Iterable[RttmTurn]) -> str:
    """The whole file."""
    ordered = sorted(turns, key=lambda turn: (turn.start_ms, turn.end_ms, turn.label))
    return "\n".join(
        f"{number}\n{_time(turn.start_ms)} --> {_time(turn.end_ms)}\n{_name(turn.label)}\n"
        for number, turn in enumerate(ordered, start=1)
    )


def write_srt(path: Path, turns: Iterable[RttmTurn]) -> None:
    """Write the turns."""
    write_whole(path, srt_text(turns))


def _time(milliseconds: int) -> str:
    seconds, left = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{left:03d}"


def _name(label: str) -> str:
    shown = "".join(character for character in " ".join(label.split()) if character.isprintable())
    return shown or "?"

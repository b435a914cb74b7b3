"""Turns as they come, for people: one line a turn once it has ended, and who speaks now where that can be shown.

In come a stream's events; out go lines. Final turns arrive in touching pieces; a line is printed when the piece that
goes on from it can no longer come.
"""

from __future__ import annotations

from rich.progress import Progress, TaskID

from speakerd.cli.output import Output
from speakerd.live_stream import Event, Resumed
from speakerd.timeline import SpokenTurn, join_touching, spoken_turn
from speakerd.v1 import common_pb2, node_pb2

PIECES_UNDER_WAY_MS = 1_000


class TurnPrinter:
    """Prints what one stream says, and moves the bar `task` on."""

    def __init__(self, out: Output, progress: Progress, task: TaskID) -> None:
        self._out = out
        self._progress = progress
        self._task = task
        self._open: list[SpokenTurn] = []

    def take(self, event: Event) -> None:
        """Print what an event says."""
        if isinstance(event, node_pb2.Turns):
            pieces = [spoken_turn(turn) for turn in event.turns if turn.state == common_pb2.Turn.STATE_FINAL]
            self._open = join_touching([*self._open, *pieces])
            if pieces:
                # What ends before the newest final piece begins cannot be gone on from.
                self._print_until(max(piece.start_ms for piece in pieces))
        elif isinstance(event, node_pb2.Relabel):
            who = "nobody enrolled" if event.label == event.speaker else event.label
            self._out.say(f"{event.speaker} is {who} (since {clock(event.since_ms)})")
        elif isinstance(event, node_pb2.Progress):
            # Progress tells of turns whose pieces may still be on their way.
            self._print_until(event.final_ms - PIECES_UNDER_WAY_MS)
            self._progress.update(self._task, completed=event.final_ms)
        elif isinstance(event, node_pb2.Degraded):
            self._out.note(f"names are {'not given for now' if event.active else 'given again'}: {event.reason}")
        elif isinstance(event, node_pb2.Draining):
            self._out.note("the node is about to stop")
        elif isinstance(event, Resumed):
            self._out.note(f"the stream goes on at {event.node_id}, after {event.away_s:.1f} s")
        elif isinstance(event, node_pb2.StreamClosed):
            self._print_until(event.duration_ms + 1)

    def _print_until(self, final_ms: int) -> None:
        ended = [turn for turn in self._open if turn.end_ms < final_ms]
        self._open = [turn for turn in self._open if turn.end_ms >= final_ms]
        for turn in ended:
            self._out.say(f"{clock(turn.start_ms)} – {clock(turn.end_ms)}  {turn.label}")


def clock(time_ms: int) -> str:
    """A position in a recording, as people read it: 1:23.4."""
    minutes, rest_ms = divmod(round(time_ms / 100) * 100, 60_000)
    return f"{minutes}:{rest_ms / 1000:04.1f}"

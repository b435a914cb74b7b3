"""Who begins to speak and who stops, out of a live stream's final turns. Pure.

In: a stream's events. Out: beginnings and ends of speech, by time. What always holds: for one speaker they take turns,
a beginning first; pieces that touch are one span; a span ends once nothing that continues it can come any more, or
where its speaker is called something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controlplane.live_relay import RelayEvent
from speakerd.v1 import common_pb2, node_pb2


@dataclass(frozen=True, slots=True)
class Boundary:
    """Somebody begins (is_start) or stops. speaker: "spk_0"; voice_id and label: who that is; "" for strangers."""

    is_start: bool
    at_ms: int
    speaker: str
    voice_id: str
    label: str


@dataclass(slots=True)
class _Span:
    end_ms: int
    voice_id: str
    label: str


class SpeakerSpans:
    """One stream's."""

    def __init__(self) -> None:
        self._open: dict[str, _Span] = {}

    def __repr__(self) -> str:
        return f"SpeakerSpans({len(self._open)} open)"

    def take(self, event: RelayEvent) -> list[Boundary]:
        """What an event brings, by time."""
        told: list[Boundary] = []
        if isinstance(event, node_pb2.Turns):
            finals = [turn for turn in event.turns if turn.state == common_pb2.Turn.STATE_FINAL]
            for turn in sorted(finals, key=lambda turn: (turn.start_ms, turn.end_ms)):
                told += self._speaks(turn)
        if isinstance(event, node_pb2.Turns | node_pb2.Progress):
            # A piece that continues a span begins where that ends, and all that begin before final_ms have come.
            told += self._ended(lambda span: span.end_ms < event.final_ms)
        elif isinstance(event, node_pb2.StreamClosed):
            told += self._ended(lambda _: True)
        return sorted(told, key=lambda one: (one.at_ms, one.is_start))

    def _speaks(self, turn: common_pb2.Turn) -> list[Boundary]:
        label = turn.label if turn.voice_id else ""
        span = self._open.get(turn.speaker)
        told: list[Boundary] = []
        if span is not None:
            if turn.start_ms <= span.end_ms and (turn.voice_id, label) == (span.voice_id, span.label):
                span.end_ms = max(span.end_ms, turn.end_ms)
                return []
            told.append(_boundary(False, min(span.end_ms, turn.start_ms), turn.speaker, span))
        self._open[turn.speaker] = span = _Span(turn.end_ms, turn.voice_id, label)
        return [*told, _boundary(True, turn.start_ms, turn.speaker, span)]

    def _ended(self, is_over: Callable[[_Span], bool]) -> list[Boundary]:
        over = [(speaker, span) for speaker, span in self._open.items() if is_over(span)]
        for speaker, _ in over:
            del self._open[speaker]
        return [_boundary(False, span.end_ms, speaker, span) for speaker, span in over]


def _boundary(is_start: bool, at_ms: int, speaker: str, span: _Span) -> Boundary:
    return Boundary(is_start, at_ms, speaker, span.voice_id, span.label)

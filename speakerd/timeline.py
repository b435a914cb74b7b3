"""Who spoke when, gathered from a stream's events.

In come final turns and relabels in the order in which they were sent; out come whole turns: pieces of one speaker that
touch are joined, and a speaker who was recognised late carries the name from the moment that the relabel names.
Provisional turns are left out. Times are milliseconds from the start of the stream, half-open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from speakerd.live_stream import Event
from speakerd.rttm import RttmTurn, rttm_line
from speakerd.v1 import common_pb2, node_pb2


@dataclass(frozen=True, slots=True)
class SpokenTurn:
    """A stretch of speech. voice_id is empty and probability 0 for somebody who is not enrolled.

    confidence: the share of it in which this speaker is expected to be speaking indeed; None where that is not said.
    """

    start_ms: int
    end_ms: int
    speaker: str
    label: str
    voice_id: str
    probability: float
    confidence: float | None = None


class SpeechTimeline:
    """The final turns of one stream or file, under the labels that hold now."""

    def __init__(self) -> None:
        self._pieces: list[SpokenTurn] = []

    def __repr__(self) -> str:
        return f"SpeechTimeline({len(self._pieces)} pieces)"

    def take(self, event: Event) -> None:
        """Take an event of a stream; those that say nothing of turns are passed over."""
        if isinstance(event, node_pb2.Turns):
            self.add(event.turns)
        elif isinstance(event, node_pb2.Relabel):
            self.relabel(event)

    def add(self, turns: Iterable[common_pb2.Turn]) -> None:
        """Add final turns. Provisional ones are passed over."""
        self._pieces += [spoken_turn(turn) for turn in turns if turn.state == common_pb2.Turn.STATE_FINAL]

    def relabel(self, relabel: node_pb2.Relabel) -> None:
        """Put a label on the speaker's turns that end after `since_ms`."""
        self._pieces = [
            replace(piece, label=relabel.label, voice_id=relabel.voice_id, probability=relabel.probability)
            if piece.speaker == relabel.speaker and piece.end_ms > relabel.since_ms
            else piece
            for piece in self._pieces
        ]

    def turns(self) -> list[SpokenTurn]:
        """Whole turns, by start."""
        return join_touching(self._pieces)

    def label(self, start_s: float, end_s: float) -> str | None:
        """Who spoke most between two times (seconds): a label, or None when nobody did."""
        start_ms, end_ms = start_s * 1000, end_s * 1000
        spoken: dict[str, float] = {}
        for piece in self._pieces:
            overlap_ms = min(piece.end_ms, end_ms) - max(piece.start_ms, start_ms)
            if overlap_ms > 0:
                spoken[piece.label] = spoken.get(piece.label, 0.0) + overlap_ms
        return max(spoken, key=lambda label: (spoken[label], label), default=None)

    def rttm_lines(self, uri: str) -> list[str]:
        """The turns as lines of RTTM."""
        return [rttm_line(uri, turn) for turn in self.rttm_turns()]

    def rttm_turns(self) -> list[RttmTurn]:
        """The turns as RTTM knows them."""
        return [RttmTurn(turn.start_ms, turn.end_ms, turn.label) for turn in self.turns()]

    def as_json(self) -> list[dict[str, Any]]:
        """The turns as plain values, times in seconds."""
        return [turn_as_json(turn) for turn in self.turns()]


def spoken_turn(turn: common_pb2.Turn) -> SpokenTurn:
    """A turn of the contract."""
    confidence = turn.confidence if turn.HasField("confidence") else None
    return SpokenTurn(turn.start_ms, turn.end_ms, turn.speaker, turn.label, turn.voice_id, turn.probability, confidence)


def turn_as_json(turn: SpokenTurn) -> dict[str, Any]:
    """A turn as plain values, times in seconds; what is not known is left out."""
    known = {"start": turn.start_ms / 1000, "end": turn.end_ms / 1000, "speaker": turn.speaker, "label": turn.label}
    if turn.voice_id:
        known |= {"voice_id": turn.voice_id, "probability": round(turn.probability, 4)}
    if turn.confidence is not None:
        known["confidence"] = round(turn.confidence, 4)
    return known


def join_touching(pieces: Iterable[SpokenTurn]) -> list[SpokenTurn]:
    """Pieces under one label that touch or overlap, joined. Sorted by start.

    It is the label that counts: two speakers of a stream who turned out to be one person carry one label.
    """
    joined: list[SpokenTurn] = []
    last_of: dict[str, int] = {}
    for piece in sorted(pieces, key=lambda piece: (piece.start_ms, piece.end_ms, piece.speaker)):
        at = last_of.get(piece.label)
        if at is not None and piece.start_ms <= joined[at].end_ms:
            before = joined[at]
            joined[at] = replace(
                before,
                end_ms=max(before.end_ms, piece.end_ms),
                probability=max(before.probability, piece.probability),
                confidence=_joint_confidence(before, piece),
            )
            continue
        last_of[piece.label] = len(joined)
        joined.append(piece)
    return joined


def _joint_confidence(one: SpokenTurn, other: SpokenTurn) -> float | None:
    """Of two turns taken together, each counting for its length; None where one of them does not say."""
    if one.confidence is None or other.confidence is None:
        return None
    long, short = one.end_ms - one.start_ms, other.end_ms - other.start_ms
    return (long * one.confidence + short * other.confidence) / max(long + short, 1)

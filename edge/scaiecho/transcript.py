"""Deltas out of turns and words: who said what, as far as both are known. Pure.

In: a live stream's events, pieces of transcript. Out: deltas, by time. What always holds: what was told is not told
again and not changed; words go to whoever spoke most while they were said, and to nobody where nobody did; with a
transcriber nothing is told before the turns of its stretch are final.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from controlplane.live_relay import RelayEvent
from controlplane.transcribers import SpokenWord, Transcript
from speakerd.v1 import common_pb2, node_pb2


@dataclass(frozen=True, slots=True)
class Speaking:
    """A stretch of one speaker's. voice_id, label: who that is, "" for strangers."""

    start_ms: int
    end_ms: int
    speaker: str
    voice_id: str
    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the transcript. by: whose it is; None: nobody's that is known."""

    text: str
    start_ms: int
    end_ms: int
    confidence: float
    by: Speaking | None

    def __repr__(self) -> str:
        return f"Delta({self.start_ms}..{self.end_ms})"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of sound that was put into words."""

    start_ms: int
    end_ms: int
    transcript: Transcript


class TurnDeltas:
    """Deltas without text, where there is no transcriber: a turn each, or a part of a long one."""

    def __init__(self, longest_ms: int) -> None:
        self._longest_ms = longest_ms
        self._open: dict[str, Speaking] = {}

    def __repr__(self) -> str:
        return f"TurnDeltas({len(self._open)} open)"

    def take(self, event: RelayEvent) -> list[Delta]:
        """What an event makes ready."""
        told: list[Speaking] = []
        for turn in _finals(event):
            known = self._open.get(turn.speaker)
            if known is not None and turn.start_ms <= known.end_ms and (not known.voice_id or _is_same(known, turn)):
                # Who is recognised while speaking has been that person from the beginning of the turn.
                known = replace(turn, start_ms=known.start_ms, end_ms=max(known.end_ms, turn.end_ms))
            else:
                told += [known] if known else []
                known = turn
            if known.end_ms - known.start_ms >= self._longest_ms:
                told.append(known)
                self._open.pop(turn.speaker, None)
            else:
                self._open[turn.speaker] = known
        if isinstance(event, node_pb2.Turns | node_pb2.Progress):
            over = [one for one in self._open.values() if one.end_ms < event.final_ms]
        else:
            over = list(self._open.values()) if isinstance(event, node_pb2.StreamClosed) else []
        for one in over:
            del self._open[one.speaker]
        told += over
        return [Delta("", one.start_ms, one.end_ms, one.confidence, one) for one in sorted(told, key=_by_time)]


class WordDeltas:
    """Deltas of what a transcriber hears, on whoever was speaking. has_speakers: whether turns come at all."""

    def __init__(self, *, has_speakers: bool) -> None:
        self._stretches: deque[Stretch] = deque()
        self._spoken: list[Speaking] = []
        self._final_ms = 0
        self._is_over = not has_speakers

    def __repr__(self) -> str:
        return f"WordDeltas({len(self._stretches)} stretches wait)"

    def take(self, event: RelayEvent) -> list[Delta]:
        """What an event makes ready."""
        self._spoken += _finals(event)
        if isinstance(event, node_pb2.Relabel):
            self._spoken = [_relabelled(one, event) for one in self._spoken]
        elif isinstance(event, node_pb2.Turns | node_pb2.Progress):
            self._final_ms = max(self._final_ms, event.final_ms)
        elif isinstance(event, node_pb2.StreamClosed):
            self._is_over = True
        return self._ready()

    def heard(self, stretch: Stretch) -> list[Delta]:
        """What a stretch that was put into words makes ready. Stretches come in order."""
        self._stretches.append(stretch)
        return self._ready()

    def no_more_turns(self) -> list[Delta]:
        """What is ready without them."""
        self._is_over = True
        return self._ready()

    def _ready(self) -> list[Delta]:
        told: list[Delta] = []
        while self._stretches and (self._is_over or self._stretches[0].end_ms <= self._final_ms):
            stretch = self._stretches.popleft()
            told += self._said_in(stretch)
            self._spoken = [one for one in self._spoken if one.end_ms > stretch.end_ms]
        return told

    def _said_in(self, stretch: Stretch) -> Iterable[Delta]:
        transcript = stretch.transcript
        words = [
            replace(word, start_ms=word.start_ms + stretch.start_ms, end_ms=word.end_ms + stretch.start_ms)
            for word in transcript.words
        ]
        spoken = [(word, self._speaker_of(word)) for word in words]
        groups = [list(group) for _, group in groupby(spoken, key=lambda one: one[1] and one[1].speaker)]
        for group in groups:
            start_ms, end_ms = group[0][0].start_ms, max(word.end_ms for word, _ in group)
            # The whole text has its punctuation, which single words have not.
            text = transcript.text if len(groups) == 1 else " ".join(word.text for word, _ in group)
            yield Delta(text, start_ms, end_ms, transcript.confidence or 0.0, group[0][1])

    def _speaker_of(self, word: SpokenWord) -> Speaking | None:
        shared: dict[str, int] = {}
        last: dict[str, Speaking] = {}
        for one in self._spoken:
            overlap_ms = min(one.end_ms, word.end_ms) - max(one.start_ms, word.start_ms)
            if overlap_ms > 0:
                shared[one.speaker] = shared.get(one.speaker, 0) + overlap_ms
                last[one.speaker] = one
        return last[max(shared, key=lambda speaker: shared[speaker])] if shared else None


def _finals(event: RelayEvent) -> list[Speaking]:
    if not isinstance(event, node_pb2.Turns):
        return []
    finals = (turn for turn in event.turns if turn.state == common_pb2.Turn.STATE_FINAL)
    return sorted((_speaking(turn) for turn in finals), key=_by_time)


def _speaking(turn: common_pb2.Turn) -> Speaking:
    confidence = turn.confidence if turn.HasField("confidence") else turn.probability if turn.voice_id else 0.0
    label = turn.label if turn.voice_id else ""
    return Speaking(turn.start_ms, turn.end_ms, turn.speaker, turn.voice_id, label, confidence)


def _is_same(one: Speaking, other: Speaking) -> bool:
    return (one.voice_id, one.label) == (other.voice_id, other.label)


def _relabelled(one: Speaking, relabel: node_pb2.Relabel) -> Speaking:
    if one.speaker != relabel.speaker or one.end_ms <= relabel.since_ms:
        return one
    return replace(one, voice_id=relabel.voice_id, label=relabel.label if relabel.voice_id else "")


def _by_time(one: Speaking) -> tuple[int, int, str]:
    return one.start_ms, one.end_ms, one.speaker

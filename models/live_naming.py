"""Which session speaker of a stream carries which enrolled voice, step by step, and what to tell when that changes.

In: after each step its turns, its session speakers and their cosines against the voices in scope now. Out: the turns
with the names that hold now, and relabels for what is known better than when it was said. What always holds: a
speaker's number is that of his first turn and stays; a voice names one speaker at a time; a voice that is not in scope
at a step names nobody from that step on; what relabels say, applied in their order, is what holds now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.naming import Candidates, NamingParameters, match_probabilities, name_speakers
from models.online import Merge, Move, SessionSpeaker, StepOutcome, Turn
from runtime.units import SAMPLE_RATE_HZ

SHOWN_MAX = 512
"""Numbers of which relabels may still be told. Of more, the longest silent of those who are heard no more stay as they
are."""
PARTS_MAX = 64
"""Stretches of one number's turns that are of several people. Of more, the oldest stay as they are."""
PATIENCE_SAMPLES = 2 * SAMPLE_RATE_HZ
PATIENCE_DOUBLED_MAX = 6


@dataclass(frozen=True, slots=True)
class NamedTurn:
    """A turn as it is shown: `spk_<speaker>`, and the voice that speaker carries now, if any."""

    turn: Turn
    speaker: int
    voice: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Relabel:
    """From now on, and for his turns since `since_samples`, a speaker is shown as another.

    speaker: the number under which turns went out. shown_as: the number to show where there is no voice; another than
    `speaker` if the two were found to be one person. voice: the enrolled voice, None where there is none any more.
    Where only some of his turns were another's, several follow each other, each since a later moment than the last.
    """

    speaker: int
    shown_as: int
    voice: str | None
    probability: float
    since_samples: int


@dataclass(frozen=True, slots=True)
class NamingOutcome:
    """Relabels come first: the turns already carry what they announce."""

    relabels: list[Relabel]
    turns: list[NamedTurn]


@dataclass(frozen=True, slots=True)
class _Told:
    """What a client was last told of a speaker's turns since a moment."""

    since_samples: int
    shown_as: int
    voice: str | None


@dataclass(slots=True)
class _Shown:
    """A speaker who has appeared in turns: whose they are, and what the client was last told of them.

    parts: since when his turns are which session speaker's, ascending. told: the same for what was said.
    until_samples: where his last turn ends, so far.
    """

    number: int
    parts: list[tuple[int, int]]
    told: list[_Told]
    until_samples: int


class LiveNaming:
    """The names of one stream's session speakers."""

    def __init__(self, naming: NamingParameters) -> None:
        self._naming = naming
        self._voices: dict[int, tuple[str, float]] = {}  # session speaker -> voice and its probability
        self._merged: dict[int, int] = {}  # session speaker -> the one he turned out to be
        self._shown: dict[int, _Shown] = {}  # session speaker -> what was shown of him
        self._next_number = 0
        self._likely: dict[int, tuple[str, int]] = {}  # session speaker -> whose name he may get, heard until then
        self._doubts: dict[int, int] = {}  # session speaker -> how often a name of his was taken back

    def __repr__(self) -> str:
        return f"LiveNaming(shown={len(self._shown)}, named={len(self._voices)})"

    @property
    def voices(self) -> dict[int, str]:
        """The voice of each session speaker who is recognised now: what the next step's clustering should know."""
        return {index: voice for index, (voice, _) in self._voices.items()}

    def number(self, index: int) -> int | None:
        """The number under which a session speaker is shown; None where he never was."""
        shown = self._shown.get(index)
        return None if shown is None else shown.number

    def numbers(self) -> set[int]:
        """Numbers of which relabels may still be told."""
        return {shown.number for shown in self._shown.values()}

    def step(
        self,
        outcome: StepOutcome,
        speakers: Sequence[SessionSpeaker],
        voices: Sequence[str],
        candidates: Candidates,
    ) -> NamingOutcome:
        """Name the turns of a step.

        voices: V ids, those in scope now and no others; candidates: the same, with cosines (K, V) of each session
        speaker's centroid.
        """
        assert candidates.cosines.shape == (len(speakers), len(voices))
        before = self.voices
        for merge in outcome.merges:
            self._merge(merge)
        self._decide(speakers, voices, candidates)
        for move in outcome.moves:
            self._move(move)
        first_turns: dict[int, Turn] = {}
        for turn in sorted(outcome.turns, key=lambda turn: (turn.start_samples, turn.speaker)):
            if turn.speaker not in self._shown:
                first_turns.setdefault(turn.speaker, turn)
        has_changed = bool(outcome.merges or outcome.moves) or self.voices != before
        relabels = self._relabels() if has_changed else []
        for turn in first_turns.values():
            self._show(turn.speaker, turn.start_samples)
        for turn in outcome.turns:
            shown = self._shown[turn.speaker]
            shown.until_samples = max(shown.until_samples, turn.end_samples)
            if turn.start_samples < shown.parts[0][0]:
                _begin_earlier(shown, turn.start_samples)
        if max(len(self._shown), len(self._merged)) > SHOWN_MAX:
            self._forget({speaker.index for speaker in speakers})
        return NamingOutcome(relabels, [self._named(turn) for turn in outcome.turns])

    def state(self) -> dict[str, Any]:
        """All that it knows, fit for JSON. Holds voice ids: it goes only into sealed checkpoints."""
        return {
            "voices": [[k, voice, probability] for k, (voice, probability) in self._voices.items()],
            "merged": list(self._merged.items()),
            "shown": [
                [k, s.number, s.parts, [[t.since_samples, t.shown_as, t.voice] for t in s.told], s.until_samples]
                for k, s in self._shown.items()
            ],
            "next_number": self._next_number,
            "likely": [[k, voice, heard] for k, (voice, heard) in self._likely.items()],
            "doubts": list(self._doubts.items()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state()` gave."""
        self._voices = {int(k): (str(voice), float(probability)) for k, voice, probability in state["voices"]}
        self._merged = {int(source): int(target) for source, target in state["merged"]}
        self._shown = {
            int(k): _Shown(
                int(number),
                [(int(since), int(index)) for since, index in parts],
                [_Told(int(since), int(n), None if voice is None else str(voice)) for since, n, voice in told],
                int(until),
            )
            for k, number, parts, told, until in state["shown"]
        }
        self._next_number = int(state["next_number"])
        self._likely = {int(k): (str(voice), int(heard)) for k, voice, heard in state["likely"]}
        self._doubts = {int(k): int(times) for k, times in state["doubts"]}

    def _decide(self, speakers: Sequence[SessionSpeaker], voices: Sequence[str], candidates: Candidates) -> None:
        """Give voices to session speakers, with a bonus for what stands: (K, V)."""
        if not voices:
            self._voices, self._likely = {}, {}
            return
        column = {voice: at for at, voice in enumerate(voices)}
        close = np.array(candidates.cosines, np.float32)
        for row, speaker in enumerate(speakers):
            voice, _ = self._voices.get(speaker.index, (None, 0.0))
            if voice in column:
                close[row, column[voice]] += self._naming.stay_cosine
        clean_samples = np.array([speaker.clean_samples for speaker in speakers], np.int64)
        verdicts = name_speakers(replace(candidates, cosines=close), clean_samples, self._naming, is_live=True)
        plain = match_probabilities(candidates, clean_samples, self._naming)
        # Who has left the session speakers, long silent or merged, keeps his name while his voice is in scope.
        present = {speaker.index for speaker in speakers}
        gone = {k: named for k, named in self._voices.items() if k not in present and named[0] in column}
        found = {
            speaker.index: (voices[verdict.voice], float(plain[row, verdict.voice]))
            for row, (speaker, verdict) in enumerate(zip(speakers, verdicts, strict=True))
            if verdict.voice is not None
        }
        before, self._voices = self._voices, gone
        likely, self._likely = self._likely, {}
        for speaker in speakers:
            index = speaker.index
            held = before[index][0] if index in before else ""
            now = found[index][0] if index in found else ""
            if held in column and now != held:
                self._doubts[index] = self._doubts.get(index, 0) + 1
            if not now:
                continue
            known, heard_samples = likely.get(index, ("", 0))
            self._likely[index] = (now, heard_samples if known == now else speaker.clean_samples)
            if now == held or speaker.clean_samples - self._likely[index][1] >= self._patience(index):
                self._voices[index] = found[index]
        self._doubts = {index: times for index, times in self._doubts.items() if index in present}

    def _merge(self, merge: Merge) -> None:
        """Two are one: so is what is known of them, and where a name went from one to the other it was in no doubt."""
        self._merged[merge.source] = merge.target
        if merge.source in self._voices:
            self._voices.setdefault(merge.target, self._voices[merge.source])
        if doubts := self._doubts.pop(merge.source, 0):
            self._doubts[merge.target] = max(0, self._doubts.get(merge.target, 0) - doubts)

    def _patience(self, index: int) -> int:
        """For how much speech a name has to stand before it is told: the longer, the more often it was taken back."""
        doubts = self._doubts.get(index, 0)
        return PATIENCE_SAMPLES << min(doubts - 1, PATIENCE_DOUBLED_MAX) if doubts else 0

    def _move(self, move: Move) -> None:
        """Give a stretch of a session speaker's turns to another, under whatever numbers they went out."""
        if move.target not in self._shown:
            self._show(move.target, move.start_samples)
        for shown in self._shown.values():
            is_said_later = move.start_samples >= shown.until_samples
            if not is_said_later and any(self._root(index) == move.source for _, index in shown.parts):
                shown.parts = self._parts_after(shown.parts, move)[-PARTS_MAX:]

    def _parts_after(self, parts: list[tuple[int, int]], move: Move) -> list[tuple[int, int]]:
        starts = sorted({since for since, _ in parts} | {max(parts[0][0], move.start_samples), move.end_samples})
        moved: list[tuple[int, int]] = []
        for since in starts:
            index = next((k for at, k in reversed(parts) if at <= since), parts[0][1])
            if move.start_samples <= since < move.end_samples and self._root(index) == move.source:
                index = move.target
            if not moved or moved[-1][1] != index:
                moved.append((since, index))
        return moved

    def _relabels(self) -> list[Relabel]:
        """What clients have to be told of speakers whom they know under something else."""
        relabels = []
        for shown in self._shown.values():
            holds = self._holding(shown)
            if (since := _first_difference(shown.told, holds)) is None:
                continue
            shown.told = holds
            for at, told in enumerate(holds):
                if at + 1 == len(holds) or holds[at + 1].since_samples > since:
                    probability = self._probability(told.voice)
                    start = max(told.since_samples, since)
                    relabels.append(Relabel(shown.number, told.shown_as, told.voice, probability, start))
        return relabels

    def _holding(self, shown: _Shown) -> list[_Told]:
        """What is to be said of a speaker's turns now, in as few stretches as there are."""
        holds: list[_Told] = []
        for since, index in shown.parts:
            voice, _, number = self._now(index, shown.number)
            if not holds or (holds[-1].shown_as, holds[-1].voice) != (number, voice):
                holds.append(_Told(since, number, voice))
        return holds

    def _probability(self, voice: str | None) -> float:
        return max((probability for known, probability in self._voices.values() if known == voice), default=0.0)

    def _now(self, index: int, number: int) -> tuple[str | None, float, int]:
        """Voice, probability and number to show of a session speaker whose turns went out under a number."""
        root = self._root(index)
        voice, probability = self._voices.get(root, (None, 0.0))
        shown = self._shown.get(root)
        return voice, probability, number if shown is None else shown.number

    def _root(self, index: int) -> int:
        """The session speaker that one has turned out to be; merges always lead to an older index."""
        while index in self._merged:
            index = self._merged[index]
        return index

    def _show(self, index: int, since_samples: int) -> None:
        self._shown[index] = _Shown(self._next_number, [(since_samples, index)], [], since_samples)
        self._next_number += 1
        self._shown[index].told = self._holding(self._shown[index])

    def _forget(self, present: set[int]) -> None:
        """Make room: who was found to be another, or has left, is not told of any more, the longest silent first.

        Whoever others are shown as stays longer than they, or they would be told to be somebody else.
        """
        meant = {k: {self._root(index) for _, index in shown.parts} - {k} for k, shown in self._shown.items()}
        needed = set().union(*meant.values())
        gone = sorted(self._shown.keys() - present, key=lambda k: (k in needed, self._shown[k].until_samples))
        for index in gone[: max(0, len(self._shown) - SHOWN_MAX)]:
            del self._shown[index]
        known = present | {index for shown in self._shown.values() for _, index in shown.parts}
        self._merged = {index: self._root(index) for index in known if index in self._merged}
        known |= set(self._merged.values())
        self._voices = {index: named for index, named in self._voices.items() if index in known}

    def _named(self, turn: Turn) -> NamedTurn:
        number = self._shown[turn.speaker].number
        voice, probability, _ = self._now(turn.speaker, number)
        return NamedTurn(turn, number, voice, probability)


def _begin_earlier(shown: _Shown, since_samples: int) -> None:
    """A turn that was shown provisionally at first begins earlier after all: relabels have to reach it too."""
    shown.parts[0] = (since_samples, shown.parts[0][1])
    shown.told[0] = replace(shown.told[0], since_samples=since_samples)


def _first_difference(told: Sequence[_Told], holds: Sequence[_Told]) -> int | None:
    """The first moment from which what holds is not what was told; None if there is none."""
    moments = sorted({each.since_samples for each in (*told, *holds)})
    for moment in moments:
        if moment >= holds[0].since_samples and _at(told, moment) != _at(holds, moment):
            return moment
    return None


def _at(stretches: Sequence[_Told], moment: int) -> tuple[int, str | None] | None:
    found = next((each for each in reversed(stretches) if each.since_samples <= moment), None)
    return None if found is None else (found.shown_as, found.voice)

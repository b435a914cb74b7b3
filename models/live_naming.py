"""Which session speaker of a stream carries which enrolled voice, step by step, and what to tell when that changes.

In: after each step its turns, its session speakers and their cosines against the voices in scope now. Out: the turns
with the names that hold now, and a relabel for each speaker whose name has changed since he was first shown. What
always holds: a speaker's number is that of his first turn and stays; a voice names one speaker at a time; a voice that
is not in scope at a step names nobody from that step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.naming import Candidates, NamingParameters, match_probabilities, name_speakers
from models.online import SessionSpeaker, StepOutcome, Turn


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


@dataclass(slots=True)
class _Shown:
    """A session speaker who has appeared in turns, and what the client was last told of him."""

    number: int
    since_samples: int
    shown_as: int
    voice: str | None


class LiveNaming:
    """The names of one stream's session speakers."""

    def __init__(self, naming: NamingParameters) -> None:
        self._naming = naming
        self._voices: dict[int, tuple[str, float]] = {}  # session speaker -> voice and its probability
        self._merged: dict[int, int] = {}  # session speaker -> the one he turned out to be
        self._shown: dict[int, _Shown] = {}  # session speaker -> what was shown of him

    def __repr__(self) -> str:
        return f"LiveNaming(shown={len(self._shown)}, named={len(self._voices)})"

    @property
    def voices(self) -> dict[int, str]:
        """The voice of each session speaker who is recognised now: what the next step's clustering should know."""
        return {index: voice for index, (voice, _) in self._voices.items()}

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
        for merge in outcome.merges:
            self._merged[merge.source] = merge.target
        self._decide(speakers, voices, candidates)
        first_turns: dict[int, Turn] = {}
        for turn in sorted(outcome.turns, key=lambda turn: (turn.start_samples, turn.speaker)):
            if turn.speaker not in self._shown:
                first_turns.setdefault(turn.speaker, turn)
        relabels = self._relabels()
        for turn in first_turns.values():
            self._show(turn)
        return NamingOutcome(relabels, [self._named(turn) for turn in outcome.turns])

    def state(self) -> dict[str, Any]:
        """All that it knows, fit for JSON. Holds voice ids: it goes only into sealed checkpoints."""
        return {
            "voices": [[k, voice, probability] for k, (voice, probability) in self._voices.items()],
            "merged": list(self._merged.items()),
            "shown": [[k, s.number, s.since_samples, s.shown_as, s.voice] for k, s in self._shown.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state()` gave."""
        self._voices = {int(k): (str(voice), float(probability)) for k, voice, probability in state["voices"]}
        self._merged = {int(source): int(target) for source, target in state["merged"]}
        self._shown = {
            int(k): _Shown(int(number), int(since), int(shown_as), None if voice is None else str(voice))
            for k, number, since, shown_as, voice in state["shown"]
        }

    def _decide(self, speakers: Sequence[SessionSpeaker], voices: Sequence[str], candidates: Candidates) -> None:
        """Give voices to session speakers, with a bonus for what stands: (K, V)."""
        if not voices:
            self._voices = {}
            return
        column = {voice: at for at, voice in enumerate(voices)}
        held = np.array(candidates.cosines, np.float32)
        for row, speaker in enumerate(speakers):
            voice, _ = self._voices.get(speaker.index, (None, 0.0))
            if voice in column:
                held[row, column[voice]] += self._naming.stay_cosine
        clean_samples = np.array([speaker.clean_samples for speaker in speakers], np.int64)
        verdicts = name_speakers(replace(candidates, cosines=held), clean_samples, self._naming)
        plain = match_probabilities(candidates, clean_samples, self._naming)
        # Who has left the session speakers, long silent or merged, keeps his name while his voice is in scope.
        present = {speaker.index for speaker in speakers}
        gone = {k: named for k, named in self._voices.items() if k not in present and named[0] in column}
        self._voices = gone | {
            speaker.index: (voices[verdict.voice], float(plain[row, verdict.voice]))
            for row, (speaker, verdict) in enumerate(zip(speakers, verdicts, strict=True))
            if verdict.voice is not None
        }

    def _relabels(self) -> list[Relabel]:
        """What clients have to be told of speakers whom they know under something else."""
        relabels = []
        for index, shown in self._shown.items():
            voice, probability, shown_as = self._now(index)
            if (voice, shown_as) != (shown.voice, shown.shown_as):
                shown.voice, shown.shown_as = voice, shown_as
                relabels.append(Relabel(shown.number, shown_as, voice, probability, shown.since_samples))
        return relabels

    def _now(self, index: int) -> tuple[str | None, float, int]:
        """Voice, probability and number to show of a session speaker who has appeared."""
        root = self._root(index)
        voice, probability = self._voices.get(root, (None, 0.0))
        shown = self._shown.get(root, self._shown[index])
        return voice, probability, shown.number

    def _root(self, index: int) -> int:
        """The session speaker that one has turned out to be; merges always lead to an older index."""
        while index in self._merged:
            index = self._merged[index]
        return index

    def _show(self, turn: Turn) -> None:
        number = len(self._shown)
        self._shown[turn.speaker] = _Shown(number, turn.start_samples, number, None)
        self._shown[turn.speaker].voice, _, self._shown[turn.speaker].shown_as = self._now(turn.speaker)

    def _named(self, turn: Turn) -> NamedTurn:
        voice, probability, _ = self._now(turn.speaker)
        return NamedTurn(turn, self._shown[turn.speaker].number, voice, probability)

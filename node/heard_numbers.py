"""Under which numbers a stream's speakers were told, for how long each spoke, and who turned out to be whom.

In: what steps decided and told. Out: a summary by number. What always holds: what is kept is bounded, however long the
stream. Of a number of which nothing more will be told, his speech stays, as that of whom he was found to be; of very
many who were nobody else, the longest silent are left out, and counted.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from models.live_naming import NamingOutcome
from models.online import Move
from node.checkpoint import StreamState

LISTED_MAX = 512
"""Speakers of a summary."""


class HeardNumbers:
    """The numbers of one stream."""

    def __init__(self, state: StreamState) -> None:
        """state: what a checkpoint brought, or a new one."""
        self._speech = dict(state.speech)  # final speech of each number, samples; the longest silent first
        self._shown_as = dict(state.shown_as)  # numbers found to be another → that one
        self._numbers = dict(state.numbers)  # session speaker → the number under which he is shown
        self._named = set(state.named)  # numbers that were shown under a name: no strangers, whatever they are now
        self.num_left_out = state.left_out

    def __repr__(self) -> str:
        return f"HeardNumbers({len(self._speech)}, left out: {self.num_left_out})"

    def number(self, index: int) -> int | None:
        """The number of a session speaker; None where he was never shown."""
        return self._numbers.get(index)

    def index(self, number: int) -> int:
        """The session speaker whom a number was given to; -1 where nothing is known of him any more."""
        return next((index for index, own in self._numbers.items() if own == number), -1)

    def count(self, number: int, samples: int) -> None:
        """Final speech of a number."""
        self._speech[number] = self._speech.pop(number, 0) + samples

    def note(self, named: NamingOutcome) -> None:
        """What a step tells."""
        self._numbers |= {turn.turn.speaker: turn.speaker for turn in named.turns}
        self._named |= {turn.speaker for turn in named.turns if turn.voice is not None}
        self._named |= {
            one for relabel in named.relabels if relabel.voice for one in (relabel.speaker, relabel.shown_as)
        }
        for relabel in named.relabels:
            if relabel.shown_as != relabel.speaker:
                self._shown_as[relabel.speaker] = relabel.shown_as
            else:  # of several the last one counts: only some of his turns were another's
                self._shown_as.pop(relabel.speaker, None)

    def move(self, move: Move, source: int | None, target: int | None) -> None:
        """What was said of one and was another's counts for the other, also where he has no turns of his own.

        source, target: their numbers, where they have any.
        """
        for index, number, samples in (
            (move.source, source, -move.speech_samples),
            (move.target, target, move.speech_samples),
        ):
            if number is not None:
                self._numbers[index] = number
                self._speech[number] = self._speech.get(number, 0) + samples

    def forget(self, told_of: Collection[int]) -> None:
        """Give up what can change no more: told_of are the numbers of which relabels may still be told."""
        for number in [number for number in self._shown_as if number not in told_of]:
            root = self.root(number)
            if number in self._speech:
                self._speech[root] = self._speech.get(root, 0) + self._speech.pop(number)
            if number in self._named:
                self._named.add(root)
            other = self._shown_as.pop(number)
            self._shown_as = {one: other if shown == number else shown for one, shown in self._shown_as.items()}
        gone = [number for number in self._speech if number not in told_of]
        for number in gone[: max(0, len(gone) - LISTED_MAX)]:
            self.num_left_out += self._speech.pop(number) > 0
        kept = self._speech.keys() | set(told_of) | set(self._shown_as.values())
        self._numbers = {index: number for index, number in self._numbers.items() if number in kept}
        self._named &= kept

    def speech(self) -> dict[int, int]:
        """Final speech in samples of each speaker, all that was told of him under whatever number."""
        speech: dict[int, int] = {}
        for number, samples in self._speech.items():
            root = self.root(number)
            speech[root] = speech.get(root, 0) + samples
        return {number: samples for number, samples in sorted(speech.items()) if samples > 0}

    @property
    def num_named(self) -> int:
        """How many numbers were shown under a name."""
        return len(self._named)

    def was_named(self, number: int) -> bool:
        """Whether a speaker was ever shown under a name."""
        return any(self.root(named) == number for named in self._named)

    def root(self, number: int) -> int:
        """The number that one is shown as by now."""
        while number in self._shown_as:
            number = self._shown_as[number]
        return number

    def state(self) -> dict[str, Any]:
        """For a checkpoint: fields of StreamState."""
        return {
            "speech": self._speech,
            "shown_as": self._shown_as,
            "numbers": self._numbers,
            "named": sorted(self._named),
            "left_out": self.num_left_out,
        }

"""Who was said to speak in the last minutes of a stream, and what of that a second look takes back.

In come final turns, and what looking at the whole memory changed: whose voice each remembered embedding was taken for
before, and is taken for now. Out come moves: stretches said of one session speaker that were another's. What always
holds: the history is bounded; a stretch moves only if most of what is remembered of it moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from models.speaker_memory import IntArray, SpeakerMemory
from models.timeline import Turn
from runtime.units import SAMPLE_RATE_HZ

MOVED_SHARE = 0.6
MOVED_SAMPLES_MIN = SAMPLE_RATE_HZ // 2
"""What is shorter stays: to be told that a word was another's helps nobody."""


@dataclass(frozen=True, slots=True)
class Move:
    """What was said of `source` between two positions was said by `target`. Who speaks since then stays who he is.

    speech_samples: how much that is.
    """

    source: int
    target: int
    start_samples: int
    end_samples: int
    speech_samples: int = field(default=0, compare=False)


class SpokenHistory:
    """Pieces (P, 3) of the last minutes: session speaker, first frame, frame after the last."""

    def __init__(self, step_samples: int, samples_max: int) -> None:
        self._step_samples = step_samples
        self._frames_max = samples_max // step_samples
        self._frames_min = MOVED_SAMPLES_MIN // step_samples
        self.pieces: IntArray = np.zeros((0, 3), np.int64)

    def __repr__(self) -> str:
        return f"SpokenHistory({len(self.pieces)} pieces)"

    def add(self, turns: Iterable[Turn]) -> None:
        """Keep the final ones of a step's turns; forget what has become too old."""
        step = self._step_samples
        told = [[t.speaker, t.start_samples // step, t.end_samples // step] for t in turns if t.final]
        if told:
            pieces = np.concatenate([self.pieces, np.array(told, np.int64)])
            self.pieces = pieces[pieces[:, 2] > pieces[-1, 2] - self._frames_max]

    def rename(self, source: int, target: int) -> None:
        """What was one speaker's is another's."""
        self.pieces[self.pieces[:, 0] == source, 0] = target

    def frames_by_speaker(self) -> dict[int, int]:
        """For how long each session speaker is said to have spoken."""
        said: dict[int, int] = {}
        for speaker, start, end in self.pieces.tolist():
            said[speaker] = said.get(speaker, 0) + end - start
        return said

    def moves(self, memory: SpeakerMemory, before: IntArray) -> list[Move]:
        """Which pieces change hands, as those of the memory did since its speakers were `before` (M,); they do so here.

        A piece follows what is remembered of its speaker at that time.
        """
        changed = before != memory.speakers
        found: list[Move] = []
        for source in np.unique(before[changed]).tolist():
            rows = np.flatnonzero(before == source)
            at = np.flatnonzero(self.pieces[:, 0] == source)
            targets, which = np.unique(memory.speakers[rows], return_inverse=True)
            start, end = self.pieces[at, 1:].T  # (P',)
            first, last = memory.spans[rows].T  # (M',)
            shared = np.minimum(end[:, None], last) - np.maximum(start[:, None], first)  # (P', M'), frames
            votes = np.maximum(shared, 0) * memory.weights[rows]
            for_each = np.zeros((len(at), len(targets)))
            np.add.at(for_each.T, which, votes.T)
            best = targets[for_each.argmax(axis=1)]
            sure = for_each.max(axis=1, initial=0.0) > MOVED_SHARE * np.maximum(for_each.sum(axis=1), 1e-9)
            found += self._moved(source, at, np.where(sure, best, source))
        return found

    def _moved(self, source: int, at: IntArray, targets: IntArray) -> list[Move]:
        """Give pieces (P',) of one speaker, in their order, to their targets; those that follow each other are one."""
        found = []
        for first, end in pairwise([0, *(np.flatnonzero(np.diff(targets)) + 1).tolist(), len(targets)]):
            run = at[first:end]
            if len(run) and targets[first] != source:
                start, until = int(self.pieces[run, 1].min()), int(self.pieces[run, 2].max())
                spoken = int((self.pieces[run, 2] - self.pieces[run, 1]).sum())
                if spoken >= self._frames_min:
                    self.pieces[run, 0] = targets[first]
                    step = self._step_samples
                    found.append(Move(source, int(targets[first]), start * step, until * step, spoken * step))
        return found

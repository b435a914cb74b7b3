"""From soft activities of session speakers to turns that are provisional first and final later.

In: for every step, the probability of speech and the activity of each session speaker in each frame that is not yet
final. Out: turns. What always holds: time is decided once. A frame becomes final when it is older than the latency, its
turns are handed out exactly once as pieces that touch, and nothing that comes later changes them. Two pieces of one
speaker never overlap, and speech is always somebody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray
from models.frames import FAINT, latest_true

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of one session speaker's speech, `[start_samples, end_samples)`.

    A long turn is final piece by piece: pieces of one turn share `turn`, touch each other, and are followed by a
    provisional piece with the same id while the speaker goes on.
    """

    turn: int
    speaker: int
    start_samples: int
    end_samples: int
    final: bool


@dataclass(frozen=True, slots=True)
class TimelineParams:
    """How speech and activities, both in [0, 1], become turns.

    onset, offset: speech begins at or above `onset` and goes on while at or above `offset`.
    gap_samples, speech_samples_min: shorter silences are filled, shorter speech is dropped.
    overlap_threshold: activity from which somebody is heard beside the strongest.
    """

    onset: float = 0.5
    offset: float = 0.4
    gap_samples: int = 3_200
    speech_samples_min: int = 3_200
    overlap_threshold: float = 0.6


@dataclass(slots=True)
class _OpenTurn:
    """A turn whose last final frame touches the horizon: it goes on if the speaker does."""

    turn: int
    speaker: int


class Timeline:
    """Turns one speaker a row, on a grid of frames of `step_samples`, from position 0 of the stream."""

    def __init__(self, params: TimelineParams, *, step_samples: int, latency_samples: int, exclusive: bool) -> None:
        self._params = params
        self._step_samples = step_samples
        self._latency_frames = latency_samples // step_samples
        self._gap_frames = params.gap_samples // step_samples
        self._speech_frames_min = params.speech_samples_min // step_samples
        self._exclusive = exclusive
        self._horizon = 0
        self._next_turn = 0
        self._open: list[_OpenTurn] = []
        self._last_provisional: list[Turn] = []

    def __repr__(self) -> str:
        return f"Timeline(horizon={self._horizon}, open={len(self._open)}, next_turn={self._next_turn})"

    @property
    def horizon_frames(self) -> int:
        """The first frame that is not final."""
        return self._horizon

    def step(
        self, speakers: Sequence[int], activity: FloatArray, speech: FloatArray, *, flush: bool = False
    ) -> tuple[list[Turn], BoolArray, int]:
        """Decide the frames from the horizon on.

        speakers: (K,) the session speaker of each row. activity: (K, L), from the horizon to now. speech: (L,).
        flush: everything becomes final, as at the end of a stream.
        Returns the turns (final pieces first, then provisional ones), the decision (K, L), and how many of its L
        frames are final from now on.
        """
        num_frames = activity.shape[1]
        active = self._active(activity, self._voiced(speech))  # (K, L)
        num_final = num_frames if flush else max(0, num_frames - self._latency_frames)
        opened = {turn.speaker: turn.turn for turn in self._open}
        final: list[Turn] = []
        provisional: list[Turn] = []
        still_open: list[_OpenTurn] = []
        for speaker, runs in zip(speakers, _runs_of_rows(active), strict=True):
            for start, end in runs:
                turn = opened.get(speaker) if start == 0 else None
                if turn is None:
                    turn = self._provisional_turn(speaker, start, end)
                if start < num_final:
                    final.append(self._turn(turn, speaker, start, min(end, num_final), final=True))
                if end > num_final:
                    provisional.append(self._turn(turn, speaker, max(start, num_final), end, final=False))
                if start < num_final <= end and not flush:
                    still_open.append(_OpenTurn(turn, speaker))
        if num_final == 0:
            still_open = self._open
        self._open = still_open
        self._horizon += num_final
        self._last_provisional = provisional
        return [*final, *provisional], active, num_final

    def merge(self, source: int, target: int) -> None:
        """What was open of `source` goes on as `target`, under a new turn id."""
        was_open = any(turn.speaker == source for turn in self._open)
        self._open = [turn for turn in self._open if turn.speaker != source]
        if was_open and all(turn.speaker != target for turn in self._open):
            self._open.append(_OpenTurn(self._take_turn(), target))

    def state(self) -> dict[str, Any]:
        """All that the timeline knows, for a snapshot."""
        return {
            "horizon": self._horizon,
            "next_turn": self._next_turn,
            "open": [[turn.turn, turn.speaker] for turn in self._open],
            "provisional": [[t.turn, t.speaker, t.start_samples, t.end_samples] for t in self._last_provisional],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state()` gave."""
        self._horizon = int(state["horizon"])
        self._next_turn = int(state["next_turn"])
        self._open = [_OpenTurn(int(turn), int(speaker)) for turn, speaker in state["open"]]
        self._last_provisional = [
            Turn(int(turn), int(speaker), int(start), int(end), final=False)
            for turn, speaker, start, end in state["provisional"]
        ]

    def _voiced(self, speech: FloatArray) -> BoolArray:
        """Frames (L,) in which somebody speaks; at the horizon speech goes on if a turn is open."""
        going = speech >= self._params.offset
        found: list[tuple[int, int]] = [(0, 0)] if self._open else []
        for start, end in _runs(going):
            if not (self._open and start == 0) and speech[start:end].max() < self._params.onset:
                continue
            if found and start - found[-1][1] < self._gap_frames:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
        voiced = np.zeros_like(going)
        for start, end in found:
            may_go_on = end == len(speech) or (self._open and start == 0)
            if may_go_on or end - start >= self._speech_frames_min:
                voiced[start:end] = True
        return voiced

    def _active(self, activity: FloatArray, voiced: BoolArray) -> BoolArray:
        """Who speaks: in voiced frames the strongest, and unless exclusive whoever else is heard well: (K, L)."""
        if activity.size == 0:
            return np.zeros(activity.shape, np.bool_)
        strongest = activity.argmax(axis=0)  # (L,)
        is_heard = activity.max(axis=0) > FAINT
        if (voiced > is_heard).any():
            # A frame in which nobody is heard at all, in a short gap, goes to whoever was strongest before it.
            strongest = strongest[latest_true(is_heard)]
        active: BoolArray = np.arange(len(activity))[:, None] == strongest
        if not self._exclusive:
            active |= activity > self._params.overlap_threshold
        active &= voiced
        return active

    def _turn(self, turn: int, speaker: int, start: int, end: int, *, final: bool) -> Turn:
        """A turn from frames relative to the horizon."""
        at = self._horizon
        return Turn(turn, speaker, (at + start) * self._step_samples, (at + end) * self._step_samples, final)

    def _provisional_turn(self, speaker: int, start: int, end: int) -> int:
        """The id under which this stretch was shown last time, or a new one."""
        start_samples = (self._horizon + start) * self._step_samples
        end_samples = (self._horizon + end) * self._step_samples
        taken = {turn.turn for turn in self._open}
        for at, shown in enumerate(self._last_provisional):
            touches = shown.start_samples <= end_samples and start_samples <= shown.end_samples
            if shown.speaker == speaker and touches and shown.turn not in taken:
                del self._last_provisional[at]
                return shown.turn
        return self._take_turn()

    def _take_turn(self) -> int:
        turn = self._next_turn
        self._next_turn += 1
        return turn


def _runs(active: BoolArray) -> list[tuple[int, int]]:
    """Half-open runs of true frames (L,)."""
    return _runs_of_rows(active[None])[0]


def _runs_of_rows(active: BoolArray) -> list[list[tuple[int, int]]]:
    """Half-open runs of true frames in each row (R, L)."""
    num_rows, num_frames = active.shape
    # All rows in one, with a false frame before each, so that none runs into the next.
    flat = np.zeros(num_rows * (num_frames + 1) + 1, np.bool_)
    flat[1:].reshape(num_rows, num_frames + 1)[:, :-1] = active
    edges = (flat[1:] != flat[:-1]).nonzero()[0].tolist()
    found: list[list[tuple[int, int]]] = [[] for _ in range(num_rows)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        row, first = divmod(start, num_frames + 1)
        found[row].append((first, first + end - start))
    return found

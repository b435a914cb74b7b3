"""From windows whose local speakers are known to turns, frame by frame as pyannote.audio 4.0.7 puts them together.

Pure NumPy. In come hard local segmentations of windows and the speaker of each local speaker; out come turns in frames
of the file. What always holds: counting, choice of speakers, ties and ends of turns are pyannote's, and nothing larger
than frames times speakers is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.frames import runs
from models.pyannote.clustering import NOBODY
from runtime.units import SAMPLE_RATE_HZ

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
BLOCK_FRAMES = 65_536


@dataclass(frozen=True, slots=True)
class FrameClock:
    """Where frames and windows of a file lie, in samples: window w starts at w * hop, frame f of a file at f * step.

    field_samples: what one frame of the network looks at; its middle is the frame's time.
    """

    window_samples: int
    hop_samples: int
    step_samples: int
    field_samples: int
    num_window_frames: int

    def first_frames(self, num_windows: int) -> IntArray:
        """The file's frame on which each window's first frame falls, rounded as pyannote rounds: (W,)."""
        return self._closest(np.arange(num_windows) * (self.hop_samples / SAMPLE_RATE_HZ))

    def num_frames(self, num_windows: int) -> int:
        """Frames of a file of so many windows."""
        end = self.window_samples / SAMPLE_RATE_HZ + (num_windows - 1) * (self.hop_samples / SAMPLE_RATE_HZ)
        return int(self._closest(np.array([end]))[0]) + 1

    def samples(self, frame: int) -> int:
        """The middle of a frame, where turns begin and end."""
        return frame * self.step_samples + self.field_samples // 2

    def _closest(self, seconds: npt.NDArray[np.floating]) -> IntArray:
        # The same floating-point operations in the same order, so that a tie would fall on the same side.
        field, step = self.field_samples / SAMPLE_RATE_HZ, self.step_samples / SAMPLE_RATE_HZ
        found: IntArray = np.rint((seconds + 0.5 * field - 0.0 - 0.5 * field) / step).astype(np.int64)
        return found


@dataclass(frozen=True, slots=True)
class FrameTurn:
    """Speech of one speaker from the middle of frame `begin` to that of frame `end`."""

    begin: int
    end: int
    speaker: int


def count_speakers(speech: BoolArray, clock: FrameClock) -> IntArray:
    """How many speak in each frame of the file, by the mean over the windows (W, F, S) that cover it: (T,)."""
    num_windows, length, _ = speech.shape
    first, num_frames = clock.first_frames(num_windows), clock.num_frames(num_windows)
    total, covering = np.zeros(num_frames, np.int32), np.zeros(num_frames, np.int32)
    for window, at in enumerate(first):
        total[at : at + length] += speech[window].sum(axis=1, dtype=np.int32)
        covering[at : at + length] += 1
    mean = total.astype(np.float32) / np.maximum(covering.astype(np.float32), 1e-12)
    return np.rint(mean).astype(np.int64)


def speaker_scores(speech: BoolArray, labels: IntArray, clock: FrameClock) -> npt.NDArray[np.uint16]:
    """In how many windows each speaker speaks in each frame: (T, K), from windows (W, F, S) and their labels (W, S)."""
    num_windows, length, _ = speech.shape
    first = clock.first_frames(num_windows)
    scores = np.zeros((clock.num_frames(num_windows), max(0, int(labels.max(initial=-1))) + 1), np.uint16)
    for window, at in enumerate(first):
        for speaker in set(labels[window].tolist()) - {NOBODY}:
            heard = speech[window][:, labels[window] == speaker].any(axis=1)
            scores[at : at + length, speaker] += heard
    return scores


def choose_speakers(scores: npt.NDArray[np.uint16], count: IntArray) -> BoolArray:
    """The `count` speakers with the highest scores in each frame: (T, K'), K' at least the highest count."""
    num_frames = len(scores)
    num_speakers = max(scores.shape[1], int(count.max(initial=0)))
    chosen = np.zeros((num_frames, num_speakers), bool)
    ranks = np.arange(num_speakers)
    for at in range(0, num_frames, BLOCK_FRAMES):
        block = scores[at : at + BLOCK_FRAMES]
        # Ties go where NumPy's sort of the negated float32 scores puts them: that is pyannote's rule for them too.
        negated = np.zeros((len(block), num_speakers), np.float32)
        negated[:, : block.shape[1]] = block
        order = np.argsort(-negated, axis=-1)
        wanted = ranks < count[at : at + BLOCK_FRAMES, None]
        np.put_along_axis(chosen[at : at + BLOCK_FRAMES], order, wanted, axis=1)
    return chosen


def turns_of(chosen: BoolArray, clock: FrameClock, min_duration_off_s: float) -> list[FrameTurn]:
    """Turns of frames (T, K), by begin, end and speaker; a speaker's gaps shorter than `min_duration_off_s` filled."""
    found = []
    for speaker in range(chosen.shape[1]):
        stretches = runs(chosen[:, speaker])
        # A stretch lasts to the middle of the first frame without it, or of the last frame there is.
        stretches[:, 1] = np.minimum(stretches[:, 1], len(chosen) - 1)
        stretches = stretches[stretches[:, 1] > stretches[:, 0]]
        if min_duration_off_s > 0 and len(stretches) > 1:
            stretches = _joined(stretches, clock, min_duration_off_s)
        found += [FrameTurn(int(begin), int(end), speaker) for begin, end in stretches]
    return sorted(found, key=lambda turn: (turn.begin, turn.end, turn.speaker))


def label_order(turns: Sequence[FrameTurn]) -> list[int]:
    """Speakers in the order of pyannote's labels(): as words, so that 10 comes before 2."""
    return sorted({turn.speaker for turn in turns}, key=str)


def _joined(stretches: IntArray, clock: FrameClock, gap_max_s: float) -> IntArray:
    gaps_s = (stretches[1:, 0] - stretches[:-1, 1]) * (clock.step_samples / SAMPLE_RATE_HZ)
    apart = np.concatenate([[True], gaps_s >= gap_max_s])
    first = np.flatnonzero(apart)
    last = np.append(first[1:], len(stretches)) - 1
    return np.stack([stretches[first, 0], stretches[last, 1]], axis=1)

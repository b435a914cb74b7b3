"""How sure a diarization is of each frame and of each turn: probabilities that were fitted to be so often right.

Pure NumPy. In come the activity of a recording's speakers, averaged over the windows that cover each frame, and what
was made of it; out comes, a frame, the probability that all that the turns say of it is right, and, a speaker and
frame, the probability that he is speaking where he is said to. What it cannot see is two people who were taken for one
from beginning to end: their frames look like one speaker's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray
from models.frames import runs

BoolArray = npt.NDArray[np.bool_]
Activity = npt.NDArray[np.floating]
BLOCK_FRAMES = 65_536
REACH_FRAMES = 25
"""From this far from a change of speakers, a frame is no surer for being further."""
NUM_FRAME_WEIGHTS, NUM_SPEAKER_WEIGHTS = 5, 6


@dataclass(frozen=True, slots=True)
class ConfidenceParameters:
    """Weights of logistic regressions, as scripts/fit_calibration.py prints them. Kept in the bundle.

    nobody, one, two: for frames in which nobody, one or more are said to speak: of 1, the logits of speech, of the
    highest and of the second highest activity, and the logarithm of how far the next change of speakers is.
    speaker: for a speaker's frames: of 1, the logits of speech, of his activity and of the others', how far the ends of
    his speech are, and whether another is said to speak as well.
    """

    nobody: tuple[float, ...]
    one: tuple[float, ...]
    two: tuple[float, ...]
    speaker: tuple[float, ...]

    def __post_init__(self) -> None:
        assert all(len(weights) == NUM_FRAME_WEIGHTS for weights in (self.nobody, self.one, self.two))
        assert len(self.speaker) == NUM_SPEAKER_WEIGHTS


def frame_evidence(activity: Activity, speech: FloatArray, spoken: BoolArray) -> FloatArray:
    """What a frame's confidence is a weighted sum of: activity (F, K), speech (F,), spoken (F, S) → (F, 5)."""
    highest, second = _two_highest(activity)
    changes = np.flatnonzero((spoken[1:] != spoken[:-1]).any(axis=1)) + 1
    away = np.log1p(_frames_to(changes, len(spoken)))
    return np.stack([np.ones(len(speech)), _logit(speech), _logit(highest), _logit(second), away], axis=1).astype(
        np.float32
    )


def speaker_evidence(
    activity: Activity, speech: FloatArray, spoken: BoolArray, column: int, speaker: int
) -> FloatArray:
    """The same of the G frames in which a speaker, a column of each, is said to speak: (G, 6)."""
    mine = np.flatnonzero(spoken[:, speaker])
    own = activity[mine, column].astype(np.float32)
    others = np.minimum(activity[mine].sum(axis=1, dtype=np.float32) - own, 1.0)
    away = np.log1p(_frames_to(np.unique(runs(spoken[:, speaker])), len(spoken))[mine])
    joined = spoken[mine].sum(axis=1) > 1
    return np.stack(
        [np.ones(len(mine)), _logit(speech[mine]), _logit(own), _logit(others), away, joined], axis=1
    ).astype(np.float32)


def frame_confidence(
    activity: Activity, speech: FloatArray, spoken: BoolArray, parameters: ConfidenceParameters
) -> npt.NDArray[np.uint8]:
    """Probability, in 255ths, that all that is said of each frame is right: (F,)."""
    weights = np.array([parameters.nobody, parameters.one, parameters.two])
    found = np.zeros(len(speech), np.uint8)
    evidence = frame_evidence(activity, speech, spoken)
    for at in range(0, len(speech), BLOCK_FRAMES):
        block = slice(at, at + BLOCK_FRAMES)
        kind = np.minimum(spoken[block].sum(axis=1), 2)
        found[block] = np.rint(255 * _probability((evidence[block] * weights[kind]).sum(axis=1)))
    return found


def speaker_confidence(
    activity: Activity,
    speech: FloatArray,
    spoken: BoolArray,
    *,
    column: int,
    speaker: int,
    parameters: ConfidenceParameters,
) -> FloatArray:
    """Probability that a speaker is speaking, in the G frames in which he is said to: (G,)."""
    evidence = speaker_evidence(activity, speech, spoken, column, speaker)
    found: FloatArray = _probability(evidence @ np.array(parameters.speaker)).astype(np.float32)
    return found


def _two_highest(activity: Activity) -> tuple[FloatArray, FloatArray]:
    """The highest and second highest activity of each frame: (F,) twice."""
    highest, second = np.zeros(len(activity), np.float32), np.zeros(len(activity), np.float32)
    for at in range(0, len(activity), BLOCK_FRAMES):
        block = activity[at : at + BLOCK_FRAMES].astype(np.float32)
        if block.shape[1] > 1:
            block = np.partition(block, block.shape[1] - 2, axis=1)
            second[at : at + BLOCK_FRAMES] = block[:, -2]
        highest[at : at + BLOCK_FRAMES] = block.max(axis=1)
    return highest, second


def _frames_to(changes: npt.NDArray[np.int64], num_frames: int) -> npt.NDArray[np.int64]:
    """How far each frame is from the nearest change, at most REACH_FRAMES. A change is the first frame after it."""
    bounds = np.concatenate([[-REACH_FRAMES], changes, [num_frames + REACH_FRAMES]])
    frames = np.arange(num_frames)
    after = np.searchsorted(changes, frames, side="right")
    nearest = np.minimum(frames - bounds[after], bounds[after + 1] - 1 - frames)
    found: npt.NDArray[np.int64] = np.minimum(nearest, REACH_FRAMES)
    return found


def _logit(probability: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    inner = np.clip(probability.astype(np.float64), 0.01, 0.99)
    return np.log(inner / (1.0 - inner))


def _probability(odds: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(odds.astype(np.float64), -50, 50)))
    return found

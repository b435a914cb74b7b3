"""From the activity of a recording's speakers to turns, and what a diarization is. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray
from models.clustering import ClusteringParameters
from models.confidence import ConfidenceParameters, frame_confidence, speaker_confidence
from models.frames import FAINT, begin_and_go_on, fill_gaps, latest_true, runs

BoolArray = npt.NDArray[np.bool_]
BLOCK_FRAMES = 65_536


@dataclass(frozen=True, slots=True)
class SpeakerTurn:
    """A speaker's speech in `[start_samples, end_samples)`; `speaker` indexes Diarization.speakers.

    confidence: the share of it in which he is expected to be speaking indeed; None where that is not known.
    """

    start_samples: int
    end_samples: int
    speaker: int
    confidence: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FileSpeaker:
    """A speaker of a file.

    embedding: (D,) unit centroid; zeros where no clean speech was long enough for one. net_speech_samples: speech in
    which nobody else spoke. confidence: as of a turn, over all of this speaker's.
    """

    embedding: FloatArray
    net_speech_samples: int
    confidence: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FrameConfidence:
    """How sure a diarization is of each frame.

    values: (F,) uint8, 255ths of the probability that all that the turns say of the frame is right, silence included.
    step_samples: how long a frame is.
    """

    values: npt.NDArray[np.uint8]
    step_samples: int


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who spoke when. Speakers are numbered by their first turn.

    turns: ordered by start, overlaps included. exclusive: the same with at most one speaker at a time. confidence: None
    where it is not known.
    """

    turns: tuple[SpeakerTurn, ...]
    exclusive: tuple[SpeakerTurn, ...]
    speakers: tuple[FileSpeaker, ...]
    confidence: FrameConfidence | None = None


def turns_of_activity(
    activity: npt.NDArray[np.floating],
    speech: FloatArray,
    centroids: FloatArray,
    settings: ClusteringParameters,
    *,
    step_samples: int,
    total_samples: int,
    confidence: ConfidenceParameters | None = None,
) -> Diarization:
    """Turns from the activity (F, K) of speakers with unit centroids (K, D), and the probability of speech (F,).

    confidence: how it is found out; without, nothing is said of it.
    """
    voiced = begin_and_go_on(speech, settings.onset, settings.offset)
    voiced = fill_gaps(voiced, settings.gap_samples // step_samples)
    voiced = ~fill_gaps(~voiced, settings.speech_samples_min // step_samples, edges=True)
    first, second = _two_loudest(activity)
    # A frame in which nobody is heard, in a gap that was filled, goes on with who was heard before it.
    heard = latest_true(activity.max(axis=1) > FAINT)
    first, second = first[heard], second[heard]
    frames = np.arange(len(activity))
    exclusive = np.zeros(activity.shape, bool)
    exclusive[frames, first] = voiced
    spoken = exclusive.copy()
    if activity.shape[1] > 1:
        spoken[frames, second] |= voiced & (activity[frames, second] > settings.overlap_threshold)
    spoken = _without_flicker(spoken, voiced, settings.turn_samples_min // step_samples)
    alone = spoken & (spoken.sum(axis=1, keepdims=True, dtype=np.int32) == 1)
    present = np.flatnonzero(spoken.any(axis=0))
    present = present[np.argsort(spoken[:, present].argmax(axis=0), kind="stable")]
    found = Diarization(
        _as_turns(spoken[:, present], step_samples, total_samples),
        _as_turns(exclusive[:, present], step_samples, total_samples),
        tuple(FileSpeaker(centroids[k], int(alone[:, k].sum()) * step_samples) for k in present),
    )
    if confidence is None:
        return found
    return _with_confidence(
        found,
        activity,
        speech,
        spoken=spoken[:, present],
        exclusive=exclusive[:, present],
        columns=present,
        step_samples=step_samples,
        parameters=confidence,
    )


def _with_confidence(
    found: Diarization,
    activity: npt.NDArray[np.floating],
    speech: FloatArray,
    *,
    spoken: BoolArray,
    exclusive: BoolArray,
    columns: npt.NDArray[np.int64],
    step_samples: int,
    parameters: ConfidenceParameters,
) -> Diarization:
    """The same, saying how sure it is. spoken, exclusive: (F, S), with the columns of activity that they are of."""
    frames = frame_confidence(activity, speech, spoken, parameters)
    turns, exclusive_turns = list(found.turns), list(found.exclusive)
    speakers = list(found.speakers)
    for speaker, column in enumerate(columns):
        for mask, said in ((spoken, turns), (exclusive, exclusive_turns)):
            sure = np.zeros(len(mask) + 1)
            own = speaker_confidence(activity, speech, mask, column=int(column), speaker=speaker, parameters=parameters)
            sure[1:][mask[:, speaker]] = own
            if mask is spoken and len(own):
                speakers[speaker] = replace(speakers[speaker], confidence=float(own.mean()))
            summed = np.cumsum(sure)
            for index, turn in enumerate(said):
                if turn.speaker == speaker:
                    begin, end = turn.start_samples // step_samples, -(-turn.end_samples // step_samples)
                    mean = (summed[end] - summed[begin]) / (end - begin)
                    said[index] = replace(turn, confidence=float(np.clip(mean, 0.0, 1.0)))
    return replace(
        found,
        turns=tuple(turns),
        exclusive=tuple(exclusive_turns),
        speakers=tuple(speakers),
        confidence=FrameConfidence(frames, step_samples),
    )


def _two_loudest(activity: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The speakers of highest and second highest activity in each frame: (F,) twice; the same where there is one."""
    first, second = np.zeros(len(activity), np.int64), np.zeros(len(activity), np.int64)
    for at in range(0, len(activity), BLOCK_FRAMES):
        block = activity[at : at + BLOCK_FRAMES].astype(np.float32)
        rows, best = np.arange(len(block)), block.argmax(axis=1)
        block[rows, best] = -np.inf
        first[at : at + BLOCK_FRAMES], second[at : at + BLOCK_FRAMES] = best, block.argmax(axis=1)
    return first, second


def _without_flicker(spoken: BoolArray, voiced: BoolArray, shortest: int) -> BoolArray:
    """Fill a speaker's gaps, then drop his pieces, that are shorter than `shortest` frames; speech stays somebody's."""
    kept = np.zeros_like(spoken)
    for speaker, column in enumerate(spoken.T):
        filled = fill_gaps(column, shortest) & voiced
        kept[:, speaker] = ~fill_gaps(~filled, shortest, edges=True)
    orphaned = voiced & ~kept.any(axis=1)
    kept[orphaned] = spoken[orphaned]
    return kept


def _as_turns(spoken: BoolArray, step_samples: int, total_samples: int) -> tuple[SpeakerTurn, ...]:
    turns = [
        SpeakerTurn(int(begin) * step_samples, min(int(end) * step_samples, total_samples), speaker)
        for speaker in range(spoken.shape[1])
        for begin, end in runs(spoken[:, speaker])
    ]
    return tuple(sorted(turns, key=lambda turn: (turn.start_samples, turn.end_samples, turn.speaker)))

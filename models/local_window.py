"""A window of a live stream, from its analysis until its frames are final.

In: an analysis, rounded to what a snapshot holds. Out: what its frames say of session speakers, once its local speakers
are taken for some. What always holds: what is kept besides what a snapshot holds was computed from that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.recent_voices import HeardVoices

NOBODY = -1


@dataclass(slots=True)
class LocalWindow:
    """A window that still matters to frames that are not final, and whom its local speakers are taken for.

    Lists hold few numbers, which are read faster one by one.
    """

    start_frame: int
    activity: FloatArray  # (F, S)
    embeddings: FloatArray  # (S, D), zeros where there is none
    clean_frames: FloatArray  # (S,)
    speakers: list[int]  # (S,), NOBODY where silent or not known
    spoken: list[float] = field(init=False)  # (S,), frames of activity
    clean: list[float] = field(init=False)  # (S,), `clean_frames`
    present: list[int] = field(init=False)  # local speakers who say anything
    is_told: list[bool] = field(init=False)  # (S,), who has an embedding
    told: list[int] = field(init=False)  # those who have
    speech: FloatArray = field(init=False)  # (F,), in [0, 1], as much as a frame counts
    voices: HeardVoices | None = field(init=False, default=None, repr=False)  # of those, once somebody asked
    _shared: tuple[list[int], tuple[int, ...], FloatArray] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.spoken = self.activity.sum(axis=0).tolist()
        self.clean = self.clean_frames.tolist()
        self.is_told = np.asarray(self.embeddings.any(axis=1)).tolist()
        self.present = [local for local, frames in enumerate(self.spoken) if frames > 0.5]
        self.told = [local for local, is_told in enumerate(self.is_told) if is_told]
        self.speech = np.minimum(self.activity.sum(axis=1), np.float32(1.0)) * _frame_weights(len(self.activity))

    def shared_out(self, indices: tuple[int, ...]) -> FloatArray:
        """What a frame counts: by itself, speech in it, the activity of each session speaker of `indices`: (2 + K, F).

        Kept until its speakers are taken for others.
        """
        if self._shared is None or self._shared[:2] != (self.speakers, indices):
            weights = _frame_weights(len(self.activity))
            shared = np.zeros((2 + len(indices), len(weights)), np.float32)
            shared[0], shared[1] = weights, self.speech
            for local, index in enumerate(self.speakers):
                if index in indices:
                    np.multiply(self.activity[:, local], weights, out=shared[2 + indices.index(index)])
            self._shared = (list(self.speakers), indices, shared)
        return self._shared[2]


def local_window(analysis: WindowAnalysis, grid: FrameGrid) -> LocalWindow:
    """An analysis as it is kept: rounded to what a snapshot holds, so that a restored stream decides the same."""
    start_frame, rest = divmod(analysis.start_samples, grid.step_samples)
    assert rest == 0, "windows start on the grid of frames"
    assert analysis.activity.shape == (grid.num_frames, grid.num_local_speakers)
    levels = np.minimum(np.maximum(analysis.activity, np.float32(0)), np.float32(1))
    levels *= np.float32(255)
    np.rint(levels, out=levels)
    levels /= np.float32(255)
    return LocalWindow(
        start_frame=start_frame,
        activity=np.asarray(levels, np.float32),
        embeddings=analysis.embeddings.astype(np.float16).astype(np.float32),
        clean_frames=np.rint(analysis.clean_frames).astype(np.float32),
        speakers=[NOBODY] * grid.num_local_speakers,
    )


@lru_cache(maxsize=8)
def _frame_weights(num_frames: int) -> FloatArray:
    """What the frames of a window count (F,): near its edges it knows too little of what comes before or after."""
    frame = (np.arange(num_frames) + 0.5) / num_frames
    # A Hamming window, cubed (measured).
    return ((0.54 - 0.46 * np.cos(2 * np.pi * frame)) ** 3).astype(np.float32)

"""What an enrolment clip holds: its dominant speaker's embedding, how much clean speech, how many speakers.

Pure NumPy over any AnalysisDevice.
"""

from __future__ import annotations

from models.analysis import FloatArray
from models.bundle import Bundle
from models.seams import AnalysisDevice, DueWindow, VoiceSample

import numpy as np

ENROLMENT_SLOT = -1


def hear_voice(device: AnalysisDevice, samples: FloatArray, bundle: Bundle) -> VoiceSample:
    """What the engine hears in an enrolment clip (N,) float32 at 16 kHz."""
    grid = device.grid
    length = max(grid.window_samples, -(-len(samples) // grid.hop_samples) * grid.hop_samples)
    device.open(ENROLMENT_SLOT, length)
    device.write(ENROLMENT_SLOT, np.pad(samples, (0, length - len(samples))))
    ends = range(grid.window_samples, length + 1, grid.hop_samples)
    windows = device.analyze([DueWindow(ENROLMENT_SLOT, end) for end in ends])
    total = np.zeros(grid.embedding_dim, np.float32)
    for window in windows:
        s = int(np.argmax(window.clean_frames))
        total += window.clean_frames[s] * window.embeddings[s]
    norm = float(np.linalg.norm(total))
    if norm == 0.0:
        return VoiceSample(total, 0, 0, 0.0)
    unit = total / norm
    return VoiceSample(unit, len(samples), 1, float(np.mean([w.embeddings.max(0) @ unit for w in windows])))

"""What an enrolment clip holds: its dominant speaker's embedding, how much clean speech, how many speakers.

Pure NumPy over any AnalysisDevice: a clip is a short file, diarized like any other.
"""

from __future__ import annotations

import numpy as np

from models.analysis import FloatArray
from models.clustering import ClusteringParameters
from models.diarize import FileDiarization, analyze_samples
from models.seams import AnalysisDevice, VoiceSample
from runtime.units import samples_from_seconds

ENROLMENT_SLOT = -1
# A second voice counts from this much clean speech, and from this share of the first one's: less is a cough or an echo.
SECOND_SPEAKER_SAMPLES_MIN = samples_from_seconds(1.0)
SECOND_SPEAKER_SHARE_MIN = 0.1


def hear_voice(device: AnalysisDevice, samples: FloatArray, clustering: ClusteringParameters) -> VoiceSample:
    """What the engine hears in an enrolment clip (N,) float32 at 16 kHz.

    Without speech the embedding is zeros and everything else 0. Cohesion is taken over all parts of the clip, other
    speakers' too, so that mixed voices show.
    """
    file = FileDiarization(device.grid, clustering)
    parts: list[FloatArray] = []
    weights: list[FloatArray] = []
    for analyses, _ in analyze_samples(device, samples, ENROLMENT_SLOT):
        file.add(analyses)
        parts += [window.embeddings for window in analyses]
        weights += [window.clean_frames * window.embeddings.any(axis=1) for window in analyses]
    device.open(ENROLMENT_SLOT, device.grid.window_samples)  # forgets the clip
    speakers = file.finish(len(samples)).speakers
    if not any(speaker.embedding.any() for speaker in speakers):
        return VoiceSample(np.zeros(device.grid.embedding_dim, np.float32), 0, 0, 0.0)
    dominant = max(speakers, key=lambda speaker: speaker.net_speech_samples)
    others = max(SECOND_SPEAKER_SAMPLES_MIN, SECOND_SPEAKER_SHARE_MIN * dominant.net_speech_samples)
    heard = [speaker for speaker in speakers if speaker is dominant or speaker.net_speech_samples >= others]
    weight = np.concatenate(weights)
    cosines = np.concatenate(parts) @ dominant.embedding
    cohesion = float(weight @ cosines / max(float(weight.sum()), 1.0))
    return VoiceSample(dominant.embedding, dominant.net_speech_samples, len(heard), cohesion)

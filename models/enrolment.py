"""What enrolment clips hold: a dominant speaker's embedding, how much clean speech, how many speakers, who agrees.

Pure NumPy over any AnalysisDevice: a clip is a short file, diarized like any other. Clips of one person are combined by
leaving each out in turn and asking whether it is the person of the others: those that are not are left out for good.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from models.analysis import FloatArray
from models.diarize import FileCollector, analyze_samples
from models.naming import NamingParameters, same_voice_probability
from models.seams import AnalysisDevice, VoiceSample
from runtime.units import samples_from_seconds

ENROLMENT_SLOT = -1
WINDOWS_A_PART = 4
"""Of a clip that is heard in parts, so that windows of live streams come in between soon."""
# A second voice counts from this much clean speech, and from this share of the first one's: less is a cough or an echo.
SECOND_SPEAKER_SAMPLES_MIN = samples_from_seconds(1.0)
SECOND_SPEAKER_SHARE_MIN = 0.1

SAME_PROBABILITY_MIN = 0.2
"""A clip less likely than this to be of the person of the other clips is taken for another's. Measured on clips of 2 to
12 s: clean recordings of one person score above 0.9, half of those with noise 8 dB below the speech above 0.5."""


@dataclass(frozen=True, slots=True, eq=False)
class CombinedVoice:
    """Clips of one person, taken together.

    sample: of the clips that were not left out; its num_speakers is at least 2 where the clips do not agree on who is
    speaking. probabilities: of each clip being of the person of the others, 1 where there are none. left_out: clip by
    clip.
    """

    sample: VoiceSample
    probabilities: tuple[float, ...]
    left_out: tuple[bool, ...]


def same_voice(first: VoiceSample, second: VoiceSample, naming: NamingParameters) -> float:
    """Probability that two samples are of one person, calibrated as names are; 0 where either holds no speech."""
    if not first.net_speech_samples or not second.net_speech_samples:
        return 0.0
    return same_voice_probability(
        first.embedding, second.embedding, first.net_speech_samples, second.net_speech_samples, naming
    )


def combine_clips(samples: Sequence[VoiceSample], naming: NamingParameters) -> CombinedVoice:
    """Clips of one person: those that agree, as one sample. The worst is left out first, while three or more are left.

    Where less than half of the clips that hold speech agree, nobody can say which of them are right.
    """
    assert samples
    spoken = [index for index, sample in enumerate(samples) if sample.net_speech_samples]
    kept = list(spoken)
    agreement = _agreement(samples, kept, naming)
    while len(kept) > 2 and min(agreement[index] for index in kept) < SAME_PROBABILITY_MIN:
        kept.remove(min(kept, key=lambda index: agreement[index]))
        agreement = _agreement(samples, kept, naming)
    is_agreed = 2 * len(kept) > len(spoken) and all(agreement[index] >= SAME_PROBABILITY_MIN for index in kept)
    if len(spoken) > 1 and not is_agreed:
        kept = list(spoken)
        agreement = _agreement(samples, kept, naming)
    whole = _together([samples[index] for index in kept]) if kept else samples[0]
    if len(spoken) > 1 and not is_agreed:
        whole = VoiceSample(whole.embedding, whole.net_speech_samples, max(2, whole.num_speakers), whole.cohesion)
    others = {index: same_voice(samples[index], whole, naming) for index in spoken if index not in kept}
    return CombinedVoice(
        whole,
        tuple({**agreement, **others}.get(index, 0.0) for index in range(len(samples))),
        tuple(index not in kept for index in range(len(samples))),
    )


def _agreement(samples: Sequence[VoiceSample], kept: Sequence[int], naming: NamingParameters) -> dict[int, float]:
    """Of each clip, the probability that it is of the person of the other ones."""
    if len(kept) < 2:
        return dict.fromkeys(kept, 1.0)
    return {
        index: same_voice(samples[index], _together([samples[other] for other in kept if other != index]), naming)
        for index in kept
    }


def _together(samples: Sequence[VoiceSample]) -> VoiceSample:
    """One sample of several, each weighing as much as it has clean speech."""
    if len(samples) == 1:
        return samples[0]
    weights = np.array([sample.net_speech_samples for sample in samples], np.float64)
    total = (weights[:, None] * np.stack([sample.embedding for sample in samples])).sum(axis=0)
    return VoiceSample(
        (total / max(float(np.linalg.norm(total)), 1e-6)).astype(np.float32),
        int(weights.sum()),
        max(sample.num_speakers for sample in samples),
        float(weights @ np.array([sample.cohesion for sample in samples]) / weights.sum()),
    )


def heard_at_once(parts: Generator[None, None, VoiceSample]) -> VoiceSample:
    """What is heard in a clip, where nobody waits."""
    while (heard := next_part(parts)) is None:
        pass
    return heard


def next_part(parts: Generator[None, None, VoiceSample]) -> VoiceSample | None:
    """Hear one more part of a clip; what is heard in all of it, once there is none."""
    try:
        next(parts)
    except StopIteration as end:
        heard: VoiceSample = end.value
        return heard
    return None


def hear_voice(
    device: AnalysisDevice,
    samples: FloatArray,
    file: FileCollector,
    as_voices: Callable[[FloatArray], FloatArray] = lambda vectors: vectors,
    *,
    windows_a_part: int = WINDOWS_A_PART,
) -> Generator[None, None, VoiceSample]:
    """Hear an enrolment clip (N,) float32 at 16 kHz, of which `file` is to make turns: a part with each `next`.

    One clip at a time. Close it if you do not hear it to its end: the device forgets the clip then, as it does there.
    as_voices: makes unit vectors of embeddings (S, D), where a recording's windows hold others.

    Without speech the embedding is zeros and everything else 0. Cohesion is taken over all parts of the clip, other
    speakers' too, so that mixed voices show.
    """
    parts: list[FloatArray] = []
    weights: list[FloatArray] = []
    try:
        for analyses, _ in analyze_samples(device, samples, ENROLMENT_SLOT, windows_a_batch=windows_a_part):
            file.add(analyses)
            parts += [as_voices(window.embeddings) for window in analyses]
            weights += [window.clean_frames * window.embeddings.any(axis=1) for window in analyses]
            yield
    finally:
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

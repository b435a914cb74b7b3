"""From session speakers and enrolled voices to names: calibrated, exclusive, or a reason why not.

Pure NumPy and SciPy. In come cosines of speakers against the voices in scope and the clean speech behind each speaker;
out comes one verdict a speaker. A voice names at most one speaker and a speaker has at most one voice, always. What is
matched are session speakers, never single windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.optimize import linear_sum_assignment

from models.analysis import FloatArray
from runtime.units import seconds_from_samples


class Reason(Enum):
    """Why a speaker has a name, or has none."""

    MATCHED = "matched"
    NO_VOICES = "no_voices"  # no voice in scope
    TOO_LITTLE_SPEECH = "too_little_speech"  # less clean speech than naming asks for
    BELOW_THRESHOLD = "below_threshold"  # the best voice left is not likely enough
    THIN_MARGIN = "thin_margin"  # likely, but another voice is nearly as near
    TAKEN = "taken"  # its best voice fits another speaker of the session better


@dataclass(frozen=True, slots=True)
class NamingParameters:
    """How names are decided. Fitted on speakers other than those it is tested on, and kept in the bundle.

    The log odds of a match are `bias + cosine_weight * cosine + margin_weight * margin + speech_weight * log(net speech
    in seconds)`, where the margin is to the next voice, or to `background_cosine` where no other voice comes nearer.
    Net speech counts up to `net_speech_samples_max`: beyond, more of it does not bring the cosine any nearer.
    `stay_cosine` is what a name in place is worth in a stream, against another or none: names do not flicker.
    """

    bias: float
    cosine_weight: float
    margin_weight: float
    speech_weight: float
    background_cosine: float
    probability_min: float
    margin_min: float
    net_speech_samples_min: int
    net_speech_samples_max: int = 64_000
    stay_cosine: float = 0.06


@dataclass(frozen=True, slots=True)
class Verdict:
    """What naming says of one session speaker.

    voice: index of its voice, or None. probability, cosine, margin: those of `voice`, or of the best voice where there
    is none; 0 where there are no voices at all.
    """

    voice: int | None
    reason: Reason
    probability: float
    cosine: float
    margin: float


def match_probabilities(cosines: FloatArray, net_speech_samples: np.ndarray, naming: NamingParameters) -> FloatArray:
    """Probability of each speaker being each voice, taken alone: cosines (P, V), net_speech_samples (P,) → (P, V)."""
    counted = np.minimum(net_speech_samples, naming.net_speech_samples_max)
    seconds = np.array([seconds_from_samples(int(n)) for n in counted])
    odds = (
        naming.bias
        + naming.cosine_weight * cosines
        + naming.margin_weight * margins(cosines, naming.background_cosine)
        + naming.speech_weight * np.log(np.maximum(seconds, 0.1))[:, None]
    )
    probabilities: FloatArray = (1.0 / (1.0 + np.exp(-np.clip(odds, -50, 50)))).astype(np.float32)
    return probabilities


def margins(cosines: FloatArray, background_cosine: float) -> FloatArray:
    """By how much each voice beats the best other voice, or the background: (P, V) → (P, V)."""
    num_speakers, num_voices = cosines.shape
    rivals = np.full((num_speakers, num_voices), background_cosine, np.float32)
    if num_voices > 1:
        order = np.sort(cosines, axis=1)
        best, second = order[:, -1:], order[:, -2:-1]
        rivals = np.maximum(rivals, np.where(cosines >= best, second, best))
    found: FloatArray = cosines - rivals
    return found


def name_speakers(cosines: FloatArray, net_speech_samples: np.ndarray, naming: NamingParameters) -> list[Verdict]:
    """One verdict a speaker, from cosines (P, V) and each speaker's clean speech (P,) in samples."""
    num_speakers, num_voices = cosines.shape
    if num_voices == 0:
        return [Verdict(None, Reason.NO_VOICES, 0.0, 0.0, 0.0) for _ in range(num_speakers)]
    if num_speakers == 0:
        return []
    probabilities = match_probabilities(cosines, net_speech_samples, naming)
    margin = margins(cosines, naming.background_cosine)
    heard = np.asarray(net_speech_samples) >= naming.net_speech_samples_min
    acceptable = (probabilities >= naming.probability_min) & (margin >= naming.margin_min) & heard[:, None]
    rows, columns = linear_sum_assignment(np.where(acceptable, probabilities, 0.0), maximize=True)
    given = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if acceptable[row, column]}
    verdicts = []
    for speaker in range(num_speakers):
        voice = given.get(speaker)
        best = int(np.argmax(probabilities[speaker])) if voice is None else voice
        if voice is not None:
            reason = Reason.MATCHED
        elif not heard[speaker]:
            reason = Reason.TOO_LITTLE_SPEECH
        elif probabilities[speaker, best] < naming.probability_min:
            reason = Reason.BELOW_THRESHOLD
        elif margin[speaker, best] < naming.margin_min:
            reason = Reason.THIN_MARGIN
        else:
            reason = Reason.TAKEN
        verdicts.append(
            Verdict(
                voice,
                reason,
                float(probabilities[speaker, best]),
                float(cosines[speaker, best]),
                float(margin[speaker, best]),
            )
        )
    return verdicts

"""From session speakers and enrolled voices to names: calibrated, exclusive, or a reason why not.

Pure NumPy and SciPy. In come cosines of speakers against the voices in scope and the clean speech behind both; out
comes one verdict a speaker. A voice names at most one speaker and a speaker has at most one voice, always. What is
matched are session speakers, never single windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from models.analysis import FloatArray
from runtime.units import SAMPLE_RATE_HZ

UNKNOWN_VOICE_SAMPLES = 10 * SAMPLE_RATE_HZ
"""Clean speech that a voice is taken to stand on where nobody says."""
LEAST_SECONDS = 0.1


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

    The log odds of a match are `bias + cosine_weight * cosine + margin_weight * margin + speech_weight * log(speaker's
    net speech) + voice_speech_weight * log(voice's net speech) + gallery_weight * log(voices in scope)`. Net speech is
    in seconds; the margin is to the next voice, or to `background_cosine` where no other comes nearer. The more
    voices are in scope, the nearer does one of them come by chance: that is what the last term is for.
    Net speech counts up to `net_speech_samples_max` of the speaker's and `voice_speech_samples_max` of the voice's:
    beyond, more of it does not bring the cosine any nearer.
    A name needs `probability_min`, `margin_min` and `net_speech_samples_min`.
    A stream asks again with every step while little is known yet, and whoever is looked at often is taken for somebody
    sooner or later: until it has heard `live_speech_samples` of a speaker, a name needs `live_probability_min` there,
    with twice as much no more than elsewhere. `stay_cosine` is what a name in place is worth there, against another or
    none: names do not flicker.
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
    voice_speech_weight: float = 0.0
    voice_speech_samples_max: int = 160_000
    gallery_weight: float = 0.0
    stay_cosine: float = 0.06
    live_probability_min: float = 0.0
    live_speech_samples: int = 320_000


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Voices in scope, as a decision sees them.

    cosines: (P, V) of each speaker against each voice that could be his. net_speech_samples: (V,), clean speech that
    each voice stands on. num_in_scope: how many voices there are in all; more than V where the nearest were picked.
    persons: (V,), the same number where voices are taken to be one person's, who was enrolled more than once: they are
    no rivals of each other. None: each is of somebody else.
    """

    cosines: FloatArray
    net_speech_samples: npt.NDArray[np.int64]
    num_in_scope: int
    persons: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        assert self.net_speech_samples.shape == self.cosines.shape[1:]
        assert self.num_in_scope >= self.cosines.shape[1]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What naming says of one session speaker: its report.

    voice: index of its voice, or None. best: the same, or the likeliest voice where there is none; None without voices.
    probability, cosine, margin: those of `best`, 0 where there are no voices at all. runner_up: the nearest voice of
    another person with its cosine and probability, None where there is no other. voice_speech_samples: clean speech
    behind `best`.
    """

    voice: int | None
    reason: Reason
    probability: float
    cosine: float
    margin: float
    best: int | None = None
    runner_up: int | None = None
    runner_up_cosine: float = 0.0
    runner_up_probability: float = 0.0
    voice_speech_samples: int = 0


def all_of(cosines: FloatArray, net_speech_samples: np.ndarray | None = None) -> Candidates:
    """Candidates where every voice in scope is one: cosines (P, V); without net_speech_samples (V,), 10 s each."""
    if net_speech_samples is None:
        net_speech_samples = np.full(cosines.shape[1], UNKNOWN_VOICE_SAMPLES)
    return Candidates(cosines, np.asarray(net_speech_samples, np.int64), cosines.shape[1])


def match_evidence(candidates: Candidates, net_speech_samples: np.ndarray, naming: NamingParameters) -> FloatArray:
    """What the log odds are a weighted sum of, after a 1 for the bias: (P, V, 6)."""
    cosines = candidates.cosines
    speaker = _log_seconds(net_speech_samples, naming.net_speech_samples_max)[:, None]  # (P, 1)
    voice = _log_seconds(candidates.net_speech_samples, naming.voice_speech_samples_max)[None]  # (1, V)
    gallery = np.full((1, 1), np.log(max(candidates.num_in_scope, 1)))
    terms = (
        np.ones((1, 1)),
        cosines,
        margins(cosines, naming.background_cosine, candidates.persons),
        speaker,
        voice,
        gallery,
    )
    return np.stack([np.broadcast_to(term, cosines.shape) for term in terms], axis=-1).astype(np.float32)


def match_weights(naming: NamingParameters) -> npt.NDArray[np.float64]:
    """The weights (6,) of that evidence."""
    return np.array(
        [
            naming.bias,
            naming.cosine_weight,
            naming.margin_weight,
            naming.speech_weight,
            naming.voice_speech_weight,
            naming.gallery_weight,
        ]
    )


def match_probabilities(candidates: Candidates, net_speech_samples: np.ndarray, naming: NamingParameters) -> FloatArray:
    """Probability of each speaker being each voice, taken alone: net_speech_samples (P,) → (P, V)."""
    odds = match_evidence(candidates, net_speech_samples, naming) @ match_weights(naming)
    probabilities: FloatArray = (1.0 / (1.0 + np.exp(-np.clip(odds, -50, 50)))).astype(np.float32)
    return probabilities


def same_voice_probability(
    one: FloatArray, other: FloatArray, one_speech_samples: int, other_speech_samples: int, naming: NamingParameters
) -> float:
    """Probability that two unit embeddings (D,) are of one person, each with the clean speech that it stands on."""
    alone = all_of(np.array([[one @ other]], np.float32), np.array([other_speech_samples]))
    return float(match_probabilities(alone, np.array([one_speech_samples]), naming)[0, 0])


def same_voice(
    cosines: FloatArray, speech_samples: int, others_speech_samples: np.ndarray, naming: NamingParameters
) -> npt.NDArray[np.bool_]:
    """Which of other voices (V,) a voice would be named as, each taken alone: their cosines (V,) to it → (V,)."""
    alone = all_of(np.asarray(cosines, np.float32)[:, None], np.array([speech_samples]))  # the others are who is heard
    found = match_probabilities(alone, np.asarray(others_speech_samples), naming)[:, 0]
    return np.asarray(found >= naming.probability_min)


def margins(cosines: FloatArray, background_cosine: float, persons: npt.NDArray[np.int64] | None = None) -> FloatArray:
    """By how much each voice beats the best voice of another person, or the background: (P, V) → (P, V).

    persons: (V,), whose each is; None: each is of somebody else.
    """
    num_speakers, num_voices = cosines.shape
    rivals = np.full((num_speakers, num_voices), background_cosine, np.float32)
    if num_voices > 1:
        # The best of each person (P, H), and which of them each voice is.
        person = np.arange(num_voices) if persons is None else np.unique(persons, return_inverse=True)[1]
        nearest = cosines if persons is None else _of_each_person(cosines, person)
        if nearest.shape[1] > 1:
            order = np.partition(nearest, nearest.shape[1] - 2, axis=1)
            best, second = order[:, -1:], order[:, -2:-1]
            rivals = np.maximum(rivals, np.where(nearest >= best, second, best)[:, person])
    found: FloatArray = cosines - rivals
    return found


def _of_each_person(cosines: FloatArray, person: npt.NDArray[np.int64]) -> FloatArray:
    """The best cosine of each person's voices: (P, V) → (P, H). person: (V,), each of 0 to H-1 at least once."""
    order = np.argsort(person, kind="stable")
    begins = np.searchsorted(person[order], np.arange(person.max() + 1))
    found: FloatArray = np.maximum.reduceat(cosines[:, order], begins, axis=1)
    return found


def name_speakers(
    candidates: Candidates, net_speech_samples: np.ndarray, naming: NamingParameters, *, is_live: bool = False
) -> list[Verdict]:
    """One verdict a speaker, from the voices that he could be and each speaker's clean speech (P,) in samples.

    is_live: the speech is not all there yet, and this is asked again.
    """
    num_speakers, num_voices = candidates.cosines.shape
    if num_voices == 0:
        return [Verdict(None, Reason.NO_VOICES, 0.0, 0.0, 0.0) for _ in range(num_speakers)]
    if num_speakers == 0:
        return []
    probabilities = match_probabilities(candidates, net_speech_samples, naming)
    margin = margins(candidates.cosines, naming.background_cosine, candidates.persons)
    heard = np.asarray(net_speech_samples) >= naming.net_speech_samples_min
    least = _live_least(net_speech_samples, naming) if is_live else np.full(num_speakers, naming.probability_min)
    acceptable = (probabilities >= least[:, None]) & (margin >= naming.margin_min) & heard[:, None]
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
        elif probabilities[speaker, best] < least[speaker]:
            reason = Reason.BELOW_THRESHOLD
        elif margin[speaker, best] < naming.margin_min:
            reason = Reason.THIN_MARGIN
        else:
            reason = Reason.TAKEN
        runner_up = _nearest_other(candidates.cosines[speaker], best, candidates.persons)
        verdicts.append(
            Verdict(
                voice,
                reason,
                float(probabilities[speaker, best]),
                float(candidates.cosines[speaker, best]),
                float(margin[speaker, best]),
                best=best,
                runner_up=runner_up,
                runner_up_cosine=0.0 if runner_up is None else float(candidates.cosines[speaker, runner_up]),
                runner_up_probability=0.0 if runner_up is None else float(probabilities[speaker, runner_up]),
                voice_speech_samples=int(candidates.net_speech_samples[best]),
            )
        )
    return verdicts


def _live_least(net_speech_samples: np.ndarray, naming: NamingParameters) -> npt.NDArray[np.float64]:
    """The probability that a name needs in a stream that has heard so much of each speaker: (P,)."""
    known = np.clip(np.asarray(net_speech_samples) / max(naming.live_speech_samples, 1) - 1.0, 0.0, 1.0)
    excess = max(0.0, naming.live_probability_min - naming.probability_min)
    least: npt.NDArray[np.float64] = naming.probability_min + (1.0 - known) * excess
    return least


def _nearest_other(cosines: FloatArray, voice: int, persons: npt.NDArray[np.int64] | None) -> int | None:
    """The voice nearest to a speaker with cosines (V,), but for those of one's person; None where there is no other."""
    others = np.array(cosines)
    others[voice if persons is None else persons == persons[voice]] = -np.inf
    nearest = int(np.argmax(others))
    return None if np.isneginf(others[nearest]) else nearest


def _log_seconds(samples: np.ndarray, most: int) -> npt.NDArray[np.float64]:
    seconds = np.minimum(np.asarray(samples, np.float64), most) / SAMPLE_RATE_HZ
    return np.log(np.maximum(seconds, LEAST_SECONDS))

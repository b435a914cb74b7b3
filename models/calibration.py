"""Fitting what turns a cosine into the probability of a match, and measuring what such probabilities are worth.

Pure NumPy and SciPy. In come enrolled voices and heard speakers of whom it is known who they are; out come the weights
of models.naming's evidence, error rates and calibration errors. A trial is a heard speaker before a gallery drawn at
random, which holds his own voice half of the time: what is judged is the likeliest voice of the gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from models.analysis import FloatArray
from models.naming import Candidates, NamingParameters, match_evidence, match_weights

RIDGE = np.array([0.0, 1e-5, 1e-5, 0.01, 0.01, 1e-5])
"""On each weight. Seconds of speech count for little unless they clearly matter: where all that there is of a person is
one recording, what is not enrolled is what is heard, and short enrolments would seem to be good ones.
"""
NUM_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class KnownVoice:
    """Somebody's voice as enrolled or as heard. embedding: (D,) unit vector; net_speech_samples: clean speech."""

    person: str
    embedding: FloatArray
    net_speech_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """evidence: (T, 6) for the likeliest voice of each trial's gallery. match: (T,) whether it is the right one.

    present: (T,) whether the gallery held the right one. person: (T,) who was heard.
    """

    evidence: FloatArray
    match: npt.NDArray[np.bool_]
    present: npt.NDArray[np.bool_]
    person: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.match)

    def probabilities(self, naming: NamingParameters) -> npt.NDArray[np.float64]:
        """What naming would say of each: (T,)."""
        odds = self.evidence @ match_weights(naming)
        found: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(odds, -50, 50)))
        return found


def join_trials(parts: Sequence[Trials]) -> Trials:
    """Trials drawn apart, as one."""
    return Trials(
        np.concatenate([part.evidence for part in parts]),
        np.concatenate([part.match for part in parts]),
        np.concatenate([part.present for part in parts]),
        np.concatenate([part.person for part in parts]),
    )


def draw_trials(
    enrolled: Sequence[KnownVoice],
    heard: Sequence[KnownVoice],
    naming: NamingParameters,
    sizes: Sequence[int],
    rng: np.random.Generator,
) -> Trials:
    """Two trials for each heard speaker and size of gallery: with his own voice in it, and without.

    Enrolled voices are of different people; a gallery is no larger than they allow. Who is not enrolled has trials
    without his own voice alone.
    """
    vectors = np.stack([voice.embedding for voice in enrolled])  # (V, D)
    speech = np.array([voice.net_speech_samples for voice in enrolled], np.int64)
    people = np.array([voice.person for voice in enrolled])
    weights = match_weights(naming)
    evidence, match, present, person = [], [], [], []
    for speaker in heard:
        cosines = vectors @ speaker.embedding  # (V,)
        own, others = np.flatnonzero(people == speaker.person), np.flatnonzero(people != speaker.person)
        for size in sizes:
            for with_own in (True, False) if len(own) else (False,):
                drawn = rng.choice(others, size=min(size - (with_own and len(own) > 0), len(others)), replace=False)
                gallery = np.concatenate([own, drawn]) if with_own else drawn
                if not len(gallery):
                    continue
                candidates = Candidates(cosines[None, gallery].astype(np.float32), speech[gallery], len(gallery))
                found = match_evidence(candidates, np.array([speaker.net_speech_samples]), naming)[0]  # (V', 6)
                best = int(np.argmax(found @ weights))
                evidence.append(found[best])
                match.append(bool(people[gallery[best]] == speaker.person))
                present.append(bool(with_own))
                person.append(speaker.person)
    return Trials(np.array(evidence, np.float32).reshape(-1, 6), np.array(match), np.array(present), np.array(person))


def fit_naming(trials: Trials, naming: NamingParameters, *, trust: float = 0.0, worth: float = 0.0) -> NamingParameters:
    """The parameters with weights fitted to the trials by logistic regression.

    trust: how many independent trials the weights that `naming` brings are worth; 0 forgets them. What the trials
    cannot tell (one size of gallery, one length of speech) then stays as it was. worth: how many independent trials
    these are; 0 for as many as there are.
    """
    x, y = trials.evidence.astype(np.float64), trials.match.astype(np.float64)
    before = match_weights(naming)
    spread = np.maximum(x.std(axis=0), 0.05)
    worth = worth or float(len(y))
    around = before if trust else np.zeros(len(before))

    def loss(weights: npt.NDArray[np.float64]) -> float:
        odds = x @ weights
        data = float(np.mean(np.logaddexp(0, odds) - y * odds))
        towards = trust / worth * float((((weights - before) * spread) ** 2).sum())
        return data + towards + float((RIDGE * (weights - around) ** 2).sum())

    found = minimize(loss, around, method="BFGS").x
    bias, cosine, margin, speech, voice_speech, gallery = (round(float(value), 4) for value in found)
    return replace(
        naming,
        bias=bias,
        cosine_weight=cosine,
        margin_weight=margin,
        speech_weight=speech,
        voice_speech_weight=voice_speech,
        gallery_weight=gallery,
    )


def expected_calibration_error(
    probabilities: npt.NDArray[np.float64],
    truth: npt.NDArray[np.bool_] | npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64] | None = None,
) -> float:
    """Mean distance between what is said and what is so, over ten equal bins of probability: (T,), (T,) → [0, 1].

    weights: (T,), what each counts; 1 without.
    """
    weights = np.ones(len(probabilities)) if weights is None else weights
    total, error = float(weights.sum()), 0.0
    which = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    for index in range(NUM_BINS):
        mine = which == index
        share = float(weights[mine].sum())
        if share > 0:
            said = float(np.average(probabilities[mine], weights=weights[mine]))
            so = float(np.average(np.asarray(truth, np.float64)[mine], weights=weights[mine]))
            error += share / total * abs(said - so)
    return error


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """At a threshold: far, strangers who are given a name; frr, enrolled people who are not given theirs; wrong,
    enrolled people who are given another's. Shares of the strangers, and of the enrolled."""

    threshold: float
    far: float
    frr: float
    wrong: float


def error_rates(
    trials: Trials, probabilities: npt.NDArray[np.float64], margin_min: float, thresholds: Sequence[float]
) -> list[ErrorRates]:
    """What each threshold on the probabilities (T,) would do; a margin is asked for as in naming."""
    wide = trials.evidence[:, 2] >= margin_min
    rates = []
    for threshold in thresholds:
        named = (probabilities >= threshold) & wide
        strangers, enrolled = ~trials.present, trials.present
        rates.append(
            ErrorRates(
                threshold,
                _share(named[strangers]),
                _share(~(named & trials.match)[enrolled]),
                _share((named & ~trials.match)[enrolled]),
            )
        )
    return rates


def equal_error_rate(same: npt.NDArray[np.float64], different: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where as many of `same` lie below a threshold as of `different` above it: (error, threshold)."""
    thresholds = np.unique(np.concatenate([same, different]))
    misses = np.searchsorted(np.sort(same), thresholds, side="left") / len(same)
    alarms = 1.0 - np.searchsorted(np.sort(different), thresholds, side="left") / len(different)
    at = int(np.argmin(np.abs(misses - alarms)))
    return float((misses[at] + alarms[at]) / 2), float(thresholds[at])


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else 0.0

"""Who the speakers of a recording are, out of candidates that a caller named: every score, and one match a speaker.

Pure NumPy and SciPy. In: cosines of speakers against candidates, and the clean speech behind both. Out: one calibrated
probability a pair, the one that names rest on, and matches by the caller's own rule, which is a least score and
whether a candidate may match more than one speaker. What always holds: a match scores at least the threshold, and
more than 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from models.analysis import FloatArray
from models.naming import Candidates, NamingParameters, match_probabilities


@dataclass(frozen=True, slots=True, eq=False)
class Identification:
    """What one speaker was found to be. match: index of the candidate, None: nobody. probabilities: (V,), of each."""

    match: int | None
    probabilities: FloatArray


def score_of(probability: float) -> int:
    """A probability as callers are shown it: 0 to 100."""
    return round(100 * probability)


def identify(
    candidates: Candidates,
    net_speech_samples: np.ndarray,
    naming: NamingParameters,
    *,
    exclusive: bool,
    threshold: float,
) -> list[Identification]:
    """One for each speaker (P,). threshold: 0 to 100. exclusive: the injective assignment that is best in all."""
    probabilities = match_probabilities(candidates, net_speech_samples, naming)
    scores: npt.NDArray[np.float64] = np.round(100 * probabilities.astype(np.float64))
    # A score of 0 says that it is not this person; no threshold makes it a match.
    acceptable = (scores >= max(threshold, 1.0)) if threshold > 0 else scores > 0
    matches = _assigned(probabilities, acceptable) if exclusive else _nearest(probabilities, acceptable)
    return [Identification(match, row) for match, row in zip(matches, probabilities, strict=True)]


def _assigned(probabilities: FloatArray, acceptable: npt.NDArray[np.bool_]) -> list[int | None]:
    rows, columns = linear_sum_assignment(np.where(acceptable, probabilities, 0.0), maximize=True)
    given = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if acceptable[row, column]}
    return [given.get(speaker) for speaker in range(len(probabilities))]


def _nearest(probabilities: FloatArray, acceptable: npt.NDArray[np.bool_]) -> list[int | None]:
    if not probabilities.shape[1]:
        return [None] * len(probabilities)
    best = np.argmax(np.where(acceptable, probabilities, -1.0), axis=1)
    return [int(one) if acceptable[speaker, one] else None for speaker, one in enumerate(best)]

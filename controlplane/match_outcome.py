"""Whether one voice is among the speakers of a recording: one of them, several, or none. Pure.

In: of each speaker, the calibrated probability of being that voice, and a threshold. Out: the outcome, and a single
score: all that leaves of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What a comparison with one voice comes to."""

    MATCHED = "MATCHED"  # exactly one speaker reaches the threshold
    AMBIGUOUS = "AMBIGUOUS"  # more than one does
    NO_MATCH = "NO_MATCH"  # none does


@dataclass(frozen=True, slots=True)
class Match:
    """speaker: who it is, where the outcome is MATCHED. score: the highest probability; None where nobody spoke."""

    outcome: Outcome
    speaker: str | None
    score: float | None


def match_of(probabilities: Mapping[str, float], threshold: float) -> Match:
    """The outcome over the speakers of a recording. A probability that equals the threshold reaches it."""
    reaching = [speaker for speaker, probability in probabilities.items() if probability >= threshold]
    score = max(probabilities.values(), default=None)
    if len(reaching) == 1:
        return Match(Outcome.MATCHED, reaching[0], score)
    return Match(Outcome.AMBIGUOUS if reaching else Outcome.NO_MATCH, None, score)

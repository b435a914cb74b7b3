"""How what a node holds differs from what it should hold: pure.

In: both, voice by voice, or as counts alone. Out: how many of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.keys import VoiceAddress

KINDS = ("missing", "extra", "stale_generation", "wrong_digest", "ahead")


@dataclass(frozen=True, slots=True)
class Drift:
    """Voices that a node lacks, holds beyond what it should, or holds in another generation; and what else is wrong.

    wrong_digest: the voices are the right ones and the digest is not, or there were too many to compare.
    """

    missing: tuple[VoiceAddress, ...] = ()
    extra: int = 0
    stale_generation: int = 0
    wrong_digest: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    def by_kind(self) -> dict[str, int]:
        """How many of each kind there are, those with none left out."""
        found = {
            "missing": len(self.missing) or self.counts.get("missing", 0),
            "extra": self.extra,
            "stale_generation": self.stale_generation,
            "wrong_digest": self.wrong_digest,
        }
        return {kind: number for kind, number in found.items() if number}

    @property
    def is_only_missing(self) -> bool:
        """Whether sending voices again mends it, and nothing has to be forgotten for it."""
        return bool(self.missing) and not (self.extra or self.stale_generation or self.wrong_digest)


def compare(should: Mapping[VoiceAddress, int], held: Mapping[VoiceAddress, int]) -> Drift:
    """should, held: generation by voice."""
    missing = tuple(voice for voice in should if voice not in held)
    extra = sum(voice not in should for voice in held)
    stale = sum(voice in held and held[voice] != generation for voice, generation in should.items())
    same = not (missing or extra or stale)
    return Drift(missing, extra, stale, int(same))


def compare_counts(should: int, held: int) -> Drift:
    """As much as can be told from how many there are."""
    if held < should:
        return Drift(counts={"missing": should - held})
    return Drift(extra=held - should) if held > should else Drift(wrong_digest=1)

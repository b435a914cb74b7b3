"""What nodes of each model should hold, at each of the last revisions: a digest and a count, kept by following the log.

In: what the log told nodes of every voice, once, and then its entries one by one. Out: what a node of a model holds if
all is well when its cursor is at a revision. What always holds: a revision is answered for only if every entry up to it
was taken. A node's digest can so be judged at whatever revision it reports from, however fast the log grows. No I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from controlplane.holdings import Step, Told
from runtime.voice_digest import VoiceDigest

REMEMBERED = 20_000
"""Changes of a model's voices that can still be looked up: a node that lags further behind is judged later."""


@dataclass(frozen=True, slots=True)
class Holds:
    """What is held by a node that holds what it should."""

    digest: bytes
    num_voices: int


@dataclass(slots=True)
class _OfModel:
    digest: VoiceDigest = field(default_factory=VoiceDigest)
    num_voices: int = 0
    revisions: list[int] = field(default_factory=list)
    holds: list[Holds] = field(default_factory=list)


class Desired:
    """Follows the log."""

    def __init__(self) -> None:
        self.revision = -1
        """Up to where the log was followed; -1: it has not begun."""
        self._first = 0
        self._models: dict[str, _OfModel] = {}

    def __repr__(self) -> str:
        return f"Desired(revision={self.revision}, models={sorted(self._models)})"

    def include(self, page: Sequence[Told]) -> None:
        """Take voices as they stand, before `begin`. Hashes: call it beside the event loop."""
        for told in page:
            self._hold(told)

    def begin(self, revision: int) -> None:
        """All voices are taken, as of a revision."""
        self.revision = self._first = revision
        for model in self._models:
            self._remember(model)

    def follow(self, step: Step) -> bool:
        """Take the next entry of the log. False when it is not the next one, and all has to be read anew."""
        if step.revision != self.revision + 1:
            return False
        if step.was.generation:
            self._let_go(step.was)
        self._hold(step.now)
        self.revision = step.revision
        for model in {*step.was.models, *step.now.models}:
            self._remember(model)
        return True

    def at(self, model: str, revision: int) -> Holds | None:
        """What a node of a model should hold at a revision. None: not known, or not any more."""
        if not self._first <= revision <= self.revision:
            return None
        of_model = self._models.get(model)
        if of_model is None:
            return Holds(bytes(32), 0)
        place = bisect_right(of_model.revisions, revision)
        if place:
            return of_model.holds[place - 1]
        return None if len(of_model.revisions) >= REMEMBERED else Holds(bytes(32), 0)

    def _hold(self, told: Told) -> None:
        for model in told.models:
            of_model = self._models.setdefault(model, _OfModel())
            of_model.digest.add(told.voice.tenant_id, told.voice.voice_id, told.generation)
            of_model.num_voices += 1

    def _let_go(self, told: Told) -> None:
        for model in told.models:
            of_model = self._models.setdefault(model, _OfModel())
            of_model.digest.remove(told.voice.tenant_id, told.voice.voice_id, told.generation)
            of_model.num_voices -= 1

    def _remember(self, model: str) -> None:
        of_model = self._models[model]
        of_model.revisions.append(self.revision)
        of_model.holds.append(Holds(of_model.digest.value(), of_model.num_voices))
        if len(of_model.revisions) >= 2 * REMEMBERED:
            del of_model.revisions[:REMEMBERED], of_model.holds[:REMEMBERED]

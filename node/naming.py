"""Names for the speakers of one stream: decided step by step, and looked up again at the moment they are said.

In: after each step, its outcome and the session speakers. Out: what to show, and names on request. What always holds: a
name is given out only while the guard allows it and the store still holds that voice in the generation that was scored,
asked at the moment of saying it; so nothing names a voice that was evicted, or while the node has no lease.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from models.analysis import FloatArray
from models.live_naming import LiveNaming, NamingOutcome
from models.naming import Candidates, NamingParameters, Reason, Verdict, name_speakers
from models.online import SessionSpeaker, StepOutcome
from node.voice_store import NOBODY, Roster, Voice, VoiceStore
from runtime.errors import InvalidRequest


class NamingGuard(Protocol):
    """Whether this node may name anybody now."""

    def allows(self) -> bool:
        """True while the lease is good, or always on a standalone node."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """A decision about one speaker, with what it stands on. Cosines are in [-1, 1], probabilities in [0, 1].

    margin: by how much the best voice is nearer than the next, or than voices at large. net_speech_samples: the
    speaker's; the voice's own is `best.net_speech_samples`.
    """

    reason: Reason
    best: Voice | None
    probability: float
    cosine: float
    runner_up: Voice | None
    runner_up_cosine: float
    net_speech_samples: int
    margin: float = 0.0
    runner_up_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Name:
    """What a speaker may be called now."""

    voice_id: str
    label: str
    probability: float

    def __repr__(self) -> str:
        return f"Name({self.voice_id})"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose voices are candidates. voice_ids: empty for all of them. audiences: empty for the tenant's."""

    tenant_id: str
    voice_ids: frozenset[str]
    audiences: tuple[str, ...] = ()

    @property
    def heard(self) -> tuple[str, ...]:
        """The audiences whose voices are candidates."""
        return self.audiences or (self.tenant_id,)


async def score(
    store: VoiceStore,
    guard: NamingGuard,
    scope: Scope,
    speakers: Sequence[SessionSpeaker],
    carried: Collection[str] = (),
) -> tuple[FloatArray, Roster]:
    """Cosines (K, V) of session speakers against the voices in scope now, and those voices.

    Of very many voices they are the nearest to each speaker, and those `carried` by speakers already.
    """
    roster = store.candidates(scope.heard, scope.voice_ids) if guard.allows() else NOBODY
    if not len(roster) or not speakers:
        return np.zeros((len(speakers), len(roster)), np.float32), roster
    found, roster = await store.scores(np.stack([speaker.centroid for speaker in speakers]), roster, carried)
    if not guard.allows():  # any more: the lease may have run out while the device was busy
        return np.zeros((len(speakers), 0), np.float32), NOBODY
    return found, roster


def matches(
    speakers: Sequence[SessionSpeaker],
    cosines: FloatArray,
    roster: Roster,
    parameters: NamingParameters,
    *,
    is_live: bool = False,
) -> dict[int, Match]:
    """The decision on each session speaker, by its index. is_live: he may say more."""
    clean_samples = np.array([speaker.clean_samples for speaker in speakers], np.int64)
    verdicts = name_speakers(candidates_of(cosines, roster), clean_samples, parameters, is_live=is_live)
    return {
        speaker.index: _match(speaker, verdict, roster.voices)
        for speaker, verdict in zip(speakers, verdicts, strict=True)
    }


def candidates_of(cosines: FloatArray, roster: Roster) -> Candidates:
    """The voices of a roster as a decision sees them; cosines: (K, V) against them."""
    return Candidates(cosines, roster.net_speech_samples, roster.num_in_scope, roster.persons)


class SessionNaming:
    """The names of one stream's speakers."""

    def __init__(self, store: VoiceStore, guard: NamingGuard, parameters: NamingParameters, scope: Scope) -> None:
        self._store = store
        self._guard = guard
        self._parameters = parameters
        self._scope = scope
        self._live = LiveNaming(parameters)
        self._last: tuple[list[SessionSpeaker], FloatArray, Roster] = ([], np.zeros((0, 0), np.float32), NOBODY)

    def __repr__(self) -> str:
        return f"SessionNaming({self._scope.tenant_id}, {self._live!r})"

    @property
    def num_candidates(self) -> int:
        """How many voices the stream is matched against now."""
        return len(self._store.candidates(self._scope.heard, self._scope.voice_ids)) if self._guard.allows() else 0

    @property
    def has_candidates(self) -> bool:
        """Whether speakers are compared with any voice now."""
        return self._guard.allows() and self._store.has_candidates(self._scope.heard)

    async def step(self, outcomes: Sequence[StepOutcome], speakers: Sequence[SessionSpeaker]) -> list[NamingOutcome]:
        """What to show of steps, with what is known of each speaker after the last of them."""
        carried = set(self._live.voices.values())
        cosines, roster = await score(self._store, self._guard, self._scope, speakers, carried)
        self._last = (list(speakers), cosines, roster)
        voice_ids = list(roster.generations)
        candidates = candidates_of(cosines, roster)
        return [self._live.step(outcome, speakers, voice_ids, candidates) for outcome in outcomes]

    def name(self, voice_id: str | None, probability: float) -> Name | None:
        """What may be said, at this very moment, of a speaker whom a step gave this voice."""
        if voice_id is None or not self._guard.allows():
            return None
        held = self._store.find_for(self._scope.heard, voice_id)
        if held is None or held.generation != self._last[2].generations.get(voice_id):
            return None
        return Name(held.voice_id, held.label, probability)

    def reports(self) -> dict[int, Match]:
        """The last step's decisions by session speaker; none while the guard forbids, or about voices not held now."""
        speakers, cosines, roster = self._last
        if not speakers or not self._guard.allows():
            return {}
        found = matches(speakers, cosines, roster, self._parameters, is_live=True)
        return {index: match for index, match in found.items() if self._is_held(match.best, match.runner_up)}

    def known(self) -> dict[int, str]:
        """The voice of each session speaker who is recognised now."""
        return self._live.voices

    def voices(self) -> dict[int, tuple[str | None, float]]:
        """The voice that each session speaker carries after the last step, and its probability."""
        return {int(k): (voice, probability) for k, voice, probability in self._live.state()["voices"]}

    def number(self, index: int) -> int | None:
        """The number under which a session speaker is shown; None where he never was."""
        return self._live.number(index)

    def numbers(self) -> set[int]:
        """Numbers of which relabels may still be told."""
        return self._live.numbers()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self._live.state()

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state()` gave. Raises InvalidRequest where a node of another version gave it."""
        try:
            self._live.load(state)
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidRequest("the checkpoint is of another version: open a new stream without it") from error

    def _is_held(self, *voices: Voice | None) -> bool:
        return all(voice is None or self._store.find(voice.tenant_id, voice.voice_id) == voice for voice in voices)


def _match(speaker: SessionSpeaker, verdict: Verdict, voices: Sequence[Voice]) -> Match:
    """A verdict with the voices that it speaks of."""
    return Match(
        reason=verdict.reason,
        best=None if verdict.best is None else voices[verdict.best],
        probability=verdict.probability,
        cosine=verdict.cosine,
        runner_up=None if verdict.runner_up is None else voices[verdict.runner_up],
        runner_up_cosine=verdict.runner_up_cosine,
        net_speech_samples=speaker.clean_samples,
        margin=verdict.margin,
        runner_up_probability=verdict.runner_up_probability,
    )

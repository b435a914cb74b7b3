"""Names for the speakers of a recording: by the voices in scope, or out of candidates that came with it.

In: speakers as heard, and what the request says of whom they may be. Out: names, with what they stand on. What always
holds: a name is given out only if the store still holds that voice as it was scored, and while the guard allows it,
asked at the moment of saying it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.analysis import FloatArray
from models.identification import Identification, identify
from models.naming import Candidates, NamingParameters, Reason
from models.online import SessionSpeaker
from node import events
from node.naming import Match, Name, NamingGuard, Scope, matches, score
from node.voice_store import NOBODY, Roster, Voice, VoiceStore

ENROLLED_TOLD_MAX = 100
"""Of more enrolled candidates than this, the likeliest are told of."""


@dataclass(frozen=True, slots=True)
class FileNames:
    """names and matches: by speaker. identities: where they were asked for."""

    names: dict[int, Name | None]
    matches: dict[int, Match | None]
    identities: tuple[events.SpeakerIdentity, ...] = ()


class FileNaming:
    """Names of one node's recordings."""

    def __init__(self, store: VoiceStore, guard: NamingGuard, parameters: NamingParameters) -> None:
        self._store = store
        self._guard = guard
        self._parameters = parameters

    def __repr__(self) -> str:
        return f"FileNaming({self._store!r})"

    async def cosines(self, parts: FloatArray, request: events.FileRequest) -> FloatArray:
        """Of unit vectors (C, D) against whom they may be, now: (C, V). Who is merged with whom may depend on it."""
        heard = [SessionSpeaker(index, part, 0) for index, part in enumerate(parts)]
        enrolled, _ = await self._enrolled(heard, request)
        return enrolled if request.identify is None else np.hstack([_against(parts, _sent(request.identify)), enrolled])

    async def decide(self, speakers: Sequence[SessionSpeaker], request: events.FileRequest) -> FileNames:
        """The names that may be said now. No await may come between this and the writing of the result."""
        cosines, roster = await self._enrolled(speakers, request)
        decided: dict[int, Match | None] = {}
        decided |= matches(speakers, cosines, roster, self._parameters)
        if request.identify is None:
            names = {index: self._name(match) for index, match in decided.items() if match is not None}
            return FileNames({speaker.index: names.get(speaker.index) for speaker in speakers}, decided)
        if not request.identify.enrolled:
            decided = dict.fromkeys((speaker.index for speaker in speakers), None)
        identities = self._identities(speakers, cosines, roster, request.identify)
        return FileNames(
            {one.speaker: None if one.match is None else one.match.name for one in identities}, decided, identities
        )

    async def _enrolled(
        self, speakers: Sequence[SessionSpeaker], request: events.FileRequest
    ) -> tuple[FloatArray, Roster]:
        if request.identify is not None and not request.identify.enrolled:
            return np.zeros((len(speakers), 0), np.float32), NOBODY
        scope = Scope(request.tenant_id or "default", request.voice_ids, request.audiences)
        return await score(self._store, self._guard, scope, speakers)

    def _identities(
        self, speakers: Sequence[SessionSpeaker], enrolled: FloatArray, roster: Roster, asked: events.Identify
    ) -> tuple[events.SpeakerIdentity, ...]:
        if not speakers:
            return ()
        sent = _sent(asked)
        centroids = np.stack([speaker.centroid for speaker in speakers])
        voices = [asked.sent[index].net_speech_samples for index, _ in sent]
        candidates = Candidates(
            np.hstack([_against(centroids, sent), enrolled]),
            np.concatenate([np.array(voices, np.int64), roster.net_speech_samples]).astype(np.int64),
            len(sent) + roster.num_in_scope,
            _persons(len(sent), roster),
        )
        clean_samples = np.array([speaker.clean_samples for speaker in speakers], np.int64)
        found = identify(
            candidates, clean_samples, self._parameters, exclusive=asked.exclusive, threshold=asked.threshold
        )
        return tuple(
            self._identity(speaker.index, one, sent, roster) for speaker, one in zip(speakers, found, strict=True)
        )

    def _identity(
        self, speaker: int, found: Identification, sent: Sequence[tuple[int, FloatArray]], roster: Roster
    ) -> events.SpeakerIdentity:
        likeliest = np.argsort(-found.probabilities[len(sent) :], kind="stable")[:ENROLLED_TOLD_MAX]
        told = [*range(len(sent)), *(len(sent) + int(place) for place in likeliest)]
        if found.match is not None and found.match not in told:
            told.append(found.match)
        made = {place: self._candidate(place, float(found.probabilities[place]), sent, roster) for place in told}
        match = None if found.match is None else made[found.match]
        return events.SpeakerIdentity(speaker, match, tuple(one for one in made.values() if one is not None))

    def _candidate(
        self, place: int, probability: float, sent: Sequence[tuple[int, FloatArray]], roster: Roster
    ) -> events.Candidate | None:
        if place < len(sent):
            return events.Candidate(sent[place][0], None, probability)
        voice = roster.voices[place - len(sent)]
        if not self._may_name(voice):
            return None
        return events.Candidate(None, Name(voice.voice_id, voice.label, probability), probability)

    def _name(self, match: Match) -> Name | None:
        voice = match.best
        if match.reason is not Reason.MATCHED or voice is None or not self._may_name(voice):
            return None
        return Name(voice.voice_id, voice.label, match.probability)

    def _may_name(self, voice: Voice) -> bool:
        return self._guard.allows() and self._store.find(voice.tenant_id, voice.voice_id) == voice


def _sent(asked: events.Identify) -> list[tuple[int, FloatArray]]:
    """Which of the voiceprints can be compared with anything here."""
    return [(index, one.embedding) for index, one in enumerate(asked.sent) if one.embedding is not None]


def _against(vectors: FloatArray, sent: Sequence[tuple[int, FloatArray]]) -> FloatArray:
    """Cosines (P, S) of unit vectors (P, D)."""
    if not sent or not len(vectors):
        return np.zeros((len(vectors), len(sent)), np.float32)
    found: FloatArray = (vectors @ np.stack([embedding for _, embedding in sent]).T).astype(np.float32)
    return found


def _persons(num_sent: int, roster: Roster) -> np.ndarray | None:
    """Whose each candidate is: of those that were sent, each is of somebody else."""
    if roster.persons is None:
        return None
    return np.concatenate([-1 - np.arange(num_sent), roster.persons]).astype(np.int64)

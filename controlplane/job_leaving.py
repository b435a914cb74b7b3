"""What a job gave, as it leaves: with the names that this caller may be told at this moment, and no others.

In: a record without names, and who asks. Out: the result. What always holds: an enrolled person's name is read from the
voice itself, which an erasure makes unreadable; and right before the result is handed on, each name was still allowed
under this control plane's lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from sqlalchemy import and_, select

from controlplane.database.engine import Database
from controlplane.database.schema import data_keys, voices
from controlplane.holdings import LIVE_STATES
from controlplane.job_record import JobRecord, unpack
from controlplane.job_spec import JobSpec
from controlplane.job_view import FrameConfidences, Job, JobOutput, JobSpeaker, JobTurn
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.policy import Principal
from controlplane.relay_guard import RelayGuard
from controlplane.relay_names import MayName, strip_result, voices_in
from controlplane.tenant_seals import RESULTS, TenantSeals
from controlplane.voice_lookup import usable_by
from speakerd.v1 import common_pb2, node_pb2

WITHHELD = "names are withheld: this control plane has no lease at the moment; read the job again"


@dataclass(frozen=True, slots=True)
class Leaving:
    """A job, and its result also as the contract has it."""

    job: Job
    result: node_pb2.FileResult | None = None
    confidence: FrameConfidences | None = None


class JobLeaving:
    """Puts names on results."""

    def __init__(self, database: Database, keys: KeyRing, guard: RelayGuard) -> None:
        self._database = database
        self._keys = keys
        self._guard = guard

    def __repr__(self) -> str:
        return "JobLeaving()"

    async def leave(
        self, principal: Principal, job: Job, spec: JobSpec, seals: TenantSeals, ciphertext: bytes
    ) -> Leaving:
        """A job with what it gave."""
        record = await asyncio.to_thread(lambda: unpack(seals.open(RESULTS, ciphertext, job.job_id)))
        meant = voices_in(record.result)
        if not await self._labels(principal, meant):
            return await asyncio.to_thread(_leaving, job, spec, record, {}, ())
        async with self._guard.relaying() as relaying:
            # Read again: a lease is told of evictions since it began, and of none before.
            labels = await self._labels(principal, meant)
            while True:
                allowed = {voice_id: label for voice_id, label in labels.items() if relaying.may_name(voice_id)}
                denied = any(self._guard.denies(voice_id) for voice_id in labels)
                warnings = (WITHHELD,) if labels and not allowed and not denied else ()
                found = await asyncio.to_thread(_leaving, job, spec, record, allowed, warnings)
                # Last, and without an await before it is handed on: whatever happened meanwhile counts.
                if all(relaying.may_name(voice_id) for voice_id in allowed):
                    return found

    @asynccontextmanager
    async def guarded(self) -> AsyncIterator[MayName]:
        """Within the block, whether a voice may be named at a moment."""
        async with self._guard.relaying() as relaying:
            yield relaying.may_name

    async def _labels(self, principal: Principal, voice_ids: Collection[str]) -> dict[str, str]:
        """What the living of these voices are called, as far as this caller may use them."""
        if not voice_ids:
            return {}
        query = (
            select(voices.c.tenant_id, voices.c.voice_id, voices.c.label_ciphertext, data_keys.c.wrapped)
            .join(
                data_keys,
                and_(data_keys.c.tenant_id == voices.c.tenant_id, data_keys.c.voice_id == voices.c.voice_id),
            )
            .where(
                usable_by(principal),
                voices.c.voice_id.in_(voice_ids),
                voices.c.state.in_(LIVE_STATES),
                voices.c.label_ciphertext.is_not(None),
            )
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()

        def opened() -> dict[str, str]:
            found = {}
            for row in rows:
                key = self._keys.open(VoiceAddress(row.tenant_id, row.voice_id), bytes(row.wrapped))
                found[row.voice_id] = key.decrypt(bytes(row.label_ciphertext), "label").decode()
            return found

        return await asyncio.to_thread(opened)


def _leaving(job: Job, spec: JobSpec, record: JobRecord, labels: Mapping[str, str], warnings: Sequence[str]) -> Leaving:
    result = node_pb2.FileResult()
    result.CopyFrom(record.result)
    result.warnings.extend(warnings)
    _name(result, labels, [sent.label for sent in spec.voiceprints])
    output = JobOutput(
        duration_ms=result.duration_ms,
        turns=tuple(_turn(turn) for turn in result.turns),
        exclusive_turns=tuple(_turn(turn) for turn in result.exclusive_turns),
        speakers=_speakers(result),
        confidence=record.confidence,
        voiceprint=record.voiceprint,
        warnings=tuple(result.warnings),
    )
    return Leaving(replace(job, output=output), result, record.confidence)


def _name(result: node_pb2.FileResult, labels: Mapping[str, str], sent: Sequence[str]) -> None:
    """Put names on a record's turns, speakers and identities, and take out whom they may not tell of."""
    strip_result(result, labels.__contains__)
    matched: dict[str, node_pb2.Candidate] = {}
    for identity in result.identities:
        for candidate in identity.candidates:
            _call(candidate, labels, sent)
        if identity.HasField("match"):
            _call(identity.match, labels, sent)
            matched[identity.speaker] = identity.match
    named: list[common_pb2.Turn | common_pb2.Speaker] = [*result.turns, *result.exclusive_turns, *result.speakers]
    for one in named:
        match = matched.get(one.speaker)
        if match is not None:
            one.label, one.voice_id, one.probability = match.label, match.voice_id, match.probability
        else:
            one.label = labels.get(one.voice_id, one.speaker)


def _call(candidate: node_pb2.Candidate, labels: Mapping[str, str], sent: Sequence[str]) -> None:
    candidate.label = sent[candidate.sent - 1] if candidate.sent else labels.get(candidate.voice_id, "")


def _turn(turn: common_pb2.Turn) -> JobTurn:
    is_named = turn.label != turn.speaker
    return JobTurn(
        start_ms=turn.start_ms,
        end_ms=turn.end_ms,
        speaker=_number(turn.speaker),
        name=turn.label if is_named else None,
        voice_id=turn.voice_id or None,
        confidence=turn.confidence if turn.HasField("confidence") else None,
    )


def _speakers(result: node_pb2.FileResult) -> tuple[JobSpeaker, ...]:
    identities = {identity.speaker: identity for identity in result.identities}
    found = []
    for speaker in result.speakers:
        identity = identities.get(speaker.speaker)
        scores: dict[str, int] | None = None
        if identity is not None:
            scores = {}
            for candidate in identity.candidates:
                scores[candidate.label] = max(candidate.score, scores.get(candidate.label, 0))
        found.append(
            JobSpeaker(
                speaker=_number(speaker.speaker),
                speech_ms=speaker.speech_ms,
                net_speech_ms=speaker.net_speech_ms,
                match=speaker.label if speaker.label != speaker.speaker else None,
                voice_id=speaker.voice_id or None,
                scores=scores,
                report=speaker.match if speaker.HasField("match") else None,
                confidence=speaker.confidence if speaker.HasField("confidence") else None,
            )
        )
    return tuple(found)


def _number(speaker: str) -> int:
    """Of "spk_3", 3."""
    return int(speaker.rpartition("_")[2])

"""Voices that wait for a voiceprint, and the worker that makes it when a node can.

Two cases, one way: a voice that was enrolled while no node was online, and a voice that has no voiceprint of the model
of a node that is. The kept recordings are decoded and listened to again; what is unfit ends as failed, its recordings
deleted. A recording that the store does not have ends its voice as failed too, with what is left kept: the store may
have it again, and the voice is then taken up by `again`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, and_, delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit, usage
from controlplane.blobs import Blobs
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import data_keys, samples, voiceprints, voices
from controlplane.failures import RecordingMissing, failure_code
from controlplane.fault_points import reach
from controlplane.fleet import Fleet
from controlplane.holdings import LIVE_STATES
from controlplane.intake import Clip, Intake
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.nodes import Analysis
from controlplane.pulse import Pulse, wait_for_any
from controlplane.voice_lookup import NO_SUCH_VOICE
from controlplane.voice_rows import place_voiceprint
from controlplane.voices import Voices
from runtime.clock import Clock
from runtime.errors import Cause, NotFound, SpeakerdError, Unavailable
from runtime.logs import get_logger

PAGE_VOICES = 100
IDLE_S = 30.0
CONSENT = "consent"
RETRY_S = 5.0
LOOK_GAP_S = 0.25
UNFIT = (Cause.BAD_AUDIO, Cause.TOO_LARGE, Cause.UNSUPPORTED_MEDIA, Cause.INVALID)


@dataclass(frozen=True, slots=True)
class _Waiting:
    voice: VoiceAddress
    generation: int
    revision: int


class Completion:
    """The worker."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        blobs: Blobs,
        fleet: Fleet,
        intake: Intake,
        library: Voices,
        clock: Clock,
        waiting_voices: Pulse,
    ) -> None:
        self._database = database
        self._keys = keys
        self._blobs = blobs
        self._fleet = fleet
        self._intake = intake
        self._library = library
        self._clock = clock
        self._waiting_voices = waiting_voices
        # Good for one model's ears and not for another's: not tried again until this process starts anew.
        self._unfit: set[tuple[_Waiting, str]] = set()
        # By model: how many of those that wait longest were passed over, so that others have their turn.
        self._passed: dict[str, int] = {}

    def __repr__(self) -> str:
        return "Completion()"

    async def run(self) -> None:
        """Work for ever: when models come or go, when a voice begins to wait, and now and then."""
        while True:
            news = self._waiting_voices.next()
            models: frozenset[str] = frozenset()
            done = False
            try:
                models = await self._models()
                done = all([await self._complete_for(model) for model in sorted(models)])
                await self._until_worthwhile(news, models, IDLE_S if done else RETRY_S)
            except Unavailable as error:
                get_logger().warning("voices.not_completed", reason=str(error))
                await asyncio.sleep(RETRY_S)

    async def again(self, voice: VoiceAddress) -> None:
        """Listen to a voice that waits, now, with a node of each model that there is; nothing where none has to."""
        for model in sorted(await self._models()):
            async with self._database.read() as connection:
                found = await _waiting(connection, model, of=voice)
            for item in found:
                self._unfit.discard((item, model))
                await self._complete(item, model)
        self._waiting_voices.beat()

    async def _until_worthwhile(self, news: asyncio.Event, models: frozenset[str], seconds: float) -> None:
        # Renewals wake the fleet many times a second; only another set of models is a reason to look at all voices.
        until_s = self._clock.monotonic_s() + seconds
        while not news.is_set() and (left_s := until_s - self._clock.monotonic_s()) > 0:
            woken = self._fleet.changed.next()
            if await self._models() != models:
                return
            await wait_for_any((woken, news), left_s)
            # A fleet that is enrolled into beats at every acknowledgement, and models come and go rarely.
            await asyncio.sleep(LOOK_GAP_S)

    async def _models(self) -> frozenset[str]:
        return frozenset(lease.model for lease in await self._fleet.serving())

    async def _complete_for(self, model: str) -> bool:
        """Make voiceprints of a model; whether nothing is left to do."""
        passed = self._passed.pop(model, 0)
        async with self._database.read() as connection:
            found = await _waiting(connection, model, passed)
        is_last = done = len(found) < PAGE_VOICES
        for item in found:
            is_complete = False
            if (item, model) in self._unfit:
                passed += 1
                continue
            try:
                is_complete = await self._complete(item, model)
            except SpeakerdError as error:
                get_logger().warning("voice.incomplete", voice_id=item.voice.voice_id, cause=error.cause.value)
            done = done and is_complete
            passed += not is_complete or (item, model) in self._unfit
        if not is_last:
            # After the last page all are looked at again.
            self._passed[model] = passed
        return done

    async def _complete(self, item: _Waiting, model: str) -> bool:
        """Whether there is nothing left to do for this voice and model."""
        try:
            analysis = await self._intake.analyze(await self._intake.listen(await self._clips(item)), model)
            if analysis is None:
                return False
            self._intake.judge(analysis)
            reach("complete.analyzed")
        except SpeakerdError as error:
            if error.cause not in UNFIT:
                raise
            if item.revision > 0:
                self._unfit.add((item, model))
            else:
                await self._fail(item, error)
            return True
        if await self._place(item, analysis):
            await self._library.spread(item.voice)
        return True

    async def _clips(self, item: _Waiting) -> list[Clip]:
        async with self._database.read() as connection:
            query = select(data_keys.c.wrapped).where(*_is(data_keys, item))
            wrapped = (await connection.execute(query)).scalar_one_or_none()
            if wrapped is None:
                raise NotFound(NO_SUCH_VOICE)  # erased since it was found waiting
            rows = (
                await connection.execute(
                    select(samples).where(*_is(samples, item)).order_by(samples.c.generation, samples.c.clip)
                )
            ).all()
        key = self._keys.open(item.voice, bytes(wrapped))
        clips: list[Clip] = []
        for row in rows:
            ciphertext = await self._blobs.get(row.blob_key)
            if ciphertext is None:
                raise RecordingMissing("a kept recording is missing from the store")
            # A recording that was added to keeps the generation in which it came.
            data = key.decrypt(ciphertext, "sample", int(row.generation), row.clip)
            is_consent = row.purpose == CONSENT
            if is_consent:
                # One consent may come with each enrolment; the last one is listened to.
                clips = [clip for clip in clips if not clip.is_consent]
            clips.append(Clip(data, row.encoding, row.sample_rate_hz, row.channels, is_consent))
        return clips

    async def _place(self, item: _Waiting, analysis: Analysis) -> bool:
        """Keep the voiceprint, unless the voice has changed since it was read."""
        async with self._database.write() as connection:
            await locked_head(connection)
            if not await _is_as_it_was(connection, item):
                return False
            wrapped = (await connection.execute(select(data_keys.c.wrapped).where(*_is(data_keys, item)))).scalar_one()
            await place_voiceprint(
                connection,
                item.voice,
                item.generation,
                analysis,
                self._keys.open(item.voice, bytes(wrapped)),
                now_lease_s=await self._database.lease_now_s(connection),
                now_wall_s=self._clock.wall_s(),
            )
            subject = self._keys.subject(item.voice.tenant_id, item.voice.voice_id)
            use = usage.Use(item.voice.tenant_id, subject, usage.VOICEPRINTS, 1)
            await usage.record(connection, use, self._clock.wall_s())
            reach("complete.placed")
        reach("complete.committed")
        return True

    async def _fail(self, item: _Waiting, error: SpeakerdError) -> None:
        blob_keys: list[str] = []
        async with self._database.write() as connection:
            await locked_head(connection)
            if not await _is_as_it_was(connection, item):
                return
            if not isinstance(error, RecordingMissing):
                found = await connection.execute(select(samples.c.blob_key).where(*_is(samples, item)))
                blob_keys = [row.blob_key for row in found]
                await connection.execute(delete(samples).where(*_is(samples, item)))
            await connection.execute(
                update(voices)
                .where(*_is(voices, item))
                .values(
                    state="failed",
                    state_reason=str(error),
                    state_code=failure_code(error),
                    updated_at_s=self._clock.wall_s(),
                )
            )
            facts: dict[str, str | int] = {
                "subject": self._keys.subject(item.voice.tenant_id, item.voice.voice_id),
                "tenant_id": item.voice.tenant_id,
                "generation": item.generation,
            }
            await audit.append(connection, "voice.failed", at_s=self._clock.wall_s(), facts=facts)
        for blob_key in blob_keys:
            await self._blobs.delete(blob_key)


def _is(table: Table, item: _Waiting) -> tuple[ColumnElement[bool], ...]:
    return _at(table, item.voice)


def _at(table: Table, voice: VoiceAddress) -> tuple[ColumnElement[bool], ...]:
    return (table.c.tenant_id == voice.tenant_id, table.c.voice_id == voice.voice_id)


async def _waiting(
    connection: AsyncConnection, model: str, passed: int = 0, of: VoiceAddress | None = None
) -> list[_Waiting]:
    made = exists().where(
        voiceprints.c.tenant_id == voices.c.tenant_id,
        voiceprints.c.voice_id == voices.c.voice_id,
        voiceprints.c.generation == voices.c.generation,
        voiceprints.c.model == model,
    )
    kept = exists().where(
        and_(
            samples.c.tenant_id == voices.c.tenant_id,
            samples.c.voice_id == voices.c.voice_id,
        )
    )
    query = (
        select(voices.c.tenant_id, voices.c.voice_id, voices.c.generation, voices.c.revision)
        .where(voices.c.state.in_(LIVE_STATES), ~made, kept, *(() if of is None else _at(voices, of)))
        .order_by(voices.c.created_at_s, voices.c.voice_id)
        .offset(passed)
        .limit(PAGE_VOICES)
    )
    return [
        _Waiting(VoiceAddress(row.tenant_id, row.voice_id), int(row.generation), int(row.revision))
        for row in await connection.execute(query)
    ]


async def _is_as_it_was(connection: AsyncConnection, item: _Waiting) -> bool:
    row = (
        await connection.execute(
            select(voices.c.generation, voices.c.revision, voices.c.state).where(*_is(voices, item)).with_for_update()
        )
    ).one_or_none()
    if row is None or row.state not in LIVE_STATES:
        return False
    # The revision too: another control plane may have made a voiceprint of this generation meanwhile.
    return (int(row.generation), int(row.revision)) == (item.generation, item.revision)

"""The chores of the people side: licences that ran out, tombstones, voices that waited too long, what nothing names.

Each function does its work once and says how much it did. What always holds: a voice whose licence ran out is erased as
any other is, with the trigger `license_expired`; what is deleted here was erased, proven and past its time.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, delete, exists, func, select, update

from controlplane import audit
from controlplane.agreements import Event, LicenceKind, Signed, note
from controlplane.blobs import Blobs
from controlplane.chores import Chore
from controlplane.config import ControlPlaneSettings
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import (
    data_keys,
    erasures,
    idempotency,
    kept_answers,
    licences,
    samples,
    usage_records,
    voiceprint_members,
    voiceprints,
    voices,
)
from controlplane.enrolment_store import IDEMPOTENCY_S
from controlplane.erasure import Erasures
from controlplane.erasure_rows import GONE, Asking
from controlplane.failures import NEVER_HEARD
from controlplane.identity import Identity
from controlplane.kept_answers import KEPT_S
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.orphans import sweep_orphans
from runtime.clock import Clock

DAY_S = 24 * 3600.0
PAGE_VOICES = 200
WORKER = "worker"
NOTE_USE_S = 60.0
SWEEP_S = 3600.0
"""How often all recordings are listed."""
TOO_LONG = "no node has listened to the recording in the time that is set for it; enrol anew"


class Upkeep:
    """The chores, each done once when it is called."""

    def __init__(
        self,
        *,
        database: Database,
        keys: KeyRing,
        blobs: Blobs,
        erasures: Erasures,
        settings: ControlPlaneSettings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._keys = keys
        self._blobs = blobs
        self._erasures = erasures
        self._settings = settings
        self._clock = clock

    def __repr__(self) -> str:
        return "Upkeep()"

    def chores(self, identity: Identity) -> Sequence[Chore]:
        """All of them."""

        async def note_use() -> int:
            await identity.note_use()
            return 0

        interval_s = self._settings.chore_s
        return (
            Chore("licences", interval_s, self.erase_unlicensed),
            Chore("tombstones", interval_s, self.purge_tombstones),
            Chore("pending", interval_s, self.fail_overdue),
            Chore("idempotency", interval_s, self.forget_requests),
            Chore("orphans", max(interval_s, SWEEP_S), self.sweep_recordings),
            Chore("keys.used", NOTE_USE_S, note_use, by_all=True),
        )

    async def erase_unlicensed(self) -> int:
        """Erase the voices whose licence has run out or is used up."""
        now_s = self._clock.wall_s()
        async with self._database.read() as connection:
            latest = (
                select(licences.c.tenant_id, licences.c.voice_id, func.max(licences.c.generation).label("generation"))
                .group_by(licences.c.tenant_id, licences.c.voice_id)
                .subquery()
            )
            query = (
                select(licences)
                .join(
                    latest,
                    and_(
                        latest.c.tenant_id == licences.c.tenant_id,
                        latest.c.voice_id == licences.c.voice_id,
                        latest.c.generation == licences.c.generation,
                    ),
                )
                .join(
                    voices, and_(voices.c.tenant_id == licences.c.tenant_id, voices.c.voice_id == licences.c.voice_id)
                )
                .where(voices.c.state.not_in(GONE), licences.c.kind != LicenceKind.PERPETUAL.value)
            )
            over: list[tuple[VoiceAddress, int, Event]] = []
            for row in (await connection.execute(query)).all():
                voice = VoiceAddress(row.tenant_id, row.voice_id)
                if row.expires_at_s is not None and row.expires_at_s <= now_s:
                    over.append((voice, int(row.generation), Event.LICENCE_EXPIRED))
                elif row.usage_max is not None:
                    used = await connection.execute(
                        select(func.coalesce(func.sum(usage_records.c.quantity), 0)).where(
                            usage_records.c.subject == self._keys.subject(voice.tenant_id, voice.voice_id),
                            usage_records.c.unit == row.unit,
                            # What its owner counted: no other tenant may use up, and so erase, a global voice.
                            usage_records.c.tenant_id == voice.tenant_id,
                            usage_records.c.at_s >= row.created_at_s,
                        )
                    )
                    if int(used.scalar_one()) >= int(row.usage_max):
                        over.append((voice, int(row.generation), Event.LICENCE_USED_UP))
        for voice, generation, event in over:
            async with self._database.write() as connection:
                await note(connection, event, voice, generation, signed=Signed(WORKER, now_s))
            await self._erasures.erase_voice(voice, Asking(trigger="license_expired", source=WORKER))
        return len(over)

    async def purge_tombstones(self) -> int:
        """Delete what is left of voices that were erased long ago. The audit, consents and usage records stay."""
        before_s = self._clock.wall_s() - self._settings.tombstone_days * DAY_S
        open_erasure = exists().where(
            erasures.c.tenant_id == voices.c.tenant_id,
            erasures.c.voice_id == voices.c.voice_id,
            erasures.c.is_open.is_(True),
        )
        async with self._database.write() as connection:
            await locked_head(connection)
            query = (
                select(voices.c.tenant_id, voices.c.voice_id)
                .where(voices.c.state == "erased", voices.c.updated_at_s <= before_s, ~open_erasure)
                .limit(PAGE_VOICES)
            )
            rows = (await connection.execute(query)).all()
            for row in rows:
                for table in (data_keys, samples, voiceprint_members, voiceprints, voices):
                    await connection.execute(
                        delete(table).where(table.c.tenant_id == row.tenant_id, table.c.voice_id == row.voice_id)
                    )
        return len(rows)

    async def fail_overdue(self) -> int:
        """Fail voices that no node has listened to for too long, and delete their recordings."""
        now_s = self._clock.wall_s()
        async with self._database.write() as connection:
            await locked_head(connection)
            query = (
                select(voices.c.tenant_id, voices.c.voice_id, voices.c.generation)
                .where(
                    voices.c.state == "pending",
                    voices.c.revision == 0,
                    voices.c.updated_at_s <= now_s - self._settings.pending_days * DAY_S,
                )
                .limit(PAGE_VOICES)
            )
            rows = (await connection.execute(query)).all()
            blob_keys: list[str] = []
            for row in rows:
                of_voice = (samples.c.tenant_id == row.tenant_id, samples.c.voice_id == row.voice_id)
                kept = await connection.execute(select(samples.c.blob_key).where(*of_voice))
                blob_keys += [sample.blob_key for sample in kept]
                await connection.execute(delete(samples).where(*of_voice))
                await connection.execute(
                    update(voices)
                    .where(voices.c.tenant_id == row.tenant_id, voices.c.voice_id == row.voice_id)
                    .values(state="failed", state_reason=TOO_LONG, state_code=NEVER_HEARD, updated_at_s=now_s)
                )
                facts: dict[str, str | int] = {
                    "subject": self._keys.subject(row.tenant_id, row.voice_id),
                    "tenant_id": row.tenant_id,
                    "generation": int(row.generation),
                }
                await audit.append(connection, "voice.failed", at_s=now_s, facts=facts)
        for blob_key in blob_keys:
            await self._blobs.delete(blob_key)
        return len(rows)

    async def sweep_recordings(self) -> int:
        """Delete recordings that no voice has any more: their deletion was held up, and their rows are gone."""
        return await sweep_orphans(self._database, self._blobs, self._clock)

    async def forget_requests(self) -> int:
        """Forget idempotency keys, and answers kept for them, that are past their day."""
        now_s = self._clock.wall_s()
        async with self._database.write() as connection:
            gone = await connection.execute(
                delete(idempotency).where(idempotency.c.created_at_s < now_s - IDEMPOTENCY_S)
            )
            answers = await connection.execute(delete(kept_answers).where(kept_answers.c.began_at_s < now_s - KEPT_S))
        return gone.rowcount + answers.rowcount

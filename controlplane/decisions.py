"""Decisions by which something may be used no more, in the erasure journal before they are answered.

In: withdrawals, opt-outs, ends of API keys, closed tenants and users, each committed. Out: the journal has them, so
that a database restored from an earlier backup learns them again (`controlplane.decision_replay`). What always holds:
what `write` returned from is durable outside the database; a decision that the journal could not take is in effect all
the same, is refused its answer, and is written with the next one, at the next turn of the chore, or at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.agreements import Event
from controlplane.database.schema import agreement_events, api_keys, tenants, users
from controlplane.erasure_journal import Journal
from controlplane.journal_records import Closed, Decision, KeyEnded, OptedOut, Withdrawn
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.metrics import Metrics
from runtime.errors import SpeakerdError, Unavailable
from runtime.logs import get_logger

BOUND_S = 20.0
"""How long a journal may take: one that hangs is as good as away."""


class Decisions:
    """Writes decisions into the journal."""

    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self._journal = journal
        self._metrics = metrics
        self._writing = asyncio.Lock()
        # Committed, and not in the journal yet; a dict keeps their order and each of them once.
        self._unwritten: dict[Decision, None] = {}

    def __repr__(self) -> str:
        return f"Decisions({len(self._unwritten)} unwritten)"

    def note(self, decided: Sequence[Decision]) -> None:
        """Committed: they are written soon, whether or not whoever decided them waits until then."""
        self._unwritten.update(dict.fromkeys(decided))

    async def write(self, decided: Sequence[Decision]) -> None:
        """In the journal when it returns. Raises Unavailable: they are in effect, and to be asked for again."""
        self.note(decided)
        try:
            await self.catch_up()
        except SpeakerdError as error:
            self._metrics.erasure_journal_failures.inc()
            raise Unavailable(
                f"{error}; this is in effect, and answered when it is in the journal: ask again", retry_after_s=1.0
            ) from None

    async def write_soon(self, decided: Sequence[Decision]) -> None:
        """In the journal now if it can be, else as soon as it can: for what may not be asked for a second time."""
        self.note(decided)
        try:
            await self.catch_up()
        except SpeakerdError as error:
            self._metrics.erasure_journal_failures.inc()
            get_logger().warning("journal.delayed", reason=str(error))

    async def catch_up(self) -> int:
        """Write what could not be written before; how many. Raises Unavailable."""
        try:
            async with asyncio.timeout(BOUND_S), self._writing:
                # Whoever comes second finds its own written with those of the first.
                records = list(self._unwritten)
                if records:
                    await self._journal.append(records)
                for record in records:
                    del self._unwritten[record]
        except TimeoutError:
            # It may be written yet, and is written again then: replaying takes the second for the first.
            raise Unavailable(f"the erasure journal did not answer in {BOUND_S:g} s", retry_after_s=1.0) from None
        return len(records)


async def known_decisions(connection: AsyncConnection, keys: KeyRing) -> list[Decision]:
    """Every decision that this database knows."""
    found: list[Decision] = []
    kinds = (Event.CONSENT_WITHDRAWN.value, Event.OPTED_OUT.value)
    query = select(agreement_events).where(agreement_events.c.kind.in_(kinds)).order_by(agreement_events.c.sequence)
    for row in await connection.execute(query):
        key_id = row.key_id or ""
        if row.kind == Event.OPTED_OUT.value:
            found.append(OptedOut(row.tenant_id, bytes(row.subject_index).hex(), row.at_s, key_id))
        else:
            found.append(Withdrawn(row.tenant_id, keys.subject(row.tenant_id, row.voice_id), row.at_s, key_id))
    query = select(api_keys).where(or_(api_keys.c.revoked_at_s.is_not(None), api_keys.c.replaced_by.is_not(None)))
    for row in await connection.execute(query.order_by(api_keys.c.key_id)):
        ends_at_s = row.expires_at_s if row.revoked_at_s is None else row.revoked_at_s
        found.append(KeyEnded(row.tenant_id, row.key_id, ends_at_s, row.revoked_at_s is not None))
    for row in await connection.execute(select(tenants).where(tenants.c.closed_at_s.is_not(None))):
        found.append(Closed(row.tenant_id, "", row.closed_at_s))
    for row in await connection.execute(select(users).where(users.c.closed_at_s.is_not(None))):
        found.append(Closed(row.tenant_id, row.user_id, row.closed_at_s))
    return found


async def withdrawn_of(connection: AsyncConnection, keys: KeyRing, voice: VoiceAddress) -> list[Decision]:
    """The last withdrawal of a voice, if there was one."""
    query = (
        select(agreement_events)
        .where(
            agreement_events.c.tenant_id == voice.tenant_id,
            agreement_events.c.voice_id == voice.voice_id,
            agreement_events.c.kind == Event.CONSENT_WITHDRAWN.value,
        )
        .order_by(agreement_events.c.sequence.desc())
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return []
    return [Withdrawn(voice.tenant_id, keys.subject(voice.tenant_id, voice.voice_id), row.at_s, row.key_id or "")]

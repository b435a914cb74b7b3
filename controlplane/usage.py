"""Usage records: what was used, kept for billing and for licences, beyond the life of what it records.

A voice is named by its keyed hash alone, so that a record tells nothing of a person once the voice is erased.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.schema import usage_records
from controlplane.keys import KeyRing
from controlplane.policy import GLOBAL_TENANT, Principal, Right
from controlplane.voice_lookup import find_voice
from runtime.clock import Clock
from runtime.errors import InvalidRequest

VOICEPRINTS = "voiceprints"
COUNTED = ("characters", "seconds", "matches")
"""What a licence may be bound to."""
PAGE_MAX = 200
PAGE_DEFAULT = 50
QUANTITY_MAX = 1 << 40
"""Of one record. Millions of them add up within 64 bits: a sum that overflows would end the look at all licences."""


@dataclass(frozen=True, slots=True)
class Use:
    """What was used, by which tenant. subject: as the audit names the voice."""

    tenant_id: str
    subject: str
    unit: str
    quantity: int


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One use. at_s: Unix time."""

    record_id: str
    subject: str
    unit: str
    quantity: int
    at_s: float


class Usage:
    """Counts, and lists what was counted."""

    def __init__(self, database: Database, keys: KeyRing, clock: Clock) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    def __repr__(self) -> str:
        return "Usage()"

    async def record(self, principal: Principal, voice_id: str, unit: str, quantity: int) -> None:
        """Count a use of a voice that the caller may use. Raises NotFound, Denied, InvalidRequest."""
        if unit not in COUNTED:
            raise InvalidRequest(f"unit: one of {', '.join(COUNTED)}")
        if not 0 < quantity <= QUANTITY_MAX:
            raise InvalidRequest(f"quantity: more than 0, at most {QUANTITY_MAX} in one record")
        async with self._database.write() as connection:
            voice = await find_voice(connection, principal, voice_id, Right.USE)
            subject = self._keys.subject(voice.tenant_id, voice.voice_id)
            # Towards the licence of a global voice counts what the platform says, and nobody else.
            owner = voice.tenant_id if principal.is_super else principal.tenant_id
            await record(connection, Use(owner, subject, unit, quantity), self._clock.wall_s())

    async def list(self, principal: Principal, *, page_size: int, page_token: str) -> tuple[list[UsageRecord], str]:
        """A page of the tenant's records, newest first, and the token of the next page ("": none)."""
        if not 0 <= page_size <= PAGE_MAX:
            raise InvalidRequest(f"page_size: 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
        wanted = page_size or PAGE_DEFAULT
        tenants = (principal.tenant_id, GLOBAL_TENANT) if principal.is_super else (principal.tenant_id,)
        query = select(usage_records).where(usage_records.c.tenant_id.in_(tenants))
        if page_token:
            query = query.where(tuple_(usage_records.c.at_s, usage_records.c.record_id) < tuple_(*_place(page_token)))
        query = query.order_by(usage_records.c.at_s.desc(), usage_records.c.record_id.desc()).limit(wanted + 1)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        found = [
            UsageRecord(row.record_id, row.subject, row.unit, int(row.quantity), row.at_s) for row in rows[:wanted]
        ]
        more = len(rows) > wanted
        return found, f"{found[-1].at_s!r}:{found[-1].record_id}" if more else ""


async def record(connection: AsyncConnection, use: Use, at_s: float) -> None:
    """Count within the caller's transaction."""
    await connection.execute(
        insert(usage_records).values(
            record_id=f"u_{secrets.token_hex(12)}",
            tenant_id=use.tenant_id,
            subject=use.subject,
            unit=use.unit,
            quantity=use.quantity,
            at_s=at_s,
        )
    )


def _place(page_token: str) -> tuple[float, str]:
    at_s, _, record_id = page_token.partition(":")
    try:
        return float(at_s), record_id
    except ValueError:
        raise InvalidRequest("page_token: send it as the page before gave it") from None

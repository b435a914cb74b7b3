"""What was decided after a backup, told again to the database that was restored from it.

In: decisions of the erasure journal, and the caller's transaction. Out: those that the database had forgotten, in
effect again, each with a row of the audit. What always holds: nothing that was ended becomes usable, and what is not in
this database any more, or not yet, is left alone: it comes with no restore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Update, and_, delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit
from controlplane.agreements import Event, Signed, note
from controlplane.database.schema import agreement_events, api_keys, tenants, users, wrapped_secrets
from controlplane.decisions import known_decisions
from controlplane.erasure_rows import GONE, JOURNAL
from controlplane.journal_records import Closed, Decision, KeyEnded, OptedOut, Withdrawn
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.tenant_keys import labels_key
from controlplane.voice_generation import FREEZES, FROZEN, At, advance, held


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A voice of this database. created_at_s: what was decided before that was decided of another of its id."""

    voice: VoiceAddress
    created_at_s: float


Subjects = Mapping[str, Enrolled]
"""Voices of this database, by the keyed hash that the journal names them by."""


async def forgotten(
    connection: AsyncConnection, keys: KeyRing, decided: Sequence[Decision], voices: Subjects
) -> list[Decision]:
    """Those of which this database knows nothing, though it has what they are about."""
    # Nearly all are known, and there may be very many: they are not looked for one after the other.
    known = set(await known_decisions(connection, keys)) if decided else set()
    unknown = [one for one in dict.fromkeys(decided) if one not in known]
    return [one for one in unknown if await _is_forgotten(connection, one, voices)]


async def decide_again(connection: AsyncConnection, keys: KeyRing, one: Decision, voices: Subjects, at: At) -> None:
    """Put one of them in effect."""
    said: dict[str, object] = {"tenant_id": one.tenant_id, "source": JOURNAL}
    if isinstance(one, Withdrawn):
        await _withdraw(connection, keys, voices[one.subject].voice, one, at)
        return
    if isinstance(one, OptedOut):
        signed = Signed(one.key_id, one.at_s)
        nobody = VoiceAddress(one.tenant_id, "")
        await note(connection, Event.OPTED_OUT, nobody, 0, signed=signed, subject_index=bytes.fromhex(one.person))
        action, said["decided_at_s"] = "person.opted_out", one.at_s
    elif isinstance(one, KeyEnded):
        column = api_keys.c.revoked_at_s if one.is_revoked else api_keys.c.expires_at_s
        where = api_keys.c.key_id == one.ended_key_id
        await connection.execute(update(api_keys).where(where).values({column: one.ends_at_s}))
        action = "key.revoked" if one.is_revoked else "key.ends"
        said |= {"of_key_id": one.ended_key_id, "decided_at_s": one.ends_at_s}
    else:
        await connection.execute(_closing(one))
        if not one.user_id:
            await connection.execute(delete(wrapped_secrets).where(wrapped_secrets.c.name == labels_key(one.tenant_id)))
        action = "user.closed" if one.user_id else "tenant.closed"
        said |= {"decided_at_s": one.at_s, **({"user_id": one.user_id} if one.user_id else {})}
    await audit.append(connection, action, at_s=at.now_s, facts=said)


async def _is_forgotten(connection: AsyncConnection, one: Decision, voices: Subjects) -> bool:
    events = agreement_events.c
    if isinstance(one, Withdrawn):
        found = voices.get(one.subject)
        if found is None or found.created_at_s > one.at_s:
            return False
        voice = found.voice
        known: Any = and_(
            events.kind == Event.CONSENT_WITHDRAWN.value,
            events.tenant_id == voice.tenant_id,
            events.voice_id == voice.voice_id,
            events.at_s == one.at_s,
        )
        return not (await connection.execute(select(exists().where(known)))).scalar_one()
    if isinstance(one, OptedOut):
        known = and_(
            events.kind == Event.OPTED_OUT.value,
            events.tenant_id == one.tenant_id,
            events.subject_index == bytes.fromhex(one.person),
            events.at_s == one.at_s,
        )
        return not (await connection.execute(select(exists().where(known)))).scalar_one()
    if isinstance(one, KeyEnded):
        live: Any = api_keys.c.revoked_at_s.is_(None)
        if not one.is_revoked:
            live &= or_(api_keys.c.expires_at_s.is_(None), api_keys.c.expires_at_s > one.ends_at_s)
        there: Any = and_(api_keys.c.key_id == one.ended_key_id, live)
    elif one.user_id:
        there = and_(
            users.c.tenant_id == one.tenant_id,
            users.c.user_id == one.user_id,
            users.c.closed_at_s.is_(None),
            users.c.created_at_s <= one.at_s,
        )
    else:
        there = and_(
            tenants.c.tenant_id == one.tenant_id, tenants.c.closed_at_s.is_(None), tenants.c.created_at_s <= one.at_s
        )
    return bool((await connection.execute(select(exists().where(there)))).scalar_one())


async def _withdraw(connection: AsyncConnection, keys: KeyRing, voice: VoiceAddress, one: Withdrawn, at: At) -> None:
    now = await held(connection, keys, voice)
    # Erased since, by a record of its own, or without a key that opens it: there is nothing to freeze.
    is_live = now is not None and now.row.state not in (*GONE, FROZEN, "failed")
    generation = 0 if now is None else now.generation
    await note(connection, Event.CONSENT_WITHDRAWN, voice, generation, signed=Signed(one.key_id, one.at_s))
    if now is not None and is_live:
        facts = {"source": JOURNAL, "decided_at_s": one.at_s}
        await advance(connection, keys, now, "consent.withdrawn", FREEZES, at=at, key_id=one.key_id, facts=facts)


def _closing(one: Closed) -> Update:
    if not one.user_id:
        return update(tenants).where(tenants.c.tenant_id == one.tenant_id).values(closed_at_s=one.at_s)
    where = and_(users.c.tenant_id == one.tenant_id, users.c.user_id == one.user_id)
    return update(users).where(where).values(closed_at_s=one.at_s)

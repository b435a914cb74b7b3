"""Database and erasure journal brought together before any port is open.

In: a database, which may have been restored from a backup, and the journal, which never is. Out: a database that knows
every erasure and decision that the journal knows, and a journal that knows every one that the database knows. What
always holds: a voice whose erasure was answered is erased again when a backup brings it back (key, tombstone, eviction,
audit), and what was ended is ended again, before anybody can ask for it; a database that went back in time gets another
epoch, so that nodes forget what they hold of the time that was lost; and a journal that is missing, damaged or another
database's stops the start.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit, erasure_record
from controlplane.audit_checkpoints import Checkpoint
from controlplane.database import schema
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import erasures, fleet_head, node_leases, voices
from controlplane.decision_replay import Enrolled, decide_again, forgotten
from controlplane.decisions import known_decisions
from controlplane.derived_keys import journal_key
from controlplane.erasure_journal import Erased, FileJournal, Journal, Mark, Proven, Record, open_journal, set_aside
from controlplane.erasure_rows import GONE, JOURNAL, Asking
from controlplane.journal_records import Decision, Withdrawn
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.outside import is_url
from controlplane.space_tombstones import ensure_voice, voiceless_identities
from controlplane.voice_generation import At
from runtime.clock import Clock
from runtime.errors import InvalidRequest
from runtime.logs import get_logger

VOICELESS = "voiceless"
"""State of an identity in a space that was no voice yet."""
INCARNATIONS_APART = 1 << 20
"""An epoch begins this far on from all that is known to be given, so that no incarnation of a lost time comes again."""
BEFORE_RESTORE = "before-restore"
"""Node id of the lease that stands for whoever held one in the time that was lost."""
RESTORED = "restored "
"""What `fleet_head.run` begins with in a database that was restored from a backup, whose id follows."""
MISSING = (
    "the erasure journal of this database is missing at {where}: put it back (it is never in a backup), or name it as "
    "erasure_journal; without it, voices that were erased after a backup would come back. To go on without it: "
    "--accept-journal-loss, which is written into the audit"
)
ANOTHERS = (
    "the erasure journal at {where} belongs to another database: name the right one as erasure_journal (control planes "
    "on one database share one journal). To go on with this one: --accept-journal-loss, which is written into the audit"
)


LastSigned = Callable[[str], Awaitable[Checkpoint | None]]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was found. again, decisions: erasures and other decisions that the database had forgotten.

    is_new_epoch: it went back in time.
    """

    again: int
    decisions: int
    is_new_epoch: bool


async def open_and_replay(
    database: Database,
    keys: KeyRing,
    where: str,
    clock: Clock,
    *,
    accept_loss: bool,
    is_restored: bool = False,
    last_signed: LastSigned | None = None,
) -> tuple[Journal, Replayed]:
    """The journal, opened and brought together with the database.

    is_restored: the operator says that the database was restored. last_signed: the last checkpoint of an epoch.
    Raises InvalidRequest when it is missing, damaged or another database's and that is not accepted; Unavailable.
    """
    async with database.read() as connection:
        belongs = str((await connection.execute(select(fleet_head.c.journal_id))).scalar_one())
    journal, records, lost = await _opened(where, journal_key(keys), belongs, accept_loss=accept_loss)
    run = secrets.token_hex(8)
    async with database.read() as connection:
        epoch = str((await connection.execute(select(fleet_head.c.epoch))).scalar_one())
    signed = await last_signed(epoch) if last_signed is not None else None
    async with database.write() as connection:
        await locked_head(connection)
        if str((await connection.execute(select(fleet_head.c.journal_id))).scalar_one()) not in (
            belongs,
            journal.journal_id,
        ):
            # Two that start on a fresh database, each with a journal of its own: the second is told.
            raise InvalidRequest(ANOTHERS.format(where=where))
        now_s = clock.wall_s()
        if lost:
            facts = {"journal_id": journal.journal_id, "before": belongs, "why": lost}
            await audit.append(connection, "journal.loss_accepted", at_s=now_s, facts=facts)
        replay = _Replay(connection, keys, records, now_s, await database.lease_now_s(connection))
        replayed = await replay.run(signed, is_restored=is_restored)
        await connection.execute(update(fleet_head).values(journal_id=journal.journal_id, run=run))
        if lost:
            # What the lost one knew has to be in this one.
            await connection.execute(update(erasures).values(journaled=False, is_open=True))
        known = {record.audit_id for record in records if isinstance(record, Erased)}
        await _forget_what_is_missing(connection, known)
        # While the head is held, so that marks have the order of the transactions. One whose transaction fails after
        # all looks like time that was lost: nodes begin anew once, and that is all.
        written = set(records)
        untold = [one for one in await known_decisions(connection, keys) if one not in written]
        await journal.append([*untold, await mark_of(connection, now_s)])
    if replayed.again or replayed.is_new_epoch:
        get_logger().warning(
            "journal.replayed",
            erasures=replayed.again,
            decisions=replayed.decisions,
            new_epoch=replayed.is_new_epoch,
        )
    return journal, replayed


async def mark_of(connection: AsyncConnection, now_s: float) -> Mark:
    """How far the database is."""
    head = (await connection.execute(select(fleet_head))).one()
    last = (
        await connection.execute(
            select(schema.audit.c.sequence, schema.audit.c.hash).order_by(schema.audit.c.sequence.desc()).limit(1)
        )
    ).one_or_none()
    sequence, digest = (0, b"") if last is None else (int(last.sequence), bytes(last.hash))
    return Mark(head.epoch, head.run, int(head.revision), sequence, digest.hex(), now_s, int(head.incarnation))


async def _opened(where: str, key: bytes, belongs: str, *, accept_loss: bool) -> tuple[Journal, list[Record], str]:
    """The journal, its records, and what of it was lost, if that is accepted."""
    journal = await open_journal(where, key, make=not belongs)
    if journal is None:
        if not accept_loss:
            raise InvalidRequest(MISSING.format(where=where))
        return await _made(where, key), [], "missing"
    if belongs and journal.journal_id != belongs:
        if not accept_loss:
            raise InvalidRequest(ANOTHERS.format(where=where))
        return journal, await journal.read(), "another"
    try:
        return journal, await journal.read(), ""
    except InvalidRequest:
        if not accept_loss or not isinstance(journal, FileJournal) or is_url(where):
            raise
        kept = journal.take_whole_part()
        set_aside(where)
        made = await _made(where, key)
        await made.append(kept)
        return made, kept, "damaged"


async def _made(where: str, key: bytes) -> Journal:
    made = await open_journal(where, key, make=True)
    assert made is not None
    return made


async def _forget_what_is_missing(connection: AsyncConnection, known: set[str]) -> None:
    """Erasures that the database takes for journaled and the journal does not have are written into it again."""
    rows = await connection.execute(select(erasures.c.audit_id).where(erasures.c.journaled.is_(True)))
    missing = [row.audit_id for row in rows if row.audit_id not in known]
    for audit_id in missing:
        await connection.execute(
            update(erasures).where(erasures.c.audit_id == audit_id).values(journaled=False, is_open=True)
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """A voice that is still there."""

    voice: VoiceAddress
    state: str
    generation: int
    created_at_s: float


class _Replay:
    """One replay, within the transaction of its caller."""

    def __init__(
        self, connection: AsyncConnection, keys: KeyRing, records: Sequence[Record], now_s: float, now_lease_s: float
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._erased = {record.audit_id: record for record in records if isinstance(record, Erased)}
        self._proven = {record.audit_id: record for record in records if isinstance(record, Proven)}
        self._decided = [record for record in records if isinstance(record, Decision)]
        self._marks = [record for record in records if isinstance(record, Mark)]
        self._now_s = now_s
        self._now_lease_s = now_lease_s

    async def run(self, signed: Checkpoint | None, *, is_restored: bool) -> Replayed:
        rows = await self._connection.execute(select(erasures.c.audit_id))
        known = {row.audit_id for row in rows}
        lost = [record for audit_id, record in self._erased.items() if audit_id not in known]
        withdrawn = [record for record in self._decided if isinstance(record, Withdrawn)]
        tenant_ids = {record.tenant_id for record in lost} | {record.tenant_id for record in withdrawn}
        found = await self._subjects(tenant_ids) if tenant_ids else {}
        there = {subject: Enrolled(one.voice, one.created_at_s) for subject, one in found.items()}
        undecided = await forgotten(self._connection, self._keys, self._decided, there)
        why = "its operator says so" if is_restored else "the erasure journal" if lost or undecided else ""
        why = why or await self._went_back(signed)
        if not why:
            return Replayed(0, 0, is_new_epoch=False)
        last = max(
            [mark.revision for mark in self._marks] + [record.revision for record in self._erased.values()], default=0
        )
        is_open = any(record.audit_id not in self._proven for record in lost)
        await begin_epoch(
            self._connection,
            why=why,
            now_s=self._now_s,
            now_lease_s=self._now_lease_s,
            may_hold=is_open,
            given=max((mark.incarnation for mark in self._marks), default=0),
            facts={
                "known_revision": last,
                "forgotten_erasures": len(lost),
                "forgotten_decisions": len(undecided),
            },
        )
        await self._name_residual(lost)
        for record in sorted(lost, key=lambda record: (record.requested_at_s, record.revision)):
            await self._again(record, found.get(record.subject))
        at = At(self._now_s, self._now_lease_s)
        for decision in undecided:
            await decide_again(self._connection, self._keys, decision, there, at)
        return Replayed(len(lost), len(undecided), is_new_epoch=True)

    async def _went_back(self, signed: Checkpoint | None) -> str:
        """Why this database is a copy of an earlier time; empty when it is not."""
        head = (await self._connection.execute(select(fleet_head))).one()
        if head.run.startswith(RESTORED):
            return str(head.run)
        marks = [mark for mark in self._marks if mark.epoch == head.epoch]
        if marks and head.run != self._marks[-1].run and any(mark.run == head.run for mark in self._marks):
            return "an earlier run"
        if any(int(head.revision) < mark.revision for mark in marks):
            return "an earlier revision"
        known = [(mark.audit_sequence, mark.audit_hash) for mark in marks[-1:]]
        known += [(signed.sequence, signed.hash)] if signed is not None else []
        for sequence, digest in known:
            query = select(schema.audit.c.hash).where(schema.audit.c.sequence == sequence)
            found = (await self._connection.execute(query)).scalar_one_or_none()
            if sequence and (found is None or bytes(found).hex() != digest):
                return "an earlier audit"
        return ""

    async def _subjects(self, tenant_ids: set[str]) -> dict[str, _Found]:
        query = select(
            voices.c.tenant_id, voices.c.voice_id, voices.c.state, voices.c.generation, voices.c.created_at_s
        ).where(voices.c.tenant_id.in_(tenant_ids))
        rows = await self._connection.execute(query)
        found = {
            self._keys.subject(row.tenant_id, row.voice_id): _Found(
                VoiceAddress(row.tenant_id, row.voice_id), row.state, int(row.generation), row.created_at_s
            )
            for row in rows
        }
        # Identities in spaces of which nothing was computed when the backup was made: persons all the same.
        for voice in await voiceless_identities(self._connection, tenant_ids):
            found[self._keys.subject(voice.tenant_id, voice.voice_id)] = _Found(voice, VOICELESS, 0, math.inf)
        return found

    async def _again(self, record: Erased, found: _Found | None) -> None:
        asking = Asking(record.trigger, JOURNAL)
        facts = {"journal_revision": record.revision, "journal_epoch": record.epoch, "is_found": found is not None}
        if found is not None and found.state == VOICELESS:
            await ensure_voice(self._connection, self._keys, found.voice, self._now_s)
        if found is not None and found.state not in GONE and found.generation <= record.generation:
            await erasure_record.request(
                self._connection,
                self._keys,
                found.voice,
                asking,
                audit_id=record.audit_id,
                generation=max(record.generation, found.generation + 1),
                now_s=self._now_s,
                now_lease_s=self._now_lease_s,
                action="erase.replayed",
                more=facts,
            )
        else:
            # Enrolled and erased after the backup was made, or gone already: the question after it is answered all the
            # same, and whoever may have held it in the lost time is waited for.
            voice = VoiceAddress(record.tenant_id, "") if found is None else found.voice
            head = int((await self._connection.execute(select(fleet_head.c.revision))).scalar_one())
            await erasure_record.insert_erasure(
                self._connection,
                self._keys,
                voice,
                asking,
                audit_id=record.audit_id,
                generation=record.generation,
                revision=head,
                now_s=self._now_s,
            )
            said = {
                "audit_id": record.audit_id,
                "subject": record.subject,
                "tenant_id": record.tenant_id,
                "trigger": record.trigger,
                "source": JOURNAL,
                **facts,
            }
            await audit.append(self._connection, "erase.replayed", at_s=self._now_s, facts=said)
        proven = self._proven.get(record.audit_id)
        # One that was not proven in the time that was lost may be held by somebody of whom nothing is known any more.
        residual = (BEFORE_RESTORE,) if proven is None else proven.residual_node_ids
        values = {
            "journaled": True,
            "requested_at_s": record.requested_at_s,
            "residual_node_ids": json.dumps(residual),
        }
        await self._connection.execute(update(erasures).where(erasures.c.audit_id == record.audit_id).values(**values))

    async def _name_residual(self, forgotten: Sequence[Erased]) -> None:
        """Nodes that the journal names as residual, and that this database has forgotten with the rest."""
        named = {
            node_id
            for record in forgotten
            if (proven := self._proven.get(record.audit_id)) is not None
            for node_id in proven.residual_node_ids
        }
        rows = await self._connection.execute(
            select(node_leases.c.node_id).where(node_leases.c.fenced.is_(True), node_leases.c.wiped.is_(False))
        )
        for node_id in sorted(named - {row.node_id for row in rows}):
            await _insert_lease(self._connection, node_id, self._now_lease_s, fenced=True, wiped=False)


async def begin_epoch(
    connection: AsyncConnection,
    *,
    why: str,
    now_s: float,
    now_lease_s: float,
    may_hold: bool,
    given: int = 0,
    facts: erasure_record.Facts | None = None,
) -> None:
    """From here on what nodes hold of before is of another history: they forget it and begin anew.

    may_hold: an erasure of before was not proven, so that somebody unknown may hold its voice. Whoever had a lease in
    the time that was lost is waited for under one lease that stands for all of them. given: an incarnation that the
    journal knows to have been given out: a backup that is restored a second time knows nothing of the first.
    """
    before, epoch = (await connection.execute(select(fleet_head.c.epoch))).scalar_one(), secrets.token_hex(8)
    _, incarnation = await locked_head(connection)
    begins = max(incarnation, given) + INCARNATIONS_APART
    await connection.execute(update(fleet_head).values(epoch=epoch, incarnation=begins))
    # Those that the backup knows may not renew either, and are waited for all the same.
    await connection.execute(update(node_leases).where(node_leases.c.fenced.is_(False)).values(superseded=True))
    await _insert_lease(connection, BEFORE_RESTORE, now_lease_s, fenced=False, wiped=not may_hold)
    said = {"why": why, "before": before, "epoch": epoch, **(facts or {})}
    await audit.append(connection, "fleet.epoch_began", at_s=now_s, facts=said)


async def _insert_lease(
    connection: AsyncConnection, node_id: str, deadline_s: float, *, fenced: bool, wiped: bool
) -> None:
    _, incarnation = await locked_head(connection)
    await connection.execute(update(fleet_head).values(incarnation=incarnation + 1))
    await connection.execute(
        insert(node_leases).values(
            incarnation=incarnation + 1,
            kind="node",
            node_id=node_id,
            process_id="",
            deadline_lease_s=deadline_s,
            renewals=0,
            # It has applied nothing: every erasure waits for it until it has been silent for as long as a lease lasts.
            joined_revision=-1,
            cursor=-1,
            num_voices=0,
            voices_digest=bytes(32),
            address="",
            model="",
            state="joining",
            superseded=True,
            fenced=fenced,
            wiped=wiped,
        )
    )

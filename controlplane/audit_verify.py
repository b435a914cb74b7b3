"""Whether the audit is whole, and erasures are what it says: in the database, outside it, and at the nodes.

In: a database, checkpoints, the journal's records, and a way to ask nodes. Out: a verdict, with a plain line for each
thing that is wrong. What always holds: nothing is written; a check that could not be made is named, not passed over.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.agreements import unproven
from controlplane.audit import GENESIS, Broken, Entry, walk
from controlplane.audit_checkpoints import Checkpoint, opened
from controlplane.database.schema import data_keys, erasures, voiceprint_members, voiceprints, voices
from controlplane.database.spaces_schema import space_identities, voice_profiles
from controlplane.database.triggers import missing_triggers
from controlplane.erasure_journal import Erased, Record
from controlplane.erasure_rows import GONE
from controlplane.keys import VoiceAddress
from controlplane.voices import Outcome
from runtime.errors import InvalidRequest

SHOWN_MAX = 20
"""Problems of one kind that are told one by one; the rest are counted."""
EPOCH = "fleet.epoch_began"

Held = AsyncIterator[VoiceAddress]
AskNode = Callable[[], Held]
"""What a node holds, voice by voice. Raises a SpeakerdError when it cannot be asked."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found. head: hash of the last row."""

    num_rows: int
    head: bytes
    num_checkpoints: int
    num_erasures: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    nodes: tuple[Outcome, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(slots=True)
class _Told:
    """What the audit's rows say of erasures."""

    evidence: set[str] = field(default_factory=set)
    requested: set[str] = field(default_factory=set)
    completed: dict[str, int] = field(default_factory=dict)
    # Where a restored database went on: (sequence of the row that says so, its time).
    restores: list[tuple[int, float]] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)
    is_broken: bool = False


async def verify(
    connection: AsyncConnection,
    *,
    checkpoints: Iterable[bytes],
    journal: Sequence[Record] | None,
    trusted_keys: frozenset[str],
    subject_of: Callable[[str, str], str] | None,
) -> Verdict:
    """Check everything that needs no node, within one transaction that reads.

    trusted_keys: whose checkpoints count, base64. subject_of: names a voice as the audit does, if the key is at hand.
    """
    problems: list[str] = []
    notes: list[str] = []
    signed, bad = _opened(checkpoints, trusted_keys)
    problems += bad
    wanted = {checkpoint.sequence for checkpoint in signed}
    told = _Told()
    last = await _walk(connection, wanted, told, problems)
    problems += [
        f"a trigger that keeps rows from being changed is gone or altered: {name}"
        for name in await missing_triggers(connection)
    ]
    if not told.is_broken:
        problems += _compare(signed, last.sequence, told, notes)
        lines = [
            f"a consent or licence and its audit row do not stand for each other: {evidence[:16]}…"
            for evidence in await unproven(connection, told.evidence)
        ]
        problems += _shown(lines, "more consents or licences without their audit row, or rows without them")
    if last.sequence and not signed:
        notes.append("there is no signed checkpoint: a removed tail of the audit could not be told")
    num_erasures = await _check_erasures(connection, told, problems)
    await _check_voices(connection, problems)
    if journal is not None:
        await _check_journal(connection, journal, subject_of, problems)
    return Verdict(last.sequence, last.hash, len(signed), num_erasures, tuple(problems), tuple(notes))


async def ask_nodes(
    connection: AsyncConnection, nodes: Mapping[str, AskNode], failures: tuple[type[Exception], ...]
) -> tuple[list[Outcome], list[str]]:
    """Whether a node still holds what was erased: node by node, and a problem for each that does or did not answer."""
    rows = await connection.execute(select(voices.c.tenant_id, voices.c.voice_id).where(voices.c.state == "erased"))
    erased = {VoiceAddress(row.tenant_id, row.voice_id) for row in rows}
    outcomes, problems = [], []
    for node_id, ask in nodes.items():
        held = 0
        try:
            async for voice in ask():
                held += voice in erased
        except failures as error:
            outcomes.append(Outcome(node_id, ok=False, error=str(error)))
            problems.append(f"node {node_id} could not be asked what it holds: {error}")
            continue
        said = f"holds {held} voices that were erased" if held else ""
        outcomes.append(Outcome(node_id, ok=not held, error=said))
        if held:
            problems.append(f"node {node_id} {said}")
    return outcomes, problems


def _opened(checkpoints: Iterable[bytes], trusted_keys: frozenset[str]) -> tuple[list[Checkpoint], list[str]]:
    signed: dict[tuple[int, str], Checkpoint] = {}
    problems: list[str] = []
    for content in checkpoints:
        try:
            checkpoint = opened(content)
        except InvalidRequest as error:
            problems.append(str(error))
            continue
        if checkpoint.public_key not in trusted_keys:
            problems.append(
                f"the checkpoint of row {checkpoint.sequence} is signed by a key that is not this deployment's"
            )
            continue
        signed[checkpoint.sequence, checkpoint.hash] = checkpoint
    return sorted(signed.values(), key=lambda checkpoint: (checkpoint.sequence, checkpoint.at_s)), problems


async def _walk(connection: AsyncConnection, wanted: set[int], told: _Told, problems: list[str]) -> Entry:
    """The chain from its beginning, its rows heard, and the hashes at `wanted` taken down; the last row that fits."""
    last = Entry(0, GENESIS, "")
    try:
        async for last in walk(connection):
            if last.sequence in wanted:
                told.hashes[last.sequence] = last.hash.hex()
            _listen(told, last.sequence, json.loads(last.body))
    except Broken as broken:
        told.is_broken = True
        problems.append(str(broken))
    return last


def _listen(told: _Told, sequence: int, body: dict[str, Any]) -> None:
    if "evidence" in body:
        told.evidence.add(str(body["evidence"]))
    action, audit_id = body.get("action"), str(body.get("audit_id", ""))
    if action in ("erase.requested", "erase.replayed"):
        if audit_id in told.requested:
            told.twice.append(f"erasure {audit_id} was requested twice")
        told.requested.add(audit_id)
    elif action == "erase.completed":
        if audit_id in told.completed:
            told.twice.append(f"erasure {audit_id} was completed twice")
        told.completed[audit_id] = sequence
    elif action == EPOCH:
        told.restores.append((sequence, float(body.get("at_s", 0.0))))


def _compare(signed: Sequence[Checkpoint], num_rows: int, told: _Told, notes: list[str]) -> list[str]:
    problems = []
    lost: list[Checkpoint] = []
    for checkpoint in signed:
        if told.hashes.get(checkpoint.sequence) == checkpoint.hash:
            continue
        # The audit of a restored database goes on from the backup's last row; what was signed beyond it is lost, and
        # a row of the audit says since when.
        if any(row <= checkpoint.sequence and checkpoint.at_s <= at_s for row, at_s in told.restores):
            lost.append(checkpoint)
        elif checkpoint.sequence > num_rows:
            problems.append(
                f"the audit ends at row {num_rows}, and row {checkpoint.sequence} was signed at "
                f"{_when(checkpoint.at_s)}: its tail was removed"
            )
        else:
            problems.append(
                f"row {checkpoint.sequence} of the audit is not the one that was signed at {_when(checkpoint.at_s)}: "
                "the audit was rewritten"
            )
    if lost:
        notes.append(
            f"a backup was restored: the audit lost rows {min(row for row, _ in told.restores)} to "
            f"{lost[-1].sequence} of before, as {len(lost)} checkpoints show"
        )
    return problems


async def _check_erasures(connection: AsyncConnection, told: _Told, problems: list[str]) -> int:
    problems += _shown(told.twice, "more transitions happened twice")
    rows = (await connection.execute(select(erasures.c.audit_id, erasures.c.state))).all()
    states = {row.audit_id: row.state for row in rows}
    wrong = []
    for audit_id, state in states.items():
        if audit_id not in told.requested:
            wrong.append(f"erasure {audit_id} has no row in the audit that says who asked for it")
        elif state == "erased" and audit_id not in told.completed:
            wrong.append(f"erasure {audit_id} is called erased, and no row of the audit says that it was completed")
        elif state != "erased" and audit_id in told.completed:
            wrong.append(f"erasure {audit_id} was completed, as the audit says, and is called {state}")
    wrong += [
        f"erasure {audit_id} is in the audit, and its record is gone" for audit_id in told.requested - states.keys()
    ]
    problems += _shown(wrong, "more erasures do not fit the audit")
    return len(states)


async def _check_voices(connection: AsyncConnection, problems: list[str]) -> None:
    """That what was erased is gone from the tables, and has not come back."""
    erased_of = and_(erasures.c.tenant_id == voices.c.tenant_id, erasures.c.voice_id == voices.c.voice_id)
    back = (
        select(erasures.c.audit_id)
        .join(voices, erased_of)
        .where(voices.c.state.not_in(GONE), erasures.c.generation >= voices.c.generation)
    )
    wrong = [f"the voice of erasure {row.audit_id} has come back" for row in await connection.execute(back)]
    for table, what in (
        (data_keys, "data key"),
        (voiceprints, "voiceprint"),
        (voiceprint_members, "voiceprint of a recording"),
        (space_identities, "identity"),
        (voice_profiles, "profile"),
    ):
        kept = exists().where(table.c.tenant_id == voices.c.tenant_id, table.c.voice_id == voices.c.voice_id)
        query = select(erasures.c.audit_id).join(voices, erased_of).where(voices.c.state.in_(GONE), kept)
        wrong += [
            f"the {what} of the voice of erasure {row.audit_id} is still there"
            for row in await connection.execute(query)
        ]
    asked = exists().where(erased_of)
    silent = select(func.count()).select_from(voices).where(voices.c.state.in_(GONE), ~asked)
    if count := (await connection.execute(silent)).scalar_one():
        wrong.append(f"{count} voices are erased without an erasure")
    problems += _shown(wrong, "more erased voices are not gone")


async def _check_journal(
    connection: AsyncConnection,
    journal: Sequence[Record],
    subject_of: Callable[[str, str], str] | None,
    problems: list[str],
) -> None:
    rows = await connection.execute(select(erasures.c.audit_id, erasures.c.journaled, erasures.c.state))
    known = {row.audit_id: (bool(row.journaled), row.state) for row in rows}
    journaled = {record.audit_id: record for record in journal if isinstance(record, Erased)}
    wrong = [
        f"erasure {audit_id} is in the erasure journal, and its record is gone" for audit_id in journaled.keys() - known
    ]
    wrong += [
        f"erasure {audit_id} is not in the erasure journal"
        for audit_id, (is_journaled, state) in known.items()
        if (is_journaled or state == "erased") and audit_id not in journaled
    ]
    if subject_of is not None and journaled:
        live = select(voices.c.tenant_id, voices.c.voice_id, voices.c.generation).where(
            voices.c.state.not_in(GONE), voices.c.tenant_id.in_({one.tenant_id for one in journaled.values()})
        )
        subjects = {one.subject: one for one in journaled.values()}
        for row in await connection.execute(live):
            record = subjects.get(subject_of(row.tenant_id, row.voice_id))
            if record is not None and int(row.generation) <= record.generation:
                wrong.append(f"the voice of erasure {record.audit_id} has come back, as the erasure journal shows")
    problems += _shown(wrong, "more erasures do not fit the erasure journal")


def _shown(lines: Sequence[str], rest: str) -> list[str]:
    shown = list(lines[:SHOWN_MAX])
    if len(lines) > SHOWN_MAX:
        shown.append(f"{len(lines) - SHOWN_MAX} {rest}")
    return shown


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

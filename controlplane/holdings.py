"""What nodes should hold: read as ciphertext within one transaction, opened after it.

A voice counts once it has a place in the log (revision > 0) and is pending or ready. Its voiceprint is given in the
node's model, or not at all: then the entry is there for the sake of the order, and the node holds nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Table, and_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import data_keys, erasures, fleet_log, voiceprints, voices
from controlplane.fleet_log import SEPARATOR, Change
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.policy import VoiceFacts, VoiceScope, audience_of
from runtime.errors import SpeakerdError
from runtime.logs import get_logger

LIVE_STATES = ("pending", "ready")
DESIRED_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Print:
    """A voiceprint in the clear. embedding: little-endian float32, (D,)."""

    model: str
    embedding: bytes
    net_speech_ms: int


@dataclass(frozen=True, slots=True)
class Holding:
    """A change for a node, in the clear. label and voiceprint: None when evicted, superseded, or not of its model.

    audience: whom the voice is for, as streams carry it; empty: the tenant.
    as_of: the head of the log at which it was read and found to hold; 0: not said, it counts in its place alone.
    audit_id: of the erasure that evicts the voice, for logs; empty: none does.
    """

    revision: int
    voice: VoiceAddress
    generation: int
    change: Change
    label: str | None
    voiceprint: Print | None
    audience: str = ""
    as_of: int = 0
    audit_id: str = ""


@dataclass(frozen=True, slots=True)
class SealedHolding:
    """The same, still encrypted."""

    revision: int
    voice: VoiceAddress
    generation: int
    change: Change
    wrapped_key: bytes | None
    label_ciphertext: bytes | None
    model: str
    print_ciphertext: bytes | None
    net_speech_ms: int
    audience: str = ""
    audit_id: str = ""

    def open(self, keys: KeyRing) -> Holding:
        """Decrypt."""
        label = voiceprint = None
        if self.wrapped_key is not None and self.label_ciphertext is not None:
            key = keys.open(self.voice, self.wrapped_key)
            label = key.decrypt(self.label_ciphertext, "label").decode()
            if self.print_ciphertext is not None:
                embedding = key.decrypt(self.print_ciphertext, "voiceprint", self.generation, self.model)
                voiceprint = Print(self.model, embedding, self.net_speech_ms)
        return Holding(
            self.revision,
            self.voice,
            self.generation,
            self.change,
            label,
            voiceprint,
            self.audience,
            audit_id=self.audit_id,
        )


def opened(sealed: SealedHolding, keys: KeyRing) -> Holding:
    """Decrypt. What does not open is as if it had no voiceprint: one damaged voice must not keep all from the nodes."""
    try:
        return sealed.open(keys)
    except SpeakerdError as error:
        get_logger().error("voice.does_not_open", voice_id=sealed.voice.voice_id, cause=error.cause.value)
        return Holding(sealed.revision, sealed.voice, sealed.generation, sealed.change, None, None, sealed.audience)


async def held_after(
    connection: AsyncConnection, model: str, after: VoiceAddress | None, limit: int
) -> list[SealedHolding]:
    """A page of all that a node of a model should hold now, by address; after: the last one of the page before."""
    # By what the log told and not by state, which has an index: a page is to be a stretch of the primary key.
    query = _sealed(model).where(voices.c.told_generation > 0, voiceprints.c.ciphertext.is_not(None))
    if after is not None:
        query = query.where(tuple_(voices.c.tenant_id, voices.c.voice_id) > (after.tenant_id, after.voice_id))
    rows = (await connection.execute(query.order_by(voices.c.tenant_id, voices.c.voice_id).limit(limit))).all()
    # Thousands of rows take longer to turn over than the event loop may stand still.
    return await asyncio.to_thread(lambda: [_of_voice(row, model) for row in rows])


async def one(connection: AsyncConnection, voice: VoiceAddress, model: str) -> SealedHolding | None:
    """What a node of a model should hold of one voice, or None."""
    query = _sealed(model).where(
        voices.c.tenant_id == voice.tenant_id,
        voices.c.voice_id == voice.voice_id,
        voices.c.state.in_(LIVE_STATES),
        voices.c.revision > 0,
        voiceprints.c.ciphertext.is_not(None),
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _of_voice(row, model)


async def changes_after(connection: AsyncConnection, cursor: int, model: str, limit: int) -> list[SealedHolding]:
    """The next entries of the log, as a node of a model is told them.

    An enrolment comes with its content where its generation is the voice's still, and the model had its voiceprint by
    then. So what a node holds at a revision depends on the log up to there alone, but for voices that were enrolled
    anew or evicted since.
    """
    of_entry = and_(voices.c.tenant_id == fleet_log.c.tenant_id, voices.c.voice_id == fleet_log.c.voice_id)
    query = (
        select(
            fleet_log.c.revision,
            fleet_log.c.tenant_id,
            fleet_log.c.voice_id,
            fleet_log.c.generation,
            fleet_log.c.kind,
            fleet_log.c.models,
            voices.c.label_ciphertext,
            voices.c.scope,
            voices.c.owner_user_id,
            data_keys.c.wrapped,
            voiceprints.c.ciphertext,
            voiceprints.c.net_speech_ms,
        )
        .select_from(fleet_log)
        .join(
            voices,
            and_(of_entry, voices.c.generation == fleet_log.c.generation, voices.c.state.in_(LIVE_STATES)),
            isouter=True,
        )
        .join(data_keys, _same(data_keys), isouter=True)
        .join(voiceprints, _current(model), isouter=True)
        .where(fleet_log.c.revision > cursor)
        .order_by(fleet_log.c.revision)
        .limit(limit)
    )
    found = []
    rows: Sequence[Any] = (await connection.execute(query)).all()
    for row in rows:
        # An entry that names no model is of before models were written down.
        is_of_model = not row.models or model in row.models.split(SEPARATOR)
        if Change(row.kind) is Change.ENROLL and row.wrapped is not None and is_of_model:
            found.append(_of_voice(row, model))
        else:
            found.append(_empty(row))
    return await _of_erasures(connection, found)


async def _of_erasures(connection: AsyncConnection, entries: list[SealedHolding]) -> list[SealedHolding]:
    """The same entries, evictions with the erasures that they are of."""
    evicted = [entry for entry in entries if entry.change is Change.EVICT]
    if not evicted:
        return entries
    query = select(erasures.c.revision, erasures.c.audit_id).where(
        erasures.c.tenant_id.in_({entry.voice.tenant_id for entry in evicted}),
        erasures.c.voice_id.in_({entry.voice.voice_id for entry in evicted}),
    )
    audit_ids = {int(row.revision): row.audit_id for row in (await connection.execute(query)).all()}
    return [replace(entry, audit_id=audit_ids.get(entry.revision, "")) for entry in entries]


@dataclass(frozen=True, slots=True)
class Told:
    """What the log told nodes of a voice: hold this generation, nodes of these models."""

    voice: VoiceAddress
    generation: int
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """An entry of the log as a change of what nodes should hold."""

    revision: int
    was: Told
    now: Told


async def desired(connection: AsyncConnection) -> AsyncIterator[list[Told]]:
    """What nodes of all models should hold, in pages, at one moment: that of the connection's transaction."""
    query = select(voices.c.tenant_id, voices.c.voice_id, voices.c.told_generation, voices.c.told_models).where(
        voices.c.told_generation > 0
    )
    async with connection.stream(query) as rows:
        async for page in rows.partitions(DESIRED_ROWS):
            yield await asyncio.to_thread(_told, page)


async def steps_after(connection: AsyncConnection, cursor: int, limit: int) -> list[Step]:
    """The next entries of the log, as changes."""
    query = select(fleet_log).where(fleet_log.c.revision > cursor).order_by(fleet_log.c.revision).limit(limit)
    found = []
    for row in await connection.execute(query):
        voice = VoiceAddress(row.tenant_id, row.voice_id)
        found.append(
            Step(
                int(row.revision),
                Told(voice, int(row.was_generation), _models(row.was_models)),
                Told(voice, int(row.generation), _models(row.models)),
            )
        )
    return found


def _told(rows: Sequence[Any]) -> list[Told]:
    return [
        Told(VoiceAddress(row.tenant_id, row.voice_id), int(row.told_generation), _models(row.told_models))
        for row in rows
    ]


def _models(text: str) -> tuple[str, ...]:
    return tuple(text.split(SEPARATOR)) if text else ()


def _sealed(model: str) -> Select[Any]:
    return (
        select(
            voices.c.tenant_id,
            voices.c.voice_id,
            voices.c.generation,
            voices.c.revision,
            voices.c.label_ciphertext,
            voices.c.scope,
            voices.c.owner_user_id,
            data_keys.c.wrapped,
            voiceprints.c.ciphertext,
            voiceprints.c.net_speech_ms,
        )
        .join(data_keys, _same(data_keys), isouter=True)
        .join(voiceprints, _current(model), isouter=True)
    )


def _same(table: Table) -> ColumnElement[bool]:
    return and_(table.c.tenant_id == voices.c.tenant_id, table.c.voice_id == voices.c.voice_id)


def _current(model: str) -> ColumnElement[bool]:
    """The voiceprint of a voice's generation and a model."""
    return and_(_same(voiceprints), voiceprints.c.generation == voices.c.generation, voiceprints.c.model == model)


def _of_voice(row: Row[Any], model: str) -> SealedHolding:
    return SealedHolding(
        revision=int(row.revision),
        voice=VoiceAddress(row.tenant_id, row.voice_id),
        generation=int(row.generation),
        change=Change.ENROLL,
        wrapped_key=_bytes(row.wrapped),
        label_ciphertext=_bytes(row.label_ciphertext),
        model=model,
        print_ciphertext=_bytes(row.ciphertext),
        net_speech_ms=int(row.net_speech_ms or 0),
        audience=audience_of(VoiceFacts(row.tenant_id, VoiceScope(row.scope), row.owner_user_id)),
    )


def _empty(entry: Row[Any]) -> SealedHolding:
    return SealedHolding(
        revision=int(entry.revision),
        voice=VoiceAddress(entry.tenant_id, entry.voice_id),
        generation=int(entry.generation),
        change=Change(entry.kind),
        wrapped_key=None,
        label_ciphertext=None,
        model="",
        print_ciphertext=None,
        net_speech_ms=0,
    )


def _bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)

"""What nodes should hold: read as ciphertext within one transaction, opened after it.

A voice counts once it has a place in the log (revision > 0) and is pending or ready. Its voiceprint is given in the
node's model, or not at all: then the entry is there for the sake of the order, and the node holds nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import data_keys, fleet_log, voiceprints, voices
from controlplane.fleet_log import Change
from controlplane.keys import KeyRing, VoiceAddress
from runtime.voice_digest import VoiceDigest

LIVE_STATES = ("pending", "ready")


@dataclass(frozen=True, slots=True)
class Print:
    """A voiceprint in the clear. embedding: little-endian float32, (D,)."""

    model: str
    embedding: bytes
    net_speech_ms: int


@dataclass(frozen=True, slots=True)
class Holding:
    """A change for a node, in the clear. label and voiceprint: None when evicted, superseded, or not of its model.

    as_of: the head of the log at which it was read and found to hold; 0: not said, it counts in its place alone.
    """

    revision: int
    voice: VoiceAddress
    generation: int
    change: Change
    label: str | None
    voiceprint: Print | None
    as_of: int = 0


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

    def open(self, keys: KeyRing) -> Holding:
        """Decrypt."""
        label = voiceprint = None
        if self.wrapped_key is not None and self.label_ciphertext is not None:
            key = keys.open(self.voice, self.wrapped_key)
            label = key.decrypt(self.label_ciphertext, "label").decode()
            if self.print_ciphertext is not None:
                embedding = key.decrypt(self.print_ciphertext, "voiceprint", self.generation, self.model)
                voiceprint = Print(self.model, embedding, self.net_speech_ms)
        return Holding(self.revision, self.voice, self.generation, self.change, label, voiceprint)


async def everything(connection: AsyncConnection, model: str) -> list[SealedHolding]:
    """All that a node of a model should hold now, in the order of its last changes."""
    query = (
        _sealed(model)
        .where(voices.c.state.in_(LIVE_STATES), voices.c.revision > 0, voiceprints.c.ciphertext.is_not(None))
        .order_by(voices.c.revision)
    )
    return [_of_voice(row, model) for row in await connection.execute(query)]


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
    """The next entries of the log. An enrolment that something newer has overtaken comes without its content."""
    entries = (
        await connection.execute(
            select(fleet_log).where(fleet_log.c.revision > cursor).order_by(fleet_log.c.revision).limit(limit)
        )
    ).all()
    if not entries:
        return []
    current = {
        (row.tenant_id, row.voice_id, int(row.revision)): row
        for row in await connection.execute(
            _sealed(model).where(
                voices.c.revision > cursor,
                voices.c.revision <= int(entries[-1].revision),
                voices.c.state.in_(LIVE_STATES),
            )
        )
    }
    found = []
    for entry in entries:
        row = current.get((entry.tenant_id, entry.voice_id, int(entry.revision)))
        if Change(entry.kind) is Change.ENROLL and row is not None:
            found.append(_of_voice(row, model))
        else:
            found.append(_empty(entry))
    return found


async def desired_digest(connection: AsyncConnection, model: str) -> bytes:
    """The digest that a node of a model reports when it holds what it should."""
    query = (
        select(voices.c.tenant_id, voices.c.voice_id, voices.c.generation)
        .join(
            voiceprints,
            and_(
                voiceprints.c.tenant_id == voices.c.tenant_id,
                voiceprints.c.voice_id == voices.c.voice_id,
                voiceprints.c.generation == voices.c.generation,
                voiceprints.c.model == model,
            ),
        )
        .where(voices.c.state.in_(LIVE_STATES), voices.c.revision > 0)
    )
    rows = [(row.tenant_id, row.voice_id, int(row.generation)) for row in await connection.execute(query)]
    # Ten thousand hashes take longer than the event loop may stand still.
    return await asyncio.to_thread(_digest_of, rows)


def _digest_of(voices_held: Sequence[tuple[str, str, int]]) -> bytes:
    digest = VoiceDigest()
    for tenant_id, voice_id, generation in voices_held:
        digest.add(tenant_id, voice_id, generation)
    return digest.value()


def _sealed(model: str) -> Select[Any]:
    return (
        select(
            voices.c.tenant_id,
            voices.c.voice_id,
            voices.c.generation,
            voices.c.revision,
            voices.c.label_ciphertext,
            data_keys.c.wrapped,
            voiceprints.c.ciphertext,
            voiceprints.c.net_speech_ms,
        )
        .join(
            data_keys,
            and_(data_keys.c.tenant_id == voices.c.tenant_id, data_keys.c.voice_id == voices.c.voice_id),
            isouter=True,
        )
        .join(
            voiceprints,
            and_(
                voiceprints.c.tenant_id == voices.c.tenant_id,
                voiceprints.c.voice_id == voices.c.voice_id,
                voiceprints.c.generation == voices.c.generation,
                voiceprints.c.model == model,
            ),
            isouter=True,
        )
    )


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

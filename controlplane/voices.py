"""Voices as their tenant sees them: reading and listing, and where each is warm.

What always holds: every query is bound to the caller's tenant, so that another tenant's voice and one that never was
come out the same, in text and in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Row, Select, and_, select

from controlplane.database.engine import Database
from controlplane.database.schema import data_keys, voices
from controlplane.holdings import LIVE_STATES
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.voice_lookup import NO_SUCH_VOICE
from runtime.errors import InvalidRequest, NotFound

PAGE_MAX = 200
PAGE_DEFAULT = 50


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice. Instants are Unix seconds; label is None once it is being erased."""

    voice_id: str
    label: str | None
    generation: int
    state: str
    state_reason: str
    created_at_s: float
    updated_at_s: float
    net_speech_ms: int
    model: str
    revision: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command at one node."""

    node_id: str
    ok: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class Warmth:
    """Where a voice is held, where it could be, and who held it and is away."""

    warm: tuple[str, ...]
    candidates: tuple[str, ...]
    stale: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()


class Warmer(Protocol):
    """Knows where voices are warm, and makes them so."""

    async def warmth(self, voice: VoiceAddress) -> Warmth:
        """Where a voice is warm."""
        ...

    async def warm(self, voice: VoiceAddress, node_ids: tuple[str, ...]) -> Warmth:
        """Send a voice to nodes again: those named, or all that serve."""
        ...

    async def spread(self, voice: VoiceAddress) -> tuple[str, ...]:
        """Have a voice that was just written told to all nodes; those that hold it now."""
        ...


class Voices:
    """Reading voices, and warming them."""

    def __init__(self, database: Database, keys: KeyRing, warming: Warmer) -> None:
        self._database = database
        self._keys = keys
        self._warming = warming

    def __repr__(self) -> str:
        return "Voices()"

    async def get(self, voice: VoiceAddress) -> Voice:
        """One voice. Raises NotFound."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(_with_key(voice.tenant_id).where(voices.c.voice_id == voice.voice_id))
            ).one_or_none()
        if row is None:
            raise NotFound(NO_SUCH_VOICE)
        return _voice(row, self._keys)

    async def living(self, tenant_id: str, voice_ids: Collection[str]) -> set[str]:
        """Which of these voices of a tenant may be named: those that are held, or are about to be."""
        query = select(voices.c.voice_id).where(
            voices.c.tenant_id == tenant_id, voices.c.voice_id.in_(voice_ids), voices.c.state.in_(LIVE_STATES)
        )
        async with self._database.read() as connection:
            return {row.voice_id for row in await connection.execute(query)}

    async def list(self, tenant_id: str, *, page_size: int, page_token: str, label: str) -> tuple[list[Voice], str]:
        """A page of a tenant's voices, those erased left out, and the token of the next page ("": none)."""
        if not 0 <= page_size <= PAGE_MAX:
            raise InvalidRequest(f"page_size: 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
        wanted = page_size or PAGE_DEFAULT
        query = (
            _with_key(tenant_id)
            .where(voices.c.voice_id > page_token, voices.c.state != "erased")
            .order_by(voices.c.voice_id)
        )
        if not label:
            query = query.limit(wanted + 1)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        # Labels are ciphertext, so that a filter by label has to open them all: off the event loop.
        found = await asyncio.to_thread(lambda: [_voice(row, self._keys) for row in rows])
        if label:
            found = [voice for voice in found if voice.label == label][: wanted + 1]
        more = len(found) > wanted
        return found[:wanted], found[wanted - 1].voice_id if more else ""

    async def warmth(self, voice: VoiceAddress) -> Warmth:
        """Where a voice is warm. Raises NotFound."""
        await self.get(voice)
        return await self._warming.warmth(voice)

    async def warm(self, voice: VoiceAddress, node_ids: tuple[str, ...]) -> Warmth:
        """Send a voice to nodes again: those named, or all that serve. Raises NotFound."""
        await self.get(voice)
        return await self._warming.warm(voice, node_ids)

    async def spread(self, voice: VoiceAddress) -> tuple[str, ...]:
        """Have a voice that was just written told to all nodes; those that hold it now."""
        return await self._warming.spread(voice)


def _with_key(tenant_id: str) -> Select[Any]:
    return (
        select(voices, data_keys.c.wrapped)
        .join(
            data_keys,
            and_(data_keys.c.tenant_id == voices.c.tenant_id, data_keys.c.voice_id == voices.c.voice_id),
            isouter=True,
        )
        .where(voices.c.tenant_id == tenant_id)
    )


def _voice(row: Row[Any], keys: KeyRing) -> Voice:
    label = None
    if row.wrapped is not None and row.label_ciphertext is not None:
        address = VoiceAddress(row.tenant_id, row.voice_id)
        label = keys.open(address, bytes(row.wrapped)).decrypt(bytes(row.label_ciphertext), "label").decode()
    return Voice(
        voice_id=row.voice_id,
        label=label,
        generation=int(row.generation),
        state=row.state,
        state_reason=row.state_reason,
        created_at_s=row.created_at_s,
        updated_at_s=row.updated_at_s,
        net_speech_ms=row.net_speech_ms,
        model=row.model,
        revision=int(row.revision),
    )

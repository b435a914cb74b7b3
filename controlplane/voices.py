"""Voices as their callers see them: reading and listing, and where each is warm.

What always holds: what a caller asks by id or by label is bound to what it may see, in the same one statement, so that
another's voice and one that never was come out the same, in text and in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Row, Select, and_, case, false, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.schema import data_keys, voices
from controlplane.enrolment_request import Details, details_of
from controlplane.holdings import LIVE_STATES
from controlplane.keys import KeyRing, VoiceAddress, blind_index
from controlplane.policy import GLOBAL_TENANT, Principal, Right, VoiceScope
from controlplane.tenant_keys import TenantKeys
from controlplane.voice_lookup import NO_SUCH_VOICE, find_voice, usable_by, visible_to
from runtime.errors import InvalidRequest, NotFound

GONE = ("erasing", "erased")
PAGE_MAX = 200
PAGE_DEFAULT = 50
SEARCHED_PAGES_MAX = 50
"""Pages that one search opens: what it has not come to by then is for the next one, from the token on."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice. Instants are Unix seconds; label is None once it is being erased."""

    voice_id: str
    label: str | None
    generation: int
    state: str
    state_reason: str
    state_code: str
    created_at_s: float
    updated_at_s: float
    net_speech_ms: int
    model: str
    revision: int
    scope: VoiceScope
    owner_user_id: str | None
    details: Details


@dataclass(frozen=True, slots=True)
class Filter:
    """Which voices are listed. Empty and None: whichever.

    language: also its regional forms. text: somewhere in label, description or style tags. states: one of these.
    heard: whether nodes were ever told of it.
    """

    label: str = ""
    scope: VoiceScope | None = None
    language: str = ""
    gender: str = ""
    state: str = ""
    text: str = ""
    states: tuple[str, ...] = ()
    heard: bool | None = None


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


_Page = tuple[list[Voice], str]


class Voices:
    """Reading voices, and warming them."""

    def __init__(self, database: Database, keys: KeyRing, tenant_keys: TenantKeys, warming: Warmer) -> None:
        self._database = database
        self._keys = keys
        self._tenant_keys = tenant_keys
        self._warming = warming

    def __repr__(self) -> str:
        return "Voices()"

    async def find(self, principal: Principal, voice_id: str, right: Right) -> VoiceAddress:
        """Where a voice lies. Raises NotFound, or Denied where it may only be seen."""
        async with self._database.read() as connection:
            return await find_voice(connection, principal, voice_id, right)

    async def seen(self, principal: Principal, voice_id: str) -> Voice:
        """A voice that a caller may see. Raises NotFound."""
        query = _with_key().where(voices.c.voice_id == voice_id, visible_to(principal))
        # The caller's own first, should a global one ever have the same id.
        query = query.order_by(case((voices.c.tenant_id == GLOBAL_TENANT, 1), else_=0)).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound(NO_SUCH_VOICE)
        return _voice(row, self._keys)

    async def present(self, principal: Principal, voice_id: str) -> Voice:
        """A voice that a caller may see, as one that is being erased is not. Raises NotFound."""
        voice = await self.seen(principal, voice_id)
        if voice.state in GONE:
            raise NotFound(NO_SUCH_VOICE)
        return voice

    async def get(self, voice: VoiceAddress) -> Voice:
        """One voice, wherever its address came from. Raises NotFound."""
        query = _with_key().where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound(NO_SUCH_VOICE)
        return _voice(row, self._keys)

    async def living(self, principal: Principal, voice_ids: Collection[str]) -> set[str]:
        """Which of these voices may be named to a caller: those that are held, or are about to be."""
        query = select(voices.c.voice_id).where(
            usable_by(principal), voices.c.voice_id.in_(voice_ids), voices.c.state.in_(LIVE_STATES)
        )
        async with self._database.read() as connection:
            return {row.voice_id for row in await connection.execute(query)}

    async def list(
        self, principal: Principal, *, page_size: int, page_token: str, wanted: Filter
    ) -> tuple[list[Voice], str]:
        """A page of what a caller may see, those erased left out, and the token of the next page ("": none)."""
        if not 0 <= page_size <= PAGE_MAX:
            raise InvalidRequest(f"page_size: 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
        size = page_size or PAGE_DEFAULT
        if not wanted.text:
            return await self._page(principal, size, page_token, wanted)
        # What is searched lies sealed under each voice's own key: it is opened, page by page, up to a bound.
        found: list[Voice] = []
        for _ in range(SEARCHED_PAGES_MAX):
            page, page_token = await self._page(principal, PAGE_MAX, page_token, wanted)
            for voice in page:
                if _says(voice, wanted.text):
                    if len(found) == size:
                        return found, found[-1].voice_id
                    found.append(voice)
            if not page_token:
                return found, ""
        return found, page_token

    async def _page(self, principal: Principal, size: int, page_token: str, wanted: Filter) -> _Page:
        query = _with_key().where(visible_to(principal), voices.c.voice_id > page_token, *_conditions(wanted))
        query = query.order_by(voices.c.voice_id).limit(size + 1)
        async with self._database.read() as connection:
            if wanted.label:
                query = query.where(await self._labelled(connection, principal, wanted.label))
            rows = (await connection.execute(query)).all()
        # Opening two hundred labels takes longer than the event loop may stand still.
        found = await asyncio.to_thread(lambda: [_voice(row, self._keys) for row in rows[:size]])
        return found, found[-1].voice_id if len(rows) > size else ""

    async def _labelled(self, connection: AsyncConnection, principal: Principal, label: str) -> ColumnElement[bool]:
        found: list[ColumnElement[bool]] = []
        for tenant_id in (principal.tenant_id, GLOBAL_TENANT):
            key = await self._tenant_keys.find(connection, tenant_id)
            if key is not None:
                index = blind_index(key, "label", label)
                found.append(and_(voices.c.tenant_id == tenant_id, voices.c.label_index == index))
        return or_(false(), *found)

    async def warmth(self, voice: VoiceAddress) -> Warmth:
        """Where a voice is warm."""
        return await self._warming.warmth(voice)

    async def warm(self, voice: VoiceAddress, node_ids: tuple[str, ...]) -> Warmth:
        """Send a voice to nodes again: those named, or all that serve."""
        return await self._warming.warm(voice, node_ids)

    async def spread(self, voice: VoiceAddress) -> tuple[str, ...]:
        """Have a voice that was just written told to all nodes; those that hold it now."""
        return await self._warming.spread(voice)


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [voices.c.state != "erased"]
    for column, value in (
        (voices.c.scope, wanted.scope.value if wanted.scope else ""),
        (voices.c.gender, wanted.gender),
        (voices.c.state, wanted.state),
    ):
        if value:
            conditions.append(column == value)
    if wanted.language:
        language, said = func.lower(voices.c.language), wanted.language.lower()
        conditions.append(or_(language == said, language.startswith(f"{said}-", autoescape=True)))
    if wanted.states:
        conditions.append(voices.c.state.in_(wanted.states))
    if wanted.heard is not None:
        conditions.append(voices.c.revision > 0 if wanted.heard else voices.c.revision == 0)
    return conditions


def _says(voice: Voice, text: str) -> bool:
    words = (voice.label or "", voice.details.description, *voice.details.style_tags)
    return any(text.casefold() in word.casefold() for word in words)


def _with_key() -> Select[Any]:
    return select(voices, data_keys.c.wrapped).join(
        data_keys,
        and_(data_keys.c.tenant_id == voices.c.tenant_id, data_keys.c.voice_id == voices.c.voice_id),
        isouter=True,
    )


def _voice(row: Row[Any], keys: KeyRing) -> Voice:
    label, details = None, Details()
    if row.wrapped is not None and row.label_ciphertext is not None:
        key = keys.open(VoiceAddress(row.tenant_id, row.voice_id), bytes(row.wrapped))
        label = key.decrypt(bytes(row.label_ciphertext), "label").decode()
        if row.details_ciphertext is not None:
            details = details_of(key.decrypt(bytes(row.details_ciphertext), "details"))
    return Voice(
        voice_id=row.voice_id,
        label=label,
        generation=int(row.generation),
        state=row.state,
        state_reason=row.state_reason,
        state_code=row.state_code,
        created_at_s=row.created_at_s,
        updated_at_s=row.updated_at_s,
        net_speech_ms=row.net_speech_ms,
        model=row.model,
        revision=int(row.revision),
        scope=VoiceScope(row.scope),
        owner_user_id=row.owner_user_id,
        details=details,
    )

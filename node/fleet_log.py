"""Enrolments and evictions in the order of the fleet's log, whether pushed one by one or read in a row.

In: commands with positions, and entries of the log. Out: a store that holds what the log says up to the cursor. What
always holds: changes are applied one at a time and in order, so that the cursor never runs past one that was left out;
an entry is applied before the cursor tells of it. A standalone node has no log: commands apply as they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar

from models.analysis import FloatArray
from node.fault_points import reach
from node.voice_store import Voice, VoiceStore
from runtime.errors import InvalidRequest, SpeakerdError, Stale, Unavailable
from runtime.lease import Judgement, Lease, Next
from runtime.logs import get_logger

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a command stands in the log, and for which incarnation of this node it is meant.

    as_of: of an enrolment, the head of the log at which it was found to hold; 0: not said.
    """

    incarnation: int
    revision: int
    as_of: int = 0


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A voice to hold. embedding: (D,) unit length; None when there is none of this node's model."""

    tenant_id: str
    voice_id: str
    generation: int
    label: str
    embedding: FloatArray | None
    net_speech_samples: int
    audience: str = ""

    def __repr__(self) -> str:
        return f"Enrolment({self.tenant_id}/{self.voice_id}, generation {self.generation})"


@dataclass(frozen=True, slots=True)
class Eviction:
    """A voice to forget. audit_id: of the erasure that asks for it, if one does."""

    tenant_id: str
    voice_id: str
    generation: int
    audit_id: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log."""

    revision: int
    change: Enrolment | Eviction


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """Forget everything; the enrolments that follow are all there are."""


@dataclass(frozen=True, slots=True)
class SnapshotVoices:
    """Voices of a snapshot, each with an embedding; in no order, and each once."""

    voices: tuple[Enrolment, ...]


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The snapshot is complete and stands for the log up to a revision."""

    revision: int


Step = Entry | SnapshotBegin | SnapshotVoices | SnapshotEnd


class LogReader(Protocol):
    """Reads the log from the control plane."""

    def read(self, incarnation: int, cursor: int) -> AsyncIterator[Step]:
        """Everything after a cursor, to the head of the log; an async generator. Unavailable when it breaks off."""
        ...


class FleetLog:
    """Applies changes to the store. lease and reader: None on a standalone node."""

    def __init__(
        self,
        store: VoiceStore,
        lease: Lease | None,
        reader: LogReader | None,
        evicted: Callable[[str, int], None] = lambda _reason, _voices: None,
    ) -> None:
        """evicted: told why voices were forgotten, and how many."""
        self._store = store
        self._lease = lease
        self._reader = reader
        self._evicted = evicted
        self._order = asyncio.Lock()

    def __repr__(self) -> str:
        return f"FleetLog({self._lease!r}, {self._store!r})"

    @property
    def cursor(self) -> int:
        """All revisions up to it are applied; 0 when standalone."""
        return self._lease.cursor if self._lease else 0

    @property
    def incarnation(self) -> int:
        """The node's incarnation; 0 when standalone."""
        return self._lease.incarnation if self._lease else 0

    async def enroll(self, change: Enrolment, position: Position | None) -> int:
        """Hold a voice; the generation held now. Raises Stale for an old generation or another incarnation."""

        async def apply() -> int:
            return await self._enroll(change)

        applied = await self._command(position, apply)
        if applied is not None:
            return applied
        held = self._store.find(change.tenant_id, change.voice_id)
        return held.generation if held else change.generation

    async def evict(self, change: Eviction, position: Position | None) -> bool:
        """Forget a voice; whether it was held."""
        was_held = self._store.find(change.tenant_id, change.voice_id) is not None

        async def apply() -> bool:
            return await self._evict(change)

        applied = await self._command(position, apply)
        return was_held if applied is None else applied

    async def sync(self, todo: Next) -> None:
        """Do what a renewal asked for: read the log to its head, from an empty store if need be."""
        if todo is Next.NOTHING:
            return
        async with self._order:
            if todo is Next.WIPE_AND_SYNC:
                if self._lease is not None:
                    # First: a push may have brought the node to serve since the wipe was asked for.
                    self._lease.restart()
                await self._wipe("resync")
            await self._read_on()

    async def wipe(self, reason: str) -> None:
        """The lease is gone: forget every voice at once, whatever is being applied."""
        await self._wipe(reason)

    async def _wipe(self, reason: str) -> None:
        self._evicted(reason, await self._store.wipe())

    async def _evict(self, change: Eviction) -> bool:
        was_held = await self._store.evict(change.tenant_id, change.voice_id, change.generation)
        reach("evict.zeroed")
        self._evicted("erase", int(was_held))
        # Not whose it was: that nobody is to know any more once the erasure is done.
        get_logger().info("voice.forgotten", audit_id=change.audit_id or None, was_held=was_held)
        return was_held

    async def _command(self, position: Position | None, apply: Callable[[], Awaitable[T]]) -> T | None:
        """Apply a command in its place; None when it was applied already, here or by reading the log."""
        if self._lease is None:
            return await apply()
        if position is None:
            raise InvalidRequest("this node belongs to a fleet: commands come from its control plane, with `position`")
        async with self._order:
            judgement = self._lease.judge(position.incarnation, position.revision, position.as_of)
            if judgement is Judgement.SYNC_FIRST:
                await self._read_on()
                judgement = self._lease.judge(position.incarnation, position.revision)
                if judgement is not Judgement.KNOWN:
                    raise Unavailable("the fleet log does not hold the command yet: send it again", retry_after_s=0.5)
            if judgement is Judgement.KNOWN:
                return None
            result = await apply()
            if judgement is Judgement.APPLY:
                self._lease.applied(position.incarnation, position.revision)
            return result

    async def _read_on(self) -> None:
        lease, reader = self._lease, self._reader
        assert lease is not None and reader is not None
        incarnation = lease.incarnation
        in_snapshot = False
        async with aclosing(reader.read(incarnation, lease.cursor)) as messages:  # type: ignore[type-var]
            async for message in messages:
                lease.require(incarnation)  # nothing is held for an incarnation that ended
                match message:
                    case SnapshotBegin():
                        in_snapshot = True
                        lease.restart()  # one that breaks off leaves a store that stands for no revision
                        await self._wipe("resync")
                    case SnapshotEnd():
                        in_snapshot = False
                        lease.applied(incarnation, message.revision)
                    case SnapshotVoices() if in_snapshot:
                        await self._hold(message.voices)
                    case Entry() if in_snapshot:
                        await self._apply(message.change)
                    case Entry() if message.revision > lease.cursor:
                        lease.require_next(incarnation, message.revision)
                        await self._apply(message.change)
                        lease.applied(incarnation, message.revision)
        if in_snapshot:
            raise Unavailable("the snapshot of the fleet log broke off")
        lease.reconciled(incarnation)

    async def _hold(self, changes: Sequence[Enrolment]) -> None:
        wanted = [
            (
                Voice(one.tenant_id, one.voice_id, one.generation, one.label, -1, one.net_speech_samples, one.audience),
                one.embedding,
            )
            for one in changes
            if one.embedding is not None
        ]
        for voice in await self._store.put_all(wanted):
            get_logger().error("log.entry_refused", voice_id=voice.voice_id, cause="invalid")

    async def _apply(self, change: Enrolment | Eviction) -> None:
        """Apply an entry of the log. One that cannot be is left out loudly: the others must not wait for it."""
        try:
            if isinstance(change, Enrolment):
                await self._enroll(change)
            else:
                await self._evict(change)
        except Stale:
            pass  # the store has seen something newer, pushed to it out of the log's order
        except SpeakerdError as error:
            if isinstance(error, Unavailable) or not isinstance(change, Enrolment):
                raise
            get_logger().error("log.entry_refused", voice_id=change.voice_id, cause=error.cause.value)

    async def _enroll(self, change: Enrolment) -> int:
        if change.embedding is None:
            # Of another model: nothing older of it may go on naming either.
            held = self._store.find(change.tenant_id, change.voice_id)
            if held is not None and held.generation < change.generation:
                await self._store.evict(change.tenant_id, change.voice_id, held.generation)
            return change.generation
        voice = await self._store.put(
            change.tenant_id,
            change.voice_id,
            change.generation,
            label=change.label,
            embedding=change.embedding,
            net_speech_samples=change.net_speech_samples,
            audience=change.audience,
        )
        reach("enroll.held")
        return voice.generation

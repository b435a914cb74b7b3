"""The voices that this node holds: who owns which row of the gallery on the device, under which generation and label.

In: enrolments and evictions, each with a generation. Out: candidates of a tenant, and their scores. What always
holds: a voice that is forgotten cannot be named from the moment `evict` or `wipe` is called, and its row is zeroed on
the device before they return; a row is given to another voice only after it was zeroed; an older generation never
replaces a newer one, nor an eviction; and nothing of one tenant is seen in the name of another. Labels live here, in
memory, alone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from models.analysis import FloatArray
from models.naming import same_voice
from node.audiences import is_own_audience, require_own_audience
from node.device_thread import DeviceThread
from node.engine import Engine
from node.fault_points import reach
from runtime.errors import InvalidRequest, SpeakerdError, Stale
from runtime.voice_digest import VoiceDigest

T = TypeVar("T")
WHOLE_ROSTER_MAX = 4_096
"""Of so many candidates every cosine is told; of more, those of the nearest to each query alone."""
NEAREST = 32
ROSTERS_MAX = 256
"""Rosters kept for streams to come; those of streams that run are the streams' own."""
VOICES_AT_ONCE = 64
"""How many voices of many are entered before others have their turn."""
TOMBSTONES_MAX = 10_000
"""Evicted generations remembered, so that a late enrolment of one is refused. A fleet's log orders them anyway."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice that is held. row: its place in the gallery. net_speech_samples: clean speech that it stands on.

    audience: whose streams it is matched for (node.audiences); "": its tenant's. person: the same for voices of one
    person, who was enrolled more than once under one label and for one audience; the id of one of them.
    """

    tenant_id: str
    voice_id: str
    generation: int
    label: str
    row: int
    net_speech_samples: int
    audience: str = ""
    person: str = ""

    @property
    def called(self) -> tuple[str, str, str]:
        """Voices of one person agree in this. Who is called nothing is told apart by the voice alone."""
        return self.tenant_id, self.audience or self.tenant_id, self.label.casefold() or f"\0{self.voice_id}"

    def __repr__(self) -> str:
        return f"Voice({self.tenant_id}/{self.voice_id}, generation {self.generation}, row {self.row})"


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """Candidates as they were at one moment: shared by all streams of the same audiences until a voice of one changes.

    revision: of the audiences' voices. rows: (V,) int64, their rows in the gallery. generations: by voice id.
    net_speech_samples: (V,) int64, clean speech that each stands on. num_in_scope: how many voices there were to choose
    from, where these are the nearest of them; V otherwise. persons: (V,) int64, the same number for voices of one
    person. None where nobody is there twice.
    """

    audiences: tuple[str, ...]
    revision: int
    voices: tuple[Voice, ...]
    rows: np.ndarray
    generations: Mapping[str, int]
    net_speech_samples: np.ndarray
    num_in_scope: int
    persons: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.voices)


NOBODY = Roster((), 0, (), np.zeros(0, np.int64), {}, np.zeros(0, np.int64), 0)
"""The roster where no voice may be named."""


class VoiceStore:
    """Voices by tenant, and rows of the gallery. Changes are made one after another."""

    def __init__(
        self, device: DeviceThread, *, embedding_dim: int, timed: Callable[[float], None] = lambda _: None
    ) -> None:
        """timed: told what each look took, in seconds."""
        self._device = device
        self._tell_time = timed
        self._embedding_dim = embedding_dim
        self._tenants: dict[str, dict[str, Voice]] = {}
        self._free_rows: list[int] = []
        self._doomed_rows: set[int] = set()  # of nobody any more, and not known to be zero yet
        self._num_rows = 0
        self._digest = VoiceDigest()
        self._tombstones: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._order = asyncio.Lock()
        self._acts: set[asyncio.Task[Any]] = set()
        self._epoch = 0  # grows with each wipe
        self._audiences: dict[str, dict[str, Voice]] = {}
        self._called: dict[tuple[str, str, str], dict[str, Voice]] = {}
        self._rosters: OrderedDict[tuple[str, ...], Roster] = OrderedDict()
        self._revisions: dict[str, int] = {}  # of each audience: grows with every change of its voices

    def __repr__(self) -> str:
        return f"VoiceStore({len(self)} voices of {len(self._tenants)} tenants, {self._num_rows} rows)"

    def __len__(self) -> int:
        return sum(len(voices) for voices in self._tenants.values())

    def digest(self) -> bytes:
        """32 bytes that tell what is held (runtime.voice_digest)."""
        return self._digest.value()

    def voices(self, tenant_id: str | None = None) -> list[Voice]:
        """Every voice of a tenant, or of all."""
        if tenant_id is not None:
            return list(self._tenants.get(tenant_id, {}).values())
        return [voice for voices in self._tenants.values() for voice in voices.values()]

    def candidates(self, audiences: tuple[str, ...], allowed: frozenset[str] = frozenset()) -> Roster:
        """The voices that may be named to a stream of these audiences; allowed: empty for all of them."""
        if allowed:
            return self._roster(audiences, [voice for voice in self._heard(audiences) if voice.voice_id in allowed])
        known = self._rosters.get(audiences)
        if known is None:
            if not self.has_candidates(audiences):
                return NOBODY
            known = self._rosters[audiences] = self._roster(audiences, self._heard(audiences))
            if len(self._rosters) > ROSTERS_MAX:
                self._rosters.popitem(last=False)
        return known

    def has_candidates(self, audiences: tuple[str, ...]) -> bool:
        """Whether any voice may be named to a stream of these audiences."""
        return any(self._audiences.get(audience) for audience in audiences)

    def find(self, tenant_id: str, voice_id: str) -> Voice | None:
        """The voice as it is held now."""
        return self._tenants.get(tenant_id, {}).get(voice_id)

    def find_for(self, audiences: tuple[str, ...], voice_id: str) -> Voice | None:
        """The voice as it is held now, if it may be named to a stream of these audiences."""
        for audience in audiences:
            if (held := self._audiences.get(audience, {}).get(voice_id)) is not None:
                return held
        return None

    async def put(
        self,
        tenant_id: str,
        voice_id: str,
        generation: int,
        *,
        label: str,
        embedding: FloatArray,
        net_speech_samples: int,
        audience: str = "",
    ) -> Voice:
        """Hold a voice. generation 0 takes the next one. Repeating a generation changes nothing.

        embedding: (D,) float32, unit length. Raises InvalidRequest for another shape or length, Stale for a generation
        older than what was held or evicted.
        """
        require_fit(embedding, self._embedding_dim)
        # The epoch is that of this moment: a wipe that comes before the task begins has to be seen by it.
        held = Voice(tenant_id, voice_id, generation, label, -1, net_speech_samples, audience)
        require_own_audience(tenant_id, audience)
        return await self._act(self._put(held, embedding.astype(np.float32), self._epoch))

    async def put_all(self, wanted: Sequence[tuple[Voice, FloatArray]]) -> list[Voice]:
        """Hold many voices, each with its (D,) embedding, by one call of the device; as a snapshot brings them.

        What is older than what was seen is passed over. Returns those whose embedding cannot be held. Raises Stale when
        everything was forgotten meanwhile.
        """
        fitting = [
            (voice, embedding)
            for voice, embedding in wanted
            if _is_fit(embedding, self._embedding_dim) and is_own_audience(voice.tenant_id, voice.audience)
        ]
        await self._act(self._put_all(fitting, self._epoch))
        held = {id(voice) for voice, _ in fitting}
        return [voice for voice, _ in wanted if id(voice) not in held]

    async def evict(self, tenant_id: str, voice_id: str, generation: int) -> bool:
        """Forget a voice; whether it was held. generation 0 means whichever is held.

        Raises Stale when what is held is newer than the generation to forget.
        """
        held = self.find(tenant_id, voice_id)
        if held is not None and generation and held.generation > generation:
            raise Stale(f"generation {held.generation} of this voice is held, newer than {generation}")
        # Unnamed before anything is awaited: whatever the device is doing, nothing says the name from here on.
        if held is not None:
            self._unname(held)
            reach("evict.unnamed")
        self._bury(tenant_id, voice_id, max(generation, held.generation if held else 0))
        # Also when it is not held: an earlier attempt may have failed on its way to the device.
        await self._act(self._zero())
        return held is not None

    async def wipe(self) -> int:
        """Forget every voice, and tombstones too; how many were held."""
        held = self.voices()
        self._epoch += 1
        for voice in held:
            self._unname(voice)
        self._tombstones.clear()
        await self._act(self._zero())
        return len(held)

    async def scores(
        self, queries: FloatArray, roster: Roster, carried: Collection[str] = ()
    ) -> tuple[FloatArray, Roster]:
        """Cosines (Q, V) of (Q, D) unit queries, and the voices of the columns: those that are still held as they were.

        A row may have changed hands while the call waited; a column of which that is so is left out. Of a large roster
        the columns are the NEAREST voices to each query, and the `carried` ones, whom speakers are called by already.
        """
        began_s = perf_counter()
        if len(roster) > WHOLE_ROSTER_MAX and len(queries):
            roster = await self._nearest(queries, roster, carried)
        found = await self._device.call(lambda engine: engine.gallery.scores(queries, roster.rows))
        self._tell_time(perf_counter() - began_s)
        if roster.revision == self._revision(roster.audiences):
            return found, roster
        kept = [
            index for index, voice in enumerate(roster.voices) if self.find(voice.tenant_id, voice.voice_id) == voice
        ]
        left = self._roster(roster.audiences, [roster.voices[index] for index in kept], roster.num_in_scope)
        return found[:, kept], left

    async def _nearest(self, queries: FloatArray, roster: Roster, carried: Collection[str]) -> Roster:
        """The part of a roster that could matter to these queries. It keeps the roster's revision."""
        found = await self._device.call(lambda engine: engine.gallery.top_k(queries, NEAREST, roster.rows))
        places = {int(place) for place in np.unique(found.places)}
        if wanted := set(carried) & roster.generations.keys():
            places |= {index for index, voice in enumerate(roster.voices) if voice.voice_id in wanted}
        part = self._roster(roster.audiences, [roster.voices[place] for place in sorted(places)], len(roster))
        return replace(part, revision=roster.revision)

    def _heard(self, audiences: tuple[str, ...]) -> list[Voice]:
        # Should a global voice ever have the id of one's own, one's own is meant.
        found: dict[str, Voice] = {}
        for audience in audiences:
            for voice_id, voice in self._audiences.get(audience, {}).items():
                found.setdefault(voice_id, voice)
        return list(found.values())

    def _revision(self, audiences: tuple[str, ...]) -> int:
        # Each of them only grows, and so their sum tells whether any did.
        return sum(self._revisions.get(audience, 0) for audience in audiences)

    def _roster(self, audiences: tuple[str, ...], voices: Sequence[Voice], num_in_scope: int | None = None) -> Roster:
        return Roster(
            audiences,
            self._revision(audiences),
            tuple(voices),
            np.array([voice.row for voice in voices], np.int64),
            {voice.voice_id: voice.generation for voice in voices},
            np.array([voice.net_speech_samples for voice in voices], np.int64),
            len(voices) if num_in_scope is None else num_in_scope,
            _persons(voices),
        )

    async def _put(self, wanted: Voice, embedding: FloatArray, epoch: int) -> Voice:
        tenant_id, voice_id = wanted.tenant_id, wanted.voice_id
        async with self._order:
            newest = self._newest(tenant_id, voice_id)
            generation = wanted.generation or newest + 1
            held = self.find(tenant_id, voice_id)
            if held is not None and generation == held.generation:
                return held
            self._refuse_old(generation, newest, epoch)
            row = self._take_row()
            others = self._others_called(wanted)

            def write(engine: Engine) -> str:
                engine.gallery.put(row, embedding)
                return _person_of(wanted, embedding, others, engine)

            try:
                person = await self._device.call(write)
            except SpeakerdError:
                self._free_rows.append(row)  # refused before it was written
                raise
            except Exception:
                self._doomed_rows.add(row)
                raise
            reach("enroll.written")
            try:
                # Again: an eviction, or the loss of the lease, may have come while the row was written.
                self._refuse_old(generation, self._newest(tenant_id, voice_id), epoch)
            except Stale:
                self._doomed_rows.add(row)
                await self._zero_doomed()
                raise
            held = self.find(tenant_id, voice_id)
            if held is not None:
                self._unname(held)
            voice = replace(wanted, generation=generation, row=row, person=person)
            self._name(voice)
            await self._zero_doomed()
            return voice

    async def _put_all(self, wanted: Sequence[tuple[Voice, FloatArray]], epoch: int) -> None:
        async with self._order:
            new = [
                (replace(voice, row=self._take_row()), np.asarray(embedding, np.float32))
                for voice, embedding in wanted
                if voice.generation > self._newest(voice.tenant_id, voice.voice_id)
            ]
            called = {voice.called: self._others_called(voice) for voice, _ in new}

            def write(engine: Engine) -> list[Voice]:
                written = []
                for voice, embedding in new:
                    engine.gallery.put(voice.row, embedding)
                    known = replace(voice, person=_person_of(voice, embedding, called[voice.called], engine))
                    called[voice.called].append(known)
                    written.append(known)
                return written

            try:
                written = await self._device.call(write)
            except BaseException:
                self._doomed_rows.update(voice.row for voice, _ in new)
                raise
            for index, voice in enumerate(written):
                if index % VOICES_AT_ONCE == 0:
                    await asyncio.sleep(0)  # others have their turn; whatever they did is looked at below
                # Again: an eviction, or the loss of the lease, may have come while the rows were written.
                if epoch != self._epoch or voice.generation <= self._newest(voice.tenant_id, voice.voice_id):
                    self._doomed_rows.add(voice.row)
                    continue
                held = self.find(voice.tenant_id, voice.voice_id)
                if held is not None:
                    self._unname(held)
                self._name(voice)
            await self._zero_doomed()
            if epoch != self._epoch:
                raise Stale("this node forgot all voices while these were enrolled: enrol them again")

    def _newest(self, tenant_id: str, voice_id: str) -> int:
        held = self.find(tenant_id, voice_id)
        return max(held.generation if held else 0, self._tombstones.get((tenant_id, voice_id), 0))

    def _refuse_old(self, generation: int, newest: int, epoch: int) -> None:
        if generation <= newest:
            raise Stale(f"generation {generation} of this voice is not newer than {newest}, which this node has seen")
        if epoch != self._epoch:
            raise Stale("this node forgot all voices while this one was enrolled: enrol it again")

    async def _zero(self) -> None:
        async with self._order:
            await self._zero_doomed()

    async def _zero_doomed(self) -> None:
        rows = sorted(self._doomed_rows)
        if rows:
            await self._device.call(lambda engine: engine.gallery.zero(rows))
            self._doomed_rows.difference_update(rows)
            self._free_rows.extend(rows)

    async def _act(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end, even if its caller goes away half-way."""
        act = asyncio.create_task(work, name="voice-store")
        self._acts.add(act)
        act.add_done_callback(self._acts.discard)
        return await asyncio.shield(act)

    def _name(self, voice: Voice) -> None:
        self._tenants.setdefault(voice.tenant_id, {})[voice.voice_id] = voice
        self._audiences.setdefault(voice.audience or voice.tenant_id, {})[voice.voice_id] = voice
        self._called.setdefault(voice.called, {})[voice.voice_id] = voice
        self._digest.add(voice.tenant_id, voice.voice_id, voice.generation)
        self._changed(voice.audience or voice.tenant_id)

    def _unname(self, voice: Voice) -> None:
        audience = voice.audience or voice.tenant_id
        for held, key in ((self._tenants, voice.tenant_id), (self._audiences, audience)):
            del held[key][voice.voice_id]
            if not held[key]:
                del held[key]
        del self._called[voice.called][voice.voice_id]
        if not self._called[voice.called]:
            del self._called[voice.called]
        self._doomed_rows.add(voice.row)
        self._digest.remove(voice.tenant_id, voice.voice_id, voice.generation)
        self._changed(audience)

    def _changed(self, audience: str) -> None:
        # At once, and not when they are asked for next: a roster holds labels.
        for audiences in [audiences for audiences in self._rosters if audience in audiences]:
            del self._rosters[audiences]
        self._revisions[audience] = self._revisions.get(audience, 0) + 1

    def _others_called(self, voice: Voice) -> list[Voice]:
        return [other for other in self._called.get(voice.called, {}).values() if other.voice_id != voice.voice_id]

    def _bury(self, tenant_id: str, voice_id: str, generation: int) -> None:
        if not generation:
            return
        self._tombstones[tenant_id, voice_id] = max(generation, self._tombstones.pop((tenant_id, voice_id), 0))
        while len(self._tombstones) > TOMBSTONES_MAX:
            self._tombstones.popitem(last=False)

    def _take_row(self) -> int:
        if self._free_rows:
            return self._free_rows.pop()
        self._num_rows += 1
        return self._num_rows - 1


def _is_fit(embedding: FloatArray, embedding_dim: int) -> bool:
    try:
        require_fit(embedding, embedding_dim)
    except InvalidRequest:
        return False
    return True


def require_fit(embedding: FloatArray, embedding_dim: int) -> None:
    """Raises InvalidRequest for what is no voiceprint of so many floats, of unit length."""
    if embedding.shape != (embedding_dim,):
        raise InvalidRequest(f"the voiceprint has {embedding.size} floats, this node's model takes {embedding_dim}")
    # In double precision: the squares of large floats are beyond what a float holds.
    if not np.isfinite(embedding).all() or abs(np.linalg.norm(embedding.astype(np.float64)) - 1.0) > 1e-2:
        raise InvalidRequest("the voiceprint is not of unit length: send it as Analyze gave it")


def _person_of(voice: Voice, embedding: FloatArray, others: Sequence[Voice], engine: Engine) -> str:
    """Whose a voice is: that of the nearest of `others`, who are called alike, if it would be named as that one."""
    if not others:
        return voice.voice_id
    cosines = engine.gallery.scores(embedding[None], np.array([other.row for other in others], np.int64))[0]  # (V,)
    speech = np.array([other.net_speech_samples for other in others], np.int64)
    nearest = int(np.argmax(cosines))
    is_same = bool(same_voice(cosines, voice.net_speech_samples, speech, engine.naming)[nearest])
    return others[nearest].person if is_same else voice.voice_id


def _persons(voices: Sequence[Voice]) -> np.ndarray | None:
    """Whose each voice is; None where nobody is there twice."""
    numbers: dict[tuple[str, str], int] = {}
    found = [numbers.setdefault((voice.tenant_id, voice.person or voice.voice_id), len(numbers)) for voice in voices]
    return None if len(numbers) == len(voices) else np.array(found, np.int64)

"""Taking up the intake of a voice that is stuck: once more, now.

In: a caller and a voice. Out: the voice as it is then. What always holds: a voice that is ready stays as it is; one
that failed is listened to again where its recordings are still kept, and stays failed where they are not.
"""

from __future__ import annotations

from sqlalchemy import func, select, update

from controlplane import audit
from controlplane.completion import Completion
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import samples, voices
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.policy import Principal, Right
from controlplane.voice_generation import FROZEN
from controlplane.voice_lookup import NO_SUCH_VOICE, find_voice
from controlplane.voice_rows import NOT_HEARD
from controlplane.voices import Voice, Voices
from runtime.clock import Clock
from runtime.errors import Conflict, NotFound


class Repromotion:
    """The use case."""

    def __init__(
        self, *, database: Database, keys: KeyRing, library: Voices, completion: Completion, clock: Clock
    ) -> None:
        self._database = database
        self._keys = keys
        self._library = library
        self._completion = completion
        self._clock = clock

    def __repr__(self) -> str:
        return "Repromotion()"

    async def repromote(self, principal: Principal, voice_id: str) -> Voice:
        """Listen to a voice's recordings again, unless it is ready. Raises NotFound, Denied, Conflict."""
        async with self._database.write() as connection:
            await locked_head(connection)
            voice = await find_voice(connection, principal, voice_id, Right.CHANGE)
            of_voice = (voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
            row = (await connection.execute(select(voices.c.state, voices.c.generation).where(*of_voice))).one()
            if row.state in ("erasing", "erased"):
                raise NotFound(NO_SUCH_VOICE)
            if row.state == FROZEN:
                raise Conflict("consent was withdrawn: the voice is used again once there is a new one")
            if row.state == "failed":
                kept = select(func.count()).select_from(samples)
                kept = kept.where(samples.c.tenant_id == voice.tenant_id, samples.c.voice_id == voice.voice_id)
                if not (await connection.execute(kept)).scalar_one():
                    raise Conflict("its recordings are not kept any more: erase the voice and enrol the person anew")
                now_s = self._clock.wall_s()
                waiting = {"state": "pending", "state_reason": NOT_HEARD, "state_code": "", "updated_at_s": now_s}
                await connection.execute(update(voices).where(*of_voice).values(**waiting))
                facts: dict[str, str | int] = {
                    "subject": self._keys.subject(voice.tenant_id, voice.voice_id),
                    "tenant_id": voice.tenant_id,
                    "generation": int(row.generation),
                    "key_id": principal.key_id,
                }
                await audit.append(connection, "voice.repromoted", at_s=now_s, facts=facts)
        if row.state != "ready":
            await self._listen(voice)
        return await self._library.get(voice)

    async def _listen(self, voice: VoiceAddress) -> None:
        await self._completion.again(voice)
        await self._library.spread(voice)

"""Answers that are given again: a request that carries the same Idempotency-Key within a day is done once.

In: who asks, their key, and a digest of what they ask for. Out: nothing the first time, and the kept answer after that.
What always holds: the caller's key is kept as a keyed digest alone, and the answer as ciphertext; one that tells of a
voice is sealed with that voice's own key, so that an erasure makes it unreadable with the rest; of two requests with
one key at the same time one is done and the other told to wait; the same key for another request is refused.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.schema import data_keys, kept_answers
from controlplane.database.spaces_schema import space_keys
from controlplane.derived_keys import kept_answers_key, open_answer, seal_answer
from controlplane.keys import DataKey, KeyRing, VoiceAddress
from controlplane.policy import Principal
from runtime.clock import Clock
from runtime.errors import Conflict, InvalidRequest, SpeakerdError

KEPT_S = 24 * 3600.0
UNDER_WAY_S = 300.0
"""How long a request may be under way: one that began earlier died with its process, and the key is free again."""
KEY_CHARS_MAX = 255
ANSWER_BYTES_MAX = 1 << 20
KIND = "kept answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered. headers: those that belong to the answer, lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to do a request that carries a key: `keep` its answer, or `drop` it for another try.

    name: what the core may know this request by; it says nothing about the caller's key.
    """

    name: str
    began_at_s: float


class KeptAnswers:
    """The answers of the last day."""

    def __init__(self, database: Database, keys: KeyRing, clock: Clock) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    def __repr__(self) -> str:
        return "KeptAnswers()"

    async def begin(self, principal: Principal, key: str, call: str, request_digest: bytes) -> Turn | Answer:
        """Begin a request, or get what it was answered with.

        Args:
            principal: Who asks; two users of one tenant may use the same key.
            key: The caller's, 1 to 255 characters.
            call: Which call it is, for example "POST /v1/diarize".
            request_digest: Of everything that makes it this request.

        Raises:
            InvalidRequest: The key is empty or too long.
            Conflict: The key was used for another request, or its request is still under way.
        """
        if not 1 <= len(key) <= KEY_CHARS_MAX:
            raise InvalidRequest(f"Idempotency-Key: 1 to {KEY_CHARS_MAX} characters")
        name = self._name(principal, key, call)
        now_s = self._clock.wall_s()
        async with self._database.write() as connection:
            await connection.execute(delete(kept_answers).where(kept_answers.c.began_at_s < now_s - KEPT_S))
            row = (await connection.execute(select(kept_answers).where(kept_answers.c.name == name))).one_or_none()
            if row is not None and row.status is None and row.began_at_s < now_s - UNDER_WAY_S:
                await connection.execute(delete(kept_answers).where(kept_answers.c.name == name))
                row = None
            if row is None:
                try:
                    await connection.execute(
                        insert(kept_answers).values(
                            name=name,
                            tenant_id=principal.tenant_id,
                            request_digest=request_digest,
                            began_at_s=now_s,
                        )
                    )
                except IntegrityError:
                    raise _under_way() from None
                return Turn(name, now_s)
        if not hmac.compare_digest(bytes(row.request_digest), request_digest):
            raise Conflict("this Idempotency-Key was used for another request: use a new one")
        if row.status is None:
            raise _under_way()
        plain = await self._opened(row)
        if plain is None:
            raise Conflict("what was made with this Idempotency-Key has been erased since: use a new one")
        kept = json.loads(plain)
        return Answer(row.status, kept["headers"], bytes.fromhex(kept["body"]))

    async def keep(self, turn: Turn, answer: Answer, about: VoiceAddress | None = None) -> None:
        """Keep the answer of a request; one that is too large is not kept, and its key is free again.

        about: the voice that it tells of, if it does; or what lies in a space, by its id.
        """
        if len(answer.body) > ANSWER_BYTES_MAX:
            await self.drop(turn)
            return
        plain = json.dumps({"headers": answer.headers, "body": answer.body.hex()}).encode()
        async with self._database.write() as connection:
            if about is None:
                ciphertext = seal_answer(self._keys, plain, turn.name)
            else:
                key = await self._data_key(connection, about)
                # A voice that was erased meanwhile has no key, and its answer is not kept: it opens for nobody.
                ciphertext = b"" if key is None else key.encrypt(plain, KIND, turn.name)
            await connection.execute(
                update(kept_answers)
                .where(kept_answers.c.name == turn.name, kept_answers.c.began_at_s == turn.began_at_s)
                .values(
                    status=answer.status,
                    ciphertext=ciphertext,
                    voice_tenant_id=about and about.tenant_id,
                    voice_id=about and about.voice_id,
                )
            )

    async def drop(self, turn: Turn) -> None:
        """Free the key: the request came to nothing."""
        async with self._database.write() as connection:
            await connection.execute(
                delete(kept_answers).where(
                    kept_answers.c.name == turn.name,
                    kept_answers.c.began_at_s == turn.began_at_s,
                    kept_answers.c.status.is_(None),
                )
            )

    async def _opened(self, row: Row[Any]) -> bytes | None:
        if row.voice_id is None:
            return open_answer(self._keys, bytes(row.ciphertext), row.name)
        async with self._database.read() as connection:
            key = await self._data_key(connection, VoiceAddress(row.voice_tenant_id, row.voice_id))
        if key is None:
            return None
        try:
            return key.decrypt(bytes(row.ciphertext), KIND, row.name)
        except SpeakerdError:
            # Another key: the voice was erased, and enrolled anew under its old id.
            return None

    async def _data_key(self, connection: AsyncConnection, voice: VoiceAddress) -> DataKey | None:
        query = select(data_keys.c.wrapped).where(
            data_keys.c.tenant_id == voice.tenant_id, data_keys.c.voice_id == voice.voice_id
        )
        wrapped = (await connection.execute(query)).scalar_one_or_none()
        if wrapped is None:
            # What lies in a space has keys of its own: an identity that is no voice yet, an audio, the space.
            of_thing = select(space_keys.c.wrapped).where(
                space_keys.c.tenant_id == voice.tenant_id, space_keys.c.thing_id == voice.voice_id
            )
            wrapped = (await connection.execute(of_thing)).scalar_one_or_none()
        return None if wrapped is None else self._keys.open(voice, bytes(wrapped))

    def _name(self, principal: Principal, key: str, call: str) -> str:
        parts = json.dumps([principal.tenant_id, principal.user_id, call, key])
        return hmac.digest(kept_answers_key(self._keys), parts.encode(), "sha256").hex()


def _under_way() -> Conflict:
    return Conflict("the first request with this Idempotency-Key is still under way; try again", retry_after_s=1.0)

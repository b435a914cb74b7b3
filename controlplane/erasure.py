"""Erasing a voice, and asking how its erasure stands.

In: who asks, for which voice, why. Out: an Erasure that is `erasing` from one transaction on (tombstone, EVICT in the
fleet log, the voice's key destroyed, audit), in the erasure journal before it is answered, and `erased` once it is
proven (`controlplane.erasure_work`). Asking again gives the same one; what is not there and what is another's look the
same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import erasure_record
from controlplane.agreements import Event, Signed, note
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import erasures, voices
from controlplane.erasure_rows import GONE, Asking, Erasure, erasure_of, latest_of
from controlplane.erasure_work import ErasureWork
from controlplane.fault_points import reach
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.metrics import Metrics
from controlplane.policy import GLOBAL_TENANT, Principal, Right
from controlplane.pulse import wait_s
from controlplane.voice_lookup import NO_SUCH_VOICE, find_voice, visible_to
from runtime.clock import Clock
from runtime.errors import Denied, InvalidRequest, NotFound
from runtime.logs import get_logger

WAIT_S_MAX = 30.0
PAGE_MAX = 200
PAGE_DEFAULT = 50
LOOK_S = 0.1
"""How often whoever waits for a proof looks whether another control plane has it."""
ENDS_LICENCE = {
    "license_revoked": Event.LICENCE_REVOKED,
    "license_expired": Event.LICENCE_EXPIRED,
    "platform_decision": Event.LICENCE_ENDED,
}
"""What becomes of a global voice's licence when the voice is erased for this."""
BATCH_VOICES = 50
"""Voices of a tenant that are asked for in one transaction."""


Step = Callable[[AsyncConnection], Awaitable[None]]
"""What is written before a voice is erased, in the same transaction. Whatever it raises undoes all of it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Erasures, newest first. token: of the next page; empty: that was all."""

    erasures: tuple[Erasure, ...]
    token: str


class Erasures:
    """The use case."""

    def __init__(self, *, database: Database, keys: KeyRing, work: ErasureWork, clock: Clock, metrics: Metrics) -> None:
        self._database = database
        self._keys = keys
        self._work = work
        self._clock = clock
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"Erasures({self._work!r})"

    async def erase(
        self, principal: Principal, voice_id: str, *, asking: Asking | None = None, wait_s_max: float = 0.0
    ) -> Erasure:
        """Erase a voice, and wait for the proof at most so long. Repeating it gives the same one.

        Raises NotFound, Denied where the voice may only be seen, InvalidRequest, and Unavailable when it could not be
        made durable: repeat it then.
        """
        asking = replace(asking or Asking(), key_id=principal.key_id)
        asking.require_valid()
        if wait_s_max > WAIT_S_MAX:
            raise InvalidRequest(f"wait_ms: at most {round(WAIT_S_MAX * 1000)}")
        async with self._database.write() as connection:
            await locked_head(connection)
            voice = await find_voice(connection, principal, voice_id, Right.ERASE)
            audit_id = await self._request(connection, voice, asking, ends_licence=voice.tenant_id == GLOBAL_TENANT)
        return await self._asked(audit_id, wait_s_max)

    async def erase_voice(
        self, voice: VoiceAddress, asking: Asking, *, before: Step | None = None, wait_s_max: float = 0.0
    ) -> Erasure:
        """Erase a voice whoever asks: what a licence that ran out, or the dialect that owns it, asks for.

        before: what has to be written first, in the same transaction. Raises NotFound.
        """
        asking.require_valid()
        async with self._database.write() as connection:
            await locked_head(connection)
            if before is not None:
                await before(connection)
            audit_id = await self._request(connection, voice, asking)
        return await self._asked(audit_id, wait_s_max)

    async def erase_all(self, principal: Principal, tenant_id: str, asking: Asking) -> AsyncIterator[Erasure]:
        """Erase every voice of a tenant; each erasure as it is asked for. Raises Denied, InvalidRequest."""
        asking = replace(asking, key_id=principal.key_id)
        asking.require_valid()
        if not principal.is_admin:
            raise Denied("erasing every voice of a tenant is for its administrators")
        if tenant_id != principal.tenant_id:
            raise InvalidRequest("tenant_id: write out the id of your own tenant, whose voices are all erased")
        after = ""
        while True:
            async with self._database.write() as connection:
                await locked_head(connection)
                query = select(voices.c.voice_id).where(
                    voices.c.tenant_id == tenant_id, voices.c.voice_id > after, voices.c.state.not_in(GONE)
                )
                page = (await connection.execute(query.order_by(voices.c.voice_id).limit(BATCH_VOICES))).all()
                asked = [await self._request(connection, VoiceAddress(tenant_id, row.voice_id), asking) for row in page]
            if not page:
                return
            after = page[-1].voice_id
            await self._work.asked()
            for audit_id in asked:
                get_logger().info("erasure.asked", audit_id=audit_id)
                yield await self._look(audit_id)

    async def get(self, principal: Principal, audit_id: str) -> Erasure:
        """How an erasure stands. Raises NotFound, also for that of a voice which the caller could not see."""
        of_voice = and_(voices.c.tenant_id == erasures.c.tenant_id, voices.c.voice_id == erasures.c.voice_id)
        query = (
            select(erasures)
            .join(voices, of_voice, isouter=True)
            .where(
                erasures.c.audit_id == audit_id,
                erasures.c.tenant_id.in_(_tenants(principal)),
                # Once the tombstone is purged, nothing says any more whose the voice was.
                or_(voices.c.voice_id.is_(None), visible_to(principal)),
            )
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound("no such erasure")
        return erasure_of(row)

    async def list(self, principal: Principal, *, page_size: int, page_token: str) -> Page:
        """A tenant's erasures, newest first. Raises InvalidRequest."""
        if not 0 <= page_size <= PAGE_MAX:
            raise InvalidRequest(f"page_size: 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
        wanted = page_size or PAGE_DEFAULT
        query = select(erasures).where(erasures.c.tenant_id.in_(_tenants(principal)))
        if page_token:
            revision, audit_id = _position(page_token)
            older = erasures.c.revision < revision
            query = query.where(or_(older, and_(erasures.c.revision == revision, erasures.c.audit_id < audit_id)))
        query = query.order_by(erasures.c.revision.desc(), erasures.c.audit_id.desc()).limit(wanted + 1)
        async with self._database.read() as connection:
            found = [erasure_of(row) for row in await connection.execute(query)]
        shown = found[:wanted]
        token = f"{shown[-1].revision}:{shown[-1].audit_id}" if len(found) > wanted else ""
        return Page(tuple(shown), token)

    async def run(self) -> None:
        """Work for ever on what is open."""
        await self._work.run()

    async def close(self) -> None:
        """Leave off; what is open is taken up by the next run."""
        await self._work.close()

    async def _request(
        self, connection: AsyncConnection, voice: VoiceAddress, asking: Asking, *, ends_licence: bool = False
    ) -> str:
        row = (
            await connection.execute(
                select(voices.c.state, voices.c.generation)
                .where(voices.c.tenant_id == voice.tenant_id, voices.c.voice_id == voice.voice_id)
                .with_for_update()
            )
        ).one_or_none()
        if row is None:
            raise NotFound(NO_SUCH_VOICE)
        if row.state in GONE:
            return await latest_of(connection, voice)
        if ends_licence and asking.trigger in ENDS_LICENCE:
            signed = Signed(asking.key_id, self._clock.wall_s())
            await note(connection, ENDS_LICENCE[asking.trigger], voice, int(row.generation), signed=signed)
        audit_id = erasure_record.new_audit_id()
        _, sequence = await erasure_record.request(
            connection,
            self._keys,
            voice,
            asking,
            audit_id=audit_id,
            generation=int(row.generation) + 1,
            now_s=self._clock.wall_s(),
            now_lease_s=await self._database.lease_now_s(connection),
        )
        self._metrics.audit_head.set(sequence)
        return audit_id

    async def _asked(self, audit_id: str, wait_s_max: float) -> Erasure:
        reach("erase.committed")
        get_logger().info("erasure.asked", audit_id=audit_id)
        await self._work.asked()
        until_s = self._clock.monotonic_s() + wait_s_max
        while True:
            moved = self._work.moved.next()
            erasure = await self._look(audit_id)
            left_s = until_s - self._clock.monotonic_s()
            if erasure.state == "erased" or left_s <= 0:
                return erasure
            # Another control plane may be the one that proves it: it beats no pulse of ours.
            await wait_s(moved, left_s if self._database.is_sqlite else min(left_s, LOOK_S))

    async def _look(self, audit_id: str) -> Erasure:
        async with self._database.read() as connection:
            row = (await connection.execute(select(erasures).where(erasures.c.audit_id == audit_id))).one()
        return erasure_of(row)


def _tenants(principal: Principal) -> tuple[str, ...]:
    return (principal.tenant_id, GLOBAL_TENANT) if principal.is_super else (principal.tenant_id,)


def _position(page_token: str) -> tuple[int, str]:
    revision, _, audit_id = page_token.partition(":")
    if not revision.isdigit() or len(revision) > 18 or "\0" in audit_id:
        raise InvalidRequest("page_token: take it from the answer before")
    return int(revision), audit_id

"""Live streams that are asked for first and connected to once, over a WebSocket.

In: who asks; later, a session's id and the word in its url. Out: the session, and whose it is. What always holds: a
word opens one connection, within its time, on whichever control plane it arrives, and none once the key that asked was
revoked; what ended says so, also when the control plane that carried it is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update

from controlplane.database.engine import Database
from controlplane.database.schema import live_sessions
from controlplane.identity import Identity
from controlplane.policy import Principal
from controlplane.scopes import STREAMS_OPEN
from runtime.clock import Clock
from runtime.errors import NotFound, Overloaded, SpeakerdError, Unauthenticated
from runtime.logs import get_logger

OPEN_S = 300.0
"""How long a url may be connected to."""
KEPT_S = 24 * 3600.0
WAITING_MAX = 1_000
"""Of one tenant, asked for and not connected to."""
SEEN_EVERY_S = 20.0
LOST_S = 90.0
"""A running session that was not heard of for so long has died with its control plane."""

CREATED, RUNNING, SUCCEEDED, FAILED, CANCELED = "created", "running", "succeeded", "failed", "canceled"
NO_SUCH_SESSION = "there is no such live session"
_ENDS_BOUND_S = 10.0


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session. state: one of the words above. Times: Unix seconds."""

    session_id: str
    state: str
    created_at_s: float
    started_at_s: float | None
    completed_at_s: float | None


class Carrying:
    """A session that is connected. `end` says how it ended; one of which nothing is said has failed."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.state = FAILED

    def __repr__(self) -> str:
        return f"Carrying({self.state})"

    def end(self, state: str) -> None:
        """How it ended: succeeded, failed or canceled."""
        self.state = state


class LiveSessions:
    """All of them."""

    def __init__(self, database: Database, identity: Identity, clock: Clock) -> None:
        self._database = database
        self._identity = identity
        self._clock = clock

    def __repr__(self) -> str:
        return "LiveSessions()"

    async def create(self, principal: Principal) -> tuple[LiveSession, str]:
        """A session, and the word that opens it once. Raises Overloaded."""
        word = secrets.token_urlsafe(32)
        now_s = self._clock.wall_s()
        session = LiveSession(str(uuid.uuid4()), CREATED, now_s, None, None)
        async with self._database.write() as connection:
            waiting = await connection.execute(
                select(func.count())
                .select_from(live_sessions)
                .where(
                    live_sessions.c.tenant_id == principal.tenant_id,
                    live_sessions.c.state == CREATED,
                    live_sessions.c.created_at_s > now_s - OPEN_S,
                )
            )
            if int(waiting.scalar_one()) >= WAITING_MAX:
                raise Overloaded(
                    f"{WAITING_MAX} live sessions wait to be connected to: connect, or wait", retry_after_s=10.0
                )
            await connection.execute(
                insert(live_sessions).values(
                    session_id=session.session_id,
                    tenant_id=principal.tenant_id,
                    key_id=principal.key_id,
                    token_hash=_hash(word),
                    state=CREATED,
                    created_at_s=now_s,
                )
            )
        return session, word

    async def get(self, principal: Principal, session_id: str) -> LiveSession:
        """How a session of the caller's tenant stands. Raises NotFound."""
        query = select(live_sessions).where(
            live_sessions.c.session_id == session_id, live_sessions.c.tenant_id == principal.tenant_id
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            now_lease_s = await self._database.lease_now_s(connection)
        if row is None:
            raise NotFound(NO_SUCH_SESSION)
        state, completed_at_s = row.state, row.completed_at_s
        if state == RUNNING and not row.seen_lease_s <= now_lease_s < row.seen_lease_s + LOST_S:
            state = FAILED
        if state == CREATED and row.created_at_s + OPEN_S <= self._clock.wall_s():
            state = CANCELED
        return LiveSession(row.session_id, state, row.created_at_s, row.started_at_s, completed_at_s)

    @asynccontextmanager
    async def carry(self, session_id: str, word: str) -> AsyncIterator[Carrying]:
        """Connect to a session: it runs within this block.

        Raises Unauthenticated, with the same words for a session that is not there, was connected to already, or
        whose time is over.
        """
        principal = await self._open(session_id, word)
        carrying = Carrying(principal)
        seeing = asyncio.create_task(self._keep_seen(session_id), name="live.seen")
        try:
            yield carrying
        finally:
            seeing.cancel()
            # Also where this very task is being cancelled: what ended says so.
            ending = asyncio.create_task(self._end(session_id, carrying.state), name="live.end")
            await asyncio.shield(asyncio.wait((seeing, ending), timeout=_ENDS_BOUND_S))

    async def forget(self) -> int:
        """Delete sessions that are past their day. A chore."""
        old = live_sessions.c.created_at_s < self._clock.wall_s() - KEPT_S
        async with self._database.write() as connection:
            now_lease_s = await self._database.lease_now_s(connection)
            ended = or_(live_sessions.c.state != RUNNING, _is_lost(now_lease_s))
            gone = await connection.execute(delete(live_sessions).where(old, ended))
        return gone.rowcount

    async def _open(self, session_id: str, word: str) -> Principal:
        refused = Unauthenticated("this url opens no live session, or has been used: ask for another")
        now_s = self._clock.wall_s()
        mine = and_(live_sessions.c.session_id == session_id, live_sessions.c.token_hash == _hash(word))
        async with self._database.read() as connection:
            key_id = (await connection.execute(select(live_sessions.c.key_id).where(mine))).scalar_one_or_none()
        if key_id is None:
            raise refused
        principal = await self._identity.principal_of_key(key_id, STREAMS_OPEN)
        async with self._database.write() as connection:
            taken = await connection.execute(
                update(live_sessions)
                .where(mine, live_sessions.c.state == CREATED, live_sessions.c.created_at_s > now_s - OPEN_S)
                .values(state=RUNNING, started_at_s=now_s, seen_lease_s=await self._database.lease_now_s(connection))
            )
        if taken.rowcount != 1:
            raise refused
        return principal

    async def _keep_seen(self, session_id: str) -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            try:
                async with self._database.write() as connection:
                    await connection.execute(
                        update(live_sessions)
                        .where(live_sessions.c.session_id == session_id, live_sessions.c.state == RUNNING)
                        .values(seen_lease_s=await self._database.lease_now_s(connection))
                    )
            except SpeakerdError:
                continue  # said at the next turn

    async def _end(self, session_id: str, state: str) -> None:
        try:
            async with self._database.write() as connection:
                await connection.execute(
                    update(live_sessions)
                    .where(live_sessions.c.session_id == session_id, live_sessions.c.state == RUNNING)
                    .values(state=state, completed_at_s=self._clock.wall_s())
                )
        except SpeakerdError as error:
            # It reads as failed once it has not been heard of for long.
            get_logger().warning("live.end_not_kept", cause=error.cause.value)


def _is_lost(now_lease_s: float) -> ColumnElement[bool]:
    # One that was seen in the future was seen on the clock of an earlier boot.
    seen = live_sessions.c.seen_lease_s
    return or_(seen <= now_lease_s - LOST_S, seen > now_lease_s)


def _hash(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()

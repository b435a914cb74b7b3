"""Tenants, their users and their API keys.

In: an administrator and what is to be done. Out: rows as they are then. What always holds: an administrator reaches its
own tenant alone, a platform administrator all of them, and another tenant reads as one that is not there; a key's
secret leaves once, as it is made; who loses their keys loses their voices by erasure, proven like any other.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit
from controlplane.accounts import (
    NO_SUCH_TENANT,
    NO_SUCH_USER,
    Key,
    NewKey,
    Tenant,
    User,
    by_tenant,
    key_of,
    limits,
    reachable,
    reachable_key,
    tenant_row,
    user_row,
)
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import api_keys, samples, tenants, users, voices
from controlplane.decisions import Decisions
from controlplane.erasure import Erasures
from controlplane.erasure_rows import Asking
from controlplane.identity import add_key, new_key
from controlplane.journal_records import Closed, KeyEnded
from controlplane.keys import VoiceAddress
from controlplane.policy import GLOBAL_TENANT, Principal, VoiceScope, may_grant
from controlplane.quotas import GONE, Quotas, Used
from controlplane.scopes import validate
from controlplane.tenant_keys import TenantKeys
from runtime.clock import Clock
from runtime.errors import Conflict, Denied, InvalidRequest, NotFound

OVERLAP_S = 24 * 3600.0
OVERLAP_S_MAX = 30 * 24 * 3600.0
PURPOSE_CHARS_MAX = 100
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Administration:
    """The use cases."""

    def __init__(
        self,
        *,
        database: Database,
        tenant_keys: TenantKeys,
        erasures: Erasures,
        clock: Clock,
        decisions: Decisions,
    ) -> None:
        self._database = database
        self._tenant_keys = tenant_keys
        self._erasures = erasures
        self._clock = clock
        self._decisions = decisions

    def __repr__(self) -> str:
        return "Administration()"

    async def create_tenant(self, principal: Principal, tenant_id: str, quotas: Quotas) -> Tenant:
        """A new tenant. Raises Denied, InvalidRequest, Conflict, also for the name of one that was closed."""
        _require_super(principal)
        _require_id(tenant_id, "tenant_id")
        async with self._database.write() as connection:
            await locked_head(connection)
            if await tenant_row(connection, tenant_id) is not None or tenant_id == GLOBAL_TENANT:
                raise Conflict("a tenant of this id exists, or existed: choose another")
            await connection.execute(
                insert(tenants).values(tenant_id=tenant_id, created_at_s=self._clock.wall_s(), **limits(quotas))
            )
            await self._tenant_keys.find_or_make(connection, tenant_id)
            await self._note(connection, principal, "tenant.created", tenant_id)
        return (await self.list_tenants(principal, tenant_id))[0]

    async def list_tenants(self, principal: Principal, tenant_id: str = "") -> list[Tenant]:
        """All tenants, or one, for the platform; their own for others. What each has is counted."""
        query = select(tenants).order_by(tenants.c.tenant_id)
        if not principal.is_super:
            query = query.where(tenants.c.tenant_id == principal.tenant_id)
        if tenant_id:
            query = query.where(tenants.c.tenant_id == tenant_id)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            num_voices = await by_tenant(connection, voices.c.tenant_id, func.count(), voices.c.state.not_in(GONE))
            stored = await by_tenant(connection, samples.c.tenant_id, func.sum(samples.c.blob_bytes))
        return [
            Tenant(
                row.tenant_id,
                row.created_at_s,
                row.closed_at_s,
                Quotas(row.voices_max, row.streams_max, row.jobs_max, row.storage_bytes_max),
                Used(num_voices.get(row.tenant_id, 0), stored.get(row.tenant_id, 0)),
            )
            for row in rows
        ]

    async def delete_tenant(self, principal: Principal, tenant_id: str) -> list[str]:
        """Close a tenant and erase its voices; the audit ids. Raises Denied, NotFound, InvalidRequest.

        Repeating it goes on where it stopped. Its key for finding labels goes last: nothing is found under it any more.
        """
        _require_super(principal)
        if tenant_id in (GLOBAL_TENANT, principal.tenant_id):
            raise InvalidRequest("tenant_id: neither the platform's own tenant nor the one that you call from")
        async with self._database.write() as connection:
            await locked_head(connection)
            row = await tenant_row(connection, tenant_id)
            if row is None:
                raise NotFound(NO_SUCH_TENANT)
            closed_at_s = self._clock.wall_s() if row.closed_at_s is None else float(row.closed_at_s)
            if row.closed_at_s is None:
                await connection.execute(
                    update(tenants).where(tenants.c.tenant_id == tenant_id).values(closed_at_s=closed_at_s)
                )
                await self._note(connection, principal, "tenant.closed", tenant_id)
        await self._decisions.write([Closed(tenant_id, "", closed_at_s)])
        found = await self._erase_where(principal, voices.c.tenant_id == tenant_id)
        async with self._database.write() as connection:
            await self._tenant_keys.forget(connection, tenant_id)
        return found

    async def set_quotas(self, principal: Principal, tenant_id: str, quotas: Quotas) -> Tenant:
        """Other limits. Raises Denied, NotFound."""
        _require_super(principal)
        async with self._database.write() as connection:
            await locked_head(connection)
            changed = await connection.execute(
                update(tenants).where(tenants.c.tenant_id == tenant_id).values(**limits(quotas))
            )
            if changed.rowcount == 0:
                raise NotFound(NO_SUCH_TENANT)
            await self._note(connection, principal, "tenant.quotas_set", tenant_id)
        return (await self.list_tenants(principal, tenant_id))[0]

    async def create_user(self, principal: Principal, tenant_id: str, user_id: str) -> User:
        """A new user. Raises NotFound, InvalidRequest, Conflict."""
        _require_id(user_id, "user_id")
        async with self._database.write() as connection:
            await locked_head(connection)
            tenant_id = await reachable(connection, principal, tenant_id)
            if await user_row(connection, tenant_id, user_id) is not None:
                raise Conflict("a user of this id exists, or existed: choose another")
            now_s = self._clock.wall_s()
            await connection.execute(insert(users).values(tenant_id=tenant_id, user_id=user_id, created_at_s=now_s))
            await self._note(connection, principal, "user.created", tenant_id, user_id=user_id)
        return User(tenant_id, user_id, now_s, None)

    async def list_users(self, principal: Principal, tenant_id: str) -> list[User]:
        """A tenant's users. Raises NotFound."""
        async with self._database.read() as connection:
            tenant_id = await reachable(connection, principal, tenant_id)
            query = select(users).where(users.c.tenant_id == tenant_id).order_by(users.c.user_id)
            rows = (await connection.execute(query)).all()
        return [User(row.tenant_id, row.user_id, row.created_at_s, row.closed_at_s) for row in rows]

    async def delete_user(self, principal: Principal, tenant_id: str, user_id: str) -> list[str]:
        """Close a user and erase the voices that are the user's alone; the audit ids. Raises NotFound."""
        async with self._database.write() as connection:
            await locked_head(connection)
            tenant_id = await reachable(connection, principal, tenant_id)
            row = await user_row(connection, tenant_id, user_id)
            if row is None:
                raise NotFound(NO_SUCH_USER)
            closed_at_s = self._clock.wall_s() if row.closed_at_s is None else float(row.closed_at_s)
            if row.closed_at_s is None:
                await connection.execute(
                    update(users)
                    .where(users.c.tenant_id == tenant_id, users.c.user_id == user_id)
                    .values(closed_at_s=closed_at_s)
                )
                await self._note(connection, principal, "user.closed", tenant_id, user_id=user_id)
        await self._decisions.write([Closed(tenant_id, user_id, closed_at_s)])
        return await self._erase_where(
            principal,
            (voices.c.tenant_id == tenant_id)
            & (voices.c.owner_user_id == user_id)
            & (voices.c.scope == VoiceScope.USER.value),
        )

    async def create_key(self, principal: Principal, tenant_id: str, wanted: NewKey) -> tuple[Key, str]:
        """A key and its secret. Raises NotFound, InvalidRequest, Denied for more than the caller may give."""
        scopes = validate(wanted.scopes)
        if not may_grant(principal, scopes):
            raise Denied("scopes: platform:admin is given by administrators of the platform")
        if len(wanted.purpose) > PURPOSE_CHARS_MAX:
            raise InvalidRequest(f"purpose: at most {PURPOSE_CHARS_MAX} characters")
        if wanted.expires_at_s is not None and wanted.expires_at_s <= self._clock.wall_s():
            raise InvalidRequest("expires_at: a moment to come")
        async with self._database.write() as connection:
            tenant_id = await reachable(connection, principal, tenant_id)
            if wanted.user_id is not None:
                user = await user_row(connection, tenant_id, wanted.user_id)
                if user is None or user.closed_at_s is not None:
                    raise NotFound(NO_SUCH_USER)
            return await self._added(connection, principal, tenant_id, replace(wanted, scopes=scopes))

    async def list_keys(self, principal: Principal, tenant_id: str) -> list[Key]:
        """A tenant's keys, oldest first, revoked ones too. Raises NotFound."""
        async with self._database.read() as connection:
            tenant_id = await reachable(connection, principal, tenant_id)
            query = select(api_keys).where(api_keys.c.tenant_id == tenant_id)
            rows = (await connection.execute(query.order_by(api_keys.c.created_at_s, api_keys.c.key_id))).all()
        return [key_of(row) for row in rows]

    async def rotate_key(self, principal: Principal, key_id: str, overlap_s: float | None) -> tuple[Key, str]:
        """A new key with the same reach; the old one goes on for a while. Raises NotFound, Conflict, Denied."""
        overlap_s = OVERLAP_S if overlap_s is None else overlap_s
        if not 0 <= overlap_s <= OVERLAP_S_MAX:
            raise InvalidRequest("overlap_s: 0 to 30 days")
        async with self._database.write() as connection:
            await locked_head(connection)
            old = await reachable_key(connection, principal, key_id)
            now_s = self._clock.wall_s()
            if old.revoked_at_s is not None or old.replaced_by is not None:
                raise Conflict("this key was revoked or rotated already: rotate the one that took its place")
            if old.expires_at_s is not None and old.expires_at_s <= now_s:
                raise Conflict("this key has expired: make a new one")
            if not may_grant(principal, old.scopes):
                raise Denied("scopes: platform:admin is given by administrators of the platform")
            same = NewKey(frozenset(old.scopes), old.user_id, old.purpose, old.expires_at_s)
            made, secret = await self._added(connection, principal, old.tenant_id, same)
            until_s = now_s + overlap_s if old.expires_at_s is None else min(now_s + overlap_s, old.expires_at_s)
            await connection.execute(
                update(api_keys)
                .where(api_keys.c.key_id == key_id)
                .values(replaced_by=made.key_id, expires_at_s=until_s)
            )
        # The new key's secret leaves with this answer or never.
        await self._decisions.write_soon([KeyEnded(old.tenant_id, key_id, until_s, is_revoked=False)])
        return made, secret

    async def revoke_key(self, principal: Principal, key_id: str) -> Key:
        """End a key now. Repeating it changes nothing. Raises NotFound, Denied for a key that one could not give."""
        async with self._database.write() as connection:
            await locked_head(connection)
            old = await reachable_key(connection, principal, key_id)
            if not may_grant(principal, old.scopes):
                raise Denied("scopes: a key with platform:admin is ended by administrators of the platform")
            if old.revoked_at_s is None:
                await connection.execute(
                    update(api_keys).where(api_keys.c.key_id == key_id).values(revoked_at_s=self._clock.wall_s())
                )
                await self._note(connection, principal, "key.revoked", old.tenant_id, of_key_id=key_id)
            ended = await reachable_key(connection, principal, key_id)
        await self._decisions.write([KeyEnded(old.tenant_id, key_id, ended.revoked_at_s or 0.0, is_revoked=True)])
        return ended

    async def _added(
        self, connection: AsyncConnection, principal: Principal, tenant_id: str, wanted: NewKey
    ) -> tuple[Key, str]:
        secret = new_key()
        key_id = await add_key(
            connection,
            secret,
            tenant_id,
            wanted.scopes,
            self._clock,
            user_id=wanted.user_id,
            purpose=wanted.purpose,
            expires_at_s=wanted.expires_at_s,
        )
        await self._note(connection, principal, "key.created", tenant_id, of_key_id=key_id)
        return await reachable_key(connection, principal, key_id), secret

    async def _erase_where(self, principal: Principal, condition: Any) -> list[str]:
        async with self._database.read() as connection:
            query = select(voices.c.tenant_id, voices.c.voice_id).where(condition, voices.c.state != "erased")
            rows = (await connection.execute(query)).all()
        asking = Asking(trigger="platform_decision", key_id=principal.key_id)
        return [
            (await self._erasures.erase_voice(VoiceAddress(row.tenant_id, row.voice_id), asking)).audit_id
            for row in rows
        ]

    async def _note(
        self, connection: AsyncConnection, principal: Principal, action: str, tenant_id: str, **facts: str
    ) -> None:
        said = {"tenant_id": tenant_id, "key_id": principal.key_id, **facts}
        await audit.append(connection, action, at_s=self._clock.wall_s(), facts=said)


def _require_super(principal: Principal) -> None:
    if not principal.is_super:
        raise Denied("this is for administrators of the platform (scope platform:admin)")


def _require_id(value: str, name: str) -> None:
    if _ID.fullmatch(value) is None:
        raise InvalidRequest(f"{name}: 1 to 64 characters out of A-Z a-z 0-9 _ . : -")

"""Tenants, users and keys as rows, and who reaches which of them.

In: a connection and a caller. Out: frozen records. What always holds: another tenant is looked for by the same
statement as one that never was, and answered alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.schema import api_keys, tenants, users
from controlplane.policy import GLOBAL_TENANT, Principal
from controlplane.quotas import Quotas, Used
from runtime.errors import NotFound, Unauthenticated

NO_SUCH_TENANT = "no such tenant"
NO_SUCH_USER = "no such user"
NO_SUCH_KEY = "no such key"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant. Instants are Unix seconds; closed_at_s None: open."""

    tenant_id: str
    created_at_s: float
    closed_at_s: float | None
    quotas: Quotas
    used: Used


@dataclass(frozen=True, slots=True)
class User:
    """A user of a tenant."""

    tenant_id: str
    user_id: str
    created_at_s: float
    closed_at_s: float | None


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, without its secret. scopes: as they were given."""

    key_id: str
    tenant_id: str
    user_id: str | None
    scopes: tuple[str, ...]
    purpose: str
    created_at_s: float
    expires_at_s: float | None
    last_used_at_s: float | None
    revoked_at_s: float | None
    replaced_by: str | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is to be. user_id None: for the tenant's services; expires_at_s None: it does not expire."""

    scopes: frozenset[str]
    user_id: str | None = None
    purpose: str = ""
    expires_at_s: float | None = None


async def reachable(connection: AsyncConnection, principal: Principal, tenant_id: str) -> str:
    """The tenant that is meant. The same one statement for another's and for one that never was."""
    wanted = tenant_id or principal.tenant_id
    row = await tenant_row(connection, wanted)
    is_allowed = wanted == principal.tenant_id or principal.is_super
    if row is None or row.closed_at_s is not None or not is_allowed or wanted == GLOBAL_TENANT:
        raise NotFound(NO_SUCH_TENANT)
    return wanted


async def require_open(connection: AsyncConnection, principal: Principal) -> None:
    """Raises Unauthenticated for a caller whose tenant or user was closed since the call began. Hold the head."""
    tenant = await tenant_row(connection, principal.tenant_id)
    is_open = tenant is not None and tenant.closed_at_s is None
    if is_open and principal.user_id is not None:
        user = await user_row(connection, principal.tenant_id, principal.user_id)
        is_open = user is not None and user.closed_at_s is None
    if not is_open:
        raise Unauthenticated("the tenant or the user of this API key was closed in the meantime")


async def reachable_key(connection: AsyncConnection, principal: Principal, key_id: str) -> Key:
    """A key of the caller's tenant; any, for the platform. Raises NotFound."""
    query = select(api_keys).where(api_keys.c.key_id == key_id)
    if not principal.is_super:
        query = query.where(api_keys.c.tenant_id == principal.tenant_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound(NO_SUCH_KEY)
    return key_of(row)


async def tenant_row(connection: AsyncConnection, tenant_id: str) -> Row[Any] | None:
    """A tenant's row."""
    return (await connection.execute(select(tenants).where(tenants.c.tenant_id == tenant_id))).one_or_none()


async def user_row(connection: AsyncConnection, tenant_id: str, user_id: str) -> Row[Any] | None:
    """A user's row."""
    query = select(users).where(users.c.tenant_id == tenant_id, users.c.user_id == user_id)
    return (await connection.execute(query)).one_or_none()


async def by_tenant(connection: AsyncConnection, column: Any, counted: Any, *where: Any) -> dict[str, int]:
    """What is counted, tenant by tenant."""
    rows = await connection.execute(select(column, counted).where(*where).group_by(column))
    return {row[0]: int(row[1] or 0) for row in rows}


def key_of(row: Row[Any]) -> Key:
    """A row of `api_keys`."""
    return Key(
        key_id=row.key_id,
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        scopes=tuple(row.scopes.split()),
        purpose=row.purpose,
        created_at_s=row.created_at_s,
        expires_at_s=row.expires_at_s,
        last_used_at_s=row.last_used_at_s,
        revoked_at_s=row.revoked_at_s,
        replaced_by=row.replaced_by,
    )


def limits(quotas: Quotas) -> dict[str, int | None]:
    """Quotas as columns of `tenants`."""
    return {
        "voices_max": quotas.voices_max,
        "streams_max": quotas.streams_max,
        "jobs_max": quotas.jobs_max,
        "storage_bytes_max": quotas.storage_bytes_max,
    }

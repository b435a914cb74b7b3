"""Who calls: API keys of tenants and their users, and the fleet's own key.

A key is `sk_<id>_<secret>`; what is stored is its SHA-256. A key belongs to one tenant, stands for one of its users or
for none, and carries scopes (controlplane.scopes). gRPC metadata and HTTP headers are answered by the same function.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any

from sqlalchemy import Row, and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.schema import api_keys, tenants, users
from controlplane.policy import GLOBAL_TENANT, Principal
from controlplane.scopes import ADMIN, PLATFORM, expand
from controlplane.secret_files import read_or_make_text
from runtime.clock import Clock
from runtime.errors import Unauthenticated

DEFAULT_TENANT = "default"


class Identity:
    """Resolves tokens to callers."""

    def __init__(self, database: Database, fleet_key: str, clock: Clock) -> None:
        self._database = database
        self._fleet_key = fleet_key.encode()
        self._clock = clock
        self._used: dict[str, float] = {}

    def __repr__(self) -> str:
        return "Identity()"

    async def principal(self, token: str | None, scope: str) -> Principal:
        """The caller of a token. Raises Unauthenticated, or Denied without the scope."""
        if token is None:
            raise Unauthenticated("send an API key: metadata or header `authorization: Bearer sk_…`")
        row = await self._live_key(_key_id(token))
        if row is None or not hmac.compare_digest(bytes(row.key_hash), _hash(token)):
            raise Unauthenticated("this API key is unknown, expired or revoked")
        return self._caller(row, scope)

    async def principal_of_key(self, key_id: str, scope: str) -> Principal:
        """The caller who asked for something with a key a while ago. Raises Unauthenticated, or Denied."""
        row = await self._live_key(key_id)
        if row is None:
            raise Unauthenticated("the API key that asked for it is expired or revoked")
        return self._caller(row, scope)

    async def _live_key(self, key_id: str) -> Row[Any] | None:
        query = (
            select(api_keys)
            .join(tenants, and_(tenants.c.tenant_id == api_keys.c.tenant_id, tenants.c.closed_at_s.is_(None)))
            .join(
                users,
                and_(users.c.tenant_id == api_keys.c.tenant_id, users.c.user_id == api_keys.c.user_id),
                isouter=True,
            )
            .where(
                api_keys.c.key_id == key_id,
                api_keys.c.revoked_at_s.is_(None),
                or_(api_keys.c.expires_at_s.is_(None), api_keys.c.expires_at_s > self._clock.wall_s()),
                or_(api_keys.c.user_id.is_(None), and_(users.c.user_id.is_not(None), users.c.closed_at_s.is_(None))),
            )
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).one_or_none()

    def _caller(self, row: Row[Any], scope: str) -> Principal:
        self._used[row.key_id] = self._clock.wall_s()
        principal = Principal(row.tenant_id, row.key_id, expand(row.scopes.split()), row.user_id)
        principal.require(scope)
        return principal

    async def note_use(self) -> None:
        """Write down when keys were used last: now and then, never on the way of a call."""
        used, self._used = self._used, {}
        if not used:
            return
        async with self._database.write() as connection:
            for key_id, at_s in sorted(used.items()):
                await connection.execute(
                    update(api_keys).where(api_keys.c.key_id == key_id).values(last_used_at_s=at_s)
                )

    def require_fleet(self, token: str | None) -> None:
        """Raises Unauthenticated unless the token is the fleet's key."""
        if token is None or not hmac.compare_digest(token.encode(), self._fleet_key):
            raise Unauthenticated("nodes send the fleet key of this control plane: --fleet-key-file DATA/fleet.key")


def token_of(authorization: str | None) -> str | None:
    """The token of an `authorization: Bearer TOKEN` header, or None."""
    if authorization is None or authorization[:7].lower() != "bearer ":
        return None
    return authorization[7:].strip()


def new_key() -> str:
    """A fresh API key."""
    return f"sk_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def new_fleet_key() -> str:
    """A fresh secret between the control plane and its nodes."""
    return f"fk_{secrets.token_urlsafe(32)}"


async def ensure_admin(database: Database, path: Path, clock: Clock) -> None:
    """See that the default tenant and the platform's first administrator exist, the key of the latter in `path`.

    The file is written first: after a crash in between, the same key is put into the database.
    """
    key = read_or_make_text(path, new_key)
    async with database.write() as connection:
        for tenant_id in (DEFAULT_TENANT, GLOBAL_TENANT):
            found = await connection.execute(select(tenants.c.tenant_id).where(tenants.c.tenant_id == tenant_id))
            if found.one_or_none() is None:
                await connection.execute(insert(tenants).values(tenant_id=tenant_id, created_at_s=clock.wall_s()))
        scopes = frozenset({ADMIN, PLATFORM})
        known = await connection.execute(
            update(api_keys).where(api_keys.c.key_id == _key_id(key)).values(scopes=" ".join(sorted(scopes)))
        )
        if known.rowcount == 0:
            await add_key(connection, key, DEFAULT_TENANT, scopes, clock)


async def add_key(
    connection: AsyncConnection,
    key: str,
    tenant_id: str,
    scopes: frozenset[str],
    clock: Clock,
    *,
    user_id: str | None = None,
    purpose: str = "",
    expires_at_s: float | None = None,
) -> str:
    """Store a key of a tenant that exists, and return its id."""
    await connection.execute(
        insert(api_keys).values(
            key_id=_key_id(key),
            tenant_id=tenant_id,
            key_hash=_hash(key),
            scopes=" ".join(sorted(scopes)),
            created_at_s=clock.wall_s(),
            user_id=user_id,
            purpose=purpose,
            expires_at_s=expires_at_s,
        )
    )
    return _key_id(key)


def _key_id(token: str) -> str:
    parts = token.split("_", 2)
    return parts[1][:64] if len(parts) == 3 and parts[0] == "sk" else ""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()

"""Who calls: API keys of tenants, and the fleet's own key.

A key is `sk_<id>_<secret>`; what is stored is its SHA-256. A key belongs to one tenant and carries scopes; `admin`
includes them all.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database
from controlplane.database.schema import api_keys, tenants
from controlplane.secret_files import read_or_make_text
from runtime.clock import Clock
from runtime.errors import Denied, Unauthenticated

DEFAULT_TENANT = "default"
ADMIN = "admin"
VOICES_READ = "voices:read"
VOICES_WRITE = "voices:write"
VOICES_ERASE = "voices:erase"
STREAMS_OPEN = "streams:open"
JOBS_WRITE = "jobs:write"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raises Denied when the key does not carry the scope."""
        if scope not in self.scopes and ADMIN not in self.scopes:
            raise Denied(f"this API key lacks the scope {scope}")


class Identity:
    """Resolves tokens to callers."""

    def __init__(self, database: Database, fleet_key: str) -> None:
        self._database = database
        self._fleet_key = fleet_key.encode()

    def __repr__(self) -> str:
        return "Identity()"

    async def principal(self, token: str | None, scope: str) -> Principal:
        """The caller of a token. Raises Unauthenticated, or Denied without the scope."""
        if token is None:
            raise Unauthenticated("send an API key: metadata or header `authorization: Bearer sk_…`")
        query = select(api_keys).where(api_keys.c.key_id == _key_id(token), api_keys.c.revoked_at_s.is_(None))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None or not hmac.compare_digest(bytes(row.key_hash), _hash(token)):
            raise Unauthenticated("this API key is unknown or revoked")
        principal = Principal(row.tenant_id, row.key_id, frozenset(row.scopes.split()))
        principal.require(scope)
        return principal

    def require_fleet(self, token: str | None) -> None:
        """Raises Unauthenticated unless the token is the fleet's key."""
        if token is None or not hmac.compare_digest(token.encode(), self._fleet_key):
            raise Unauthenticated("nodes send the fleet key of this control plane: --fleet-key-file DATA/fleet.key")


def new_key() -> str:
    """A fresh API key."""
    return f"sk_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def new_fleet_key() -> str:
    """A fresh secret between the control plane and its nodes."""
    return f"fk_{secrets.token_urlsafe(32)}"


async def ensure_admin(database: Database, path: Path, clock: Clock) -> None:
    """See that the default tenant and its first administrator's key exist, the key in `path`.

    The file is written first: after a crash in between, the same key is put into the database.
    """
    key = read_or_make_text(path, new_key)
    async with database.write() as connection:
        found = await connection.execute(select(tenants).where(tenants.c.tenant_id == DEFAULT_TENANT))
        if found.one_or_none() is None:
            await connection.execute(insert(tenants).values(tenant_id=DEFAULT_TENANT, created_at_s=clock.wall_s()))
        known = await connection.execute(select(api_keys).where(api_keys.c.key_id == _key_id(key)))
        if known.one_or_none() is None:
            await add_key(connection, key, DEFAULT_TENANT, frozenset({ADMIN}), clock)


async def add_key(connection: AsyncConnection, key: str, tenant_id: str, scopes: frozenset[str], clock: Clock) -> None:
    """Store a key of a tenant that exists."""
    await connection.execute(
        insert(api_keys).values(
            key_id=_key_id(key),
            tenant_id=tenant_id,
            key_hash=_hash(key),
            scopes=" ".join(sorted(scopes)),
            created_at_s=clock.wall_s(),
        )
    )


def _key_id(token: str) -> str:
    parts = token.split("_", 2)
    return parts[1][:64] if len(parts) == 3 and parts[0] == "sk" else ""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()

"""What a tenant's webhooks are signed with: made when first needed, shown when it is made anew, and never again.

In: an administrator who asks, or a delivery that needs it. Out: the secret. What always holds: it lies under the
tenant's own key and goes with it; from a rotation on, nothing is signed with the one before.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import webhook_secrets
from controlplane.policy import Principal
from controlplane.scopes import ADMIN
from controlplane.tenant_keys import TenantKeys
from controlplane.tenant_seals import find_seals, make_seals
from runtime.clock import Clock

PURPOSE = "webhook secret"


@dataclass(frozen=True, slots=True)
class MadeSecret:
    """A secret, to be shown once."""

    secret: str
    created_at_s: float

    def __repr__(self) -> str:
        return "MadeSecret(…)"


class WebhookSecrets:
    """All tenants' secrets."""

    def __init__(self, database: Database, tenant_keys: TenantKeys, clock: Clock) -> None:
        self._database = database
        self._tenant_keys = tenant_keys
        self._clock = clock

    def __repr__(self) -> str:
        return "WebhookSecrets()"

    async def rotate(self, principal: Principal) -> MadeSecret:
        """Another secret for the caller's tenant. Raises Denied for who does not administer it."""
        principal.require(ADMIN)
        return await self._make(principal.tenant_id, replace=True)

    async def made_at_s(self, principal: Principal) -> float | None:
        """Since when the secret holds; None while there is none. Raises Denied."""
        principal.require(ADMIN)
        query = select(webhook_secrets.c.created_at_s).where(webhook_secrets.c.tenant_id == principal.tenant_id)
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    async def of(self, tenant_id: str) -> str:
        """A tenant's secret, made if there is none: then nobody knows it until it is rotated."""
        query = select(webhook_secrets.c.ciphertext).where(webhook_secrets.c.tenant_id == tenant_id)
        async with self._database.read() as connection:
            sealed = (await connection.execute(query)).scalar_one_or_none()
            seals = await find_seals(connection, self._tenant_keys, tenant_id)
        if sealed is None or seals is None:
            return (await self._make(tenant_id, replace=False)).secret
        return seals.open(PURPOSE, bytes(sealed)).decode()

    async def _make(self, tenant_id: str, *, replace: bool) -> MadeSecret:
        made = MadeSecret(f"whsec_{secrets.token_urlsafe(32)}", self._clock.wall_s())
        mine = webhook_secrets.c.tenant_id == tenant_id
        async with self._database.write() as connection:
            await locked_head(connection)
            seals = await make_seals(connection, self._tenant_keys, tenant_id)
            known = (await connection.execute(select(webhook_secrets).where(mine))).one_or_none()
            if known is not None and not replace:
                return MadeSecret(seals.open(PURPOSE, bytes(known.ciphertext)).decode(), known.created_at_s)
            await connection.execute(delete(webhook_secrets).where(mine))
            await connection.execute(
                insert(webhook_secrets).values(
                    tenant_id=tenant_id,
                    ciphertext=seals.seal(PURPOSE, made.secret.encode()),
                    created_at_s=made.created_at_s,
                )
            )
        return made


def sign(secret: str, timestamp: str, body: bytes, *, as_base64: bool = False) -> str:
    """The signature of a raw body: HMAC-SHA256 of `v0:{timestamp}:{body}`, hexadecimal unless it is to be base64."""
    digest = hmac.digest(secret.encode(), f"v0:{timestamp}:".encode() + body, "sha256")
    return base64.b64encode(digest).decode() if as_base64 else digest.hex()

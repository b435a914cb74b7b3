"""Keys of a tenant for what it stores and is given for a while: media, jobs, their results, voiceprint blobs.

In: the tenant's own key. Out: AES-256-GCM under a key a purpose, bound to tenant, purpose and what it is of. What
always holds: they go with the tenant's key, which goes with the tenant; a ciphertext of another tenant, or of another
purpose, does not open.
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.keys import NONCE_BYTES
from controlplane.tenant_keys import TenantKeys
from runtime.errors import NotFound, SpeakerdError

JOBS = "jobs"
RESULTS = "job results"
MEDIA = "media"
VOICEPRINTS = "voiceprint blobs"
NAMES = "names of media and requests"


class Foreign(SpeakerdError):
    """A ciphertext that does not open: of another tenant, another purpose, or damaged."""


class TenantSeals:
    """One tenant's keys. Lives as long as the operation that needs it."""

    __slots__ = ("_key", "_tenant_id")

    def __init__(self, tenant_id: str, key: bytes) -> None:
        self._tenant_id = tenant_id
        self._key = key

    def __repr__(self) -> str:
        return "TenantSeals(…)"

    def derived(self, purpose: str, *of: str) -> bytes:
        """32 bytes for a purpose."""
        return hmac.digest(self._key, self._bound(purpose, *of), "sha256")

    def seal(self, purpose: str, plaintext: bytes, *of: str) -> bytes:
        """nonce + ciphertext."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self.derived(purpose)).encrypt(nonce, plaintext, self._bound(purpose, *of))

    def open(self, purpose: str, sealed: bytes, *of: str) -> bytes:
        """The plaintext. Raises Foreign."""
        try:
            return AESGCM(self.derived(purpose)).decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._bound(purpose, *of)
            )
        except (InvalidTag, ValueError):
            raise Foreign("a stored ciphertext does not open: it is damaged or has been moved") from None

    def index(self, kind: str, text: str) -> bytes:
        """What finds a text again, exactly as it was written, without keeping it: 32 bytes."""
        return hmac.digest(self.derived(NAMES), self._bound(kind, text), "sha256")

    def _bound(self, *parts: str) -> bytes:
        encoded = [part.encode() for part in ("speakerd", self._tenant_id, *parts)]
        return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


async def make_seals(connection: AsyncConnection, keys: TenantKeys, tenant_id: str) -> TenantSeals:
    """A tenant's seals, made if need be: within a transaction that holds the head."""
    return TenantSeals(tenant_id, await keys.find_or_make(connection, tenant_id))


async def find_seals(connection: AsyncConnection, keys: TenantKeys, tenant_id: str) -> TenantSeals | None:
    """A tenant's seals, or None while nothing was sealed for it."""
    key = await keys.find(connection, tenant_id)
    return None if key is None else TenantSeals(tenant_id, key)


async def require_seals(connection: AsyncConnection, keys: TenantKeys, tenant_id: str) -> TenantSeals:
    """A tenant's seals. Raises NotFound where there are none: nothing of it can be opened, or ever will."""
    seals = await find_seals(connection, keys, tenant_id)
    if seals is None:
        raise NotFound("there is nothing of this tenant")
    return seals

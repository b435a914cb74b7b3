"""Signed urls of the media store: what may be done with whose recording, until when. Opaque to who holds one."""

from __future__ import annotations

import base64
import json
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from controlplane.keys import NONCE_BYTES
from controlplane.policy import Principal
from runtime.clock import Clock
from runtime.errors import Denied

PUT, GET = "PUT", "GET"
TOKEN_CHARS_MAX = 2_048
_BOUND = b"speakerd media url 1"


class MediaTokens:
    """Makes and reads them. key: 32 bytes, the same in all control planes."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._cipher = AESGCM(key)
        self._clock = clock

    def __repr__(self) -> str:
        return "MediaTokens(…)"

    def seal(self, method: str, principal: Principal, key: str, expires_at_s: float) -> str:
        """A token, fit for a path."""
        said = [method, principal.tenant_id, principal.key_id, principal.user_id, key, expires_at_s]
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, json.dumps(said).encode(), _BOUND)
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, method: str, token: str) -> tuple[Principal, str]:
        """On whose behalf, and which key. Raises Denied."""
        refused = Denied("this url is not good for that, or not any more: ask for a new one")
        try:
            if len(token) > TOKEN_CHARS_MAX or not token.isascii():
                raise refused
            sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            said = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _BOUND)
        except (InvalidTag, ValueError):
            raise refused from None
        allowed, tenant_id, key_id, user_id, key, expires_at_s = json.loads(said)
        if allowed != method or self._clock.wall_s() >= expires_at_s:
            raise refused
        return Principal(tenant_id, key_id, frozenset(), user_id), key

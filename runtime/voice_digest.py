"""A digest of which voices a node holds, cheap to keep as voices come and go.

The sum, modulo 2^256, of SHA-256 over (tenant, voice, generation): independent of order, changed by one addition an
enrolment and one subtraction an eviction. Desired and observed are compared by it at every renewal of a lease.
"""

from __future__ import annotations

import hashlib

_MODULUS = 1 << 256


class VoiceDigest:
    """The digest of a changing set of voices."""

    def __init__(self) -> None:
        self._sum = 0

    def __repr__(self) -> str:
        return f"VoiceDigest({self.value().hex()[:12]})"

    def add(self, tenant_id: str, voice_id: str, generation: int) -> None:
        """A voice is held now."""
        self._sum = (self._sum + _term(tenant_id, voice_id, generation)) % _MODULUS

    def remove(self, tenant_id: str, voice_id: str, generation: int) -> None:
        """A voice that was added is no longer held."""
        self._sum = (self._sum - _term(tenant_id, voice_id, generation)) % _MODULUS

    def value(self) -> bytes:
        """32 bytes; all zero for no voices."""
        return self._sum.to_bytes(32, "big")


def _term(tenant_id: str, voice_id: str, generation: int) -> int:
    parts = (tenant_id.encode(), voice_id.encode(), str(generation).encode())
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return int.from_bytes(hashlib.sha256(framed).digest(), "big")

"""Keys made from the audit's key, one a purpose: they outlive a rotation of the key-encryption key, as that does."""

from __future__ import annotations

import hmac
import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from controlplane.keys import NONCE_BYTES, KeyRing


def journal_key(keys: KeyRing) -> bytes:
    """What the records of the erasure journal are authenticated with."""
    return _of(keys, "erasure journal")


def backup_key(keys: KeyRing) -> bytes:
    """What the manifest of a backup is authenticated with."""
    return _of(keys, "backup manifest")


def media_url_key(keys: KeyRing) -> bytes:
    """What signed urls of the media store are sealed with."""
    return _of(keys, "media urls")


def reason_digest(keys: KeyRing, reason: str) -> str:
    """What the audit keeps of the reason for an erasure."""
    return hmac.digest(_of(keys, "erasure reason digest"), reason.encode(), "sha256").hex()


def seal_reason(keys: KeyRing, reason: str, audit_id: str) -> bytes:
    """The reason as it is kept beside the erasure."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(_of(keys, "erasure reason")).encrypt(nonce, reason.encode(), audit_id.encode())


def open_reason(keys: KeyRing, sealed: bytes, audit_id: str) -> str:
    """The reason again."""
    aead = AESGCM(_of(keys, "erasure reason"))
    return aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], audit_id.encode()).decode()


def kept_answers_key(keys: KeyRing) -> bytes:
    """What Idempotency-Keys are digested with."""
    return _of(keys, "idempotency keys")


def seal_answer(keys: KeyRing, answer: bytes, name: str) -> bytes:
    """An answer as it is kept for a repeated request."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(_of(keys, "kept answers")).encrypt(nonce, answer, name.encode())


def open_answer(keys: KeyRing, sealed: bytes, name: str) -> bytes:
    """The answer again."""
    return AESGCM(_of(keys, "kept answers")).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())


def _of(keys: KeyRing, purpose: str) -> bytes:
    return hmac.digest(keys.audit_key, b"speakerd " + purpose.encode(), "sha256")

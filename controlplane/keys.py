"""Envelope encryption: one key a voice, wrapped by the deployment's key. Forgetting a voice's key forgets the voice.

In: the key-encryption key (32 bytes). Out: wrapped data keys, and AES-256-GCM ciphertexts bound to what they belong to
by their associated data (AAD): a ciphertext moved to another tenant, voice, generation or model does not open.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runtime.errors import SpeakerdError

NONCE_BYTES = 12
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class VoiceAddress:
    """Which voice a ciphertext belongs to."""

    tenant_id: str
    voice_id: str


class DataKey:
    """A voice's own key, in the clear. Lives as long as the operation that needs it."""

    __slots__ = ("_aead", "_voice")

    def __init__(self, voice: VoiceAddress, key: bytes) -> None:
        self._voice = voice
        self._aead = AESGCM(key)

    def __repr__(self) -> str:
        return "DataKey(…)"

    def encrypt(self, plaintext: bytes, *what: str | int) -> bytes:
        """nonce + ciphertext, bound to the voice and to `what` (for example "voiceprint", generation, model)."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plaintext, self._aad(what))

    def decrypt(self, ciphertext: bytes, *what: str | int) -> bytes:
        """The plaintext. Raises SpeakerdError (internal) when it is damaged or belongs elsewhere."""
        try:
            return self._aead.decrypt(ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:], self._aad(what))
        except InvalidTag:
            raise SpeakerdError("a stored ciphertext does not open: it is damaged or has been moved") from None

    def _aad(self, what: tuple[str | int, ...]) -> bytes:
        return _framed(self._voice.tenant_id, self._voice.voice_id, *what)


class KeyRing:
    """The deployment's key: makes, wraps and opens data keys, and names subjects in the audit."""

    def __init__(self, key_encryption_key: bytes) -> None:
        self._wrapping = AESGCM(_derived(key_encryption_key, "wrap data keys"))
        self._audit_key = _derived(key_encryption_key, "audit subjects")

    def __repr__(self) -> str:
        return "KeyRing(…)"

    def make(self, voice: VoiceAddress) -> tuple[DataKey, bytes]:
        """A new data key, and how it is stored: wrapped, and bound to the voice."""
        key = os.urandom(KEY_BYTES)
        nonce = os.urandom(NONCE_BYTES)
        wrapped = nonce + self._wrapping.encrypt(nonce, key, _framed(voice.tenant_id, voice.voice_id))
        return DataKey(voice, key), wrapped

    def open(self, voice: VoiceAddress, wrapped: bytes) -> DataKey:
        """The data key of a voice. Raises SpeakerdError (internal) when wrapped by another key or for another voice."""
        try:
            key = self._wrapping.decrypt(
                wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], _framed(voice.tenant_id, voice.voice_id)
            )
        except InvalidTag:
            raise SpeakerdError("a voice's key does not open: is kek.key the one it was made with?") from None
        return DataKey(voice, key)

    def subject(self, tenant_id: str, voice_id: str) -> str:
        """How the audit names a voice: a keyed hash, the same every time, telling nothing without the key."""
        return hmac.digest(self._audit_key, _framed(tenant_id, voice_id), "sha256").hex()

    def consent(self, tenant_id: str, voice_id: str, *parts: str) -> str:
        """How the audit keeps what a person agreed to: keyed, for a plain hash of a name can be guessed from a list."""
        return hmac.digest(self._audit_key, _framed("consent", tenant_id, voice_id, *parts), "sha256").hex()


def _framed(*parts: str | int) -> bytes:
    # Lengths in front, so that no two lists of parts come out the same.
    encoded = [str(part).encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def _derived(key: bytes, purpose: str) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=f"speakerd {purpose}".encode()).derive(key)

"""Envelope encryption: one key a voice, wrapped by the deployment's key. Forgetting a voice's key forgets the voice.

In: key-encryption keys (32 bytes each). Out: wrapped data keys, and AES-256-GCM ciphertexts bound to what they belong
to by their associated data (AAD): a ciphertext moved to another tenant, voice, generation or model does not open.
"""

from __future__ import annotations

import hmac
import os
import unicodedata
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runtime.errors import InvalidRequest, SpeakerdError

NONCE_BYTES = 12
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class VoiceAddress:
    """Which voice a ciphertext belongs to."""

    tenant_id: str
    voice_id: str


class DataKey:
    """A voice's own key, in the clear. Lives as long as the operation that needs it."""

    __slots__ = ("_aead", "_key", "_voice")

    def __init__(self, voice: VoiceAddress, key: bytes) -> None:
        self._voice = _framed(voice.tenant_id, voice.voice_id)
        self._key = key
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

    def wrapped_by(self, wrapping: _Wrapping) -> bytes:
        """This key as it is stored, bound to the voice."""
        return wrapping.wrap(self._key, self._voice)

    def _aad(self, what: tuple[str | int, ...]) -> bytes:
        return self._voice + _framed(*what)


class KeyRing:
    """The deployment's keys: make, wrap and open data keys and secrets, and name subjects in the audit.

    Several key-encryption keys while one takes the place of another: the first wraps, all of them open.
    """

    def __init__(self, *key_encryption_keys: bytes) -> None:
        if not key_encryption_keys:
            raise InvalidRequest("there is no key-encryption key")
        self._ring = tuple(_Wrapping(key) for key in key_encryption_keys)
        self._audit_key = _derived(key_encryption_keys[0], "audit subjects")

    def __repr__(self) -> str:
        return f"KeyRing({len(self._ring)} keys)"

    @property
    def kek_id(self) -> str:
        """Which key wraps now: a fingerprint that tells nothing about it."""
        return self._ring[0].kek_id

    @property
    def num_keys(self) -> int:
        """How many keys are accepted."""
        return len(self._ring)

    @property
    def audit_key(self) -> bytes:
        """What subjects are named with: it outlives the key-encryption key, and is kept wrapped."""
        return self._audit_key

    def replace(self, *key_encryption_keys: bytes) -> None:
        """Wrap with the first of these from now on, and accept all of them. The audit's key stays."""
        if not key_encryption_keys:
            raise InvalidRequest("there is no key-encryption key")
        self._ring = tuple(_Wrapping(key) for key in key_encryption_keys)

    def name_subjects_with(self, audit_key: bytes) -> None:
        """Take the audit's key from where it is kept."""
        self._audit_key = audit_key

    def make(self, voice: VoiceAddress) -> tuple[DataKey, bytes]:
        """A new data key, and how it is stored: wrapped, and bound to the voice."""
        key = DataKey(voice, os.urandom(KEY_BYTES))
        return key, self.wrap(key)

    def wrap(self, key: DataKey) -> bytes:
        """A data key as it is stored: by the key that wraps at this moment, whose `kek_id` is to be stored with it."""
        return key.wrapped_by(self._ring[0])

    def open(self, voice: VoiceAddress, wrapped: bytes) -> DataKey:
        """The data key of a voice. Raises SpeakerdError (internal) when wrapped by another key or for another voice."""
        return DataKey(voice, self._opened(wrapped, _framed(voice.tenant_id, voice.voice_id)))

    def rewrap(self, voice: VoiceAddress, wrapped: bytes) -> bytes:
        """The same data key under the key that wraps now."""
        bound = _framed(voice.tenant_id, voice.voice_id)
        return self._ring[0].wrap(self._opened(wrapped, bound), bound)

    def wrap_secret(self, name: str, secret: bytes) -> bytes:
        """A secret of the deployment or of a tenant, as it is stored."""
        return self._ring[0].wrap(secret, _framed("secret", name))

    def open_secret(self, name: str, wrapped: bytes) -> bytes:
        """The secret. Raises SpeakerdError (internal) when it was wrapped by another key or under another name."""
        return self._opened(wrapped, _framed("secret", name))

    def subject(self, tenant_id: str, voice_id: str) -> str:
        """How the audit names a voice: a keyed hash, the same every time, telling nothing without the key."""
        return hmac.digest(self._audit_key, _framed(tenant_id, voice_id), "sha256").hex()

    def consent(self, tenant_id: str, voice_id: str, *parts: str) -> str:
        """How the audit keeps what a person agreed to: keyed, for a plain hash of a name can be guessed from a list."""
        return hmac.digest(self._audit_key, _framed("consent", tenant_id, voice_id, *parts), "sha256").hex()

    def _opened(self, wrapped: bytes, bound: bytes) -> bytes:
        for wrapping in self._ring:
            key = wrapping.unwrap(wrapped, bound)
            if key is not None:
                return key
        raise SpeakerdError("a voice's key does not open: is kek.key the one it was made with?")


class _Wrapping:
    """One key-encryption key."""

    __slots__ = ("_aead", "kek_id")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(_derived(key, "wrap data keys"))
        self.kek_id = _derived(key, "name of this key")[:8].hex()

    def wrap(self, key: bytes, bound: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, key, bound)

    def unwrap(self, wrapped: bytes, bound: bytes) -> bytes | None:
        try:
            return self._aead.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], bound)
        except InvalidTag:
            return None


def blind_index(key: bytes, kind: str, text: str) -> bytes:
    """What finds a text again without keeping it: 32 bytes, the same for the same text, meaningless without the key.

    Case, width and repeated blanks make no difference.
    """
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hmac.digest(key, _framed("blind index", kind, normal), "sha256")


_SIZES = tuple(size.to_bytes(4, "big") for size in range(256))
"""Made once: a snapshot frames millions of short parts."""


def _framed(*parts: str | int) -> bytes:
    # Lengths in front, so that no two lists of parts come out the same.
    framed: list[bytes] = []
    for part in parts:
        encoded = str(part).encode()
        size = len(encoded)
        framed += (_SIZES[size] if size < len(_SIZES) else size.to_bytes(4, "big"), encoded)
    return b"".join(framed)


def _derived(key: bytes, purpose: str) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=f"speakerd {purpose}".encode()).derive(key)

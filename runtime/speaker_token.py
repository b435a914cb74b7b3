"""What an anonymous speaker sounded like, sealed for the client to keep until the person consents to being enrolled.

In: a voiceprint and how much speech it stands on. Out: opaque bytes under AES-256-GCM, bound to the tenant, good for a
day. Nodes seal, control planes open, both under a key derived from the fleet's; nothing of a stranger is stored.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from runtime.clock import Clock
from runtime.errors import InvalidRequest

TOKEN_S = 24 * 3600
TOKEN_BYTES_MAX = 64 << 10
_HEADER = struct.Struct(">BQ12s")  # version, expiry (Unix seconds), nonce
_BODY = struct.Struct(">IH")  # net speech in milliseconds, bytes of the model's name
_VERSION = 1


@dataclass(frozen=True, slots=True)
class HeardSpeaker:
    """A speaker's voiceprint. embedding: little-endian float32, (D,)."""

    model: str
    embedding: bytes
    net_speech_ms: int

    def __repr__(self) -> str:
        return f"HeardSpeaker({self.model}, {self.net_speech_ms} ms)"


class SpeakerSeal:
    """Seals and opens tokens of one fleet."""

    def __init__(self, fleet_key: str, clock: Clock) -> None:
        derive = HKDF(hashes.SHA256(), 32, salt=None, info=b"speakerd speaker token 1")
        self._cipher = AESGCM(derive.derive(fleet_key.encode()))
        self._clock = clock

    def __repr__(self) -> str:
        return "SpeakerSeal(…)"

    def seal(self, speaker: HeardSpeaker, *, tenant_id: str) -> bytes:
        """The token."""
        header = _HEADER.pack(_VERSION, round(self._clock.wall_s()) + TOKEN_S, os.urandom(12))
        model = speaker.model.encode()
        body = _BODY.pack(speaker.net_speech_ms, len(model)) + model + speaker.embedding
        return header + self._cipher.encrypt(header[-12:], body, header + tenant_id.encode())

    def open(self, token: bytes, *, tenant_id: str) -> HeardSpeaker:
        """What was sealed. Raises InvalidRequest, with the same words for another tenant's and for a made-up one."""
        if not _HEADER.size < len(token) <= TOKEN_BYTES_MAX:
            raise InvalidRequest("token: send Speaker.token as it came")
        header = token[: _HEADER.size]
        version, expires_at_s, nonce = _HEADER.unpack(header)
        try:
            body = self._cipher.decrypt(nonce, token[_HEADER.size :], header + tenant_id.encode())
        except InvalidTag:
            body = b""
        if version != _VERSION or len(body) < _BODY.size:
            raise InvalidRequest("token: send Speaker.token as it came")
        if self._clock.wall_s() >= expires_at_s:
            raise InvalidRequest("token: it has expired; the speaker has to be heard again")
        net_speech_ms, model_bytes = _BODY.unpack(body[: _BODY.size])
        end = _BODY.size + model_bytes
        return HeardSpeaker(body[_BODY.size : end].decode(), body[end:], net_speech_ms)

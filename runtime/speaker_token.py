"""What an anonymous speaker sounded like, sealed for the client to keep until the person consents to being enrolled.

In: a voiceprint and how much speech it stands on. Out: opaque bytes under AES-256-GCM, bound to the tenant, good for a
day. Control planes seal and open under a key derived from the fleet's; nodes seal, for their live streams, under the
keys of the day, which control planes have too. Nothing of a stranger is stored.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
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

    def __init__(self, fleet_key: str, clock: Clock, *, others: Callable[[], Sequence[bytes]] = tuple) -> None:
        """others: keys under which nodes seal, today's and those of the days beside it."""
        self._cipher = _cipher(fleet_key.encode())
        self._others = others
        self._clock = clock

    def __repr__(self) -> str:
        return "SpeakerSeal(…)"

    def seal(self, speaker: HeardSpeaker, *, tenant_id: str) -> bytes:
        """The token."""
        return _sealed(self._cipher, speaker, tenant_id, self._clock)

    def open(self, token: bytes, *, tenant_id: str) -> HeardSpeaker:
        """What was sealed. Raises InvalidRequest, with the same words for another tenant's and for a made-up one."""
        if not _HEADER.size < len(token) <= TOKEN_BYTES_MAX:
            raise InvalidRequest("token: send Speaker.token as it came")
        header = token[: _HEADER.size]
        version, expires_at_s, nonce = _HEADER.unpack(header)
        ciphers = (self._cipher, *(_cipher(key) for key in self._others()))
        bound = header + tenant_id.encode()
        body = next((found for one in ciphers if (found := _opened(one, nonce, token[_HEADER.size :], bound))), b"")
        if version != _VERSION or len(body) < _BODY.size:
            raise InvalidRequest("token: send Speaker.token as it came")
        if self._clock.wall_s() >= expires_at_s:
            raise InvalidRequest("token: it has expired; the speaker has to be heard again")
        net_speech_ms, model_bytes = _BODY.unpack(body[: _BODY.size])
        end = _BODY.size + model_bytes
        return HeardSpeaker(body[_BODY.size : end].decode(), body[end:], net_speech_ms)


def seal_under(key: bytes, speaker: HeardSpeaker, *, tenant_id: str, clock: Clock) -> bytes:
    """A token under a key of the day, as a node seals the strangers of a live stream."""
    return _sealed(_cipher(key), speaker, tenant_id, clock)


def _sealed(cipher: AESGCM, speaker: HeardSpeaker, tenant_id: str, clock: Clock) -> bytes:
    header = _HEADER.pack(_VERSION, round(clock.wall_s()) + TOKEN_S, os.urandom(12))
    model = speaker.model.encode()
    body = _BODY.pack(speaker.net_speech_ms, len(model)) + model + speaker.embedding
    return header + cipher.encrypt(header[-12:], body, header + tenant_id.encode())


def _opened(cipher: AESGCM, nonce: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    try:
        return cipher.decrypt(nonce, sealed, bound)
    except InvalidTag:
        return None


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt=None, info=b"speakerd speaker token 1").derive(key))

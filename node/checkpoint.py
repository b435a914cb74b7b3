"""Checkpoints: the state of a stream, sealed so that its client can carry it without reading or changing it.

In: bytes. Out: bytes under AES-256-GCM, bound to tenant, stream and model, good for CHECKPOINT_S. What always holds:
what `unseal` returns was sealed by this fleet, whose keys come with each renewal of the lease and are exchanged now and
then, or by this very process when standalone.
"""

from __future__ import annotations

import json
import secrets
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from models.analysis import FrameGrid
from runtime.clock import Clock
from runtime.errors import InvalidRequest
from runtime.speaker_token import HeardSpeaker, seal_under
from runtime.units import SAMPLE_RATE_HZ

CHECKPOINT_S = 600
CHECKPOINT_BYTES_MAX = 4 << 20
RESUME_SAMPLES = 4 * SAMPLE_RATE_HZ
"""A common multiple of a hop (0.5 s), a chunk of voice activity (512 samples) and an embedding's hop (0.1 s)."""
RESUME_LEAD_SAMPLES = 4 * SAMPLE_RATE_HZ
"""Of live streams, voice activity depends on a block of 4 s and the one before it (models.vad.MEMORY_CHUNKS): after so
much sound it says what it would have said without the loss."""
OTHER_VERSION = "the checkpoint is of another version: open a new stream without it"
_HEADER = struct.Struct(">BQ12s")  # version, expiry (Unix seconds), nonce
_VERSION = 1
_COMPACT = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a session remembers beside its diarization's snapshot.

    analysed_samples: end of the last window that was analysed. sequence: of the last final turn. speech: final speech
    of each speaker shown, samples. shown_as: speakers found to be another. numbers: session speaker → number shown.
    skipped: windows that were left out. named: numbers shown that carried a name at any time. left_out: speakers of
    whom nothing is known any more.
    """

    analysed_samples: int = 0
    sequence: int = 0
    speech: dict[int, int] = field(default_factory=dict)
    shown_as: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    naming: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    named: list[int] = field(default_factory=list)
    left_out: int = 0

    def resume_samples(self, grid: FrameGrid) -> int:
        """Where the sound has to begin on resumption: the next window needs what lies before it, the engine a start.

        Engines count frames, chunks and partials from a slot's first sample. From a multiple of RESUME_SAMPLES on they
        fall where they fell before, so that what is analysed again comes out as it did.
        """
        needed = self.analysed_samples - grid.window_samples - RESUME_LEAD_SAMPLES
        return max(0, needed // RESUME_SAMPLES * RESUME_SAMPLES)

    def to_bytes(self, snapshot: bytes) -> bytes:
        """This state and the snapshot that belongs to it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        text = _COMPACT.encode(values).encode()
        return len(text).to_bytes(4, "big") + text + snapshot

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[StreamState, bytes]:
        """What `to_bytes` made, snapshot second. Only for bytes that were sealed.

        Raises InvalidRequest where a node of another version made them: a fleet is upgraded one node at a time.
        """
        length = 4 + int.from_bytes(data[:4], "big")
        try:
            values = json.loads(data[4:length])
            for name in ("speech", "shown_as", "numbers"):
                values[name] = {int(key): value for key, value in values[name].items()}
            return cls(**values), data[length:]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidRequest(OTHER_VERSION) from None


class CheckpointSeal:
    """Seals and unseals, with a key of its own until it is given the fleet's."""

    def __init__(self, *, model: str, clock: Clock) -> None:
        self._keys: tuple[bytes, ...] = ()
        self._ciphers = [AESGCM(secrets.token_bytes(32))]
        self._model = model
        self._clock = clock

    def __repr__(self) -> str:
        return f"CheckpointSeal({self._model}, {len(self._keys)} keys of the fleet)"

    def use(self, keys: tuple[bytes, ...]) -> None:
        """The fleet's keys, 32 bytes each: the first seals, all of them open. None given: what is there stays."""
        if keys and keys != self._keys:
            self._keys = keys
            self._ciphers = [AESGCM(key) for key in keys]

    def seal(self, state: bytes, *, tenant_id: str, stream_id: str) -> bytes:
        """The checkpoint that holds this state."""
        header = _HEADER.pack(_VERSION, int(self._clock.wall_s()) + CHECKPOINT_S, secrets.token_bytes(12))
        return header + self._ciphers[0].encrypt(header[-12:], state, self._bound(header, tenant_id, stream_id))

    def stranger(self, embedding: bytes, net_speech_ms: int, *, tenant_id: str) -> bytes:
        """What a stranger is enrolled from later, with consent; empty without keys of the fleet."""
        if not self._keys:
            return b""
        speaker = HeardSpeaker(self._model, embedding, net_speech_ms)
        return seal_under(self._keys[0], speaker, tenant_id=tenant_id, clock=self._clock)

    def unseal(self, data: bytes, *, tenant_id: str, stream_id: str) -> bytes:
        """The state in a checkpoint. Raises InvalidRequest, saying what to do instead."""
        if not _HEADER.size < len(data) <= CHECKPOINT_BYTES_MAX:
            raise InvalidRequest("the checkpoint is malformed: send it as it came, or open a new stream without it")
        header, sealed = data[: _HEADER.size], data[_HEADER.size :]
        version, expires_at_s, nonce = _HEADER.unpack(header)
        bound = self._bound(header, tenant_id, stream_id)
        state = next((found for cipher in self._ciphers if (found := _opened(cipher, nonce, sealed, bound))), None)
        if state is None:
            raise InvalidRequest(
                "the checkpoint is not of this stream, tenant, fleet and model: open a new stream without it"
            )
        if version != _VERSION:
            raise InvalidRequest(OTHER_VERSION)
        if self._clock.wall_s() >= expires_at_s:
            raise InvalidRequest("the checkpoint has expired: open a new stream without it")
        return state

    def _bound(self, header: bytes, tenant_id: str, stream_id: str) -> bytes:
        parts = [header, *(text.encode() for text in (tenant_id, stream_id, self._model))]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _opened(cipher: AESGCM, nonce: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    try:
        return cipher.decrypt(nonce, sealed, bound)
    except InvalidTag:
        return None

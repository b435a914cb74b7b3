"""The sound that a client keeps, so that a stream can go on elsewhere: all that was sent since the last checkpoint.

In: sound as it is sent, checkpoints as they come. Out: sound from a position on. What always holds: positions are
bytes from the start of the stream, on whole samples of all channels; nothing before the last checkpoint is kept; there
is room for KEPT_S of sound, and whoever sends more waits for a checkpoint. The bytes of a container do not tell their
time, and mean nothing without its beginning: all of them are kept, up to CONTAINER_BYTES_MAX, and sent again.
"""

from __future__ import annotations

import asyncio

from speakerd.stream_leg import StreamOptions
from speakerd.v1 import common_pb2, node_pb2

KEPT_S = 90
CONTAINER_BYTES_MAX = 32 << 20
"""An hour or two of compressed speech. A stream that is longer is no longer resumed."""
PIECE_BYTES_MAX = 128 << 10

_SAMPLE_BYTES = {
    common_pb2.ENCODING_UNSPECIFIED: 2,
    common_pb2.ENCODING_PCM_S16LE: 2,
    common_pb2.ENCODING_PCM_F32LE: 4,
    common_pb2.ENCODING_PCM_MULAW: 1,
    common_pb2.ENCODING_PCM_ALAW: 1,
}


def is_resumable(options: StreamOptions) -> bool:
    """Whether sound of this encoding can be cut at a time. A container cannot: its bytes do not tell their time."""
    return options.encoding in _SAMPLE_BYTES


def frame_bytes(options: StreamOptions) -> int:
    """Bytes of one sample of all channels; 1 for a container, which has none."""
    return _SAMPLE_BYTES.get(options.encoding, 1) * max(1, options.channels)


class KeptSound:
    """What was sent since the last checkpoint; of a container, since its beginning."""

    def __init__(self, options: StreamOptions) -> None:
        self._is_container = not is_resumable(options)
        self._frame_bytes = frame_bytes(options)
        self._rate_hz = options.sample_rate_hz or 16_000
        self._bytes_max = KEPT_S * self._rate_hz * self._frame_bytes
        self._sound = bytearray()
        self._start = 0
        self._changed = asyncio.Event()
        self._confirmed_ms = 0
        self.checkpoint = b""
        self.is_enough = True
        """Whether a stream can go on from what is kept."""

    def __repr__(self) -> str:
        return f"KeptSound({self._start} to {self.end})"

    @property
    def start(self) -> int:
        """From where on the sound is kept: where a stream that goes on begins."""
        return self._start

    @property
    def end(self) -> int:
        """Up to where there is sound."""
        return self._start + len(self._sound)

    @property
    def start_ms(self) -> int:
        """Where a stream that goes on does so, as a time."""
        if self._is_container:
            return self._confirmed_ms
        return self._start // self._frame_bytes * 1000 // self._rate_hz

    def append(self, sound: bytes) -> None:
        """Keep sound that is being sent."""
        self._sound += sound
        if self._is_container and self.end > CONTAINER_BYTES_MAX:
            self.is_enough = False

    def piece(self, position: int) -> bytes:
        """Sound from a position on, of a size for one message; empty at the end."""
        at = position - self._start
        assert 0 <= at <= len(self._sound), "sound that is not kept"
        left = len(self._sound) - at
        size = left if left <= PIECE_BYTES_MAX else PIECE_BYTES_MAX // self._frame_bytes * self._frame_bytes
        return bytes(self._sound[at : at + size])

    def confirm(self, checkpoint: node_pb2.Checkpoint) -> None:
        """Take a checkpoint: what lies before it need not be kept."""
        if self._is_container:
            self.checkpoint, self._confirmed_ms = checkpoint.data, checkpoint.position_ms
            return
        position = checkpoint.position_ms * self._rate_hz // 1000 * self._frame_bytes
        if self._start <= position <= self.end:
            self.checkpoint = checkpoint.data
            self.forget(position)

    def forget(self, position: int) -> None:
        """Keep nothing that lies before a position."""
        del self._sound[: position - self._start]
        self._start = position
        self.wake()

    def wake(self) -> None:
        """Let whoever waits for room look again."""
        self._changed.set()

    def has_room(self) -> bool:
        """Whether more may be appended."""
        return self._is_container or len(self._sound) < self._bytes_max

    async def changed(self) -> None:
        """Wait until something was forgotten, or `wake` was called."""
        self._changed.clear()
        await self._changed.wait()

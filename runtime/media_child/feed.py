"""A recording that is still being made, as the demuxer reads it: bytes from a pipe, as far as they have come.

In: a descriptor that cannot seek. Out: bytes at the beginning for whoever tells formats apart, then all of them in
order. What always holds: a read gives what is there and waits only where nothing is; no more than HEAD_BYTES_MAX is
kept, but for files whose index comes last, which cannot be understood before that (WHOLE_BYTES_MAX).
"""

from __future__ import annotations

import io
import os

from runtime.media_child.sniff import Refused

HEAD_BYTES_MAX = 8 << 20
WHOLE_BYTES_MAX = 64 << 20
READ_BYTES = 65_536


class Feed:
    """Bytes of a pipe. It has no `seek`, by which PyAV knows that there is none."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._head = bytearray()
        self._at = 0
        self._ended = False

    def __repr__(self) -> str:
        return f"Feed({len(self._head)} bytes held)"

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes at an offset, before the first `read`; fewer where the sound ends. Refused far from the beginning."""
        if offset + length > HEAD_BYTES_MAX:
            raise Refused("unknown")
        while len(self._head) < offset + length and not self._ended:
            self._fill()
        return bytes(self._head[offset : offset + length])

    def read(self, num_bytes: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        if self._at < len(self._head):
            piece = bytes(self._head[self._at : self._at + num_bytes])
            self._at += len(piece)
            if self._at == len(self._head):
                self._head, self._at = bytearray(), 0
            return piece
        return b"" if self._ended else os.read(self._fd, num_bytes)

    def whole(self) -> io.BytesIO:
        """All of it, once it has come. Refused where that is too much to keep."""
        while not self._ended:
            if len(self._head) > WHOLE_BYTES_MAX:
                raise Refused("index_last", mib=WHOLE_BYTES_MAX >> 20)
            self._fill()
        return io.BytesIO(self._head)

    def _fill(self) -> None:
        piece = os.read(self._fd, READ_BYTES)
        self._ended = not piece
        self._head += piece


def index_comes_last(feed: Feed) -> bool:
    """Whether an mp4 file's sound lies before the index that explains it."""
    position = 0
    while position + 16 <= HEAD_BYTES_MAX:
        head = feed.read_at(position, 16)
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if kind == b"mdat" or len(head) < 8:
            return True
        if kind == b"moov":
            return False
        position += max(int.from_bytes(head[8:16], "big") if length == 1 else length, 8)
    return True

"""A recording as ciphertext in frames, so that it is written and read in a stream and never lies whole in memory.

In: chunks of any size. Out: frames of FRAME_BYTES of plaintext and 16 bytes of tag each, the last one shorter. What
always holds: each frame says by its nonce which one it is and whether it is the last, so that frames that were dropped,
moved, or cut off at the end do not open. The key is a recording's own: nonces are never used twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.errors import SpeakerdError

FRAME_BYTES = 1 << 20
TAG_BYTES = 16


async def seal_frames(key: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Frames of a recording. There is always a last one, empty or not."""
    aead, held, number = AESGCM(key), bytearray(), 0
    async for chunk in chunks:
        held += chunk
        while len(held) > FRAME_BYTES:
            frame = bytes(held[:FRAME_BYTES])
            del held[:FRAME_BYTES]
            yield await asyncio.to_thread(aead.encrypt, _nonce(number, is_last=False), frame, None)
            number += 1
    yield aead.encrypt(_nonce(number, is_last=True), bytes(held), None)


async def open_frames(key: bytes, stored: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The recording again, frame by frame. Raises SpeakerdError (internal) when it was damaged or cut."""
    aead, held, number = AESGCM(key), bytearray(), 0
    whole = FRAME_BYTES + TAG_BYTES
    async for chunk in stored:
        held += chunk
        while len(held) > whole:
            frame = bytes(held[:whole])
            del held[:whole]
            yield await asyncio.to_thread(_opened, aead, number, frame, is_last=False)
            number += 1
    yield _opened(aead, number, bytes(held), is_last=True)


def _opened(aead: AESGCM, number: int, frame: bytes, *, is_last: bool) -> bytes:
    try:
        return aead.decrypt(_nonce(number, is_last=is_last), frame, None)
    except (InvalidTag, ValueError):
        raise SpeakerdError("a stored recording does not open: it is damaged or has been moved") from None


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(8, "big") + bytes((0, 0, 0, int(is_last)))

"""How many containers are decoded at once: each has a child process of some 20 MiB, and of a file also a core.

In: how the bytes of a stream or file hold sound. Out: a place for as long as it lasts, or Overloaded. Samples as they
are need no decoder, and take no place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from node.enrolment import CONTAINER
from node.events import SoundFormat
from runtime.errors import Overloaded

DECODERS_MAX = 2 * max(2, os.cpu_count() or 1)
"""Twice the cores: half of them wait for their upload or for the device at any moment."""
LIVE_DECODERS_MAX = 16 * DECODERS_MAX
"""A stream's decoder works at the pace of speech, a three-hundredth of a core: memory is what it takes."""
RETRY_AFTER_S = 2.0


class Decoders:
    """The places of one node: those of its files, and those of its streams."""

    def __init__(self, count: int = DECODERS_MAX, live_count: int = LIVE_DECODERS_MAX) -> None:
        self._count = {True: live_count, False: count}
        self._taken = {True: 0, False: 0}

    def __repr__(self) -> str:
        return f"Decoders({self._taken[False]} of {self._count[False]} taken, {self._taken[True]} live)"

    @contextmanager
    def place(self, sound: SoundFormat, *, is_live: bool = False) -> Iterator[None]:
        """Hold a place while the context lasts, if this sound needs one. Raises Overloaded when all are taken."""
        if sound.encoding != CONTAINER:
            yield
            return
        if self._taken[is_live] >= self._count[is_live]:
            raise Overloaded(
                "too many recordings are being decoded here: try again, or send samples", retry_after_s=RETRY_AFTER_S
            )
        self._taken[is_live] += 1
        try:
            yield
        finally:
            self._taken[is_live] -= 1

"""How many containers are decoded at once: each has a child process, and a core while it runs.

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
RETRY_AFTER_S = 2.0


class Decoders:
    """The places of one node, shared by its streams and files."""

    def __init__(self, count: int = DECODERS_MAX) -> None:
        self._count = count
        self._taken = 0

    def __repr__(self) -> str:
        return f"Decoders({self._taken} of {self._count} taken)"

    @contextmanager
    def place(self, sound: SoundFormat) -> Iterator[None]:
        """Hold a place while the context lasts, if this sound needs one. Raises Overloaded when all are taken."""
        if sound.encoding != CONTAINER:
            yield
            return
        if self._taken >= self._count:
            raise Overloaded(
                "too many recordings are being decoded here: try again, or send samples", retry_after_s=RETRY_AFTER_S
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

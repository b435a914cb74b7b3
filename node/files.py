"""Recordings: a slot each, at low priority beside live streams."""

from __future__ import annotations

from runtime.errors import Unimplemented


class FileRuns:
    """Files that are being diarized."""

    async def serve(self, peer: object) -> None:
        """Diarize one recording."""
        raise Unimplemented("recordings are not taken by this node yet")

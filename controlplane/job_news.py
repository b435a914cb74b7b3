"""Who waits for news of jobs in this process: workers for new ones, watchers for changes, runs for a cancellation.

In: what was said here, or heard over Redis. Out: events. A hint: everybody who waits also looks by himself now and
then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from controlplane.pulse import Pulse


class JobNews:
    """Events by job, and one for all that waits."""

    def __init__(self) -> None:
        self.new = Pulse()
        self._watched: dict[str, tuple[int, Pulse]] = {}

    def __repr__(self) -> str:
        return f"JobNews({len(self._watched)} watched)"

    def hear(self, news: str) -> None:
        """Take what was said. Empty: something may have been missed."""
        word, _, job_id = news.partition(" ")
        if word in ("", "new"):
            self.new.beat()
        watched = [self._watched.get(job_id)] if job_id else list(self._watched.values()) if not word else []
        for entry in watched:
            if entry is not None:
                entry[1].beat()

    @contextmanager
    def of(self, job_id: str) -> Iterator[Pulse]:
        """Beats whenever there is news of a job, within the block."""
        count, pulse = self._watched.get(job_id, (0, Pulse()))
        self._watched[job_id] = (count + 1, pulse)
        try:
            yield pulse
        finally:
            count, pulse = self._watched.pop(job_id)
            if count > 1:
                self._watched[job_id] = (count - 1, pulse)

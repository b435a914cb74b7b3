"""How loaded a node is, for whoever routes to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from node.batcher import Batcher
from node.slots import SlotTable
from node.voice_store import VoiceStore


@dataclass(frozen=True, slots=True)
class Load:
    """A moment's load. streams_max: as things are. lag_p99_s: how late live windows came over the last minute.

    tenants: how many of the streams are whose.
    """

    streams: int
    streams_max: int
    files: int
    files_max: int
    voices: int
    queued_windows: int
    lag_p99_s: float
    tenants: Mapping[str, int] = field(default_factory=dict)


class LoadGauge:
    """Reads the load off the parts that carry it."""

    def __init__(self, streams: SlotTable, files: SlotTable, store: VoiceStore, batcher: Batcher) -> None:
        self._streams = streams
        self._files = files
        self._store = store
        self._batcher = batcher

    def __repr__(self) -> str:
        return f"LoadGauge({self.now()})"

    @property
    def streams_changed(self) -> asyncio.Event:
        """Set when a stream has come or gone; whoever waits for it clears it."""
        return self._streams.changed

    def now(self) -> Load:
        """The load at this moment."""
        # Where the device is behind nothing more is placed, however many slots are free.
        streams_max = self._streams.num_taken if self._batcher.is_saturated() else self._streams.count
        return Load(
            streams=self._streams.num_taken,
            streams_max=streams_max,
            files=self._files.num_taken,
            files_max=self._files.count,
            voices=len(self._store),
            queued_windows=self._batcher.num_queued,
            lag_p99_s=self._batcher.lateness_p99_s(),
            tenants=self._streams.holders(),
        )

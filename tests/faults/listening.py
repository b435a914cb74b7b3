"""Streams of people who do not stop talking, and when each thing was said of them."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from speakerd.client import Client, StreamOptions
from speakerd.v1 import node_pb2
from tests.faults.processes import pcm, tones, until, voice
from tests.faults.streaming import Told, stream


class Listening:
    """A stream of one person who does not stop talking, and when each thing was said of him."""

    def __init__(self, client: Client, number: int) -> None:
        self.told = Told()
        self.done = asyncio.Event()
        self.labels: list[tuple[float, str]] = []
        self.degraded_s: list[tuple[float, bool]] = []
        sound = pcm(np.tile(tones(10, *voice(number)), 12))
        options = StreamOptions(latency_ms=500)
        self.task = asyncio.create_task(
            stream(client, sound, options, told=self.told, until=self.done, on_event=self._take)
        )

    def _take(self, event: object) -> None:
        now_s = time.monotonic()
        if isinstance(event, node_pb2.Turns):
            self.labels += [(now_s, turn.label) for turn in event.turns]
        elif isinstance(event, node_pb2.Relabel):
            self.labels.append((now_s, event.label))
        elif isinstance(event, node_pb2.Degraded):
            self.degraded_s.append((now_s, event.active))
        elif isinstance(event, node_pb2.StreamClosed):
            self.labels += [(now_s, speaker.label) for speaker in event.speakers]

    async def hears(self, label: str, since_s: float = 0.0) -> None:
        await until(lambda: any(said == label and at_s > since_s for at_s, said in self.labels), 60)

    def said_after(self, at_s: float) -> set[str]:
        return {label for said_s, label in self.labels if said_s > at_s}

"""A node's live streams in this process, over any engine, on a clock that a test may hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from node.access import Access
from node.batcher import Batcher
from node.checkpoint import CheckpointSeal
from node.decoders import Decoders
from node.device_thread import DeviceThread
from node.engine import Engine
from node.metrics import NodeMetrics
from node.slots import SlotTable
from node.standing import Standing
from node.streams import LiveStreams
from node.voice_store import VoiceStore
from runtime.clock import Clock, SystemClock

LATE_S = 2.0


@dataclass(frozen=True, slots=True)
class LiveDesk:
    """What a test may ask."""

    batcher: Batcher
    streams: LiveStreams
    slots: SlotTable
    store: VoiceStore
    metrics: NodeMetrics


@asynccontextmanager
async def live_streams(engine: Engine, clock: Clock | None = None) -> AsyncIterator[LiveDesk]:
    """Four slots over an engine; stopped when the context ends."""
    clock, metrics = clock or SystemClock(), NodeMetrics(CollectorRegistry())
    thread = DeviceThread(lambda: engine, calls_max=64)
    await thread.start()
    grid = engine.device.grid
    batcher, slots = Batcher(thread, grid, metrics, clock, late_s=LATE_S), SlotTable(4, what="stream")
    store = VoiceStore(thread, embedding_dim=grid.embedding_dim)
    running = asyncio.create_task(batcher.run())
    with ThreadPoolExecutor(1) as steps:
        streams = LiveStreams(
            node_id="n",
            engine=engine,
            batcher=batcher,
            store=store,
            standing=Standing(None),
            access=Access(node_id="n", fleet_key=None, clock=clock),
            seal=CheckpointSeal(model=engine.model, clock=clock),
            slots=slots,
            decoders=Decoders(1, 1),
            steps=steps,
            metrics=metrics,
            clock=clock,
        )
        try:
            yield LiveDesk(batcher, streams, slots, store, metrics)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await thread.stop()

"""Streams that leave nobody: one call to one node, whatever becomes of it, and when each thing was said over it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from grpc import aio

from speakerd.v1 import node_pb2, node_pb2_grpc, streams_pb2, streams_pb2_grpc
from tests.faults.processes import chunks, until

# No keepalive: the connection to a frozen node lives on, and all that is sent meanwhile waits for it there.
PATIENT = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


class RawStream:
    """A call of Diarize at the pace of speech, and nothing of what the client of users does for continuity."""

    def __init__(self, place: streams_pb2.PlaceStreamResponse, sound: bytes) -> None:
        self.node_id = place.node_id
        self.labels: list[tuple[float, str]] = []
        self.is_open = False
        self.error: aio.AioRpcError | None = None
        self._channel = aio.insecure_channel(place.address, options=PATIENT)
        self._call = node_pb2_grpc.NodeStub(self._channel).Diarize()
        opening = node_pb2.StreamOpen(ticket=place.ticket, stream_id=place.stream_id, latency_ms=500)
        self._tasks = [asyncio.create_task(self._send(opening, sound)), asyncio.create_task(self._read())]

    async def hears(self, label: str) -> None:
        await until(lambda: any(said == label for _, said in self.labels), 30)

    def said_after(self, at_s: float) -> set[str]:
        return {label for said_s, label in self.labels if said_s > at_s}

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def _send(self, opening: node_pb2.StreamOpen, sound: bytes) -> None:
        await self._call.write(node_pb2.DiarizeRequest(open=opening))
        began_s = time.monotonic()
        for number, piece in enumerate(chunks(sound)):
            await asyncio.sleep(began_s + number * 0.1 - time.monotonic())
            await self._call.write(node_pb2.DiarizeRequest(audio=piece))

    async def _read(self) -> None:
        self.is_open = True
        try:
            while (said := await self._call.read()) is not aio.EOF:
                now_s = time.monotonic()
                self.labels += [(now_s, turn.label) for turn in said.turns.turns]
                if said.HasField("relabel"):
                    self.labels.append((now_s, said.relabel.label))
                self.labels += [(now_s, speaker.label) for speaker in said.closed.speakers]
        except aio.AioRpcError as error:
            self.error = error
        finally:
            self.is_open = False


@asynccontextmanager
async def raw_stream(
    plane: str, key: str, node_id: str, others: Sequence[str], sound: bytes
) -> AsyncIterator[RawStream]:
    """A raw stream on this very node, placed by the control plane at an address with an API key."""
    async with aio.insecure_channel(plane) as channel:
        placed = await streams_pb2_grpc.StreamsStub(channel).PlaceStream(
            streams_pb2.PlaceStreamRequest(stream_id=f"raw-{node_id}", avoid_node_ids=list(others)),
            metadata=[("authorization", f"Bearer {key}")],
        )
    assert placed.node_id == node_id
    stream = RawStream(placed, sound)
    try:
        yield stream
    finally:
        await stream.close()

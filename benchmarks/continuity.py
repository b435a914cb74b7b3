"""What the loss of a node costs the streams on it: killed, frozen and drained, one node after the other.

    python benchmarks/continuity.py [--streams 30] [--json OUT]

Real processes (PostgreSQL, Redis, a control plane, four nodes with the null engine) and the client of users, at the
pace of speech. For each kind of loss: how long from the signal until a stream goes on elsewhere, and how much of that
was spent on placing and opening once the loss was noticed. What has to hold is asserted: no stream fails, no final turn
is left out or told twice, and no turn is late for good.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.fleet_processes import Fleet, running_fleet
from speakerd.client import Client, LiveStream, Resumed, StreamOptions
from speakerd.v1 import node_pb2

RATE_HZ = 16_000
CHUNK_S = 0.1
SETTLE_S = 4.0
WITHIN_S = 30.0
LOSSES = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)


@dataclass(slots=True)
class Carried:
    """One stream and what it told."""

    node_id: str = ""
    resumed: list[tuple[float, Resumed]] = field(default_factory=list)
    num_final: int = 0
    final_ms: int = 0
    closed: node_pb2.StreamClosed | None = None


def _voice(number: int, seconds: float) -> bytes:
    """A voice to the null engine, 16-bit."""
    at = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    mixed = sum(np.sin(2 * np.pi * (300.0 + 37.0 * number) * step * at) for step in (1, 3, 7))
    return (0.1 * mixed * (at % 1.0 < 0.7) * 32767).astype("<i2").tobytes()


async def _carry(client: Client, number: int, done: asyncio.Event, told: Carried) -> None:
    sound, size = _voice(number, 10.0), round(CHUNK_S * RATE_HZ) * 2

    async def send(live: LiveStream) -> None:
        began_s, sent = time.monotonic(), 0
        while not done.is_set():
            await live.send(sound[sent % len(sound) : sent % len(sound) + size])
            sent += size
            await asyncio.sleep(began_s + sent / 2 / RATE_HZ - time.monotonic())
        await live.finish()

    async with await client.open_stream(StreamOptions(latency_ms=1_000)) as live:
        told.node_id = live.opened.node_id
        sending = asyncio.create_task(send(live))
        async for event in live:
            if isinstance(event, Resumed):
                told.resumed.append((time.monotonic(), event))
                told.node_id = event.node_id
            elif isinstance(event, node_pb2.Turns):
                assert [turn.sequence for turn in event.turns] == [
                    told.num_final + at + 1 for at in range(len(event.turns))
                ], "a turn was left out or told twice"
                assert all(turn.start_ms >= told.final_ms - 1_000 for turn in event.turns)
                told.num_final += len(event.turns)
                told.final_ms = event.final_ms
            elif isinstance(event, node_pb2.StreamClosed):
                told.closed = event
        await sending


async def _lose(fleet: Fleet, streams: list[Carried], number: signal.Signals, node: int) -> dict[str, float]:
    there = [told for told in streams if told.node_id == f"node-{node}"]
    before = [len(told.resumed) for told in there]
    began_s = time.monotonic()
    fleet.nodes[node].process.send_signal(number)
    async with asyncio.timeout(WITHIN_S):
        while any(len(told.resumed) == count for told, count in zip(there, before, strict=True)):
            await asyncio.sleep(0.01)
    away = [told.resumed[-1][0] - began_s for told in there]
    opening = [told.resumed[-1][1].away_s for told in there]
    if number is signal.SIGTERM:
        assert await asyncio.wait_for(fleet.nodes[node].process.wait(), WITHIN_S) == 0
    return {
        "streams": len(there),
        "away_p50_s": round(statistics.median(away), 3),
        "away_max_s": round(max(away), 3),
        "placing_and_opening_p50_s": round(statistics.median(opening), 3),
        "placing_and_opening_max_s": round(max(opening), 3),
    }


async def measure(num_streams: int) -> dict[str, object]:
    """Everything, as plain values."""
    found: dict[str, object] = {"streams": num_streams}
    async with running_fleet(planes=1, nodes=4, streams_max=num_streams + 8) as fleet:
        async with Client(fleet.planes[0].grpc, fleet.token) as client, asyncio.TaskGroup() as tasks:
            done, streams = asyncio.Event(), [Carried() for _ in range(num_streams)]
            for number, told in enumerate(streams):
                tasks.create_task(_carry(client, number, done, told))
            for node, number in enumerate(LOSSES):
                await asyncio.sleep(SETTLE_S)
                found[number.name] = await _lose(fleet, streams, number, node)
            await asyncio.sleep(SETTLE_S)
            done.set()
        for told in streams:
            assert told.closed is not None and told.closed.num_final_turns == told.num_final
    return found


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    text = json.dumps(asyncio.run(measure(given.streams)), indent=2)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

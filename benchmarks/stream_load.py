"""Many live streams at one node from one process, at the pace of speech: the lag of each result, and the node's CPU.

In: a node's address, how many streams, sound. Out: one line of JSON. What always holds: every lag is counted from the
time at which the chunk was due that completes the window, also where this process was late itself; streams begin
spread evenly over the longest of a stream's rounds, its look at the whole memory every eight steps, as independent ones
do on the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile
import uvloop
from grpc import aio

from speakerd.connections import STREAMS_A_CONNECTION
from speakerd.v1 import node_pb2, node_pb2_grpc

RATE_HZ = 16_000
CHUNK_MS = 100
CHUNK_BYTES = CHUNK_MS * RATE_HZ // 1000 * 2
SPREAD_S = 4.0
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


@dataclass(slots=True)
class Told:
    """What all streams were told. lags_s: of results within the measured time. errors: how streams ended early."""

    latency_ms: int
    measures: bool = False
    lags_s: list[float] = field(default_factory=list)
    skipped_windows: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def count(self, code: grpc.StatusCode) -> None:
        """A stream ended early."""
        self.errors[code.name] += 1


async def _stream(call: Any, sound: Sequence[bytes], begin_s: float, over: asyncio.Event, told: Told) -> None:
    """One stream: chunks go in as they are due, results are timed."""
    try:
        opening = node_pb2.StreamOpen(latency_ms=told.latency_ms)
        await call.write(node_pb2.DiarizeRequest(open=opening))
        if (await call.read()) is aio.EOF:
            told.count(await call.code())
            return
        reading = asyncio.create_task(_read(call, begin_s, told))
        sent = 0
        while not over.is_set():
            sent += 1
            due_s = begin_s + sent * CHUNK_MS / 1000
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            await call.write(node_pb2.DiarizeRequest(audio=sound[sent % len(sound)]))
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    except (aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
        if not over.is_set():
            told.count(await call.code())


async def _read(call: Any, begin_s: float, told: Told) -> None:
    skipped = 0
    while (response := await call.read()) is not aio.EOF:
        now_s = time.monotonic()
        kind = response.WhichOneof("message")
        if kind == "turns" and response.turns.final_ms > 0:
            chunks = -(-(response.turns.final_ms + told.latency_ms) // CHUNK_MS)
            if told.measures:
                told.lags_s.append(now_s - begin_s - chunks * CHUNK_MS / 1000)
        elif kind == "progress":
            told.skipped_windows += response.progress.skipped_windows - skipped
            skipped = response.progress.skipped_windows


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def _run(given: argparse.Namespace, sound: list[bytes]) -> dict[str, object]:
    told, over = Told(given.latency_ms), asyncio.Event()
    begin_s = time.monotonic() + 0.5
    connections = given.connections or -(-given.streams // STREAMS_A_CONNECTION)
    channels = [aio.insecure_channel(given.address, options=OPTIONS) for _ in range(connections)]
    stubs = [node_pb2_grpc.NodeStub(channel) for channel in channels]
    gc.collect()
    gc.freeze()
    async with asyncio.TaskGroup() as tasks:
        for number in range(given.streams):
            first = number * len(sound) // given.streams
            at_s = begin_s + SPREAD_S * number / given.streams
            call = stubs[number % len(stubs)].Diarize()
            tasks.create_task(_stream(call, sound[first:] + sound[:first], at_s, over, told))
        await asyncio.sleep(0.5 + SPREAD_S + given.warm_up)
        told.measures = True
        began_s, cpu_s, own_s = time.monotonic(), _cpu_s(given.node_pid), time.process_time()
        await asyncio.sleep(given.seconds)
        told.measures = False
        took_s = time.monotonic() - began_s
        cpu_s, own_s = _cpu_s(given.node_pid) - cpu_s, time.process_time() - own_s
        rss_mib = _rss_mib(given.node_pid)
        over.set()
    for channel in channels:
        await channel.close()
    lags = np.sort(np.array(told.lags_s or [1e6])) * 1000
    refused = told.errors.pop(grpc.StatusCode.RESOURCE_EXHAUSTED.name, 0)
    carried = given.streams - refused - told.errors.total()
    return {
        "streams": given.streams,
        "lag_p50_ms": round(float(np.quantile(lags, 0.5)), 2),
        "lag_p99_ms": round(float(np.quantile(lags, 0.99)), 2),
        "lag_max_ms": round(float(lags[-1]), 2),
        "cpu_s_per_audio_s": round(cpu_s / took_s / max(carried, 1), 6),
        "cpu_share": round(cpu_s / took_s, 4),
        "client_cpu_share": round(own_s / took_s, 4),
        "rss_mib": round(rss_mib, 1),
        "results": len(told.lags_s),
        "failed": told.errors.total(),
        "refused": refused,
        "skipped_windows": told.skipped_windows,
        "errors": dict(told.errors),
    }


def _sound(files: Sequence[Path]) -> list[bytes]:
    """Chunks of 16-bit sound: of recordings, or voices to the null engine."""
    if files:
        pieces = []
        for file in files:
            samples, rate = soundfile.read(file, dtype="int16", always_2d=True)
            if rate != RATE_HZ:
                raise SystemExit(f"{file.name}: {rate} Hz; give recordings at {RATE_HZ} Hz")
            pieces.append(samples[:, 0])
        data = np.concatenate(pieces).astype("<i2").tobytes()
    else:
        at = np.arange(10 * RATE_HZ) / RATE_HZ
        first, second = (sum(np.sin(2 * np.pi * pitch * step * at) for step in (1, 3, 7)) for pitch in (300.0, 410.0))
        mixed = np.where(at % 4.0 < 2.0, first, second) * (at % 1.0 < 0.7)
        data = (0.1 * mixed * 32767).astype("<i2").tobytes()
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data) - CHUNK_BYTES + 1, CHUNK_BYTES)]


def main() -> None:
    """Run once and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=5.0)
    parser.add_argument("--latency-ms", type=int, default=2_000)
    parser.add_argument("--connections", type=int, default=0, help="0: as many as the Python client makes")
    parser.add_argument("--node-pid", type=int, required=True)
    parser.add_argument("--audio", type=Path, nargs="*", default=())
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_run(given, _sound(given.audio)))))


if __name__ == "__main__":
    main()

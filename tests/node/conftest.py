"""A real node process, a real client, and voices made of tones, which the null engine tells apart."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from grpc import aio

from runtime.grpc_server import open_channel
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent.parent
RATE = 16_000
CHUNK_BYTES = 3_200  # 100 ms


def tones(seconds: float, *frequencies: float) -> np.ndarray:
    """A voice to the null engine: (N,) float32. It pauses for 0.15 s a second, as speech does and hum does not."""
    at = np.arange(round(seconds * RATE)) / RATE
    mixed = np.sum([np.sin(2 * np.pi * frequency * at) for frequency in frequencies], axis=0)
    room = np.random.default_rng(0).normal(0, 1e-4, len(at))
    return (0.3 * mixed / len(frequencies) * (at % 1.0 < 0.85) + room).astype(np.float32)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


ADA = (300.0, 900.0, 2100.0)
BOB = (500.0, 1500.0, 3300.0)


class RunningNode:
    """A node process that serves, and a stub to it."""

    def __init__(
        self, process: subprocess.Popen[str], address: str, metrics: str, stub: node_pb2_grpc.NodeStub
    ) -> None:
        self.process = process
        self.address = address
        self.metrics = metrics
        self.stub = stub

    async def enroll(self, voice_id: str, label: str, samples: np.ndarray, *, tenant_id: str = "") -> None:
        await self.stub.Enroll(
            node_pb2.EnrollRequest(
                voice=common_pb2.VoiceRef(voice_id=voice_id, tenant_id=tenant_id),
                label=label,
                clip=common_pb2.AudioClip(data=pcm(samples)),
            )
        )

    async def diarize(self, samples: np.ndarray, **options: object) -> Heard:
        heard = Heard()
        call = self.stub.Diarize(requests(pcm(samples), **options))
        async for response in call:
            heard.take(response)
        return heard

    async def is_alive(self) -> bool:
        described = await self.stub.Describe(node_pb2.DescribeRequest(), timeout=5)
        return self.process.poll() is None and described.state == node_pb2.NODE_STATE_SERVING

    async def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page beside the metrics."""
        host, port = self.metrics.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, _, text = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), text

    async def metric(self, name: str) -> float:
        _, text = await self.page("/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)

    async def terminate(self) -> int:
        """The exit code after SIGTERM."""
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 30)


class Heard:
    """What a stream told."""

    def __init__(self) -> None:
        self.opened: node_pb2.StreamOpened | None = None
        self.turns: list[common_pb2.Turn] = []
        self.provisional: list[common_pb2.Turn] = []
        self.relabels: list[node_pb2.Relabel] = []
        self.progress: list[node_pb2.Progress] = []
        self.checkpoints: list[node_pb2.Checkpoint] = []
        self.draining: list[node_pb2.Draining] = []
        self.degraded: list[node_pb2.Degraded] = []
        self.closed: node_pb2.StreamClosed | None = None

    def take(self, response: node_pb2.DiarizeResponse) -> None:
        kind = response.WhichOneof("message")
        assert kind is not None
        if kind in ("opened", "closed"):
            assert getattr(self, kind) is None
            setattr(self, kind, getattr(response, kind))
        elif kind == "turns":
            for turn in response.turns.turns:
                (self.turns if turn.state == common_pb2.Turn.STATE_FINAL else self.provisional).append(turn)
        elif kind == "relabel":
            self.relabels.append(response.relabel)
        elif kind == "checkpoint":
            self.checkpoints.append(response.checkpoint)
        else:
            getattr(self, kind).append(getattr(response, kind))

    @property
    def names(self) -> set[str]:
        """Every label and voice id that was said at all."""
        said = [*self.turns, *self.provisional, *self.relabels, *(self.closed.speakers if self.closed else ())]
        return {one.label for one in said} | {one.voice_id for one in said if one.voice_id}

    def speech_s(self, speaker: str) -> float:
        return sum(turn.end_ms - turn.start_ms for turn in self.turns if turn.speaker == speaker) / 1000


async def requests(data: bytes, *, pace_s: float = 0.0, **options: object) -> AsyncIterator[node_pb2.DiarizeRequest]:
    # A pace also keeps grpc.aio's client from writing into a call that was just refused: it would report that write as
    # INTERNAL, in place of the status. A long one costs nothing there, for the wait ends with the call.
    yield node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(**options))  # type: ignore[arg-type]
    await asyncio.sleep(pace_s)
    for at in range(0, len(data), CHUNK_BYTES):
        yield node_pb2.DiarizeRequest(audio=data[at : at + CHUNK_BYTES])
        await asyncio.sleep(pace_s)
    yield node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish())


async def rest(call: aio.StreamStreamCall) -> AsyncIterator[node_pb2.DiarizeResponse]:
    """The answers still to come of a call that is read with read()."""
    while (response := await call.read()) is not aio.EOF:
        yield response


def launch(*flags: str, log: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """A node process with these flags, and the fields of its ready line, once it serves."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "node", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready grpc="):
        process.kill()
        process.communicate()
        raise AssertionError(log.read_text())
    return process, dict(part.split("=", 1) for part in line.split()[1:])


@asynccontextmanager
async def running_node(*flags: str, log: Path) -> AsyncIterator[RunningNode]:
    """A node with these flags; stopped when the context ends."""
    process, fields = await asyncio.to_thread(launch, *flags, log=log)
    try:
        async with open_channel(fields["grpc"]) as channel:
            yield RunningNode(process, fields["grpc"], fields["metrics"], node_pb2_grpc.NodeStub(channel))
    finally:
        process.kill()
        process.communicate()


NULL_NODE = ("--standalone", "--device", "null", "--streams-max", "2", "--drain-s", "1")


@pytest.fixture
async def own_node(tmp_path: Path) -> AsyncIterator[RunningNode]:
    """A standalone node with the null engine and two slots, for a test that ends or drains it."""
    async with running_node(*NULL_NODE, log=tmp_path / "node.log") as node:
        yield node


@pytest.fixture(scope="session")
def null_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    process, fields = launch(*NULL_NODE, log=tmp_path_factory.mktemp("null") / "node.log")
    yield process, fields
    process.terminate()
    try:
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
async def null_node(null_process: tuple[subprocess.Popen[str], dict[str, str]]) -> AsyncIterator[RunningNode]:
    """The same, one process for all tests; it holds no voice when a test begins."""
    process, fields = null_process
    async with open_channel(fields["grpc"]) as channel:
        node = RunningNode(process, fields["grpc"], fields["metrics"], node_pb2_grpc.NodeStub(channel))
        yield node
        for tenant_id in ("default", "acme"):
            async for chunk in node.stub.Inventory(node_pb2.InventoryRequest(tenant_id=tenant_id)):
                for voice in chunk.voices:
                    await node.stub.Evict(
                        node_pb2.EvictRequest(voice=common_pb2.VoiceRef(voice_id=voice.voice_id, tenant_id=tenant_id))
                    )

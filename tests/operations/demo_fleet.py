"""A fleet of real processes at work, scraped by a real Prometheus: what every board and every metric is shown on.

Two nodes with the null engine, a control plane with the roles grpc and worker, and the edge, a process with the role
http, over one PostgreSQL and one Redis. Through it go live streams (over gRPC and over a WebSocket), enrolments good
and bad, jobs that succeed and fail, a webhook, and an erasure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import websockets

from speakerd.client import Client, StreamOptions
from speakerd.errors import SpeakerdError
from tests.controlplane.receiver import receiving
from tests.controlplane.redis_server import redis_server
from tests.faults.processes import Daemon, node_arguments, pcm, plane_arguments, processes, tones, until, voice
from tests.faults.streaming import stream
from tests.faults.test_continuity import wav
from tests.operations.prometheus_tools import Prometheus, prometheus

SECRETS = ("Zaphod Canary", "Trillian Canary", "canary purpose", "canary-talk")
"""Names and words that go in at every door, and are to be in no log and no metric."""
STREAM_S = 10
ROOMY = ("--streams-max", "16")
"""What a busy machine is found to carry may be less than is asked of it here."""


@dataclass
class Shown:
    """What the fleet did and showed."""

    server: Prometheus
    seen_s: float = 0.0
    expositions: dict[str, str] = field(default_factory=dict)  # by daemon
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    raw_logs: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    stream_id: str = "demo-stream-1"
    job_id: str = ""
    failed_job_id: str = ""
    audit_id: str = ""

    def lines(self, daemon: str, **fields: str) -> list[dict[str, Any]]:
        """Lines of a daemon's log that carry these fields."""
        return [line for line in self.logs[daemon] if fields.items() <= line.items()]

    def events(self, daemon: str, **fields: str) -> set[str]:
        return {line["event"] for line in self.lines(daemon, **fields)}


@contextlib.contextmanager
def demo_fleet(folder: Path, database_url: str) -> Iterator[Shown]:
    """The fleet, once it has done all that it does; it goes on running, and being scraped, within the block."""
    shown: list[Shown] = []
    failed: list[BaseException] = []
    ready, leave = threading.Event(), threading.Event()

    async def run() -> None:
        async with _running(folder, database_url) as found:
            shown.append(found)
            ready.set()
            await asyncio.to_thread(leave.wait)

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="demo-fleet")
    thread.start()
    try:
        ready.wait()
        if failed:
            raise failed[0]
        yield shown[0]
    finally:
        leave.set()
        thread.join()
    if failed:
        raise failed[0]


@contextlib.asynccontextmanager
async def _running(folder: Path, database_url: str) -> AsyncIterator[Shown]:
    async with (
        receiving() as receiver,
        redis_server(folder / "redis") as redis,
        processes(folder) as daemons,
    ):
        data, config = folder / "data", folder / "speakerd.toml"
        config.write_text(
            "[controlplane]\n"
            f'fetch_networks = ["127.0.0.0/8"]\nfetch_ports = [{receiver.port}]\nfetch_plain_http = true\n'
            "reconcile_s = 1.0\n"
        )
        shared = ["--database-url", database_url, "--redis-url", redis.url, "--metrics", "127.0.0.1:0"]
        shared += ["--config", str(config)]
        plane = await daemons.start(
            "controlplane", *plane_arguments(data, "127.0.0.1:0", *shared, "--roles", "grpc,worker")
        )
        edge, *nodes = await asyncio.gather(
            daemons.start("edge", *plane_arguments(data, "127.0.0.1:0", *shared, "--roles", "http")),
            *(daemons.start(name, *node_arguments(name, plane.grpc, data, *ROOMY)) for name in ("n1", "n2")),
        )
        running = {"controlplane": plane, "edge": edge, "n1": nodes[0], "n2": nodes[1]}
        metrics = {name: daemon.ready["metrics"] for name, daemon in running.items()}
        targets = {
            "speakerd-node": [metrics["n1"], metrics["n2"]],
            "speakerd-controlplane": [metrics["controlplane"], metrics["edge"]],
        }
        with prometheus(folder, targets) as server:
            shown = Shown(server)
            # What is counted before the first scrape is a beginning, and not a growth.
            await _scraped(server, len(running))
            await _work(shown, plane, edge, data, receiver.url())
            await _scraped(server, len(running))
            shown.seen_s = time.time()
            for name, address in metrics.items():
                shown.expositions[name] = await asyncio.to_thread(_page, f"http://{address}/metrics")
            for name, daemon in running.items():
                shown.raw_logs[name] = daemon.log.read_text()
                shown.logs[name] = [json.loads(line) for line in shown.raw_logs[name].splitlines()]
            yield shown


async def _work(shown: Shown, plane: Daemon, edge: Daemon, data: Path, hook: str) -> None:
    key = (data / "admin.key").read_text().strip()
    shown.keys = [(data / name).read_text().strip() for name in ("admin.key", "fleet.key")]
    headers = {"authorization": f"Bearer {key}"}
    talk = np.concatenate([tones(3, *voice(0)), tones(3, *voice(1)), tones(3, *voice(5))] * 2)
    async with (
        Client(plane.grpc, key) as client,
        httpx.AsyncClient(base_url=edge.ready["http"], headers=headers, timeout=60) as http,
    ):
        zaphod = (await client.enroll(SECRETS[0], [wav(tones(4, *voice(0)))])).voice.voice_id
        trillian = (await client.enroll(SECRETS[1], [wav(tones(4, *voice(1)))])).voice.voice_id
        with contextlib.suppress(SpeakerdError):
            await client.enroll(SECRETS[1], [wav(np.zeros(64_000, np.float32))])
        options = StreamOptions(stream_id=shown.stream_id)
        streams = [asyncio.create_task(stream(client, pcm(talk)[: STREAM_S * 32_000], options))]
        streams += [asyncio.create_task(stream(client, pcm(tones(STREAM_S, *voice(n))))) for n in (0, 1)]
        is_live = asyncio.Event()
        live = asyncio.create_task(_live(http, talk[: STREAM_S * 16_000], is_live))
        put = (await http.post("/v1/media/input", json={"url": f"media://{SECRETS[3]}"})).json()["url"]
        (await http.put(put, content=wav(talk))).raise_for_status()
        asked = {"url": f"media://{SECRETS[3]}", "webhook": hook}
        shown.job_id = (await http.post("/v1/diarize", json=asked)).json()["jobId"]
        put = (await http.post("/v1/media/input", json={"url": "media://broken"})).json()["url"]
        (await http.put(put, content=b"this is no recording")).raise_for_status()
        shown.failed_job_id = (await http.post("/v1/diarize", json={"url": "media://broken"})).json()["jobId"]
        assert (await http.get("/v1/jobs/no-such-job")).status_code == 404
        await asyncio.wait_for(is_live.wait(), 180)
        # In the midst of streams, so that nodes and the edge have to forget a voice that they are naming.
        erasure = await client.erase(trillian, wait_s=30)
        shown.audit_id = erasure.audit_id
        told = (await asyncio.gather(*streams))[0]
        assert told.closed is not None
        await live

        async def has_ended(job_id: str) -> bool:
            return bool((await http.get(f"/v1/jobs/{job_id}")).json()["status"] in ("succeeded", "failed"))

        for job_id in (shown.job_id, shown.failed_job_id):
            await until(lambda job_id=job_id: has_ended(job_id), 120)  # type: ignore[misc]

        async def is_growing() -> bool:
            # A machine with nothing else to do is through with all requests between two scrapes, and shows no rate.
            await has_ended(shown.job_id)
            rate = "sum(rate(speakerd_http_request_duration_seconds_count[3m])) > 0"
            return bool(await asyncio.to_thread(shown.server.values, rate))

        await until(is_growing, 120)
        assert (await client.voice(zaphod)).label == SECRETS[0]


async def _live(http: httpx.AsyncClient, samples: np.ndarray, is_live: asyncio.Event) -> None:
    """A stream over a WebSocket of the edge. is_live: set once it has told of somebody."""

    async def send(socket: websockets.ClientConnection) -> None:
        for piece in np.split(samples, np.arange(1_600, len(samples), 1_600)):
            await socket.send(piece.astype("<f4").tobytes())
            await asyncio.sleep(0.1)
        await socket.send('{"type": "end_of_stream"}')

    # A node that is behind for a moment, on a busy machine, refuses: as a client should, this one asks again.
    async with asyncio.timeout(240):
        while True:
            url = (await http.post("/v1/live")).json()["url"]
            async with websockets.connect(url) as socket:
                sending = asyncio.create_task(send(socket))
                try:
                    async for frame in socket:
                        if "diarization_speaker_start" in str(frame):
                            is_live.set()
                    return await sending
                except websockets.ConnectionClosedError as refused:
                    assert refused.rcvd is not None and refused.rcvd.code == 1013, refused
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
            await asyncio.sleep(1)


async def _scraped(server: Prometheus, targets: int) -> None:
    """Wait until every daemon was scraped after all that was done, and rules were looked at."""
    done_s = time.time()

    def is_seen() -> bool:
        try:
            return len(server.values(f"timestamp(up) > {done_s + 1:.3f}")) == targets
        except OSError:
            return False  # it has only just been started

    await until(lambda: asyncio.to_thread(is_seen), 120)


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())

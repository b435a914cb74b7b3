"""The daemon as a whole, in this process: what makes it end, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc import aio

import node.app
from models.online import OnlineParams
from node.app import NodeDaemon
from node.config import NodeSettings
from node.engine import Engine
from node.null_engine import CLUSTERING, NAMING, NullGallery, collector
from runtime.clock import SystemClock
from runtime.errors import Unavailable
from runtime.grpc_server import open_channel
from runtime.lifecycle import run_daemon
from speakerd.v1 import node_pb2_grpc
from tests.node.conftest import ADA, pcm, requests, rest, tones
from tests.node.test_batcher import WatchedDevice


def loads(device: WatchedDevice) -> Callable[[str, str, Path | None], Callable[[], Engine]]:
    engine = Engine(
        device, NullGallery(64), "null", "null@1", "null", OnlineParams(evidence=CLUSTERING), NAMING, collector
    )
    return lambda bundle, device_name, calibration: lambda: engine


async def test_a_device_that_is_lost_ends_the_daemon_with_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    device = WatchedDevice()
    monkeypatch.setattr(node.app, "engine_loader", loads(device))
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = NodeSettings(standalone=True, device="null")
    daemon = NodeDaemon(settings, announce=ready.set_result, clock=SystemClock())
    running = asyncio.create_task(run_daemon([daemon], drain_s=1, stop=asyncio.Event()))
    address = (await ready).split()[1].removeprefix("grpc=")
    device.fails = lambda windows: True
    async with open_channel(address) as channel:
        call = node_pb2_grpc.NodeStub(channel).Diarize(requests(pcm(tones(2, *ADA)), pace_s=0.05))
        with pytest.raises(aio.AioRpcError) as ended:
            async for _ in rest(call):
                pass
        assert await asyncio.wait_for(running, 15) == 1
    assert ended.value.code() is not grpc.StatusCode.OK


async def test_an_engine_that_does_not_load_fails_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    device = WatchedDevice()
    device.fails = lambda windows: True
    monkeypatch.setattr(node.app, "engine_loader", loads(device))
    daemon = NodeDaemon(NodeSettings(standalone=True, device="null"), announce=print, clock=SystemClock())
    with pytest.raises(RuntimeError, match="device fault"):
        await run_daemon([daemon], drain_s=1, stop=asyncio.Event())


async def test_a_taken_port_is_named_and_not_shared() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    first = NodeDaemon(NodeSettings(standalone=True, device="null"), announce=ready.set_result, clock=SystemClock())
    running = asyncio.create_task(run_daemon([first], drain_s=1, stop=stop))
    address = (await ready).split()[1].removeprefix("grpc=")
    second = NodeDaemon(
        NodeSettings(standalone=True, device="null", listen=address), announce=print, clock=SystemClock()
    )
    with pytest.raises(Unavailable, match="taken"):
        await run_daemon([second], drain_s=1, stop=asyncio.Event())
    stop.set()
    assert await running == 0

"""WebSockets that carry streams: those who do not read are cut, and what waited for them is said anew or not at all."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import websockets
from fastapi import FastAPI
from starlette.websockets import WebSocket

from edge import live_socket
from edge.live_socket import LiveSocket
from edge.serving import HttpServer
from runtime.lifecycle import Tasks
from tests.controlplane.conftest import World, until
from tests.controlplane.test_live_relay import talking
from tests.edge.conftest import Served, Serving
from tests.faults.live_sockets import FRAME_BYTES, Heard, ask, live


@pytest.fixture
async def relaying(tmp_path: Path) -> AsyncIterator[Served]:
    """A served control plane over a node that names whomever it is told to."""
    async with AsyncExitStack() as stack:
        serving = Serving(World(tmp_path / "data", stack, None), stack)
        yield await serving(http_rate_limits={"pyannoteai.submit": 0, "pyannoteai.read": 0})


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[socket.socket]:
    """A WebSocket by hand, with a short buffer, that reads only when it is told to."""
    host, _, path = url.removeprefix("ws://").partition("/")
    address = host.split(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(made, (address[0], int(address[1])))
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await loop.sock_sendall(made, head.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await loop.sock_recv(made, 1)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        yield made
    finally:
        made.close()


def frame(payload: bytes, opcode: int = 2) -> bytes:
    size = len(payload)
    head = bytes([0x80 | opcode]) + (
        bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + struct.pack(">H", size)
    )
    return head + b"\0\0\0\0" + payload


async def test_who_does_not_read_is_cut_and_the_others_hear_on(
    relaying: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_socket, "STALL_S", 1.0)
    node = await talking(relaying.world, relaying.plane)
    node.names = [("", ""), ("", "")]
    node.streams_max = 10
    http = await relaying.http()
    loop = asyncio.get_running_loop()
    counts = relaying.plane.metrics.relay_streams._value
    session_id, url = await ask(http)
    async with raw(url) as stalled:
        await until(lambda: counts.get() == 1)
        other = asyncio.create_task(_another(relaying))
        sound = frame(b"\0" * FRAME_BYTES)

        async def flood() -> None:
            # Each 100 ms of sound brings two words, and nobody takes them away.
            with pytest.raises(OSError):
                while True:
                    await loop.sock_sendall(stalled, sound * 20)

        await asyncio.wait_for(flood(), 60)
        await until(lambda: counts.get() <= 1)
        heard = await other
        heard.require_in_order()
        assert heard.code == 1000 and heard.events

    async def is_over() -> bool:
        return (await http.get(f"/v1/live/{session_id}")).json()["status"] == "canceled"

    await until(is_over)


async def _another(relaying: Served) -> Heard:
    _, url = await ask(await relaying.http())
    return await live(url, np.zeros(40 * 16_000, np.float32), pace=0)


async def test_what_waits_for_a_slow_reader_is_put_into_words_as_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that may not be said any more is not, although the words for it were waiting."""
    monkeypatch.setattr(live_socket, "STALL_S", 60.0)
    app = FastAPI()
    said, word = [0], ["before"]
    ended = asyncio.Event()

    @app.websocket("/")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        opened = LiveSocket(websocket)
        while word[0] == "before" or said[0] % 100:
            await opened.say(lambda: word[0] * 100)
            said[0] += 1
        await opened.say(lambda: None)  # nothing to say any more
        await opened.close(1000)
        ended.set()

    server, tasks = HttpServer(app, "127.0.0.1:0", insecure=False), Tasks()
    await server.start(tasks)
    try:
        loop = asyncio.get_running_loop()
        async with raw(server.url.replace("http", "ws") + "/") as slow:
            # It goes on until nothing more is taken: only then does it wait.
            counts: list[int] = []
            await until(lambda: counts.append(said[0]) or (len(counts) > 50 and counts[-1] == counts[-50] > 0))
            left, word[0] = said[0], "after"
            heard = bytearray()
            while data := await loop.sock_recv(slow, 1 << 16):
                heard += data
            await asyncio.wait_for(ended.wait(), 30)
        # A frame is so many words; the one that waited had not left.
        assert heard.count(b"before") == 100 * left
        assert heard.count(b"after") == 100 * (said[0] - left) > 0
    finally:
        await server.stop()
        await tasks.cancel()


async def test_frames_that_are_wrong_and_urls_that_open_nothing_are_told_and_closed(relaying: Served) -> None:
    node = await talking(relaying.world, relaying.plane)
    node.names = [("", "")]
    http = await relaying.http()
    for wrong, code in ((b"\0" * 6, 1007), ("no json", 1007), ('{"type": "begin"}', 1007)):
        session_id, url = await ask(http)
        heard = await _sends(url, wrong)
        assert (heard.code, len(heard.errors)) == (code, 1), wrong
        assert (await http.get(f"/v1/live/{session_id}")).json()["status"] == "failed"
    _, url = await ask(http)
    for not_one in (url + "x", url.replace("token=", "key="), url.replace("/v1/live/", "/v1/live/0")):
        heard = await _sends(not_one, b"")
        assert (heard.code, heard.errors) == (
            1008,
            ["this url opens no live session, or has been used: ask for another"],
        )
    # Only after all that: it was used by none of them.
    assert (await live(url, np.zeros(16_000, np.float32), pace=0)).code == 1000
    assert (await _sends(url, b"")).code == 1008

    # A key that was revoked opens nothing that it asked for.
    token = await relaying.key("streams:open")
    _, url = await ask(await relaying.http(token))
    await relaying.plane.core.people.administration.revoke_key(
        await relaying.plane.core.identity.principal(relaying.admin_key, "admin"), token.split("_")[1]
    )
    assert (await _sends(url, b"")).code == 1008
    # Nor is another tenant told of a session.
    session_id, _ = await ask(http)
    await relaying.tenant("other")
    other = await relaying.http(await relaying.key("streams:open", tenant_id="other"))
    assert (await other.get(f"/v1/live/{session_id}")).status_code == 404
    told = [(await other.get(path)).json() for path in (f"/v1/live/{session_id}", "/v1/live/never")]
    assert told[0]["message"] == told[1]["message"]


async def _sends(url: str, first: bytes | str) -> Heard:
    heard = Heard()
    async with websockets.connect(url, ping_interval=None) as opened:
        with contextlib.suppress(websockets.ConnectionClosed):
            await opened.send(first)
            async for text in opened:
                heard.take(text)
        await opened.wait_closed()
        heard.code = opened.close_code
    return heard

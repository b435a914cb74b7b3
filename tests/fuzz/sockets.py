"""Targets: what comes over WebSockets, as frames to the handlers and as bytes to the server itself; and urls."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.websockets import WebSocket

from controlplane.addresses import may_be_called
from controlplane.guarded_http import GuardedHttp, UrlPolicy
from controlplane.webhook_post import _redirected
from edge import live_socket
from edge.live_socket import Gone, LiveSocket
from edge.pyannoteai import live as pyannoteai
from edge.scaiecho import stream as scaiecho
from edge.scaigrid import sound
from edge.scaigrid.envelope import Renderer
from edge.scaigrid.frames import error_frame
from edge.scaispeak import record as scaispeak
from edge.serving import HttpServer
from runtime.errors import SpeakerdError
from runtime.lifecycle import Tasks
from tests.fuzz.target import Target, plain, refused

LIVE_S = 60.0


class Script:
    """A client's frames in place of a WebSocket; then it leaves."""

    def __init__(self, frames: list[bytes | str]) -> None:
        self.scope: dict[str, Any] = {}
        self._frames = iter(frames)

    async def receive(self) -> dict[str, Any]:
        frame = next(self._frames, None)
        if frame is None:
            return {"type": "websocket.disconnect", "code": 1000}
        return {"type": "websocket.receive", "bytes" if isinstance(frame, bytes) else "text": frame}

    async def send(self, message: dict[str, Any]) -> None:
        json.loads(message["text"])


def frames_of(data: bytes) -> list[bytes | str]:
    """Length (two bytes), kind (one), payload; the last one may be short. Texts are UTF-8, as the server checks."""
    frames: list[bytes | str] = []
    at = 0
    while at + 3 <= len(data) and len(frames) < 64:
        size, kind = struct.unpack_from(">HB", data, at)
        payload = data[at + 3 : at + 3 + size]
        frames.append(payload if kind & 1 else payload.decode("utf-8", "replace"))
        at += 3 + size
    return frames


def packed(*frames: bytes | str) -> bytes:
    """What `frames_of` reads."""
    made = b""
    for frame in frames:
        payload = frame if isinstance(frame, bytes) else frame.encode()
        made += struct.pack(">HB", len(payload), isinstance(frame, bytes)) + payload
    return made


async def _pyannoteai(websocket: LiveSocket) -> None:
    async for _ in pyannoteai._sound(websocket):
        pass


async def _scaiecho(websocket: LiveSocket) -> None:
    opening = await scaiecho._opening(websocket)
    told = sound.sound_type(opening.media_type or "audio/wav", opening.sample_rate)

    async def heard() -> AsyncIterator[bytes]:
        while isinstance(frame := await websocket.receive(), bytes):
            yield frame

    if not told.is_container:  # those are the decoder's, a target of its own
        async for block in sound.samples_of(told, heard(), "a"):
            assert block.dtype.kind == "f"


async def _scaispeak(websocket: LiveSocket) -> None:
    _, told = await scaispeak._opening(websocket)
    for _ in range(2):
        clip = await scaispeak._phase(websocket, told)
        assert len(clip.data) <= scaispeak.RECORDING_BYTES_MAX


HANDLERS: tuple[Callable[[LiveSocket], Any], ...] = (_pyannoteai, _scaiecho, _scaispeak)
RENDER = Renderer("SCAI", {})


@contextmanager
def frames() -> Iterator[Callable[[bytes], None]]:
    """The first byte says which dialect's handler the frames go to."""
    with asyncio.Runner() as runner:

        async def carry(data: bytes) -> None:
            handler = HANDLERS[data[0] % len(HANDLERS)]
            try:
                await handler(LiveSocket(Script(frames_of(data[1:]))))  # type: ignore[arg-type]
            except (Gone, scaispeak._Canceled):
                return
            except SpeakerdError as error:
                refused(error)
                json.dumps(error_frame(RENDER, "r", error)).encode()

        yield lambda data: runner.run(carry(data)) if data else None


CONSENT = {"consent_user_full_name": "Ada", "consent_stated_purpose": "p", "consent_text": "I agree"}


def _frames() -> Iterable[bytes]:
    pcm = struct.pack("<400h", *range(400))
    end = '{"type": "end_of_stream"}'
    yield b"\0" + packed(pcm, pcm, end)
    for media_type in ("audio/L16;rate=8000;channels=2", "audio/pcm; endianness=big-endian", "audio/wav", "x/y;rate=z"):
        opening = {
            "type": "open",
            "media_type": media_type,
            "sample_rate": 16_000,
            "diarize": True,
            "chunk_seconds": 2.0,
        }
        yield b"\1" + packed(json.dumps(opening), pcm, pcm[:5], '{"type": "close"}')
        opening = {"type": "open", "display_name": "Ada", "style_tags": ["calm"], "media_type": media_type, **CONSENT}
        phase = '{"type": "end_phase"}'
        yield b"\2" + packed(json.dumps(opening), pcm, phase, pcm, phase)
    yield b"\2" + packed('{"type": "open", "sample_rate": 1e999}', '{"type": "cancel"}')
    yield b"\1" + packed('{"type": "open", "language_hint": "\\ud800"}', "[" * 1_000)


class Serving:
    """The edge's own server over an application that takes frames as the dialects do."""

    def __init__(self) -> None:
        app = FastAPI()
        self.faults: list[BaseException] = []

        @app.websocket("/")
        async def carry(websocket: WebSocket) -> None:
            await websocket.accept()
            try:
                await _pyannoteai(LiveSocket(websocket))
            except Gone:
                return
            except SpeakerdError as error:
                refused(error)
                try:
                    await LiveSocket(websocket).close(live_socket.BAD_DATA)
                except Exception as fault:
                    self.faults.append(fault)

        self.server = HttpServer(app, "127.0.0.1:0", insecure=False)

    async def start(self) -> None:
        self.tasks = Tasks()
        await self.server.start(self.tasks)
        asyncio.get_running_loop().set_exception_handler(self._note)

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(context.get("exception") or AssertionError(context["message"]))

    async def stop(self) -> None:
        await self.server.stop()
        await self.tasks.cancel()

    async def one(self, data: bytes) -> None:
        """Bytes as they come over the wire; afterwards the server has to take the next one, and a good one too."""
        host, port = urlsplit(self.server.url).netloc.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(LIVE_S):
                writer.write(data)
                if writer.can_write_eof():
                    writer.write_eof()
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        assert not self.tasks.failed.done(), self.tasks.failed
        if self.faults:
            raise self.faults.pop()


@contextmanager
def served() -> Iterator[Callable[[bytes], None]]:
    """Raw bytes to a server of the edge's kind."""
    with asyncio.Runner() as runner:
        serving = Serving()
        runner.run(serving.start())
        try:
            yield lambda data: runner.run(serving.one(data))
        finally:
            runner.run(serving.stop())


HELLO = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _frame(payload: bytes, head: int = 0x82) -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + struct.pack(">H", size)
    return bytes((head,)) + length + bytes(4) + payload


def _wire() -> Iterable[bytes]:
    yield HELLO + _frame(bytes(640)) + _frame(b'{"type": "end_of_stream"}', 0x81) + _frame(b"\x03\xe8", 0x88)
    yield HELLO + _frame(b"a", 0x02) + _frame(b"b", 0x80) + _frame(b"ping", 0x89) + _frame(b"pong", 0x8A)
    yield HELLO + _frame(b"\xff\xfe", 0x81) + b"\x82\xff" + struct.pack(">Q", 1 << 62) + bytes(16)
    yield HELLO.replace(b"13", b"8") + bytes(9)
    yield b"POST /v1/live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


POLICIES = (
    UrlPolicy(),
    UrlPolicy(plain=True, ports=(80, 443, 8443)),
    UrlPolicy.of(["10.0.0.0/8", "fd00::/8"], [443], plain=False),
)


@contextmanager
def guard() -> Iterator[Callable[[bytes], None]]:
    """Whatever passes for a url that may be called is one, by another reading of the same host."""
    asked: list[str] = []
    answers: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return list(answers)

    doors = [GuardedHttp(policy, resolve=resolve) for policy in POLICIES]

    def one(data: bytes) -> None:
        door, policy = doors[data[0] % 3], POLICIES[data[0] % 3]
        text = data[1:].decode("utf-8", "replace")
        url, _, answered = text.partition("\n")
        answers[:] = answered.split()
        try:
            parts = door.check(url)
        except SpeakerdError as error:
            refused(error)
            return
        assert parts.scheme == "https" or policy.plain
        host = parts.hostname or ""
        require_public(host, policy)
        asked.clear()
        try:
            runner.run(door.judge(url))
        except SpeakerdError as error:
            refused(error)
        else:
            for answer in answers:
                require_public(answer, policy)
            assert answers, "judged well without an address"
        _redirected("https://example.com/a", [(b"Location", data[1:])])

    with asyncio.Runner() as runner:
        yield lambda data: one(data) if data else None


def require_public(host: str, policy: UrlPolicy) -> None:
    """A second opinion: no way in which a host may be read as an address leads to one of ours."""
    readings = [host]
    with suppress(OSError, ValueError):
        readings.append(socket.inet_ntoa(socket.inet_aton(host)))
    for reading in readings:
        try:
            address = ipaddress.ip_address(reading)
        except ValueError:
            continue
        if any(address.version == network.version and address in network for network in policy.networks):
            continue
        for one in inside(address) or [address]:
            assert one.is_global and not one.is_multicast, (host, reading)
            assert not one.is_loopback and not one.is_link_local and not one.is_private, (host, reading)


def inside(address: Any) -> list[Any]:
    """The IPv4 addresses in an IPv6 one, by where they lie: mapped, compatible, NAT64, 6to4, Teredo."""
    bits = int(address)
    if address.version == 4:
        return []
    if bits >> 32 in (0xFFFF, 0, 0x64FF9B << 64) and bits > 1:
        return [ipaddress.IPv4Address(bits & 0xFFFFFFFF)]
    if bits >> 112 == 0x2002:
        return [ipaddress.IPv4Address(bits >> 80 & 0xFFFFFFFF)]
    if bits >> 96 == 0x20010000:
        return [ipaddress.IPv4Address(bits >> 64 & 0xFFFFFFFF), ipaddress.IPv4Address(~bits & 0xFFFFFFFF)]
    return []


def _urls() -> Iterable[bytes]:
    urls = (
        "https://example.com/hook?a=b", "https://93.184.216.34/", "https://127.1/", "https://[::ffff:127.0.0.1]/",
        "https://0x7f000001/", "https://2130706433:443/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/",
        "https://user@example.com/", "https://example.com:22/", "http://example.com/", "https://localhost/",
        "https://ex\u00e4mple.com/p", "https://\uff11\uff12\uff17.0.0.1/", "https://127\u30020\u30020\u30021/", "https://[fe80::1%25eth0]/",
        "https://169.254.169.254/latest", "https://10.1.2.3/", "https://[fd00::1]/", "https://a..b/", "https://0177.0.0.1/",
        "https://xn--/", "https://[::1", "https://example.com\\@127.0.0.1/", "https://" + "a" * 80 + ".com/",
    )  # fmt: skip
    for index, url in enumerate(urls):
        for answers in (
            "93.184.216.34",
            "93.184.216.34 127.0.0.1",
            "::ffff:10.0.0.1",
            "2606:2800:220:1::1 10.1.1.1",
            "x",
        ):
            yield bytes((index % 3,)) + f"{url}\n{answers}".encode()


def _addresses(data: bytes) -> None:
    """Every address, four or sixteen bytes: what carries an inner one is judged by it too."""
    if len(data) not in (4, 16):
        return
    address = ipaddress.ip_address(data)
    if may_be_called(str(address)):
        require_public(str(address), POLICIES[0])


def _address_seeds() -> Iterable[bytes]:
    for text in (
        "127.0.0.1",
        "8.8.8.8",
        "::1",
        "2606:4700::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2001:0:808:808::1",
    ):
        yield ipaddress.ip_address(text).packed


TARGETS = (
    Target("frames", frames, _frames, replays=600),
    Target("websocket", served, _wire, replays=40),
    Target("guard", guard, _urls, replays=1_500),
    Target("addresses", plain(_addresses), _address_seeds, replays=1_000),
)

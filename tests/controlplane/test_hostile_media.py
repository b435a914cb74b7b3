"""Recordings made to hurt, at the door of an enrolment: each is refused with what is wrong, and the daemon goes on."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import time
from collections.abc import Callable

import av
import grpc
import numpy as np
import psutil
import pytest
from grpc import aio
from sqlalchemy import text

from tests.controlplane.conftest import World, speech, wav

RSS_GROWTH_MAX = 300 << 20
SECONDS_MAX = 30.0


def silent_flac(seconds: int) -> bytes:
    """Silence, packed as tightly as FLAC can: some bytes a second."""
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as muxer:
        stream = muxer.add_stream("flac", rate=8_000, layout="mono")
        block = np.zeros((1, 8_000 * 100), dtype="i2")
        for position in range(seconds // 100):
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8_000, 8_000 * 100 * position
            for packet in stream.encode(frame):
                muxer.mux(packet)
        for packet in stream.encode(None):
            muxer.mux(packet)
    return out.getvalue()


def repeated_flac_frame() -> bytes:
    """A header that promises little, and one frame of silence said over and over: 10,000 s from a few bytes each."""
    short = silent_flac(100)
    body = short[-(len(short) - 8_300) :] if len(short) > 8_300 else short[100:]
    return short + body * 2_000


def chunked(name: bytes, size: int, payload: bytes) -> bytes:
    return name + struct.pack("<I", size) + payload


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


FORMAT = chunked(b"fmt ", 16, struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16))
PCM = (speech(seconds=2.0) * 32_767).astype("<i2").tobytes()
MIB = 1 << 20

CORPUS: dict[str, Callable[[], bytes]] = {
    "10,000 s of silence in a few bytes": lambda: silent_flac(10_000),
    "frames said over and over": repeated_flac_frame,
    "a million empty chunks before the sound": lambda: riff(chunked(b"junk", 0, b"") * 1_000_000, FORMAT),
    "a header that never ends": lambda: riff(FORMAT, chunked(b"LIST", 0xFFFFFFF0, bytes(4 * MIB))),
    "an ID3 tag that claims a quarter of a gigabyte": lambda: b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(MIB),
    "tags within tags": lambda: b"".join(b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) for _ in range(200_000)),
    "data that claims four gigabytes": lambda: riff(FORMAT, chunked(b"data", 0xFFFFFF00, PCM[:100])),
    "data that claims less than nothing": lambda: riff(FORMAT, chunked(b"data", 0x80000000, b"")),
    "no bits a sample": lambda: riff(FORMAT[:-2] + b"\0\0", chunked(b"data", len(PCM), PCM)),
    "65,535 channels": lambda: riff(
        chunked(b"fmt ", 16, struct.pack("<HHIIHH", 1, 65_535, 16_000, 32_000, 2, 16)), chunked(b"data", len(PCM), PCM)
    ),
    "a playlist": lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "a playlist of the network": lambda: b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:1/secret.ts\n#EXT-X-ENDLIST\n",
    "a list of files": lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    "a session description": lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "a manifest": lambda: b'<?xml version="1.0"?><MPD><Period><BaseURL>http://127.0.0.1:1/</BaseURL></Period></MPD>',
    "XML that multiplies": lambda: (
        b'<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><z>&b;</z>'
    ),
    "a zip": lambda: b"PK\x03\x04" + bytes(1_000),
    "gzip in gzip": lambda: b"\x1f\x8b\x08\x00" + bytes(1_000),
    "a movie that refers to another file": lambda: (
        struct.pack(">I", 20)
        + b"ftypqt  "
        + bytes(8)
        + struct.pack(">I", 60)
        + b"moov"
        + b"dref"
        + b"url http://127.0.0.1:1/a"
    ),
    "boxes within boxes": lambda: b"".join(struct.pack(">I", 8 * (5_000 - i)) + b"moov" for i in range(5_000)),
    "noise": lambda: os.urandom(MIB),
}


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.fault("F16", "P14")
async def test_a_hostile_recording_is_refused_within_bounds_and_leaves_nothing(world: World, name: str) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    data = CORPUS[name]()
    before = psutil.Process().memory_info().rss
    began = time.monotonic()
    with pytest.raises(aio.AioRpcError) as refused:
        await client.enrol(data=data, container=True)
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED), name
    said = str(refused.value.details())
    assert len(said) > 20
    assert "passwd" not in said and "127.0.0.1" not in said
    assert time.monotonic() - began < SECONDS_MAX
    assert psutil.Process().memory_info().rss - before < RSS_GROWTH_MAX + len(data)
    async with plane.core.database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM voices"))).scalar_one() == 0


@pytest.mark.fault("F16", "P14")
async def test_good_recordings_are_enrolled_while_hostile_ones_are_refused(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)

    async def refused(name: str) -> str:
        try:
            await client.enrol(data=CORPUS[name](), container=True)
        except aio.AioRpcError as error:
            return error.code().name
        return "OK"

    names = [name for name in CORPUS if "million" not in name and "10,000" not in name]
    *codes, good = await asyncio.gather(
        *(refused(name) for name in names), client.enrol("Alice", data=wav(speech()), container=True)
    )
    assert "OK" not in codes
    assert good.voice.voice_id

"""Live streams of every kind of sound, on a real node with the null engine: heard alike, and while they go on."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import av
import grpc
import numpy as np
import pytest
import soundfile
import soxr
from grpc import aio

from runtime.pcm import MAX_RATE_HZ, PcmDecoder, PcmEncoding
from speakerd.late_status import keep_status
from speakerd.v1 import common_pb2, node_pb2
from tests.node.conftest import ADA, BOB, Heard, RunningNode, pcm, requests, tones

CONTAINER = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER)
TALK = np.concatenate([tones(4, *ADA), np.zeros(8_000, np.float32), tones(4, *BOB)])


async def heard_of(node: RunningNode, data: bytes, **options: object) -> Heard:
    heard = Heard()
    async for response in keep_status(node.stub.Diarize(requests(data, **options))):
        heard.take(response)
    return heard


def g711(samples: np.ndarray, encoding: PcmEncoding) -> bytes:
    """By looking for the nearest of the 256 values that there are."""
    values = PcmDecoder(encoding).feed(bytes(range(256)))
    order = np.argsort(values, kind="stable")
    places = np.clip(np.searchsorted(values[order], samples), 1, 255)
    left, right = values[order][places - 1], values[order][places]
    nearest = np.where(np.abs(samples - left) <= np.abs(right - samples), places - 1, places)
    return order[nearest].astype(np.uint8).tobytes()


def raw(name: str) -> tuple[bytes, common_pb2.AudioFormat]:
    encoding, rate, channels = {
        "s16 at 8 kHz": (1, 8_000, 1),
        "s16 at 44.1 kHz, two channels": (1, 44_100, 2),
        "f32 at 48 kHz": (2, 48_000, 1),
        "f32 at 22.05 kHz, eight channels": (2, 22_050, 8),
        "mu-law at 8 kHz": (3, 8_000, 1),
        "A-law at 8 kHz": (4, 8_000, 1),
        "A-law at 16 kHz, two channels": (4, 16_000, 2),
    }[name]
    samples = soxr.resample(TALK, 16_000, rate).astype(np.float32)
    match encoding:
        case 1:
            data = np.frombuffer(pcm(np.clip(samples, -1, 1)), "<i2")
        case 2:
            data = samples
        case _:
            data = np.frombuffer(g711(samples, PcmEncoding(encoding)), np.uint8)
    interleaved = np.repeat(data[:, None], channels, axis=1).tobytes()
    return interleaved, common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate, channels=channels)  # type: ignore[arg-type]


def contained(kind: str, folder: Path, samples: np.ndarray = TALK) -> bytes:
    if kind in ("wav", "flac"):
        out = io.BytesIO()
        soundfile.write(out, samples, 16_000, format=kind.upper())
        return out.getvalue()
    path, codec = folder / f"talk.{kind}", {"ogg": "libopus", "webm": "libopus", "mp3": "libmp3lame"}[kind]
    with av.open(path, "w", format=kind) as muxer:
        stream = muxer.add_stream(codec, rate=16_000, layout="mono")
        context = stream.codec_context
        context.open()
        whole = av.AudioFrame.from_ndarray((samples * 32767).astype("i2")[None], format="s16", layout="mono")
        whole.sample_rate = 16_000
        fit = av.AudioResampler(context.format, "mono", 16_000, frame_size=context.frame_size or 960)
        for frame in [*fit.resample(whole), *fit.resample(None), None]:
            for packet in stream.encode(frame):
                muxer.mux(packet)
    return path.read_bytes()


RAW = [
    "s16 at 8 kHz",
    "s16 at 44.1 kHz, two channels",
    "f32 at 48 kHz",
    "f32 at 22.05 kHz, eight channels",
    "mu-law at 8 kHz",
    "A-law at 8 kHz",
    "A-law at 16 kHz, two channels",
]


@pytest.mark.parametrize("name", [*RAW, "ogg", "webm", "mp3", "flac", "wav"])
async def test_two_people_are_told_apart_in_sound_of_every_kind(
    null_node: RunningNode, name: str, tmp_path: Path
) -> None:
    data, format_ = raw(name) if name in RAW else (contained(name, tmp_path), CONTAINER)
    heard = await heard_of(null_node, data, format=format_)
    assert heard.closed is not None and abs(heard.closed.duration_ms - 8_500) < 100
    assert [speaker.speaker for speaker in heard.closed.speakers] == ["spk_0", "spk_1"]
    assert all(abs(heard.speech_s(speaker) - 4) < 0.8 for speaker in ("spk_0", "spk_1"))


@pytest.mark.parametrize("kind", ["ogg", "webm", "wav", "flac"])
async def test_turns_of_a_container_come_while_it_is_still_being_made(
    null_node: RunningNode, kind: str, tmp_path: Path
) -> None:
    """The second half is sent only once turns of the first have been read."""
    data = contained(kind, tmp_path, np.concatenate([TALK] * 3))
    call = null_node.stub.Diarize()
    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(format=CONTAINER, latency_ms=500)))
    half = len(data) // 2
    for at in range(0, half, 4_000):
        await call.write(node_pb2.DiarizeRequest(audio=data[at : min(at + 4_000, half)]))
    heard = Heard()
    async with asyncio.timeout(60):
        while not heard.turns:
            heard.take(await call.read())
    await call.write(node_pb2.DiarizeRequest(audio=data[half:]))
    await call.write(node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish()))
    while (response := await call.read()) is not aio.EOF:
        heard.take(response)
    assert heard.closed is not None and abs(heard.closed.duration_ms - 25_500) < 100


async def test_a_container_that_goes_on_from_a_checkpoint_is_sent_whole_and_told_once(
    null_node: RunningNode, tmp_path: Path
) -> None:
    data = contained("ogg", tmp_path, np.concatenate([TALK] * 5))
    whole = Heard()
    async for response in null_node.stub.Diarize(requests(data, format=CONTAINER, stream_id="c", latency_ms=500)):
        whole.take(response)
    last = whole.checkpoints[-1]
    assert last.position_ms > 0
    again = Heard()
    async for response in null_node.stub.Diarize(
        requests(data, format=CONTAINER, stream_id="c", latency_ms=500, checkpoint=last.data)
    ):
        again.take(response)
    assert again.opened is not None and again.opened.resume_ms == last.position_ms
    assert again.closed is not None and again.closed.duration_ms == whole.closed.duration_ms  # type: ignore[union-attr]
    first_ms = again.turns[0].start_ms
    assert first_ms > 10_000
    kept = [turn for turn in whole.turns if turn.start_ms >= first_ms]
    assert [(t.start_ms, t.end_ms, t.speaker) for t in kept] == [(t.start_ms, t.end_ms, t.speaker) for t in again.turns]


async def test_a_container_that_is_cut_short_becomes_turns_before_it_is_complained_of(
    null_node: RunningNode, tmp_path: Path
) -> None:
    heard = Heard()
    with pytest.raises(aio.AioRpcError) as refused:
        cut = requests(contained("wav", tmp_path)[: 44 + 4 * 32_000], format=CONTAINER)
        async for response in keep_status(null_node.stub.Diarize(cut)):
            heard.take(response)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "only 4.0 s of the 8.5 s" in (refused.value.details() or "")
    assert abs(heard.speech_s("spk_0") - 4) < 0.8


def hostile() -> dict[str, tuple[bytes, common_pb2.AudioFormat, str]]:
    loud = np.clip(TALK * 1e9, -3e38, 3e38)
    f32 = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_F32LE)
    chance = np.random.default_rng(1)
    return {
        "floats far beyond 1": (loud.tobytes(), f32, "beyond"),
        "integers said to be floats": ((TALK * 32767).astype("<f4").tobytes(), f32, "beyond"),
        "infinity": (np.full(3_200, np.inf, "<f4").tobytes(), f32, "infinite"),
        "a rate beyond all": (pcm(TALK), common_pb2.AudioFormat(sample_rate_hz=MAX_RATE_HZ + 1), "sample_rate_hz"),
        "a rate of 0": (pcm(TALK), common_pb2.AudioFormat(sample_rate_hz=0), "sample_rate_hz"),
        "no channels": (pcm(TALK), common_pb2.AudioFormat(channels=0), "channels"),
        "samples said to be a container": (pcm(TALK), CONTAINER, "send"),
        "zeros said to be a container": (bytes(200_000), CONTAINER, "send"),
        "noise said to be a container": (chance.bytes(200_000), CONTAINER, "send"),
        "a wav header alone": (b"RIFF\xff\xff\xff\xffWAVE", CONTAINER, "send"),
        "an ogg of noise": (b"OggS" + chance.bytes(100_000), CONTAINER, "send"),
        "a webm of noise": (b"\x1aE\xdf\xa3" + chance.bytes(100_000), CONTAINER, "send"),
        "an mp4 of nothing": (b"\0\0\0\x18ftypisom" + bytes(100_000), CONTAINER, "send"),
        "a playlist": (b"#EXTM3U\nfile:///etc/passwd\n" * 50, CONTAINER, "send"),
    }


@pytest.mark.parametrize("what", hostile())
@pytest.mark.fault("F16", "P14")
async def test_hostile_sound_gets_an_error_that_says_what_to_mend_and_harms_nobody(
    null_node: RunningNode, what: str
) -> None:
    data, format_, hint = hostile()[what]
    beside = asyncio.create_task(null_node.diarize(TALK))
    with pytest.raises(aio.AioRpcError) as refused:
        async for _ in keep_status(null_node.stub.Diarize(requests(data, format=format_, pace_s=0.005))):
            pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value
    assert hint in (refused.value.details() or "")
    heard = await beside
    assert heard.closed is not None and [one.speaker for one in heard.closed.speakers] == ["spk_0", "spk_1"]
    assert await null_node.is_alive()


async def test_clipped_sound_is_heard_as_it_is(null_node: RunningNode) -> None:
    heard = await null_node.diarize(np.clip(TALK * 20, -1, 1))
    assert heard.closed is not None and heard.closed.speakers

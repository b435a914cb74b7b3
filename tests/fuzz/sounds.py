"""Targets: raw samples, RTTM, and the media door: what tells formats apart, the decoder, and what it reports."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from runtime.errors import SpeakerdError
from runtime.media import MediaLimits, decode
from runtime.media.report import ReportReader
from runtime.media_child import decode as child
from runtime.media_child import sniff
from runtime.pcm import PcmDecoder, PcmEncoding
from speakerd.rttm import RttmTurn, parse_rttm, rttm_line
from tests.fuzz.target import Target, plain, refused
from tests.runtime.test_media_formats import ENCODED, encoded

RATES = (8_000, 11_025, 16_000, 44_100, 48_000, 96_000, 7_999, 96_001)
LIMITS = MediaLimits(bytes_max=1 << 20, seconds_max=120.0, cpu_s_max=10.0, wait_s_max=20.0)


def read_samples(data: bytes) -> None:
    """Three bytes say encoding, rate, channels and where the rest is cut: that must change nothing."""
    if len(data) < 3:
        return
    encoding, rate, cut = data[0] % 6, RATES[data[1] % len(RATES)], data[2] + 1
    channels, sound = (data[0] >> 4) % 10, data[3:]
    try:
        whole = PcmDecoder.from_wire(encoding, rate, channels)
        at_once = np.concatenate([whole.feed(sound), whole.flush()])
        parts = PcmDecoder.from_wire(encoding, rate, channels)
        pieces = [parts.feed(sound[at : at + cut]) for at in range(0, len(sound), cut)]
        in_parts = np.concatenate([*pieces, parts.flush()])
    except SpeakerdError as error:
        refused(error)
        return
    assert np.array_equal(at_once, in_parts)
    assert np.isfinite(at_once).all()
    assert len(at_once) == round(whole.frames_in * 16_000 / rate)


def _samples() -> Iterable[bytes]:
    tone = np.sin(np.arange(800) / 9.0) * 0.3
    sixteen, floats = (tone * 32767).astype("<i2").tobytes(), tone.astype("<f4").tobytes()
    for encoding in PcmEncoding:
        body = floats if encoding is PcmEncoding.F32LE else sixteen
        for rate in (0, 2, 3):
            for channels in (0, 1, 2):
                yield bytes((encoding | channels << 4, rate, 37)) + body
    yield bytes((PcmEncoding.F32LE, 2, 3)) + np.array([np.nan, np.inf, 9.0], "<f4").tobytes()


def read_rttm(data: bytes) -> None:
    """What is read comes out again as it was read."""
    text = data.decode("utf-8", "replace")
    try:
        turns = parse_rttm(text)
    except ValueError:
        return
    again = parse_rttm("\n".join(rttm_line("uri", turn) for turn in turns))
    if all(0 <= turn.start_ms < 1 << 40 and 0 <= turn.end_ms - turn.start_ms < 1 << 40 for turn in turns):
        assert again == turns


def _rttms() -> Iterable[bytes]:
    lines = [rttm_line("a b", RttmTurn(0, 1_250, "Ada Lovelace")), rttm_line("x", RttmTurn(900, 90_000, "spk_0"))]
    yield "\n".join(lines).encode()
    yield b"SPEAKER a 1 1e3 inf <NA> <NA> b <NA> <NA>\n;; remark\n"


def read_report(data: bytes) -> None:
    """What a decoder that was taken over may say: blocks of finite sound, bounded, or an error."""
    cut = data[0] + 1 if data else 1
    reader = ReportReader(LIMITS)
    try:
        for at in range(1, len(data), cut):
            for block in reader.feed(data[at : at + cut]):
                assert len(block) <= 16_000 and np.isfinite(block).all()
        reader.close(0)
    except SpeakerdError as error:
        # The child itself may say that it failed, and that is our fault.
        assert str(error)
    assert reader.num_samples <= LIMITS.seconds_max * 16_000 + 16_000


def _reports() -> Iterable[bytes]:
    head = {"container": "wav", "codec": "pcm_s16le", "sample_rate_hz": 16_000, "channels": 1, "declared_s": 1.5}
    block = np.full(160, 0.25, "<f4").tobytes()
    begun = json.dumps(head).encode() + b"\n" + struct.pack("<I", len(block)) + block
    yield b"\xff" + begun + struct.pack("<I", 0) + b'{"ok": true}\n'
    yield b"\x03" + begun
    for odd in ("1e999", "1" + "0" * 400, "-1", "null", '"x"', "[]"):
        yield b"\xff" + json.dumps({**head, "sample_rate_hz": 0}).replace(": 0,", f": {odd},", 1).encode() + b"\n"
        yield b"\xff" + json.dumps({**head, "declared_s": 0}).replace(": 0}", f": {odd}}}", 1).encode() + b"\n"
    for code, numbers in (
        ("rate", {"rate": 3}), ("cut", {"decoded_s": 1.0, "declared_s": 2.0}), ("damaged", {"share": 0.5}),
        ("not_finite", {"at_s": 0.5}), ("codec", {"codec": "x y"}), ("unknown", {}), ("failed", {"error": "KeyError"}),
        ("rate", {"rate": 1e999}), ("too_long", {}), ("memory", {}), ("start", {"error": 3}),
    ):  # fmt: skip
        yield (
            b"\xff"
            + struct.pack("<I", 0)
            + json.dumps({"ok": False, "code": code, "numbers": numbers}).encode()
            + b"\n"
        )
    yield b"\xff" + struct.pack("<I", 0) + b"[" * 4_000 + b"\n"
    yield b"\xff" + struct.pack("<I", 0) + b'{"ok": false, "code": "rate", "numbers": {"rate": 1' + b"0" * 400 + b"}}\n"


def read_head(data: bytes) -> None:
    """Formats are told apart, or refused with a code, whether the length of the file is known or not."""

    def read_at(offset: int, length: int) -> bytes:
        assert 0 <= length <= 1 << 20
        return data[offset : offset + length]

    for size in (len(data), None):
        try:
            found = sniff.sniff(read_at, size)
        except sniff.Refused as refusal:
            json.dumps(refusal.numbers)
        else:
            assert found.declared_s is None or found.declared_s >= 0.0
    sniff.mp3_packet_is_whole(data)


class _Sink:
    def __init__(self) -> None:
        self.reader = ReportReader(LIMITS)
        self.samples = 0

    def begin(self, container: str, codec: str, sample_rate_hz: int, channels: int, declared_s: float) -> None:
        head = {
            "container": container, "codec": codec, "sample_rate_hz": sample_rate_hz, "channels": channels,
            "declared_s": declared_s,
        }  # fmt: skip
        self.reader.feed(json.dumps(head).encode() + b"\n")

    def block(self, samples: Any) -> None:
        data = samples.astype("<f4", copy=False).tobytes()
        self.reader.feed(struct.pack("<I", len(data)) + data)


def decode_here(data: bytes) -> None:
    """The child's decoding, in this process: it refuses or gives sound that the parent takes, and never just fails."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        with contextlib.suppress(sniff.Refused, MemoryError):
            child.decode(fd, child.Limits(LIMITS.seconds_max, 1e9), _Sink())
    finally:
        os.close(fd)


def decode_confined(data: bytes) -> None:
    """The whole door: a child, its report, and an error that is about the file."""
    try:
        decode(data or b"\0", limits=LIMITS)
    except SpeakerdError as error:
        refused(error)


def _files() -> list[bytes]:
    """A tone in every container that is read, and pieces of real recordings where they are."""
    made = []
    tone = (np.sin(np.arange(8_000) / 9.0) * 0.3).astype(np.float32)
    for kind, subtype in (
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"), ("AU", "ALAW"),
        ("RF64", "PCM_16"), ("WAVEX", "PCM_U8"),
    ):  # fmt: skip
        buffer = io.BytesIO()
        soundfile.write(buffer, tone, 16_000, format=kind, subtype=subtype)
        made.append(buffer.getvalue())
    for how in ENCODED.values():
        with tempfile.TemporaryDirectory() as scratch:
            made.append(encoded(tone, *how, Path(scratch)))
    folder = Path(os.environ.get("SPEAKERD_TEST_AUDIO", Path(__file__).resolve().parents[3] / "shared" / "audio"))
    made += [
        path.read_bytes()[: 48 << 10]
        for path in sorted(folder.rglob("*.*"))[:2]
        if path.suffix in (".flac", ".ogg", ".wav")
    ]
    made += [b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + made[7], b"#!AMR\n" + bytes(200), b"#EXTM3U\nhttp://127.0.0.1/\n"]
    return made


_kept: list[bytes] = []


def files() -> list[bytes]:
    """Made once a process."""
    if not _kept:
        _kept.extend(_files())
    return _kept


TARGETS = (
    Target("samples", plain(read_samples), _samples, replays=800),
    Target("rttm", plain(read_rttm), _rttms, replays=6_000),
    Target("report", plain(read_report), _reports, replays=6_000),
    Target("sniff", plain(read_head), files, replays=6_000),
    Target("decoder", plain(decode_here), files, replays=300),
    Target("media", plain(decode_confined), files, replays=10, is_fast=False),
)

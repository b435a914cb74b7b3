"""Decodes one file: its first sound track becomes float32 mono at 16 kHz, channels averaged, written in blocks.

In: a seekable file, or a pipe into which it is still being written, and limits. Out: calls to `begin` (once) and
`block` (float32 arrays of one second, the last one shorter; from a pipe, what has come). What always holds: sound is
counted as it is decoded, so that no header can promise less than it delivers; NaN and infinity never come out; a file
that stops before its own end is told from one that is whole.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
import soxr

from runtime.media_child.feed import Feed, index_comes_last
from runtime.media_child.sniff import (
    MAX_CHANNELS,
    Refused,
    Sniffed,
    mp3_packet_is_whole,
    refuse_strange,
    shortfall_s,
    sniff,
)

OUT_RATE_HZ = 16_000
BLOCK_SAMPLES = 16_000
# As in runtime.pcm: beyond this a float is no sample.
LOUDEST = 8.0
# Packets in the middle that cannot be decoded are skipped, as every player does, up to this share.
DAMAGED_SHARE = 0.02
DAMAGED_PACKETS_FREE = 3
CODECS = (
    "aac,aac_latm,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,flac,libopus,mp1,mp1float,mp2,mp2float,mp3,mp3float,opus,"
    "pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,"
    "pcm_s32le,pcm_s8,pcm_u8,vorbis"
)
# Containers whose declared length is a count of samples, without an encoder's delay.
EXACT = {"wav", "flac", "aiff", "au"}
READ_BYTES = 262_144
# Of a stream: how much is looked at before its first packet is decoded. Its header says what has to be known.
PROBE_OPTIONS = {"probesize": "32768", "analyzeduration": "200000", "fpsprobesize": "0"}
LIVE_BLOCK_S = 0.05
# A stream may take this share of a core, and a start. Whoever takes more is stopped by the kernel, wherever it hangs.
LIVE_CPU_SHARE = 0.2
LIVE_CPU_START_S = 20

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """What decoding may not pass."""

    seconds_max: float
    cpu_s_max: float


class Sink(Protocol):
    """Where decoded sound goes."""

    def begin(self, container: str, codec: str, sample_rate_hz: int, channels: int, declared_s: float) -> None:
        """Called once, before the first block. declared_s: its length as the file states it, 0 where it does not."""

    def block(self, samples: FloatArray) -> None:
        """Takes float32 (N,) at 16 kHz."""


def decode(fd: int, limits: Limits, sink: Sink) -> None:
    """Decodes the file behind `fd` into `sink`. Raises Refused when it is not taken, at whatever point that shows."""
    size = os.fstat(fd).st_size
    sniffed = sniff(lambda offset, length: os.pread(fd, length, offset) if offset < size else b"", size)
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb", buffering=0, closefd=False) as file, _opened(file, sniffed) as container:
        _decode_container(container, sniffed, limits, sink)


def decode_live(fd: int, limits: Limits, sink: Sink) -> None:
    """As `decode`, of a pipe, as bytes come. Its end is where the writer ended it: only what was declared is missed."""
    _allow_cpu_s(LIVE_CPU_START_S)
    feed = Feed(fd)
    sniffed = sniff(feed.read_at, None)
    file = feed.whole() if sniffed.demuxer == "mov" and index_comes_last(feed) else feed
    with _opened(file, sniffed, PROBE_OPTIONS) as container:
        _decode_container(container, sniffed, limits, sink, is_live=True)


def _opened(file: Any, sniffed: Sniffed, options: dict[str, str] | None = None) -> Any:
    try:
        return av.open(
            file,
            format=sniffed.demuxer,
            buffer_size=READ_BYTES,
            metadata_errors="replace",
            container_options={
                "format_whitelist": sniffed.demuxer,
                "protocol_whitelist": "pipe",
                "codec_whitelist": CODECS,
                **(options or {}),
            },
        )
    except (av.FFmpegError, EOFError, ValueError) as error:
        _raise_if_memory(error)
        raise Refused("broken", container=sniffed.demuxer) from error


def _decode_container(container: Any, sniffed: Sniffed, limits: Limits, sink: Sink, *, is_live: bool = False) -> None:
    if not container.streams.audio:
        raise Refused("no_sound", container=sniffed.demuxer)
    stream = container.streams.audio[0]
    codec = stream.codec_context
    if codec is None or codec.name not in CODECS.split(","):
        raise Refused("codec", codec=codec.name if codec is not None else "unknown")
    refuse_strange(stream.sample_rate, stream.channels)
    codec.thread_count = 1
    if codec.name == "flac":
        # Without this a frame whose checksum is wrong comes out as noise at full scale.
        codec.options = {"err_detect": "crccheck+explode"}
    declared_s = sniffed.declared_s if sniffed.declared_s is not None else _declared(container, stream, sniffed)
    track = _Track(sniffed.demuxer, codec.name, limits, sink, declared_s or 0.0, is_live=is_live)
    whole = True
    packets = damaged = 0
    for frames in _frames(container, stream, sniffed.demuxer):
        packets += 1
        # What cannot be decoded in the middle is skipped; at the end it means that the end is missing.
        whole = frames is not None
        if frames is None:
            damaged += 1
        for frame in frames or ():
            track.add(frame)
    track.finish()
    decoded_s = track.decoded_s
    if declared_s is not None:
        allowed_s = shortfall_s(declared_s, exact=sniffed.demuxer in EXACT)
        if decoded_s < declared_s - allowed_s:
            raise Refused("cut", decoded_s=decoded_s, declared_s=declared_s)
    if not track.begun:
        raise Refused("no_sound", container=sniffed.demuxer)
    if (not whole and not is_live) or sniffed.ends_early:
        raise Refused("cut", decoded_s=decoded_s)
    if damaged > max(DAMAGED_PACKETS_FREE, DAMAGED_SHARE * packets):
        raise Refused("damaged", share=damaged / packets)


def _frames(container: Any, stream: Any, demuxer: str) -> Iterator[list[Any] | None]:
    """The frames of each packet; None for a packet that cannot be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            _raise_if_memory(error)
            yield None
            return
        if demuxer == "mp3" and packet.size and not mp3_packet_is_whole(bytes(packet)):
            # An mp3 need not say how long it is, and its decoder makes something of half a frame.
            yield None
            continue
        try:
            frames = packet.decode()
        except av.EOFError:
            return
        except av.FFmpegError as error:
            # Of any kind: decoders say -1, which reads as a lack of permission, where they mean bad data.
            _raise_if_memory(error)
            yield None
        else:
            # The packet that flushes the decoder is not one of the file's, and says nothing about its end.
            if packet.size or frames:
                yield frames


def _raise_if_memory(error: Exception) -> None:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError from error


def _declared(container: Any, stream: Any, sniffed: Sniffed) -> float | None:
    """Seconds that the container's own fields state; None where libavformat would merely guess from the bit rate."""
    if sniffed.demuxer in {"mov", "aiff", "au", "ogg"} and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if sniffed.demuxer == "matroska":
        hours, _, rest = str(stream.metadata.get("DURATION", "")).partition(":")
        minutes, _, seconds = rest.partition(":")
        try:
            return int(hours) * 3_600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            alone = len(container.streams) == 1 and container.duration
            return container.duration / av.time_base if alone else None
    return None


def _allow_cpu_s(seconds: float) -> None:
    """Have the kernel stop this process beyond so much processor time, within what it may have at all."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


class _Track:
    """The sound decoded so far: counts it, mixes it, checks it, resamples it, and passes it on in blocks."""

    def __init__(
        self, container: str, codec: str, limits: Limits, sink: Sink, declared_s: float, *, is_live: bool
    ) -> None:
        self.begun = False
        self._is_live = is_live
        self._allowed_cpu_s = LIVE_CPU_START_S if is_live else limits.cpu_s_max
        self._declared_s = declared_s
        self._container = container
        self._codec = codec
        self._limits = limits
        self._sink = sink
        self._rate = 0
        self._channels = 0
        self._count = 0
        self._resampler: Any = None
        self._pending: list[FloatArray] = []
        self._pending_count = 0
        self._out: FloatArray = np.empty(0, dtype=np.float32)

    @property
    def decoded_s(self) -> float:
        return self._count / self._rate if self._rate else 0.0

    def add(self, frame: Any) -> None:
        """Takes a frame as the decoder gives it."""
        if not frame.samples:
            return
        if not self.begun:
            self._begin(frame)
        if frame.sample_rate != self._rate:
            raise Refused("rate_changes", at_s=self.decoded_s)
        sound = _mono(frame)
        self._pending.append(sound)
        self._pending_count += len(sound)
        self._count += len(sound)
        if self.decoded_s > self._limits.seconds_max:
            raise Refused("too_long")
        if self._is_live:
            self._allow_cpu()
        if time.process_time() > self._allowed_cpu_s:
            # The kernel's own limit counts ticks, and on a busy virtual machine misses many.
            raise Refused("cpu")
        if self._pending_count >= self._rate * (LIVE_BLOCK_S if self._is_live else 0.5):
            self._drain(last=False)

    def finish(self) -> None:
        """Passes on what is left."""
        if self.begun:
            self._drain(last=True)
            if len(self._out):
                self._sink.block(self._out)

    def _begin(self, frame: Any) -> None:
        self._rate, self._channels = frame.sample_rate, frame.layout.nb_channels
        refuse_strange(self._rate, self._channels)
        self._sink.begin(self._container, self._codec, self._rate, self._channels, self._declared_s)
        self.begun = True
        if self._rate != OUT_RATE_HZ:
            self._resampler = soxr.ResampleStream(self._rate, OUT_RATE_HZ, 1, dtype="float32", quality="HQ")

    def _allow_cpu(self) -> None:
        allowed_s = min(LIVE_CPU_START_S + LIVE_CPU_SHARE * self.decoded_s, self._limits.cpu_s_max)
        if allowed_s >= self._allowed_cpu_s + 1:
            self._allowed_cpu_s = allowed_s
            _allow_cpu_s(allowed_s)

    def _drain(self, *, last: bool) -> None:
        start = self._count - self._pending_count
        sound = np.concatenate(self._pending) if self._pending else np.empty(0, dtype=np.float32)
        self._pending, self._pending_count = [], 0
        # NaN compares false, so that one comparison finds all three.
        good = np.abs(sound) <= LOUDEST
        if not good.all():
            first = int(np.argmin(good))
            code = "beyond" if np.isfinite(sound[first]) else "not_finite"
            raise Refused(code, at_s=(start + first) / self._rate)
        if self._resampler is not None:
            sound = self._resampler.resample_chunk(sound, last=last)
        out = np.concatenate((self._out, sound))
        whole = len(out) if self._is_live else len(out) - len(out) % BLOCK_SAMPLES
        for at in range(0, whole, BLOCK_SAMPLES):
            self._sink.block(out[at : min(whole, at + BLOCK_SAMPLES)])
        self._out = out[whole:]


def _mono(frame: Any) -> FloatArray:
    """A decoder's frame as float32 (N,) in [-1, 1], channels averaged."""
    channels = frame.layout.nb_channels
    if not 1 <= channels <= MAX_CHANNELS:
        raise Refused("channels", channels=channels)
    raw = frame.to_ndarray()
    planes = raw if frame.format.is_planar else raw.reshape(-1, channels).T  # (channels, N)
    sound: FloatArray
    match planes.dtype:
        case np.uint8:
            sound = (planes.astype(np.float32) - np.float32(128)) / np.float32(128)
        case np.int16:
            sound = planes.astype(np.float32) / np.float32(32_768)
        case np.int32:
            sound = (planes / 2_147_483_648.0).astype(np.float32)
        case _:
            with np.errstate(over="ignore"):
                sound = planes.astype(np.float32)
    if channels == 1:
        mono: FloatArray = sound[0]
        return mono
    mixed: FloatArray = sound.mean(axis=0, dtype=np.float32)
    return mixed

"""The sound of a WebSocket, by its media type: frames in, samples out as they come, or a recording at its end.

In: a media type and bytes, cut anywhere. Out: (N,) float32 blocks, mono, 16 kHz. Recordings with a header (audio/wav,
other containers) are unpacked in the confined decoder while they come. audio/L16 is big-endian by its RFC and
little-endian in what most programs send: `endianness=` says, and without it the first sound does.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from controlplane.intake import Clip
from controlplane.places import Places
from runtime.errors import BadAudio, InvalidRequest, UnsupportedMedia
from runtime.media import adecode_live
from runtime.pcm import FloatArray, PcmDecoder, PcmEncoding
from runtime.units import SAMPLE_RATE_HZ

DECODERS_MAX = 16 * max(1, os.cpu_count() or 1)
"""Decoders at once: each is a process, which mostly waits."""
CONTAINERS = frozenset(
    f"audio/{name}"
    for name in ("wav", "x-wav", "wave", "vnd.wave", "flac", "x-flac", "ogg", "mpeg", "mp3", "mp4", "x-m4a", "webm")
)
JUDGED_BYTES = 6_400
"""So much of it, from where it is not digital silence any more, tells in which order its bytes come."""

DECODERS = Places("recordings to be unpacked", DECODERS_MAX, retry_after_s=1.0)
"""Of this process; one tenant's never take all of them."""


@dataclass(frozen=True, slots=True)
class SoundType:
    """A media type that is read here. is_big: the order of bytes of L16; None: to be found."""

    is_container: bool
    sample_rate_hz: int = SAMPLE_RATE_HZ
    channels: int = 1
    is_big: bool | None = None


def sound_type(media_type: str, sample_rate_hz: int | None) -> SoundType:
    """What a media type says. Raises UnsupportedMedia, InvalidRequest."""
    kind, *parameters = [part.strip() for part in media_type.lower().split(";")]
    if kind in CONTAINERS:
        return SoundType(is_container=True)
    if kind not in ("audio/l16", "audio/pcm"):
        raise UnsupportedMedia(
            "media_type: send audio/wav, audio/L16;rate=16000;channels=1, or another audio container"
        )
    said = dict(part.partition("=")[::2] for part in parameters)
    try:
        rate_hz = int(said.get("rate") or sample_rate_hz or SAMPLE_RATE_HZ)
        channels = int(said.get("channels") or 1)
    except ValueError:
        raise InvalidRequest("media_type: rate and channels are whole numbers") from None
    order = {"": None, "little-endian": False, "big-endian": True}
    if said.get("endianness", "") not in order:
        raise InvalidRequest("media_type: endianness is little-endian or big-endian")
    PcmDecoder(PcmEncoding.S16LE, rate_hz, channels)  # refuses rates and channels that are not read
    return SoundType(False, rate_hz, channels, order[said.get("endianness", "")])


async def samples_of(
    sound: SoundType, frames: AsyncIterator[bytes], tenant_id: str
) -> AsyncGenerator[FloatArray, None]:
    """The samples of a stream, as its frames come. Raises BadAudio, Overloaded, and what `frames` raises."""
    async with aclosing(_unpacked(frames, tenant_id) if sound.is_container else _raw(sound, frames)) as blocks:
        async for block in blocks:
            if len(block):
                yield block


async def _unpacked(frames: AsyncIterator[bytes], tenant_id: str) -> AsyncGenerator[FloatArray, None]:
    with DECODERS.taken(tenant_id):
        async with aclosing(adecode_live(frames)) as blocks:
            async for block in blocks:
                yield block


async def _raw(sound: SoundType, frames: AsyncIterator[bytes]) -> AsyncGenerator[FloatArray, None]:
    decoder = PcmDecoder(PcmEncoding.S16LE, sound.sample_rate_hz, sound.channels)
    order = _Order(sound.is_big)
    async for frame in frames:
        yield decoder.feed(order.little(frame))
    yield decoder.feed(order.rest())
    yield decoder.flush()


def whole_recording(sound: SoundType, data: bytes) -> Clip:
    """A recording that has come to its end, as the core takes one."""
    if sound.is_container:
        return Clip(data=data)
    order = _Order(sound.is_big)
    little = order.little(data) + order.rest()
    return Clip(little, int(PcmEncoding.S16LE), sound.sample_rate_hz, sound.channels)


class _Order:
    """Turns 16-bit samples into little-endian ones, once it knows which they are."""

    def __init__(self, is_big: bool | None) -> None:
        self._is_big = is_big
        self._held = b""

    def little(self, frame: bytes) -> bytes:
        """What can be given on."""
        self._held += frame
        whole = len(self._held) - len(self._held) % 2
        if self._is_big is None:
            if not self._held[:whole].strip(b"\0"):
                silence, self._held = self._held[:whole], self._held[whole:]
                return silence  # either way round
            if whole < JUDGED_BYTES:
                return b""
            self._is_big = _is_big(self._held[:whole])
        given, self._held = self._held[:whole], self._held[whole:]
        return _swapped(given) if self._is_big else given

    def rest(self) -> bytes:
        """What is left at the end. Raises BadAudio for half a sample."""
        if len(self._held) % 2:
            raise BadAudio("the sound ends inside a sample: audio/L16 takes two bytes a sample")
        is_big = _is_big(self._held) if self._is_big is None else self._is_big
        given, self._held = self._held, b""
        return _swapped(given) if is_big else given


def _is_big(data: bytes) -> bool:
    """Sound goes smoothly from sample to sample; read the wrong way round it leaps."""
    if len(data) < 4:
        return False
    little, big = (np.frombuffer(data, order).astype(np.float64) for order in ("<i2", ">i2"))
    return bool(np.abs(np.diff(big)).sum() < np.abs(np.diff(little)).sum())


def _swapped(data: bytes) -> bytes:
    return np.frombuffer(data, ">i2").astype("<i2").tobytes()

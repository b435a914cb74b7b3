"""From clips as they came to sound and a verdict: decoding, preflight, a node's analysis, and what is refused.

In: clips as bytes with their formats. Out: sound of 16 kHz mono, what the signal looks like, and, when a node is
online, what the engine heard. All that makes a recording unfit raises with a text that says what to mend; nothing is
stored here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.fleet import Fleet
from controlplane.nodes import Analysis, Nodes
from runtime.errors import BadAudio, Overloaded, TimedOut, TooLarge, Unavailable
from runtime.media import CLIP, SignalPreflight, SourceFormat, adecode, preflight
from runtime.pcm import PcmDecoder
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples

CONTAINER = 5
CLIP_BYTES_MAX = 32 << 20
CLIPS_MAX = 10
TOTAL_BYTES_MAX = 64 << 20
TOTAL_S_MAX = 300.0
NET_SPEECH_MS_MIN = 1_000
WAITING_MAX = 32
NODES_TRIED_MAX = 3


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording as it came. encoding: number of speakerd.v1.Encoding; rate and channels count for raw samples."""

    data: bytes
    encoding: int = CONTAINER
    sample_rate_hz: int = 0
    channels: int = 0


@dataclass(frozen=True, slots=True)
class Sound:
    """All clips of an enrolment, one after the other: float32 (N,) at 16 kHz mono, and its preflight."""

    samples: npt.NDArray[np.float32]
    preflight: SignalPreflight


class Intake:
    """Decodes and judges clips, as many at a time as there are cores."""

    def __init__(self, fleet: Fleet, nodes: Nodes) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._cores = asyncio.Semaphore(max(1, os.cpu_count() or 1))
        self._inside = 0

    def __repr__(self) -> str:
        return f"Intake(inside={self._inside})"

    async def listen(self, clips: Sequence[Clip]) -> Sound:
        """Decode and preflight. Raises BadAudio, UnsupportedMedia, TooLarge, InvalidRequest, Overloaded."""
        if not clips:
            raise BadAudio("no recording came with the request: send at least one clip of the person speaking")
        if len(clips) > CLIPS_MAX or sum(len(clip.data) for clip in clips) > TOTAL_BYTES_MAX:
            raise TooLarge(f"at most {CLIPS_MAX} clips and {TOTAL_BYTES_MAX >> 20} MiB in all")
        async with self._admission():
            decoded = []
            for clip in clips:
                samples, source = await _decoded(clip)
                decoded.append((samples, source))
                # Each for itself: a silent clip among good ones is a mistake that its sender wants to hear of.
                await asyncio.to_thread(preflight, samples, source)
            joined = np.concatenate([samples for samples, _ in decoded])
            if seconds_from_samples(len(joined)) > TOTAL_S_MAX:
                raise TooLarge(f"more than {TOTAL_S_MAX:g} s in all: 5 to 30 s of the person speaking are enough")
            measured = await asyncio.to_thread(preflight, joined, decoded[0][1], for_enrolment=True)
            if measured.voice_activity_ratio <= 0.0:
                raise BadAudio("no speech was found: the sound is steady noise or hum; record the person speaking")
        return Sound(joined, measured)

    async def analyze(self, sound: Sound, model: str | None = None) -> Analysis | None:
        """What a node hears: the first that answers, of a model if it is given. None while no node can listen."""
        serving = [lease for lease in await self._fleet.serving() if model is None or lease.model == model]
        data = np.ascontiguousarray(sound.samples, dtype="<f4").tobytes()
        for lease in serving[:NODES_TRIED_MAX]:
            try:
                return await self._nodes.analyze(lease.address, data)
            except (Unavailable, TimedOut, Overloaded):
                continue
        return None

    @asynccontextmanager
    async def _admission(self) -> AsyncIterator[None]:
        if self._inside >= WAITING_MAX:
            raise Overloaded("too many recordings are being decoded; try again", retry_after_s=2.0)
        self._inside += 1
        try:
            async with self._cores:
                yield
        finally:
            self._inside -= 1


def judge(analysis: Analysis) -> None:
    """Raises BadAudio when what a node heard is not one person speaking."""
    if analysis.num_speakers == 0 or analysis.net_speech_ms == 0:
        raise BadAudio("no speech was found in the recording: record the person speaking, 5 to 30 s")
    if analysis.num_speakers > 1:
        raise BadAudio(
            f"{analysis.num_speakers} different voices are heard: enrol from recordings of that one person alone"
        )
    if analysis.net_speech_ms < NET_SPEECH_MS_MIN:
        raise BadAudio(
            f"only {analysis.net_speech_ms / 1000:.1f} s of clean speech: at least 1 s is needed, 5 to 30 s are better"
        )


async def _decoded(clip: Clip) -> tuple[npt.NDArray[np.float32], SourceFormat]:
    if not clip.data:
        raise BadAudio("the recording is empty (0 bytes): send the file's content")
    if len(clip.data) > CLIP_BYTES_MAX:
        raise TooLarge(f"a clip is at most {CLIP_BYTES_MAX >> 20} MiB")
    if clip.encoding == CONTAINER:
        audio = await adecode(clip.data, limits=CLIP)
        return audio.samples, audio.source

    def decode() -> npt.NDArray[np.float32]:
        decoder = PcmDecoder.from_wire(clip.encoding, clip.sample_rate_hz, clip.channels)
        return np.concatenate([decoder.feed(clip.data), decoder.flush()])

    samples = await asyncio.to_thread(decode)
    source = SourceFormat("raw", "pcm", clip.sample_rate_hz or SAMPLE_RATE_HZ, clip.channels or 1)
    return samples, source

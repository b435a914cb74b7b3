"""What the engine hears in a clip, and whether one person can be enrolled from it.

In: a clip as it came. Out: a HeardVoice, or BadAudio that says what to record instead. What always holds: containers
are decoded in the sandbox, and few clips are decoded at once; live streams wait for a part of a clip at most; nothing
of a clip is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from models.analysis import FloatArray
from models.enrolment import CombinedVoice, combine_clips, next_part
from models.naming import NamingParameters
from models.seams import VoiceSample
from node.device_thread import DeviceThread
from runtime.errors import BadAudio, Overloaded, SpeakerdError, TooLarge
from runtime.media import CLIP, adecode
from runtime.pcm import PcmDecoder
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples

CONTAINER = 5
"""speakerd.v1.Encoding.ENCODING_CONTAINER."""
SILENCE_DBFS = -60
SILENCE_PEAK = 10 ** (SILENCE_DBFS / 20)
"""Sound that was never louder than this from its first to its last sample heard no microphone."""
CLIPS_AT_ONCE = 2
CLIPS_WAITING_MAX = 16
CLIP_S_MAX = 120.0
"""A clip lies in memory as long as it is heard; so it is bounded more tightly than files."""
CLIPS_MAX = 10
TOTAL_S_MAX = 240.0
NET_SPEECH_MIN = SAMPLE_RATE_HZ
NET_SPEECH_GOOD = 5 * SAMPLE_RATE_HZ
COHESION_LOW = 0.6


@dataclass(frozen=True, slots=True)
class SentClip:
    """A clip as it came. encoding: number of speakerd.v1.Encoding; rate and channels count for raw samples."""

    data: bytes
    encoding: int
    sample_rate_hz: int
    channels: int


@dataclass(frozen=True, slots=True)
class HeardVoice:
    """A clip's length, what was heard in it, and what to know before relying on it."""

    duration_samples: int
    sample: VoiceSample
    warnings: tuple[str, ...]


class ClipAnalysis:
    """Decodes clips and hears them."""

    def __init__(self, device: DeviceThread) -> None:
        self._device = device
        self._places = asyncio.Semaphore(CLIPS_AT_ONCE)
        self._hearing = asyncio.Lock()
        self._waiting = 0

    def __repr__(self) -> str:
        return f"ClipAnalysis({self._waiting} clips)"

    async def hear(self, clip: SentClip) -> HeardVoice:
        """What a clip holds. Raises BadAudio and its like for what cannot be decoded, Overloaded when many wait."""
        (heard,) = await self.hear_all([clip])
        return heard

    async def hear_all(self, clips: Sequence[SentClip]) -> list[HeardVoice]:
        """What each clip holds, in order; at most CLIPS_MAX clips and CLIP_S_MAX seconds in all."""
        if len(clips) > CLIPS_MAX + 1:  # the clip of the consent besides
            raise TooLarge(f"at most {CLIPS_MAX} clips")
        if self._waiting >= CLIPS_WAITING_MAX:
            raise Overloaded("many clips wait to be heard: try again", retry_after_s=2.0)
        self._waiting += 1
        try:
            async with self._places:
                return await self._hear_in_turn(clips)
        finally:
            self._waiting -= 1

    async def _hear_in_turn(self, clips: Sequence[SentClip]) -> list[HeardVoice]:
        found, total_samples = [], 0
        for clip in clips:
            samples = await self._decode(clip.data, clip.encoding, clip.sample_rate_hz, clip.channels)
            total_samples += len(samples)
            if seconds_from_samples(len(samples)) > CLIP_S_MAX or seconds_from_samples(total_samples) > TOTAL_S_MAX:
                raise TooLarge(
                    f"a clip is longer than {CLIP_S_MAX:g} s, or all of them than {TOTAL_S_MAX:g} s: 5 to 30 s of one "
                    "person are best"
                )
            found.append(await self._hear_samples(samples))
        return found

    async def _hear_samples(self, samples: FloatArray) -> HeardVoice:
        if not len(samples):
            raise BadAudio("the clip holds no audio: send at least 1 s of one person speaking")
        if float(np.abs(samples).max()) <= SILENCE_PEAK:
            raise BadAudio(
                f"no sound above {SILENCE_DBFS} dBFS in {seconds_from_samples(len(samples)):.1f} s: the clip "
                "is silent; check the microphone and its level, and the encoding"
            )
        sample = await self._voice(samples)
        return HeardVoice(len(samples), sample, warnings_of(sample))

    async def _voice(self, samples: FloatArray) -> VoiceSample:
        """Part by part: windows of live streams come in between, which a clip of a minute would hold up for seconds."""
        async with self._hearing:
            parts = await self._device.call(lambda engine: engine.device.voice_parts(samples))
            try:
                while (heard := await self._device.call(lambda engine: next_part(parts))) is None:
                    pass
            except asyncio.CancelledError:
                self._forget(parts)
                raise
            return heard

    def _forget(self, parts: Generator[None, None, VoiceSample]) -> None:
        """Have the device forget a clip that is not heard to its end, behind the part that it may be hearing."""
        try:
            forgotten = self._device.submit(lambda engine: parts.close())
        except SpeakerdError:
            return  # the device is going away, and the clip with it
        forgotten.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _decode(self, data: bytes, encoding: int, sample_rate_hz: int, channels: int) -> FloatArray:
        if encoding == CONTAINER:
            return (await adecode(data, limits=CLIP)).samples
        if len(data) > CLIP.bytes_max:
            raise TooLarge(f"the clip holds {len(data)} bytes: send at most {CLIP.bytes_max}")
        return await asyncio.to_thread(_decode_pcm, data, encoding, sample_rate_hz, channels)


def combined(heard: Sequence[HeardVoice], naming: NamingParameters) -> tuple[HeardVoice, CombinedVoice]:
    """Clips of one person as one, and how each of them fits the others."""
    together = combine_clips([clip.sample for clip in heard], naming)
    duration_samples = sum(clip.duration_samples for clip in heard)
    warnings = list(warnings_of(together.sample))
    left_out = [number for number, is_out in enumerate(together.left_out, start=1) if is_out]
    if left_out:
        numbers = ", ".join(str(number) for number in left_out)
        warnings.append(f"left out, as not of the person of the other clips: clip {numbers} of {len(heard)}")
    return HeardVoice(duration_samples, together.sample, tuple(warnings)), together


def require_enrollable(heard: HeardVoice) -> None:
    """Raises BadAudio unless a clip is fit to enrol one person."""
    sample = heard.sample
    if sample.num_speakers == 0 or not sample.net_speech_samples:
        raise BadAudio("no speech was heard in the clip: record 5 to 30 s of one person speaking")
    if sample.num_speakers > 1:
        raise BadAudio(
            f"{sample.num_speakers} speakers were heard in the clip: cut it down to the one person to be enrolled"
        )
    if sample.net_speech_samples < NET_SPEECH_MIN:
        raise BadAudio(
            f"only {seconds_from_samples(sample.net_speech_samples):.1f} s of clean speech were heard in the clip: "
            f"at least {seconds_from_samples(NET_SPEECH_MIN):g} s are needed, 5 to 30 s are best"
        )


def _decode_pcm(data: bytes, encoding: int, sample_rate_hz: int, channels: int) -> FloatArray:
    decoder = PcmDecoder.from_wire(encoding, sample_rate_hz, channels)
    return np.concatenate([decoder.feed(data), decoder.flush()])


def warnings_of(sample: VoiceSample) -> tuple[str, ...]:
    """What to know before relying on a sample, in plain words."""
    found = []
    if sample.num_speakers > 1:
        found.append(f"{sample.num_speakers} speakers were heard; one person is enrolled from a clip of one person")
    if sample.num_speakers and sample.net_speech_samples < NET_SPEECH_GOOD:
        found.append(
            f"{seconds_from_samples(sample.net_speech_samples):.1f} s of clean speech are little: "
            f"{seconds_from_samples(NET_SPEECH_GOOD):g} s or more make a better voice"
        )
    if sample.num_speakers and sample.cohesion < COHESION_LOW:
        found.append("the clip's parts do not sound alike: there may be noise, or a second voice")
    return tuple(found)

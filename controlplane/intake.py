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
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from controlplane.fleet import Fleet
from controlplane.holdings import Print
from controlplane.media_sources import DriveReference, MediaSources, Source, Url
from controlplane.metrics import Metrics, declare
from controlplane.nodes import Analysis, CollisionScope, Nodes
from controlplane.speaker_checks import SpeakerChecksFailed, SpeakerLimits, judge
from runtime.errors import BadAudio, InvalidRequest, Overloaded, SpeakerdError, TimedOut, TooLarge, Unavailable
from runtime.media import (
    CLIP,
    Finding,
    PreflightFailed,
    PreflightLimits,
    SignalPreflight,
    SourceFormat,
    adecode,
    measure,
    preflight,
)
from runtime.pcm import PcmDecoder
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples

CONTAINER = 5
CLIP_BYTES_MAX = 32 << 20
CLIPS_MAX = 10
TOTAL_BYTES_MAX = 64 << 20
CONSENT_S_MAX = 120.0
WAITING_MAX = 32
NODES_TRIED_MAX = 3
OF_CONSENT = "the recording of the consent: "
"""What an error begins with that is about this one."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording as it came. encoding: number of speakerd.v1.Encoding; rate and channels count for raw samples.

    is_consent: the person speaking their consent; no voiceprint is made of it. url, drive: where it is fetched from, in
    place of data.
    """

    data: bytes
    encoding: int = CONTAINER
    sample_rate_hz: int = 0
    channels: int = 0
    is_consent: bool = False
    url: str = ""
    drive: DriveReference | None = None


@dataclass(frozen=True, slots=True)
class Sound:
    """The clips of an enrolment, each float32 (N,) at 16 kHz mono, the consent apart, and the preflight of them all."""

    clips: tuple[npt.NDArray[np.float32], ...]
    consent: npt.NDArray[np.float32] | None
    preflight: SignalPreflight


class Intake:
    """Decodes and judges clips, as many at a time as there are cores."""

    def __init__(
        self,
        fleet: Fleet,
        nodes: Nodes,
        *,
        sources: MediaSources | None = None,
        preflight_limits: PreflightLimits | None = None,
        speaker_limits: SpeakerLimits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._sources = sources
        self._preflight_limits = preflight_limits or PreflightLimits()
        self._speaker_limits = speaker_limits or SpeakerLimits()
        self._cores = asyncio.Semaphore(max(1, os.cpu_count() or 1))
        self._inside = 0
        self._metrics = metrics or declare(CollectorRegistry())

    def __repr__(self) -> str:
        return f"Intake(inside={self._inside})"

    async def fetch(self, clips: Sequence[Clip]) -> tuple[Clip, ...]:
        """The same clips, with the content of those that are elsewhere. Raises what MediaSources raises."""
        return tuple([await self._fetched(clip) for clip in clips])

    async def _fetched(self, clip: Clip) -> Clip:
        elsewhere: list[Source] = [Url(clip.url)] if clip.url else []
        if clip.drive is not None:
            elsewhere.append(clip.drive)
        if not elsewhere:
            return clip
        if clip.data or len(elsewhere) > 1:
            raise InvalidRequest("a clip has data, a url or a place on a drive, one of them")
        if self._sources is None:
            raise InvalidRequest("recordings are not fetched here: send the recording itself")
        try:
            data = await self._sources.read(elsewhere[0], bytes_max=CLIP_BYTES_MAX)
        except SpeakerdError as error:
            if not clip.is_consent:
                raise
            raise type(error)(f"{OF_CONSENT}{error}", retry_after_s=error.retry_after_s) from None
        return replace(clip, data=data, url="", drive=None)

    async def listen(self, clips: Sequence[Clip], limits: PreflightLimits | None = None) -> Sound:
        """Decode and preflight. limits: those of a dialect, in place of the configured ones.

        Raises PreflightFailed with all that was measured; BadAudio, UnsupportedMedia, TooLarge, InvalidRequest,
        Overloaded.
        """
        try:
            sound = await self._listened(clips, limits)
        except SpeakerdError as error:
            reasons = error.preflight.fail_reasons if isinstance(error, PreflightFailed) else ()
            outcome = reasons[0].code if reasons else error.cause.value
            self._metrics.preflights.labels(outcome).inc()
            raise
        self._metrics.preflights.labels("warned" if sound.preflight.warnings else "passed").inc()
        return sound

    async def _listened(self, clips: Sequence[Clip], limits: PreflightLimits | None) -> Sound:
        spoken = [clip for clip in clips if not clip.is_consent]
        if not spoken:
            raise BadAudio("no recording came with the request: send at least one clip of the person speaking")
        if len(clips) - len(spoken) > 1:
            raise InvalidRequest("one recording of the consent at most")
        if len(spoken) > CLIPS_MAX or sum(len(clip.data) for clip in clips) > TOTAL_BYTES_MAX:
            raise TooLarge(f"at most {CLIPS_MAX} clips and {TOTAL_BYTES_MAX >> 20} MiB in all")
        async with self._admission():
            consent = None
            decoded: list[tuple[npt.NDArray[np.float32], SourceFormat]] = []
            for clip in clips:
                name = _name(clip, len(decoded) + 1, len(spoken))
                samples, source = await _listened(clip, name)
                if clip.is_consent:
                    consent = samples
                else:
                    decoded.append((samples, source))
            poorest = min((source for _, source in decoded), key=lambda source: source.sample_rate_hz)
            joined = np.concatenate([samples for samples, _ in decoded])
            measured = await asyncio.to_thread(preflight, joined, poorest, limits or self._preflight_limits)
        return Sound(tuple(samples for samples, _ in decoded), consent, measured)

    async def analyze(
        self,
        sound: Sound,
        model: str | None = None,
        scope: CollisionScope | None = None,
        against: Sequence[Print] = (),
    ) -> Analysis | None:
        """What a node hears: the first that answers, of a model if it is given. None while no node can listen.

        against: voiceprints of that model, to be told of each whether it is of the person heard.
        """
        serving = [lease for lease in await self._fleet.serving() if model is None or lease.model == model]
        clips = [_bytes_of(samples) for samples in sound.clips]
        consent = None if sound.consent is None else _bytes_of(sound.consent)
        for lease in serving[:NODES_TRIED_MAX]:
            try:
                return await self._nodes.analyze(
                    lease.address, clips, consent_f32=consent, scope=scope, against=against
                )
            except (Unavailable, TimedOut, Overloaded):
                continue
        self._metrics.speaker_checks.labels("no_node").inc()
        return None

    def judge(self, analysis: Analysis) -> tuple[Finding, ...]:
        """What to know of what a node heard. Raises SpeakerChecksFailed where nobody can be enrolled from it."""
        try:
            findings = judge(analysis, self._speaker_limits)
        except SpeakerChecksFailed as error:
            self._metrics.speaker_checks.labels(error.findings[0].code).inc()
            raise
        self._metrics.speaker_checks.labels("warned" if findings else "passed").inc()
        return findings

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


def _name(clip: Clip, number: int, total: int) -> str:
    """What a clip is called in an error; nothing where there is but one."""
    if clip.is_consent:
        return OF_CONSENT
    return f"clip {number}: " if total > 1 else ""


async def _listened(clip: Clip, name: str) -> tuple[npt.NDArray[np.float32], SourceFormat]:
    """A clip decoded, and each for itself asked whether there is sound in it: a silent one among good ones is a mistake
    that its sender wants to hear of."""
    try:
        samples, source = await _decoded(clip)
        if name:
            # The only one is measured with its limits, together with all that is to say of it.
            await asyncio.to_thread(measure, samples, source)
    except SpeakerdError as error:
        if not name:
            raise
        raise type(error)(f"{name}{error}") from None
    if clip.is_consent and seconds_from_samples(len(samples)) > CONSENT_S_MAX:
        raise TooLarge(f"{name}more than {CONSENT_S_MAX:g} s")
    return samples, source


def _bytes_of(samples: npt.NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(samples, dtype="<f4").tobytes()


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

"""An enrolment as it arrives: the spec, then clips in chunks, within bounds.

In: the messages of People.EnrollVoice. Out: a Request. Raises InvalidRequest for what comes out of order, and TooLarge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from controlplane.arrivals import arriving
from controlplane.enrolment_request import Request
from controlplane.intake import CLIP_BYTES_MAX, CLIPS_MAX, CONTAINER, TOTAL_BYTES_MAX, Clip
from controlplane.people_wire import request_of
from runtime.errors import InvalidRequest, TooLarge
from runtime.pcm import said_rate_and_channels
from speakerd.v1 import people_pb2

CHUNK_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class _Gathering:
    """A clip whose chunks are coming in."""

    encoding: int
    sample_rate_hz: int
    channels: int
    data: bytearray = field(default_factory=bytearray)
    is_consent: bool = False


async def collected(requests: AsyncIterator[people_pb2.EnrollVoiceRequest]) -> Request:
    """The whole request, within its bounds. Raises InvalidRequest and TooLarge."""
    spec: people_pb2.VoiceSpec | None = None
    clips: list[_Gathering] = []
    total_bytes = 0
    async for message in arriving(requests):
        if message.HasField("spec"):
            if spec is not None:
                raise InvalidRequest("spec comes once, first")
            spec = message.spec
            continue
        if spec is None:
            raise InvalidRequest("the first message is `spec`; chunks follow")
        chunk = message.chunk
        data = chunk.data
        if chunk.clip > len(clips) or chunk.clip + 1 < len(clips):
            raise InvalidRequest("clips are numbered 0, 1, … and come one after the other")
        if chunk.clip == len(clips):
            if len(clips) == CLIPS_MAX + 1:  # the consent besides
                raise TooLarge(f"at most {CLIPS_MAX} clips")
            said = chunk.format if chunk.HasField("format") else None
            encoding = CONTAINER if said is None else said.encoding or 1
            rate_hz, channels = said_rate_and_channels(said) if said else (0, 0)
            clips.append(_Gathering(encoding, rate_hz, channels, is_consent=chunk.is_consent))
        if len(data) > CHUNK_BYTES_MAX:
            raise TooLarge("a chunk is at most 1 MiB: send more of them")
        clips[-1].data += data
        total_bytes += len(data)
        if len(clips[-1].data) > CLIP_BYTES_MAX or total_bytes > TOTAL_BYTES_MAX:
            raise TooLarge(f"at most {CLIP_BYTES_MAX >> 20} MiB a clip and {TOTAL_BYTES_MAX >> 20} MiB in all")
    if spec is None:
        raise InvalidRequest("the first message is `spec`; the stream ended without it")
    return request_of(
        spec,
        [Clip(bytes(clip.data), clip.encoding, clip.sample_rate_hz, clip.channels, clip.is_consent) for clip in clips],
    )

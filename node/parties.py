"""A call with one party a channel: each channel is a stream of its own, in a slot of its own, told as one.

In: a peer that sends interleaved samples. Out: the channels' sessions, and their events put together (party_events).
What always holds: what one party says is never heard in another's channel; a channel whose session lags holds the
others' sound back rather than letting it pile up; whatever ends one channel ends the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from node import events
from node.intake import AUDIO_BYTES_MAX
from node.naming import Name
from node.party_events import PartyEvents, parted
from node.session import Peer, first_error
from runtime.errors import BadAudio, InvalidRequest, TooLarge, Unavailable
from runtime.pcm import PcmDecoder
from runtime.units import SAMPLE_RATE_HZ

MESSAGES_MAX = 4
"""Messages that wait for a channel's session; it takes one at a time, and its slot holds seconds of sound beyond."""

Serve = Callable[[events.StreamRequest, Peer], Awaitable[None]]


async def serve_parties(
    request: events.StreamRequest, peer: Peer, serve: Serve, *, may_say: Callable[[Name], bool]
) -> None:
    """Serve a call to its end. serve: one channel. may_say: whether a name that waited may be said still."""
    num_channels = max(1, request.sound.channels)
    decoder = PcmDecoder.from_wire(request.sound.encoding, request.sound.sample_rate_hz, num_channels)
    checkpoints, sequence = [b""] * num_channels, 0
    if request.checkpoint:
        checkpoints, sequence = parted(request.checkpoint, num_channels)
    told = PartyEvents(
        request.stream_id, num_channels, provisional=request.provisional, sequence=sequence, may_say=may_say
    )
    call = _Call(peer, told, frame_bytes=decoder.frame_bytes, rate_hz=decoder.sample_rate_hz, channels=num_channels)
    try:
        async with asyncio.TaskGroup() as tasks:
            splitting = tasks.create_task(call.split(), name="call-split")
            parties = [
                tasks.create_task(call.party(index, _of_channel(request, index, checkpoint), serve), name="call-party")
                for index, checkpoint in enumerate(checkpoints)
            ]
            await asyncio.wait(parties)
            splitting.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    if call.handed_over is not None:
        raise call.handed_over


def _of_channel(request: events.StreamRequest, index: int, checkpoint: bytes) -> events.StreamRequest:
    # Every step tells up to where it is final, said or not: the call waits for the last of its channels.
    return replace(
        request,
        stream_id=f"{request.stream_id}#{index}",
        sound=replace(request.sound, channels=1),
        checkpoint=checkpoint,
        provisional=True,
    )


class _Call:
    """The two sides of a call: one peer outside, one for each channel inside."""

    def __init__(self, peer: Peer, told: PartyEvents, *, frame_bytes: int, rate_hz: int, channels: int) -> None:
        self._peer = peer
        self._told = told
        self._frame_bytes = frame_bytes
        self._rate_hz = rate_hz
        self._inner = [_Party(self, index) for index in range(channels)]
        self._sending = asyncio.Lock()
        self._is_open = asyncio.Event()
        self.handed_over: Unavailable | None = None

    async def party(self, index: int, request: events.StreamRequest, serve: Serve) -> None:
        """Serve one channel. That the node stops is told when all channels have ended."""
        try:
            await serve(request, self._inner[index])
        except Unavailable as error:
            self.handed_over = error

    async def split(self) -> None:
        """Give each channel its samples, from where its session begins."""
        await self._is_open.wait()
        bases = self._told.resume_samples
        assert bases is not None, "open before its channels are"
        skip = [(base - min(bases)) * self._rate_hz // SAMPLE_RATE_HZ for base in bases]  # frames
        width, rest = self._frame_bytes // len(self._inner), b""
        while isinstance(message := await self._peer.receive(), bytes):
            if len(message) > AUDIO_BYTES_MAX:
                raise TooLarge(f"an audio message holds {len(message)} bytes: send at most {AUDIO_BYTES_MAX}")
            data = rest + message
            whole = len(data) - len(data) % self._frame_bytes
            data, rest = data[:whole], data[whole:]
            frames = np.frombuffer(data, np.uint8).reshape(-1, len(self._inner), width)  # (N, channels, bytes)
            for index, party in enumerate(self._inner):
                mine = frames[skip[index] :, index].tobytes()
                skip[index] = max(0, skip[index] - len(frames))
                if mine:
                    await party.messages.put(mine)
        if message is not None and not isinstance(message, events.Finish):
            raise InvalidRequest("`open` was sent twice: send it once, then `audio`")
        if rest:
            raise BadAudio(
                f"the audio ends inside a sample: {len(self._inner)} channels take {self._frame_bytes} bytes a sample, "
                f"and {len(rest)} are left over; check encoding and channels, and send whole samples"
            )
        for party in self._inner:
            await party.messages.put(events.Finish())

    async def send(self, index: int, event: events.Event) -> None:
        """Tell the other end what an event of a channel means for the call."""
        async with self._sending:
            for said in self._told.take(index, event):
                await self._peer.send(said)
        if self._told.resume_samples is not None:
            self._is_open.set()


class _Party:
    """The other end as one channel's session sees it."""

    def __init__(self, call: _Call, index: int) -> None:
        self._call = call
        self._index = index
        self.messages: asyncio.Queue[bytes | events.Finish] = asyncio.Queue(MESSAGES_MAX)

    async def receive(self) -> events.StreamRequest | bytes | events.Finish | None:
        return await self.messages.get()

    async def send(self, event: events.Event) -> None:
        await self._call.send(self._index, event)

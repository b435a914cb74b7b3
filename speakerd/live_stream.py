"""A live stream as a client holds it: sound goes in, events come out.

Sending and reading are two tasks of the caller. `send` waits while the node takes no more, which is how a recording
that is streamed faster than it was spoken is held to the pace of the engine. What always holds: events come in the
node's order, and the last one of a stream that ended well is StreamClosed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

from grpc import aio

from speakerd.channel import credentials, open_channel
from speakerd.errors import SpeakerdError, error_from_status
from speakerd.late_status import keep_status
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc

Event: TypeAlias = (
    node_pb2.Turns
    | node_pb2.Relabel
    | node_pb2.Progress
    | node_pb2.Checkpoint
    | node_pb2.Draining
    | node_pb2.Degraded
    | node_pb2.StreamClosed
)
"""What a stream says, as the contract's own messages."""

OPEN_BOUND_S = 15.0


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream is to be heard. Zero and empty mean the contract's defaults.

    encoding, sample_rate_hz, channels: of the sound that will be sent. latency_ms: how long after it is spoken a turn
    becomes final, 500 to 5000. voice_ids: who may be named; empty: everybody enrolled.
    """

    encoding: common_pb2.Encoding.ValueType = common_pb2.ENCODING_PCM_S16LE
    sample_rate_hz: int = 16_000
    channels: int = 1
    latency_ms: int = 2_000
    exclusive: bool = False
    provisional: bool = False
    voice_ids: tuple[str, ...] = ()
    num_speakers_max: int = 0
    stream_id: str = ""


class LiveStream:
    """One open stream. Use it as a context manager; leaving it early cancels the stream."""

    def __init__(self, channel: aio.Channel, call: Any, opened: node_pb2.StreamOpened, *, peer: str) -> None:
        self._channel = channel
        self._call = call
        self._peer = peer
        self.opened = opened

    def __repr__(self) -> str:
        return f"LiveStream({self.opened.stream_id!r} on {self._peer})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, sound: bytes) -> None:
        """Send sound in the stream's format, at most 1 MiB. Waits while the node takes no more."""
        await self._write(node_pb2.DiarizeRequest(audio=sound))

    async def finish(self) -> None:
        """Say that no more sound comes: what is pending becomes final, and StreamClosed follows."""
        await self._write(node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish()))
        await self._call.done_writing()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            response = await _read(self._call, self._peer, had_answered=True)
            if response is None:
                return
            kind = response.WhichOneof("message")
            if kind is not None:
                yield getattr(response, kind)

    async def close(self) -> None:
        """Let go of the stream, cancelling it if it has not ended."""
        self._call.cancel()
        await self._channel.close()

    async def _write(self, request: node_pb2.DiarizeRequest) -> None:
        await _write(self._call, request, self._peer, had_answered=True)


async def open_stream_at(
    address: str, options: StreamOptions, *, ticket: str = "", key: str | None = None
) -> LiveStream:
    """Dial a node and open a stream there. Raises SpeakerdError: overloaded when every slot is taken."""
    channel = open_channel(address)
    call = keep_status(node_pb2_grpc.NodeStub(channel).Diarize(metadata=credentials(key)))
    try:
        async with asyncio.timeout(OPEN_BOUND_S):
            await _write(call, node_pb2.DiarizeRequest(open=_stream_open(options, ticket)), address)
            first = await _read(call, address)
    except BaseException as error:
        call.cancel()
        await channel.close()
        if isinstance(error, TimeoutError):
            raise SpeakerdError("timeout", f"{address} did not open the stream in {OPEN_BOUND_S:.0f} s") from None
        raise
    if first is None or first.WhichOneof("message") != "opened":
        await channel.close()
        raise SpeakerdError("internal", f"{address} did not answer as a speakerd node does: is it one?")
    return LiveStream(channel, call, first.opened, peer=address)


def _stream_open(options: StreamOptions, ticket: str) -> node_pb2.StreamOpen:
    return node_pb2.StreamOpen(
        ticket=ticket,
        stream_id=options.stream_id,
        format=common_pb2.AudioFormat(
            encoding=options.encoding, sample_rate_hz=options.sample_rate_hz, channels=options.channels
        ),
        latency_ms=options.latency_ms,
        exclusive=options.exclusive,
        voice_ids=options.voice_ids,
        num_speakers_max=options.num_speakers_max,
        provisional=options.provisional,
    )


async def _write(call: Any, request: node_pb2.DiarizeRequest, peer: str, *, had_answered: bool = False) -> None:
    try:
        await call.write(request)
    except aio.AioRpcError as error:
        raise error_from_status(error, peer=peer, had_answered=had_answered) from None
    except asyncio.InvalidStateError:
        # The node has ended the call; its status says why.
        await _read(call, peer, had_answered=had_answered)
        raise SpeakerdError("stale", "the stream has ended: open a new one") from None


async def _read(call: Any, peer: str, *, had_answered: bool = False) -> node_pb2.DiarizeResponse | None:
    """The next message, or None at the end."""
    try:
        response = await call.read()
    except aio.AioRpcError as error:
        raise error_from_status(error, peer=peer, had_answered=had_answered) from None
    return None if response is aio.EOF else response

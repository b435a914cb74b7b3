"""One leg of a live stream: the call to one node that carries it, until it ends or is left.

In: sound. Out: the node's messages. What always holds: whatever ends the call comes out as SpeakerdError, also a
cancellation of the call that is not one of the caller; a message that was asked for and not waited for is not lost.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from grpc import aio

from speakerd.channel import TlsTrust, credentials
from speakerd.connections import Connections, Hold
from speakerd.errors import SpeakerdError, error_from_status
from speakerd.late_status import keep_status
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc

OPEN_BOUND_S = 15.0
STATUS_BOUND_S = 1.0
SUSPECT = frozenset({"unavailable", "internal"})
"""Causes that leave it open whether it was the stream, the node or the line to it."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream is to be heard. Zero and empty mean the contract's defaults.

    encoding, sample_rate_hz, channels: of the sound that will be sent. latency_ms: how long after it is spoken a turn
    becomes final, 500 to 5000. voice_ids: who may be named; empty: everybody enrolled. resume_s: how long to try to go
    on elsewhere when the node is lost; 0: not at all. parties_apart: a call with one party a channel, each of which is
    heard by itself (samples only); speaker spk_N was heard on channel N modulo `channels`.
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
    resume_s: float = 60.0
    parties_apart: bool = False

    @property
    def slots(self) -> int:
        """How many streams it is to a node."""
        return max(1, self.channels) if self.parties_apart else 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stream may be opened. node_id: empty when it is not known. tls_name: of the node's certificate."""

    address: str
    node_id: str = ""
    stream_id: str = ""
    ticket: str = ""
    key: str | None = None
    tls: TlsTrust | None = None
    tls_name: str = ""


class StreamLeg:
    """An open call. `position`: bytes of the stream's sound that were written here or lie before its beginning."""

    def __init__(
        self,
        hold: Hold,
        call: Any,
        broken: asyncio.Future[None],
        opened: node_pb2.StreamOpened,
        *,
        place: Place,
        position: int,
    ) -> None:
        """broken: settled when a write has failed."""
        self._hold = hold
        self._call = call
        self._broken = broken
        self._place = place
        self._reading: asyncio.Task[node_pb2.DiarizeResponse | None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self.opened = opened
        self.position = position
        self.is_finished = False
        self.is_lost = False

    def __repr__(self) -> str:
        return f"StreamLeg({self.opened.stream_id!r} on {self._place.address})"

    @property
    def node_id(self) -> str:
        """Which node carries it."""
        return self._place.node_id or self.opened.node_id

    async def write(self, request: node_pb2.DiarizeRequest) -> None:
        """Send one message. Waits while the node takes no more.

        Who is cancelled meanwhile leaves it on its way: gRPC would cancel the whole call.
        """
        while self._sending is not None and not self._sending.done():
            if self._broken.done():
                return
            await asyncio.wait({self._sending, self._broken}, return_when=asyncio.FIRST_COMPLETED)
        self._sending = asyncio.create_task(
            _write(self._call, request, self._place.address, had_answered=True), name="stream-send"
        )
        self._sending.add_done_callback(_note_error)
        await asyncio.wait({self._sending, self._broken}, return_when=asyncio.FIRST_COMPLETED)
        if not self._sending.done():
            # The call has ended. Its status comes behind what the node said before, which nobody may be reading: then
            # it is told to who reads next.
            await asyncio.wait({self._sending}, timeout=STATUS_BOUND_S)
        if self._sending.done():
            self._sending.result()

    async def finish(self) -> None:
        """Say that no more sound comes."""
        self.is_finished = True
        await self.write(node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish()))
        if not self._broken.done():
            await self._call.done_writing()

    def reading(self) -> asyncio.Task[node_pb2.DiarizeResponse | None]:
        """The reading of the next message (None: the end), the same until `take` took it."""
        if self._reading is None:
            self._reading = asyncio.create_task(
                _read(self._call, self._place.address, had_answered=True), name="stream-read"
            )
        return self._reading

    def take(self) -> node_pb2.DiarizeResponse | None:
        """What the reading, which is over, has brought. Raises what ended the call."""
        assert self._reading is not None and self._reading.done(), "asked before there was an answer"
        reading, self._reading = self._reading, None
        if reading.cancelled():
            raise SpeakerdError("stale", "the stream was closed")
        return reading.result()

    def distrust(self, *, is_line: bool = False) -> None:
        """Whoever opens a stream there from now on, or anywhere if it may be the line, gets a connection of since."""
        self._hold.retire(is_line=is_line)

    async def close(self) -> None:
        """Let go of the call, cancelling it if it has not ended, and of its connection."""
        self.is_lost = True
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
        # What is being sent ends with the call, and tells its sender why.
        ending = [task for task in (self._reading, self._sending) if task is not None]
        try:
            await asyncio.gather(*ending, return_exceptions=True)
        finally:
            await self._hold.release()


async def open_leg(
    place: Place,
    options: StreamOptions,
    connections: Connections,
    *,
    checkpoint: bytes = b"",
    bound_s: float = OPEN_BOUND_S,
    position: int = 0,
) -> StreamLeg:
    """Open a stream at a node, dialled if need be. Raises SpeakerdError: overloaded when every slot is taken."""
    hold = connections.take(place.address, place.tls, tls_name=place.tls_name)
    broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    call = keep_status(
        node_pb2_grpc.NodeStub(hold.channel).Diarize(metadata=credentials(place.key)),
        lambda: None if broken.done() else broken.set_result(None),
    )
    try:
        async with asyncio.timeout(bound_s):
            await _write(call, node_pb2.DiarizeRequest(open=_stream_open(options, place, checkpoint)), place.address)
            opened = await _opened(call, place.address)
    except BaseException as error:
        call.cancel()
        if isinstance(error, TimeoutError) or (isinstance(error, SpeakerdError) and error.cause in SUSPECT):
            hold.retire()
        await hold.release()
        if isinstance(error, TimeoutError):
            raise SpeakerdError("timeout", f"{place.address} did not open the stream in {bound_s:.0f} s") from None
        raise
    return StreamLeg(hold, call, broken, opened, place=place, position=position)


def _note_error(sending: asyncio.Task[None]) -> None:
    # Whoever sent it may be gone, and whoever comes next is told by the call itself.
    if not sending.cancelled():
        sending.exception()


async def _opened(call: Any, peer: str) -> node_pb2.StreamOpened:
    first = await _read(call, peer)
    if first is None or first.WhichOneof("message") != "opened":
        raise SpeakerdError("internal", f"{peer} did not answer as a speakerd node does: is it one?")
    return first.opened


def _stream_open(options: StreamOptions, place: Place, checkpoint: bytes) -> node_pb2.StreamOpen:
    return node_pb2.StreamOpen(
        ticket=place.ticket,
        stream_id=place.stream_id or options.stream_id,
        format=common_pb2.AudioFormat(
            encoding=options.encoding,
            sample_rate_hz=options.sample_rate_hz,
            channels=options.channels,
            parties_apart=options.parties_apart,
        ),
        latency_ms=options.latency_ms,
        exclusive=options.exclusive,
        voice_ids=options.voice_ids,
        num_speakers_max=options.num_speakers_max,
        provisional=options.provisional,
        checkpoint=checkpoint,
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
    except asyncio.CancelledError:
        _raise_if_left(call)
        raise


async def _read(call: Any, peer: str, *, had_answered: bool = False) -> node_pb2.DiarizeResponse | None:
    """The next message, or None at the end."""
    try:
        response = await call.read()
    except aio.AioRpcError as error:
        raise error_from_status(error, peer=peer, had_answered=had_answered) from None
    except asyncio.CancelledError:
        _raise_if_left(call)
        raise
    return None if response is aio.EOF else response


def _raise_if_left(call: Any) -> None:
    # A call that was let go of elsewhere raises CancelledError here, where nobody has cancelled the task.
    task = asyncio.current_task()
    if call.cancelled() and (task is None or not task.cancelling()):
        raise SpeakerdError("stale", "the stream was closed") from None

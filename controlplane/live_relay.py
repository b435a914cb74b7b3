"""Live streams that the control plane carries, for callers who cannot stream to nodes themselves: WebSocket clients.

In: an opening and sound. Out: what a node says of it, under the lease of this relay. What always holds: a voice whose
erasure was asked for leaves under no name, and without a lease nobody does; a stream whose node dies, freezes or drains
goes on elsewhere with its labels (that is speakerd.live_stream's doing, as for any client); when the lease is back
after a loss, names are back too, in what a node says in a call of since then. Sound waits in a bounded buffer,
and whoever sends more than that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self, TypeAlias

from controlplane.metrics import Metrics
from controlplane.placement import Placing
from controlplane.places import Places
from controlplane.policy import Principal, Right
from controlplane.relay_guard import RelayGuard, Relaying
from controlplane.relay_names import LiveEvent, voices_of_event
from controlplane.voices import Voices
from runtime import errors
from runtime.errors import InvalidRequest, Overloaded, SpeakerdError, TooLarge
from runtime.tls import Tls, split_address
from speakerd.channel import TlsTrust
from speakerd.connections import Connections
from speakerd.errors import SpeakerdError as ClientError
from speakerd.kept_sound import frame_bytes, is_resumable
from speakerd.live_stream import LiveStream, Resumed, open_placed
from speakerd.stream_leg import Place, StreamOptions
from speakerd.v1 import node_pb2

__all__ = ["LiveRelay", "RelayEvent", "RelayedStream", "Resumed", "StreamOptions"]

PIECE_BYTES_MAX = 1 << 20
LOOK_UP_BOUND_S = 2.0
"""How long the database is asked whether somebody who is named for the first time may be."""
LOOK_UP_AGAIN_S = 5.0
"""Where it did not answer, nobody new is named for so long: a stream is not held up each time."""

StreamsMax = Callable[[str], Awaitable[int | None]]
"""How many streams a tenant may have at once; None: as many as it likes."""

RelayEvent: TypeAlias = (
    node_pb2.Turns | node_pb2.Relabel | node_pb2.Progress | node_pb2.Degraded | node_pb2.StreamClosed | Resumed
)
"""What a relayed stream says: the contract's messages but for those between node and relay."""

_KINDS: dict[str, type[SpeakerdError]] = {
    kind.cause.value: kind
    for kind in (
        errors.InvalidRequest,
        errors.BadAudio,
        errors.TooLarge,
        errors.UnsupportedMedia,
        errors.Unauthenticated,
        errors.Denied,
        errors.NotFound,
        errors.Conflict,
        errors.Stale,
        errors.Overloaded,
        errors.Unavailable,
        errors.TimedOut,
        errors.Unimplemented,
    )
}


class RelayedStream:
    """One open stream. Sending and reading are two tasks of the caller. Use it as a context manager.

    A message is fit to leave when `events` yields it. Where it has to wait before it is written, as for a client who
    does not read, `may_name` is asked again of each voice in it, right before the writing.
    """

    def __init__(
        self,
        live: LiveStream,
        relaying: Relaying,
        options: StreamOptions,
        *,
        guard: RelayGuard,
        living: Callable[[set[str]], Awaitable[set[str]]],
        stack: AsyncExitStack,
    ) -> None:
        self._live = live
        self._relaying = relaying
        self._guard = guard
        self._living = living
        self._stack = stack
        self._frame_bytes = frame_bytes(options)
        self._look_up_from_s = 0.0
        self._known: set[str] = set()  # voices that were found to live; who is erased after that, the lease tells
        self._resumptions = 0
        self._next: tuple[int, Relaying] | None = None
        self._node_withholds = False
        self._told_degraded = False

    def __repr__(self) -> str:
        return f"RelayedStream({self._live!r}, holds={self._relaying.holds})"

    @property
    def opened(self) -> node_pb2.StreamOpened:
        """What the node that carries it now answered."""
        return self._live.opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, sound: bytes) -> None:
        """Send sound in the stream's format. Waits while no more is taken. Raises SpeakerdError."""
        if len(sound) > PIECE_BYTES_MAX:
            raise TooLarge("a piece of sound is at most 1 MiB: send 100 ms at a time")
        if len(sound) % self._frame_bytes:
            raise InvalidRequest(f"sound comes in whole samples: pieces of a multiple of {self._frame_bytes} bytes")
        try:
            await self._live.send(sound)
        except ClientError as error:
            raise _ours(error) from None

    async def finish(self) -> None:
        """Say that no more sound comes: what is pending becomes final, and StreamClosed follows as the last event."""
        try:
            await self._live.finish()
        except ClientError as error:
            raise _ours(error) from None

    async def events(self) -> AsyncIterator[RelayEvent]:
        """What is to be told, as it may leave at this moment. Raises SpeakerdError."""
        try:
            async for event in self._live:
                if isinstance(event, node_pb2.Checkpoint | node_pb2.Draining):
                    continue  # between the node and us
                if isinstance(event, Resumed):
                    self._resumed()
                elif isinstance(event, node_pb2.Degraded):
                    self._node_withholds = event.active
                else:
                    await self._look_up(event)
                if isinstance(event, node_pb2.Turns | node_pb2.Progress):
                    self._regain()
                withholds = self._node_withholds or not self._relaying.holds
                if withholds is not self._told_degraded:
                    self._told_degraded = withholds
                    yield _degraded(withholds)
                if isinstance(event, node_pb2.Degraded):
                    continue  # told, if it changes anything
                if not isinstance(event, Resumed):
                    # Last, and without an await before it is out: whatever happened meanwhile counts.
                    self._relaying.event(event, self._known.__contains__)
                yield event
        except ClientError as error:
            raise _ours(error) from None

    def may_name(self, voice_id: str) -> bool:
        """Whether a voice that `events` named may be named at this moment."""
        return voice_id in self._known and self._relaying.may_name(voice_id)

    async def close(self) -> None:
        """Let go of the stream, cancelling it if it has not ended."""
        await self._stack.aclose()

    async def _look_up(self, event: LiveEvent) -> None:
        """Ask of whom is named for the first time: a node that was frozen may tell of somebody erased before we came.

        A voice that lives now and is erased later comes by the lease, for its eviction is behind what we have read.
        """
        unknown = voices_of_event(event) - self._known
        now_s = asyncio.get_running_loop().time()
        if not unknown or not self._relaying.holds or now_s < self._look_up_from_s:
            return
        try:
            async with asyncio.timeout(LOOK_UP_BOUND_S):
                self._known |= await self._living(unknown)
        except (SpeakerdError, TimeoutError):
            self._look_up_from_s = asyncio.get_running_loop().time() + LOOK_UP_AGAIN_S

    def _regain(self) -> None:
        """Without the lease that this stream began with, and with another: hear it in a call of now.

        What has come over the one before may have waited in a socket for any time.
        """
        if self._relaying.holds:
            return
        anew = self._guard.anew()
        if self._next is not None and self._next[1].holds:
            if self._live.resumptions > self._next[0]:
                return  # it has moved, and word of that is on its way
            anew = self._next[1]
        if anew is not None and (before := self._live.reopen()) is not None:
            self._next = (before, anew)

    def _resumed(self) -> None:
        self._resumptions += 1
        self._node_withholds = False
        if self._next is not None and self._resumptions > self._next[0]:
            # Under another lease everybody is asked for anew: what was evicted between the two is not told again.
            (_, self._relaying), self._next = self._next, None
            self._known = set()


class LiveRelay:
    """Opens them. streams_max: how many this process carries, of which one tenant has at most three quarters."""

    def __init__(
        self,
        *,
        placing: Placing,
        library: Voices,
        guard: RelayGuard,
        tls: Tls | None,
        metrics: Metrics,
        streams_max: int,
        tenant_streams_max: StreamsMax,
    ) -> None:
        self._placing = placing
        self._library = library
        self._guard = guard
        self._tls = tls
        self._metrics = metrics
        self._places = Places("live streams", streams_max, retry_after_s=1.0)
        self._tenant_streams_max = tenant_streams_max
        self._connections = Connections()

    def __repr__(self) -> str:
        return f"LiveRelay({self._places.num_taken} running)"

    async def open(self, principal: Principal, options: StreamOptions) -> RelayedStream:
        """Place a stream and open it. Raises NotFound for voices, Overloaded, Unavailable, InvalidRequest."""
        if not is_resumable(options):
            raise InvalidRequest("a relayed stream is PCM: unpack containers before")
        stack = AsyncExitStack()
        async with AsyncExitStack() as opening:
            opening.push_async_callback(stack.aclose)
            await self._count(principal.tenant_id, stack)
            for voice_id in options.voice_ids:
                await self._library.find(principal, voice_id, Right.USE)
            relaying = await stack.enter_async_context(self._guard.relaying())
            try:
                live = await open_placed(options, self._finding(principal), self._connections)
            except ClientError as error:
                raise _ours(error) from None
            stack.push_async_callback(live.close)

            async def living(voice_ids: set[str]) -> set[str]:
                return await self._library.living(principal, voice_ids)

            made = RelayedStream(live, relaying, options, guard=self._guard, living=living, stack=stack)
            opening.pop_all()
            return made

    @asynccontextmanager
    async def taken(self, principal: Principal) -> AsyncIterator[None]:
        """Count something as a stream that is carried, within the block, though no node hears it. Raises Overloaded."""
        async with AsyncExitStack() as stack:
            await self._count(principal.tenant_id, stack)
            yield

    async def _count(self, tenant_id: str, stack: AsyncExitStack) -> None:
        stack.enter_context(self._places.taken(tenant_id))
        self._metrics.relay_streams.inc()
        stack.callback(self._metrics.relay_streams.dec)
        most = await self._tenant_streams_max(tenant_id)
        if most is not None and self._places.taken_by(tenant_id) > most:
            raise Overloaded(f"the tenant's quota of {most} streams at once is used up; try again", retry_after_s=5.0)

    def _finding(self, principal: Principal) -> Callable[[StreamOptions, Sequence[str], float], Awaitable[Place]]:
        async def find(options: StreamOptions, avoid: Sequence[str], bound_s: float) -> Place:
            try:
                async with asyncio.timeout(bound_s):
                    placed = await self._placing.place(
                        principal,
                        stream_id=options.stream_id,
                        voice_ids=options.voice_ids,
                        avoid=frozenset(avoid),
                        slots=options.slots,
                    )
            except TimeoutError:
                raise ClientError("timeout", f"no place was found within {bound_s:g} s") from None
            except SpeakerdError as error:
                raise ClientError(error.cause.value, str(error), retry_after_s=error.retry_after_s) from None
            tls_name, address = split_address(placed.address)
            return Place(
                address,
                node_id=placed.node_id,
                stream_id=placed.stream_id,
                ticket=placed.ticket,
                tls=None if self._tls is None else TlsTrust(self._tls.authority),
                tls_name=tls_name,
            )

        return find


def _degraded(active: bool) -> node_pb2.Degraded:
    return node_pb2.Degraded(active=active, reason="names are withheld for now" if active else "")


def _ours(error: ClientError) -> SpeakerdError:
    kind = _KINDS.get(error.cause, SpeakerdError)
    return kind(error.message, retry_after_s=error.retry_after_s)

"""A live stream as a client holds it: sound goes in, events come out, and a lost node is not the caller's affair.

Sending and reading are two tasks of the caller. `send` waits while the node takes no more, which is how a recording
that is streamed faster than it was spoken is held to the pace of the engine. What always holds: events come in the
order of the stream, no final turn twice and none left out, and the last one of a stream that ended well is
StreamClosed. A stream whose node dies, falls silent or is about to stop goes on elsewhere, from the last checkpoint and
the sound since, and says so with `Resumed`; when that cannot be done within `resume_s`, reading and sending raise why.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeAlias

from speakerd.capture_clock import CaptureClock
from speakerd.connections import Connections
from speakerd.errors import LineWentDead, SpeakerdError
from speakerd.given_out import GivenOut, NodeEvent
from speakerd.kept_sound import KeptSound
from speakerd.stream_leg import SUSPECT, Place, StreamLeg, StreamOptions, open_leg
from speakerd.v1 import node_pb2

__all__ = ["Event", "LiveStream", "Resumed", "StreamOptions", "open_placed"]

WATCHDOG_S = 3.0
"""A node tells that a stream lives about once a second; one that says nothing for so long is taken for dead."""
WATCHDOG_MAX_S = 12.0
"""After each such loss twice as much patience, up to this: a machine that is merely slow is not chased around."""
STALL_S = 0.5
SILENCE_BYTES = 64_000
REOPEN_BOUND_S = 4.0
PAUSE_S = 0.1
PAUSE_MAX_S = 2.0
AVOIDED_MAX = 16
PLACE_BOUND_S = 60.0
PLACE_AGAIN_BOUND_S = 5.0
PLACEMENTS_MAX = 3
AGAIN_S = 1.0
FRUITLESS_MAX = 5
"""Resumptions one after another without a new final turn or progress: then it is the stream, not the nodes. A line that
went dead is neither's doing: a stream is tried on such a one for as long as it is to be resumed."""

_FULL_OR_GONE = frozenset({"overloaded", "unavailable", "timeout", "stale"})
_NOT_HERE = frozenset({"unavailable", "internal", "overloaded", "timeout", "stale", "unauthenticated"})


@dataclass(frozen=True, slots=True)
class Resumed:
    """The stream goes on, on another node or on the same one again.

    node_id: where. position_ms: from where on sound was sent again. away_s: since the loss was noticed.
    """

    node_id: str
    position_ms: int
    away_s: float


Event: TypeAlias = NodeEvent | Resumed
"""What a stream says: the contract's own messages, and Resumed."""

Placing: TypeAlias = Callable[[str, Sequence[str]], Awaitable[Place]]
"""Finds a place for a stream id, avoiding nodes where it can."""

Finding: TypeAlias = Callable[[StreamOptions, Sequence[str], float], Awaitable[Place]]
"""The same for what a stream asks for, within so many seconds: however places are found, by a call or beside it."""


class LiveStream:
    """One open stream. Use it as a context manager; leaving it early cancels the stream.

    placing: finds where to go on. is_only_node: that is the same node ever again, which is not left for its silence.
    """

    def __init__(
        self,
        leg: StreamLeg,
        options: StreamOptions,
        placing: Placing | None,
        connections: Connections,
        *,
        is_only_node: bool = False,
    ) -> None:
        self._leg = leg
        self._connections = connections
        self._options = replace(options, stream_id=leg.opened.stream_id or options.stream_id)
        self._placing = placing if options.resume_s > 0 else None
        self._is_only_node = is_only_node
        self._kept = KeptSound(options)
        self._clock: CaptureClock | None = None
        self._given = GivenOut()
        self._ready: deque[Event] = deque()
        self._closing: node_pb2.StreamClosed | None = None
        self._is_over = False
        self._is_finished = False
        self._failure: SpeakerdError | None = None
        self._writing = asyncio.Lock()
        self._patience_s = WATCHDOG_S
        self._resumptions = 0
        self._fruitless = 0
        self._dead_since_s: float | None = None
        self._moving: asyncio.Task[None] | None = None  # to another node, from one that is lost or about to stop
        self._is_opening = False
        self._later: node_pb2.Checkpoint | None = None  # came while the stream was being opened from the one before
        self._pushing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"LiveStream({self._leg!r}, {self._kept!r}, {self._given!r})"

    @property
    def _may_move(self) -> bool:
        return self._placing is not None and self._kept.is_enough

    @property
    def opened(self) -> node_pb2.StreamOpened:
        """What the node that carries it now answered."""
        return self._leg.opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, sound: bytes, *, at_s: float | None = None) -> None:
        """Send sound in the stream's format. Waits while the node takes no more.

        at_s: when it was captured, seconds from the start of the stream. Then what was lost on the way is silence in
        the stream, what comes twice is sent once, and turns keep to the clock that says so (CaptureClock). Whole
        samples only. None: it follows what was sent before.
        """
        if at_s is None:
            await self._append(sound)
            return
        if self._clock is None:
            self._clock = CaptureClock(self._options)
        # Of an earlier piece less may have been sent than was meant to be: whoever sent it may have been cancelled.
        self._clock.begin(self._kept.end)
        missing, sound = self._clock.placed(sound, at_s)
        while missing > 0:
            piece = self._clock.silence(min(missing, SILENCE_BYTES))
            missing -= len(piece)
            await self._append(piece)
        if sound:
            await self._append(sound)

    async def _append(self, sound: bytes) -> None:
        while self._failure is None and not self._kept.has_room():
            await self._kept.changed()
        self._raise_failure()
        self._kept.append(sound)
        await self._push()

    async def finish(self) -> None:
        """Say that no more sound comes: what is pending becomes final, and StreamClosed follows."""
        self._is_finished = True
        await self._push()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._next()) is not None:
            yield event

    @property
    def resumptions(self) -> int:
        """How often it went on elsewhere, or over another connection, until now."""
        return self._resumptions

    def reopen(self) -> int | None:
        """Go on over another connection from now on, where nothing was lost: what this one holds may be old.

        How often the stream has been resumed until now: the next `Resumed` after so many is the one that was asked
        for. None where the stream is moving already, or cannot. Until it has moved, and if it cannot, it stays.
        """
        if not self._may_move or self._moving is not None or self._is_finished or self._failure is not None:
            return None
        self._leg.distrust()
        self._begin(self._move(self._leg, avoid=[]))
        return self._resumptions

    async def close(self) -> None:
        """Let go of the stream, cancelling it if it has not ended."""
        self._fail(SpeakerdError("stale", "the stream was closed"))
        tasks = [*self._pushing, *self._moves()]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            # Whoever closes may be cancelled: what is not let go of would keep its connection from ever being closed.
            await self._leg.close()

    async def _next(self) -> Event | None:
        """The next event; None after the last."""
        while True:
            if self._ready:
                return self._ready.popleft()
            if self._is_over:
                return None
            self._raise_failure()
            leg = self._leg
            try:
                if not await self._heard(leg):
                    continue
                response = leg.take()
            except SpeakerdError as error:
                await self._after_loss(leg, error)
                continue
            if response is None:
                if self._closing is None and self._may_move:
                    await self._after_loss(leg, SpeakerdError("unavailable", "the node ended the stream early"))
                    continue
                self._is_over = True
                return self._closing
            self._take(response)

    async def _heard(self, leg: StreamLeg) -> bool:
        """Wait for the node's next message. False: look again, the stream has moved. Raises when the node is silent."""
        loop = asyncio.get_running_loop()
        while True:
            reading = leg.reading()
            began_s = loop.time()
            patience_s = self._patience_s if self._may_move and not self._is_only_node else None
            done, _ = await asyncio.wait(
                {reading, *self._moves()}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if leg is not self._leg:
                return False
            if reading in done:
                return True
            if not done and loop.time() - began_s < self._patience_s + STALL_S:
                leg.distrust(is_line=True)  # other streams will find out, but later
                silent_s, self._patience_s = self._patience_s, min(2 * self._patience_s, WATCHDOG_MAX_S)
                raise SpeakerdError("unavailable", f"{leg.node_id} has said nothing for {silent_s:g} s")
            # Either a move has failed, and the stream stays; or it was we who were held up, and not the node.

    def _take(self, response: node_pb2.DiarizeResponse) -> None:
        kind = response.WhichOneof("message")
        if kind is None or kind == "opened":
            return
        final_ms = self._given.final_ms
        event: NodeEvent | None = self._given.pass_on(getattr(response, kind))
        if self._given.final_ms > final_ms:
            self._fruitless, self._dead_since_s = 0, None
        if isinstance(event, node_pb2.Checkpoint) and self._may_move:
            if self._is_opening:
                self._later = event
            else:
                self._kept.confirm(event)
        if isinstance(event, node_pb2.Draining):
            self._begin_to_move()
        if isinstance(event, node_pb2.StreamClosed):
            # A node that hands a stream over sums it up too. It is the end only when the call ends well after it.
            self._closing = event
        elif event is not None:
            self._ready.append(event)

    async def _push(self) -> None:
        """Write what the node has not got yet, in order, and the end if it has come."""
        async with self._writing:
            leg = self._leg
            try:
                while leg is self._leg and not leg.is_lost and (piece := self._kept.piece(leg.position)):
                    leg.position += len(piece)
                    await leg.write(node_pb2.DiarizeRequest(audio=piece))
                    if not self._may_move:
                        self._kept.forget(leg.position)
                if leg is self._leg and not leg.is_lost and self._is_finished and not leg.is_finished:
                    await leg.finish()
            except SpeakerdError as error:
                self._lost(leg, error)
        self._raise_failure()

    def _lost(self, leg: StreamLeg, error: SpeakerdError) -> None:
        """A leg has ended: go on elsewhere, or take its error for the stream's."""
        if leg is not self._leg or self._failure is not None:
            return
        leg.is_lost = True
        if error.cause in SUSPECT:
            leg.distrust(is_line=isinstance(error, LineWentDead))
        if is_line := isinstance(error, LineWentDead):
            now_s = asyncio.get_running_loop().time()
            self._dead_since_s = now_s if self._dead_since_s is None else self._dead_since_s
            is_hopeless = now_s - self._dead_since_s > self._options.resume_s
        else:
            is_hopeless = self._fruitless >= FRUITLESS_MAX
        if not self._may_move or error.cause not in SUSPECT or is_hopeless:
            self._fail(error)
        elif self._moving is None:
            self._fruitless += not is_line
            self._begin(self._resume(leg, error))

    async def _after_loss(self, leg: StreamLeg, error: SpeakerdError) -> None:
        self._lost(leg, error)
        if moves := self._moves():
            await asyncio.wait(moves)

    def _begin_to_move(self) -> None:
        # A stream whose end is on its way ends where it is, before the node does.
        if not self._may_move or self._moving is not None or self._is_finished or self._is_only_node:
            return
        self._begin(self._move(self._leg, avoid=[self._leg.node_id]))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._moving = asyncio.create_task(work, name="stream-move")
        self._moving.add_done_callback(self._moved)

    def _moved(self, task: asyncio.Task[None]) -> None:
        self._moving = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(SpeakerdError("internal", f"the client failed with {type(error).__name__} as it went on"))

    def _moves(self) -> set[asyncio.Task[None]]:
        return {self._moving} if self._moving else set()

    async def _move(self, leg: StreamLeg, *, avoid: list[str]) -> None:
        """Leave a connection that lives, as that to a node about to stop. Where there is no other, the stream stays."""
        with contextlib.suppress(SpeakerdError):
            await self._go_on(leg, avoid, bound_s=self._options.resume_s)

    async def _resume(self, leg: StreamLeg, error: SpeakerdError) -> None:
        """Go on after a loss, or fail."""
        try:
            await self._go_on(leg, [leg.node_id], bound_s=self._options.resume_s)
        except SpeakerdError as last:
            self._fail(
                SpeakerdError(
                    "unavailable",
                    f"the stream broke off at {self._given.final_ms / 1000:.1f} s ({error.message}) and could not "
                    f"go on elsewhere: {last.message}",
                )
            )

    async def _go_on(self, leg: StreamLeg, avoid: list[str], *, bound_s: float) -> None:
        """Open the stream elsewhere and switch to it."""
        loop = asyncio.get_running_loop()
        began_s, pause_s = loop.time(), PAUSE_S
        refused = set[str]()
        while True:
            try:
                opened = await self._open_avoiding(avoid, refused)
                break
            except SpeakerdError as error:
                left_s = began_s + bound_s - loop.time()
                if error.cause not in _NOT_HERE or left_s <= 0:
                    raise
                wait_s = max(pause_s * random.uniform(0.5, 1.0), min(error.retry_after_s or 0.0, PAUSE_MAX_S))  # noqa: S311
                await asyncio.sleep(min(wait_s, left_s))
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        if opened.position < self._kept.start:
            # While it was being opened, a container grew beyond what is kept.
            await opened.close()
            raise SpeakerdError("unavailable", "the stream is longer than what is kept of a container")
        await self._switch(leg, opened, away_s=loop.time() - began_s)

    async def _open_avoiding(self, avoid: list[str], refused: set[str]) -> StreamLeg:
        """Place the stream and open it there. A node that does not take it is avoided from then on."""
        assert self._placing is not None
        place = await self._placing(self._options.stream_id, avoid[-AVOIDED_MAX:])
        self._is_opening = True  # the checkpoint and the sound after it belong together until it is open
        try:
            return await open_leg(
                place,
                self._options,
                self._connections,
                checkpoint=self._kept.checkpoint,
                bound_s=REOPEN_BOUND_S,
                position=self._kept.start,
            )
        except SpeakerdError as error:
            avoid.append(place.node_id)
            if error.cause == "invalid" and place.node_id not in refused:
                # It is the checkpoint that this node cannot read, as one of another model; others may.
                refused.add(place.node_id)
                raise SpeakerdError("unavailable", error.message) from None
            if self._later is not None:
                self._kept.confirm(self._later)
            raise
        finally:
            self._is_opening, self._later = False, None

    async def _switch(self, left: StreamLeg, leg: StreamLeg, *, away_s: float) -> None:
        self._leg = leg
        self._closing = None
        self._ready.extend(self._given.resumed())
        self._resumptions += 1
        self._ready.append(Resumed(leg.node_id, self._kept.start_ms, round(away_s, 3)))
        pushing = asyncio.create_task(self._push_again(), name="stream-push")
        self._pushing.add(pushing)
        pushing.add_done_callback(self._pushing.discard)
        await left.close()

    async def _push_again(self) -> None:
        with contextlib.suppress(SpeakerdError):  # which the caller's own sending and reading raise
            await self._push()

    def _fail(self, error: SpeakerdError) -> None:
        if self._failure is None:
            self._failure = error
        self._kept.wake()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise SpeakerdError(
                self._failure.cause, self._failure.message, retry_after_s=self._failure.retry_after_s
            ) from None


async def open_placed(
    options: StreamOptions, find: Finding, connections: Connections, *, is_only_node: bool = False
) -> LiveStream:
    """Place a stream and open it on its node, from where it goes on by itself when the node is lost.

    A node that cannot take it after all is avoided, twice at most. is_only_node: there is no other, so that a refusal
    is the answer, and so that one that is merely slow is not left. Raises SpeakerdError.
    """

    async def again(stream_id: str, avoid: Sequence[str]) -> Place:
        asked = replace(options, stream_id=stream_id)
        try:
            return await find(asked, avoid, PLACE_AGAIN_BOUND_S)
        except SpeakerdError as error:
            if error.cause != "not_found" or not options.voice_ids:
                raise
            # One of the voices was erased since: no reason for the stream to end.
            return await find(replace(asked, voice_ids=()), avoid, PLACE_AGAIN_BOUND_S)

    avoid: list[str] = []
    while True:
        place = await find(options, avoid, PLACE_BOUND_S)
        if place.node_id in avoid:
            # There is no other: what failed there a moment ago fails again at once.
            await asyncio.sleep(AGAIN_S)
        try:
            leg = await open_leg(place, options, connections)
        except SpeakerdError as error:
            avoid.append(place.node_id)
            if error.cause not in _FULL_OR_GONE or len(avoid) == PLACEMENTS_MAX or is_only_node:
                raise
            if error.cause == "stale":
                # The node has begun anew since it was last heard: where it is placed by, that is known in a second.
                await asyncio.sleep(PAUSE_MAX_S)
        else:
            return LiveStream(leg, options, again, connections, is_only_node=is_only_node)

"""Live streams by the client of users, and what has to be the same whatever becomes of the nodes under them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from speakerd.client import Client, Event, LiveStream, Resumed, StreamOptions
from speakerd.timeline import SpeechTimeline
from speakerd.v1 import common_pb2, node_pb2
from tests.faults.processes import chunks

Piece = tuple[int, int, str, str]


@dataclass
class Told:
    """What one stream said."""

    turns: list[common_pb2.Turn] = field(default_factory=list)
    resumed: list[Resumed] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    degraded: list[bool] = field(default_factory=list)
    drains: int = 0
    final_ms: int = 0
    heard_ms: int = 0
    nodes: list[str] = field(default_factory=list)
    sent: int = 0
    timeline: SpeechTimeline = field(default_factory=SpeechTimeline)
    closed: node_pb2.StreamClosed | None = None

    def take(self, event: Event) -> None:
        self.timeline.take(event)
        if isinstance(event, node_pb2.Turns):
            self.turns += [turn for turn in event.turns if turn.state == common_pb2.Turn.STATE_FINAL]
            self.final_ms = event.final_ms
            self.heard_ms = max(self.heard_ms, event.final_ms)
        elif isinstance(event, Resumed):
            self.resumed.append(event)
            self.resumed_s.append(time.monotonic())
            self.nodes.append(event.node_id)
        elif isinstance(event, node_pb2.Degraded):
            self.degraded.append(event.active)
        elif isinstance(event, node_pb2.Draining):
            self.drains += 1
        elif isinstance(event, node_pb2.Progress):
            assert event.final_ms >= self.final_ms
            self.heard_ms = max(self.heard_ms, event.final_ms)
        elif isinstance(event, node_pb2.StreamClosed):
            assert self.closed is None, "closed twice"
            self.closed = event

    def whole(self) -> list[Piece]:
        """The turns as a transcript has them, pieces joined and late names applied."""
        return [(turn.start_ms, turn.end_ms, turn.speaker, turn.label) for turn in self.timeline.turns()]

    def loss(self, at_s: float) -> tuple[float, float]:
        """How long after a fault the first loss after it was noticed, and how long after it the stream went on."""
        for event, resumed_s in zip(self.resumed, self.resumed_s, strict=True):
            if resumed_s > at_s:
                return max(0.0, resumed_s - event.away_s - at_s), resumed_s - at_s
        raise AssertionError("the stream was not resumed")

    def require_all_heard(self) -> None:
        """Every sample that was sent was analysed, of a stream of one channel of 16-bit samples."""
        assert self.closed is not None
        assert (self.closed.duration_ms, self.closed.skipped_windows) == (self.sent // 32, 0)

    def require_in_order(self) -> None:
        """No final turn doubled, none left out, and the summary agrees."""
        assert [turn.sequence for turn in self.turns] == list(range(1, len(self.turns) + 1))
        last_end: dict[str, int] = {}
        for turn in self.turns:
            assert turn.start_ms >= last_end.get(turn.speaker, 0), "a final turn overlaps one before it"
            last_end[turn.speaker] = turn.end_ms
        assert self.closed is not None and self.closed.num_final_turns == len(self.turns)


async def stream(
    client: Client,
    data: bytes,
    options: StreamOptions | None = None,
    *,
    pace: float = 1.0,
    ahead_s: float | None = None,
    told: Told | None = None,
    until: asyncio.Event | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Told:
    """Stream 16-bit sound at `pace` times real time (0: as fast as it is taken), to its end or until it is told to.

    ahead_s: never further ahead of what has become final than this.
    """
    told = Told() if told is None else told

    async def send(live: LiveStream) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number, piece in enumerate(chunks(data)):
            if until is not None and until.is_set():
                break
            if pace:
                await asyncio.sleep(began_s + number * 0.1 / pace - loop.time())
            while ahead_s is not None and told.sent / 32_000 - told.heard_ms / 1_000 > ahead_s:
                await asyncio.sleep(0.05)
            await live.send(piece)
            told.sent += len(piece)
        await live.finish()

    async with await client.open_stream(options) as live:
        told.nodes.append(live.opened.node_id)
        sending = asyncio.create_task(send(live))
        try:
            async for event in live:
                told.take(event)
                on_event(event)
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return told


def outside(pieces: list[Piece], from_ms: float, to_ms: float) -> list[Piece]:
    """What lies outside a stretch of time: turns that reach into it are cut at its edges."""
    cut = []
    for start, end, speaker, label in pieces:
        if start < min(end, from_ms):
            cut.append((start, int(min(end, from_ms)), speaker, label))
        if max(start, to_ms) < end:
            cut.append((int(max(start, to_ms)), end, speaker, label))
    return sorted(cut)

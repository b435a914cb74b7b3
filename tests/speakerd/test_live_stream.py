"""What a live stream's client does when its node goes away: nodes and placement that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc import aio

import speakerd.kept_sound
import speakerd.live_stream
import speakerd.stream_leg
from runtime.errors import BadAudio, InvalidRequest, NotFound, Overloaded, Unavailable
from runtime.errors import SpeakerdError as DaemonsError
from runtime.grpc_server import new_server
from speakerd.client import Client, Event, LiveStream, NodeClient, Resumed, SpeakerdError, StreamOptions
from speakerd.errors import error_from_status
from speakerd.given_out import GivenOut
from speakerd.kept_sound import KeptSound
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc, streams_pb2, streams_pb2_grpc

FINAL = common_pb2.Turn.STATE_FINAL
SECOND = b"\1\0" * 16_000


def turns(*pieces: tuple[int, int], final_ms: int = 0) -> node_pb2.Turns:
    return node_pb2.Turns(
        turns=[
            common_pb2.Turn(start_ms=start, end_ms=end, speaker="spk_0", label="spk_0", state=FINAL, sequence=7)
            for start, end in pieces
        ],
        final_ms=final_ms,
    )


class Leg:
    """One call of Diarize, as the script of its node sees it."""

    def __init__(self, context: Any, opening: node_pb2.StreamOpen) -> None:
        self.context = context
        self.opening = opening
        self.audio = bytearray()
        self.finished = False

    async def say(self, event: Any) -> None:
        kinds = {"Turns": "turns", "StreamClosed": "closed"}
        name = type(event).__name__
        await self.context.write(node_pb2.DiarizeResponse(**{kinds.get(name, name.lower()): event}))

    async def hear(self, seconds: float) -> None:
        while len(self.audio) < seconds * 32_000 and not self.finished:
            message = await self.context.read()
            if message is aio.EOF or message.WhichOneof("message") == "finish":
                self.finished = True
            else:
                self.audio += message.audio

    async def end(self) -> None:
        await self.hear(1e9)
        await self.say(node_pb2.StreamClosed(duration_ms=1))


Behaviour = Callable[[Leg], Awaitable[None]]


@dataclass
class Script(node_pb2_grpc.NodeServicer, streams_pb2_grpc.StreamsServicer):
    """Placement and node in one: each opening takes the next behaviour."""

    behaviours: list[Behaviour] = field(default_factory=list)
    legs: list[Leg] = field(default_factory=list)
    placements: list[streams_pb2.PlaceStreamRequest] = field(default_factory=list)
    refusals: list[DaemonsError | None] = field(default_factory=list)
    address: str = ""

    async def PlaceStream(self, request: Any, context: Any) -> streams_pb2.PlaceStreamResponse:
        self.placements.append(request)
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise refusal
        return streams_pb2.PlaceStreamResponse(
            stream_id=request.stream_id or "s", node_id=f"n{len(self.placements)}", address=self.address, ticket="t"
        )

    async def Diarize(self, request_iterator: Any, context: Any) -> None:
        opening = (await context.read()).open
        leg = Leg(context, opening)
        self.legs.append(leg)
        behaviour = self.behaviours.pop(0)
        if behaviour is refuse_checkpoint:
            raise InvalidRequest("the checkpoint is not of this model")
        opened = node_pb2.StreamOpened(stream_id=opening.stream_id, node_id="n")
        await context.write(node_pb2.DiarizeResponse(opened=opened))
        await behaviour(leg)


async def refuse_checkpoint(leg: Leg) -> None:
    raise AssertionError("only a mark")


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    made, server = Script(), new_server()
    node_pb2_grpc.add_NodeServicer_to_server(made, server)
    streams_pb2_grpc.add_StreamsServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)


async def run(script: Script, seconds: int, options: StreamOptions | None = None, **more: Any) -> list[Event]:
    """Stream so many seconds, and everything that was told."""
    told: list[Event] = []

    async def send(live: LiveStream) -> None:
        for _ in range(seconds):
            await live.send(SECOND)
            await asyncio.sleep(more.get("pace_s", 0.01))
        await live.finish()

    async with Client(script.address, "k") as client, await client.open_stream(options) as live:
        sending = asyncio.create_task(send(live))
        try:
            async with asyncio.timeout(15):
                async for event in live:
                    told.append(event)
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return told


def pieces(told: list[Event]) -> list[tuple[int, int, int]]:
    return [
        (turn.start_ms, turn.end_ms, turn.sequence)
        for event in told
        if isinstance(event, node_pb2.Turns)
        for turn in event.turns
    ]


def dies_after(seconds: float, *events: Any, error: DaemonsError | None = None) -> Behaviour:
    async def behave(leg: Leg) -> None:
        await leg.hear(seconds)
        for event in events:
            await leg.say(event)
        raise error or Unavailable("the node went away")

    return behave


def ends_with(*events: Any) -> Behaviour:
    async def behave(leg: Leg) -> None:
        for event in events:
            await leg.say(event)
        await leg.end()

    return behave


async def test_a_lost_node_is_replaced_and_gets_the_checkpoint_and_the_sound_since(script: Script) -> None:
    script.behaviours = [
        dies_after(
            4,
            node_pb2.Checkpoint(data=b"state", position_ms=2_500),
            turns((0, 1_000), (1_200, 3_000), final_ms=3_200),
        ),
        ends_with(turns((1_200, 2_900), (2_900, 3_500), final_ms=4_000)),
    ]
    told = await run(script, 6)
    first, second = script.legs
    assert (second.opening.checkpoint, second.opening.stream_id) == (b"state", "s")
    assert bytes(first.audio[:80_000]) + bytes(second.audio) == SECOND * 6
    assert list(script.placements[1].avoid_node_ids) == ["n1"]
    # What was final stays as it was; what lies beyond it is new, and counted on.
    assert pieces(told) == [(0, 1_000, 1), (1_200, 3_000, 2), (3_200, 3_500, 3)]
    resumed = [event for event in told if isinstance(event, Resumed)]
    assert [(event.node_id, event.position_ms) for event in resumed] == [("n2", 2_500)]
    closed = told[-1]
    assert isinstance(closed, node_pb2.StreamClosed) and closed.num_final_turns == 3


async def test_a_node_lost_before_its_first_checkpoint_is_replaced_from_the_beginning(script: Script) -> None:
    script.behaviours = [dies_after(2, turns((0, 500), final_ms=800)), ends_with(turns((0, 500), (900, 1_500)))]
    told = await run(script, 3)
    assert script.legs[1].opening.checkpoint == b"" and bytes(script.legs[1].audio) == SECOND * 3
    assert pieces(told) == [(0, 500, 1), (900, 1_500, 2)]


async def test_a_silent_node_is_taken_for_dead(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speakerd.live_stream, "WATCHDOG_S", 0.3)

    async def freezes(leg: Leg) -> None:
        await leg.hear(1)
        await asyncio.sleep(60)

    script.behaviours = [freezes, ends_with()]
    told = await run(script, 4)
    assert [type(event) for event in told] == [Resumed, node_pb2.StreamClosed]


async def test_a_node_that_drains_is_left_before_it_stops_and_while_it_still_works(script: Script) -> None:
    left = asyncio.Event()

    async def drains(leg: Leg) -> None:
        await leg.hear(2)
        await leg.say(node_pb2.Checkpoint(data=b"last", position_ms=1_000))
        await leg.say(node_pb2.Draining())
        try:
            await leg.hear(1e9)
        finally:
            left.set()

    script.behaviours = [drains, ends_with()]
    told = await run(script, 8, pace_s=0.05)
    await asyncio.wait_for(left.wait(), 5)
    assert script.legs[1].opening.checkpoint == b"last"
    assert len(script.legs[1].audio) == 7 * len(SECOND)
    kinds = [type(event) for event in told]
    assert kinds == [node_pb2.Checkpoint, node_pb2.Draining, Resumed, node_pb2.StreamClosed]


async def test_a_stream_that_nobody_else_takes_stays_until_the_node_hands_it_over(script: Script) -> None:
    async def hands_over(leg: Leg) -> None:
        await leg.hear(1)
        await leg.say(node_pb2.Checkpoint(data=b"last", position_ms=500))
        await leg.say(node_pb2.Draining())
        await leg.hear(3)
        await leg.say(turns((0, 2_000), final_ms=3_000))
        await leg.say(node_pb2.StreamClosed(duration_ms=3_000))
        raise Unavailable("this node is stopping")

    script.behaviours = [hands_over, ends_with(turns((0, 3_500), final_ms=4_000))]
    script.refusals = [None, *[Unavailable("no node is serving")] * 3]
    told = await run(script, 6, pace_s=0.1)
    # Its summing up is not the end of the stream, and its last turns are final.
    assert pieces(told) == [(0, 2_000, 1), (3_000, 3_500, 2)]
    assert sum(isinstance(event, node_pb2.StreamClosed) for event in told) == 1


async def test_names_that_were_withheld_are_back_where_the_new_node_gives_them(script: Script) -> None:
    relabel = node_pb2.Relabel(speaker="spk_0", label="Ada", voice_id="ada", since_ms=0)
    script.behaviours = [
        dies_after(1, relabel, node_pb2.Degraded(active=True)),
        ends_with(relabel, node_pb2.Relabel(speaker="spk_0", label="spk_0", since_ms=0)),
    ]
    told = await run(script, 2)
    assert [event.active for event in told if isinstance(event, node_pb2.Degraded)] == [True, False]
    assert [event.label for event in told if isinstance(event, node_pb2.Relabel)] == ["Ada", "spk_0"]


async def test_a_checkpoint_that_one_node_cannot_read_goes_to_another(script: Script) -> None:
    checkpoint = node_pb2.Checkpoint(data=b"m1", position_ms=0)
    script.behaviours = [dies_after(1, checkpoint), refuse_checkpoint, ends_with()]
    await run(script, 2)
    assert list(script.placements[2].avoid_node_ids) == ["n1", "n2"]


async def test_placing_again_is_tried_for_a_while_and_then_told_with_what_stood_in_the_way(script: Script) -> None:
    script.behaviours = [dies_after(1)]
    script.refusals = [None, *[Unavailable("no node is serving: start one")] * 100]
    with pytest.raises(SpeakerdError, match=r"broke off at 0\.0 s .*went away.* no node is serving") as failed:
        await run(script, 3, StreamOptions(resume_s=0.5))
    assert failed.value.cause == "unavailable" and len(script.placements) > 2


async def test_a_stream_that_fails_wherever_it_goes_is_given_up(script: Script) -> None:
    script.behaviours = [dies_after(1)] * 20
    with pytest.raises(SpeakerdError, match="went away"):
        await run(script, 3)
    assert len(script.legs) == 1 + speakerd.live_stream.FRUITLESS_MAX


async def test_a_line_that_goes_dead_again_and_again_is_not_taken_for_the_streams_doing(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(error: aio.AioRpcError, *, peer: str, had_answered: bool = False) -> SpeakerdError:
        lost = aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), "ping timeout")
        return error_from_status(lost if had_answered else error, peer=peer, had_answered=had_answered)

    monkeypatch.setattr(speakerd.stream_leg, "error_from_status", dead)
    script.behaviours = [*[dies_after(1)] * (2 * speakerd.live_stream.FRUITLESS_MAX), ends_with()]
    told = await run(script, 3)
    assert sum(isinstance(event, Resumed) for event in told) == 2 * speakerd.live_stream.FRUITLESS_MAX
    # But no longer than it is to be resumed.
    script.behaviours = [dies_after(1)] * 1_000
    with pytest.raises(SpeakerdError, match="went away"):
        await run(script, 3, StreamOptions(resume_s=1.0))


@pytest.mark.parametrize("kind", [BadAudio, Overloaded])
async def test_what_is_the_streams_own_fault_is_not_tried_elsewhere(script: Script, kind: type[DaemonsError]) -> None:
    script.behaviours = [dies_after(1, error=kind("what to mend"))]
    with pytest.raises(SpeakerdError, match="what to mend"):
        await run(script, 3)
    assert len(script.placements) == 1


@pytest.mark.parametrize(
    "options",
    [StreamOptions(resume_s=0), StreamOptions(encoding=common_pb2.ENCODING_CONTAINER)],
    ids=["asked", "container"],
)
async def test_a_stream_that_cannot_be_resumed_tells_that_its_node_is_gone(
    script: Script, options: StreamOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speakerd.kept_sound, "CONTAINER_BYTES_MAX", len(SECOND) // 2)
    script.behaviours = [dies_after(1)]
    with pytest.raises(SpeakerdError) as failed:
        await run(script, 3, options)
    assert failed.value.cause == "unavailable" and len(script.placements) == 1


async def test_a_container_is_sent_again_from_its_first_byte(script: Script) -> None:
    script.behaviours = [
        dies_after(
            3, node_pb2.Checkpoint(data=b"state", position_ms=2_500), turns((0, 1_000), (1_200, 3_000), final_ms=3_200)
        ),
        ends_with(turns((1_200, 2_900), (2_900, 3_500), final_ms=4_000)),
    ]
    told = await run(script, 5, StreamOptions(encoding=common_pb2.ENCODING_CONTAINER))
    assert script.legs[1].opening.checkpoint == b"state" and bytes(script.legs[1].audio) == SECOND * 5
    assert pieces(told) == [(0, 1_000, 1), (1_200, 3_000, 2), (3_200, 3_500, 3)]
    assert [event.position_ms for event in told if isinstance(event, Resumed)] == [2_500]


async def test_a_stream_on_the_only_node_there_is_outlives_its_connection(script: Script) -> None:
    script.behaviours = [
        dies_after(2, node_pb2.Checkpoint(data=b"state", position_ms=1_000), turns((0, 900), final_ms=1_000)),
        ends_with(turns((1_000, 2_000))),
    ]
    told: list[Event] = []
    async with NodeClient(script.address) as node, await node.open_stream() as live:
        for _ in range(3):
            await live.send(SECOND)
        await live.finish()
        async with asyncio.timeout(30):
            async for event in live:
                told.append(event)
    assert script.legs[1].opening.checkpoint == b"state" and bytes(script.legs[1].audio) == SECOND * 2
    assert pieces(told) == [(0, 900, 1), (1_000, 2_000, 2)] and not script.placements


async def test_who_does_not_read_may_send_on_after_the_node_is_gone(script: Script) -> None:
    said = [node_pb2.Checkpoint(data=b"state", position_ms=1_000), *(turns((0, 900), final_ms=1_000),) * 3]
    script.behaviours = [dies_after(2, *said), ends_with(turns((1_000, 2_000)))]
    told: list[Event] = []
    async with asyncio.timeout(40), Client(script.address, "k") as client, await client.open_stream() as live:
        for _ in range(20):
            await live.send(SECOND)
            await asyncio.sleep(0.02)
        await live.finish()
        async for event in live:
            told.append(event)
    assert bytes(script.legs[1].audio) == SECOND * 19 and pieces(told)[-1] == (1_000, 2_000, 4)


async def test_a_node_that_forgot_its_streams_ends_them_with_a_reason(script: Script) -> None:
    """A standalone node that was started anew reads no checkpoint of before."""
    script.behaviours = [
        dies_after(2, node_pb2.Checkpoint(data=b"state", position_ms=1_000)),
        refuse_checkpoint,
        refuse_checkpoint,
    ]
    async with NodeClient(script.address) as node, await node.open_stream() as live:
        await live.send(SECOND * 2)
        with pytest.raises(SpeakerdError, match="not of this model"):
            async with asyncio.timeout(30):
                async for _ in live:
                    pass


async def test_a_voice_that_was_erased_meanwhile_keeps_no_stream_from_going_on(script: Script) -> None:
    script.behaviours = [dies_after(1), ends_with()]
    script.refusals = [None, NotFound("no such voice"), None]
    await run(script, 2, StreamOptions(voice_ids=("ada",)))
    assert [list(placed.voice_ids) for placed in script.placements] == [["ada"], ["ada"], []]


async def test_who_sends_more_than_is_kept_waits_for_a_checkpoint(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speakerd.kept_sound, "KEPT_S", 3)
    heard: list[int] = []

    async def confirms_late(leg: Leg) -> None:
        await leg.hear(3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(hearing := asyncio.create_task(leg.hear(4))), 0.3)
        heard.append(len(leg.audio))
        await leg.say(node_pb2.Checkpoint(data=b"c", position_ms=2_000))
        await hearing
        await leg.say(node_pb2.Checkpoint(data=b"c", position_ms=4_000))
        await leg.end()

    script.behaviours = [confirms_late]
    await run(script, 6)
    assert heard == [3 * len(SECOND)]


async def test_sound_that_was_lost_on_its_way_to_us_is_silence_in_the_stream(script: Script) -> None:
    script.behaviours = [ends_with()]
    async with Client(script.address, "k") as client, await client.open_stream() as live:
        await live.send(SECOND)
        await live.send(SECOND, at_s=1.05)
        await live.send(SECOND, at_s=5.0)
        await live.send(SECOND)
        await live.send(SECOND, at_s=6.5)
        await live.finish()
        async with asyncio.timeout(30):
            async for _ in live:
                pass
    assert bytes(script.legs[0].audio) == SECOND * 2 + bytes(3 * len(SECOND)) + SECOND * 2 + SECOND[len(SECOND) // 2 :]


async def test_a_gap_whose_sending_was_given_up_is_made_good_by_the_next_piece(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speakerd.kept_sound, "KEPT_S", 3)
    is_full, given_up = asyncio.Event(), asyncio.Event()

    async def confirms_late(leg: Leg) -> None:
        await leg.hear(3)
        is_full.set()
        await given_up.wait()
        while not leg.finished:
            await leg.say(node_pb2.Checkpoint(data=b"c", position_ms=len(leg.audio) // 32_000 * 1_000))
            await leg.hear(len(leg.audio) / 32_000 + 0.1)
        await leg.end()

    script.behaviours = [confirms_late]
    async with asyncio.timeout(60), Client(script.address, "k") as client, await client.open_stream() as live:

        async def send() -> None:
            await live.send(SECOND)
            gap = asyncio.create_task(live.send(SECOND, at_s=9.0))
            await is_full.wait()
            gap.cancel()
            await asyncio.gather(gap, return_exceptions=True)
            given_up.set()
            await live.send(SECOND, at_s=10.0)
            await live.finish()

        sending = asyncio.create_task(send())
        async for _ in live:
            pass
        await sending
    assert len(script.legs[0].audio) == 11 * len(SECOND)


async def test_a_sender_who_is_cancelled_while_the_node_takes_no_more_does_not_end_the_stream(script: Script) -> None:
    may_read = asyncio.Event()

    async def reads_late(leg: Leg) -> None:
        await may_read.wait()
        while not leg.finished:
            await leg.hear(len(leg.audio) / 32_000 + 0.1)
        await leg.end()

    script.behaviours = [reads_late]
    options = StreamOptions(sample_rate_hz=48_000)  # more sound is kept than gRPC takes unread
    async with asyncio.timeout(60), Client(script.address, "k") as client, await client.open_stream(options) as live:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(live.send(SECOND * 240), 0.5)
        may_read.set()
        await live.send(SECOND)
        await live.finish()
        async for _ in live:
            pass
    assert len(script.legs) == 1 and len(script.legs[0].audio) == 241 * len(SECOND)


async def test_a_closed_stream_ends_its_sender_and_its_reader(script: Script) -> None:
    script.behaviours = [ends_with()]
    async with Client(script.address, "k") as client:
        live = await client.open_stream()
        reading = asyncio.create_task(anext(aiter(live), None))
        await asyncio.sleep(0.1)
        await live.close()
        with pytest.raises(SpeakerdError, match="closed"):
            await asyncio.wait_for(reading, 5)
        with pytest.raises(SpeakerdError, match="closed"):
            await live.send(SECOND)


def test_positions_of_kept_sound_are_whole_samples_at_any_rate() -> None:
    for rate_hz, channels in ((8_000, 1), (11_025, 2), (44_100, 1), (48_000, 8)):
        kept = KeptSound(StreamOptions(sample_rate_hz=rate_hz, channels=channels))
        frame = 2 * channels
        kept.append(bytes(10 * rate_hz * frame))
        kept.confirm(node_pb2.Checkpoint(data=b"c", position_ms=3_500))
        assert kept.start % frame == 0 and abs(kept.start / frame / rate_hz - 3.5) < 1 / rate_hz
        position = kept.start
        while piece := kept.piece(position):
            assert len(piece) % frame == 0
            position += len(piece)
        assert position == kept.end == 10 * rate_hz * frame
        kept.confirm(node_pb2.Checkpoint(data=b"old", position_ms=1_000))
        assert kept.checkpoint == b"c", "an older checkpoint took the place of a newer one"


def test_a_relabel_comes_twice_only_where_turns_went_out_under_the_old_label_again() -> None:
    given = GivenOut()
    recognised = node_pb2.Relabel(speaker="spk_0", label="Ada", voice_id="ada")
    assert given.pass_on(recognised) is not None
    given.resumed()
    assert given.pass_on(recognised) is None
    given.pass_on(turns((0, 900)))  # from before the checkpoint's node knew her
    assert given.pass_on(recognised) is not None and given.pass_on(recognised) is None


def test_progress_never_goes_back() -> None:
    given = GivenOut()
    given.pass_on(node_pb2.Progress(received_ms=9_000, final_ms=7_000))
    given.resumed()
    again = given.pass_on(node_pb2.Progress(received_ms=5_000, final_ms=4_000))
    assert isinstance(again, node_pb2.Progress) and (again.received_ms, again.final_ms) == (9_000, 7_000)
    assert given.pass_on(turns((6_000, 7_000))) is None

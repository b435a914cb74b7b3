"""Calls with one party a channel, on a real node with the null engine, and the bookkeeping behind them."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc import aio

from node import events
from node.naming import Name
from node.party_events import PartyEvents, joined, parted
from runtime.errors import InvalidRequest
from speakerd.late_status import keep_status
from speakerd.v1 import common_pb2, node_pb2
from tests.node.conftest import ADA, BOB, CHUNK_BYTES, Heard, RunningNode, pcm, requests, tones

CALL = common_pb2.AudioFormat(channels=2, parties_apart=True)
SECOND = 16_000


def interleaved(*channels: np.ndarray) -> bytes:
    return pcm(np.stack(channels, axis=1).reshape(-1))


def call() -> bytes:
    """Two people who talk in turns, each on a channel, and at once for the last two seconds."""
    silence = np.zeros(4 * SECOND, np.float32)
    ada = np.concatenate([tones(4, *ADA), silence, tones(4, *ADA)])
    bob = np.concatenate([silence, tones(4, *BOB), silence[: 2 * SECOND], tones(2, *BOB)])
    return interleaved(ada, bob)


def spoken(heard: Heard, label: str) -> float:
    return sum(turn.end_ms - turn.start_ms for turn in heard.turns if turn.label == label) / 1000


async def heard_of(node: RunningNode, data: bytes, **options: object) -> Heard:
    heard = Heard()
    async for response in keep_status(node.stub.Diarize(requests(data, **options))):
        heard.take(response)
    return heard


async def test_each_party_is_heard_on_its_own_channel_and_told_in_one_stream(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    heard = await heard_of(null_node, call(), format=CALL, latency_ms=1_000, stream_id="call-1")
    assert heard.opened is not None and heard.opened.stream_id == "call-1"
    assert heard.closed is not None and heard.closed.duration_ms == 12_000
    # Speakers of the first channel have even numbers, those of the second odd ones.
    assert [(one.speaker, one.label) for one in heard.closed.speakers] == [
        ("spk_0", "Ada Lovelace"),
        ("spk_1", "spk_1"),
    ]
    assert [turn.sequence for turn in heard.turns] == list(range(1, len(heard.turns) + 1))
    assert heard.closed.num_final_turns == len(heard.turns)
    alone = await null_node.diarize(np.concatenate([tones(4, *BOB)]))
    by_speaker = {
        name: sum(t.end_ms - t.start_ms for t in heard.turns if t.speaker == name) for name in ("spk_0", "spk_1")
    }
    assert abs(by_speaker["spk_0"] - 8_000) < 1_500 and abs(by_speaker["spk_1"] - 6_000) < 1_500
    assert alone.closed is not None and await null_node.metric("speakerd_node_streams_active") == 0
    relabelled = {relabel.speaker for relabel in heard.relabels}
    assert relabelled <= {"spk_0"}


async def test_a_party_who_says_nothing_is_no_error(null_node: RunningNode) -> None:
    heard = await heard_of(null_node, interleaved(np.zeros(4 * SECOND, np.float32), tones(4, *BOB)), format=CALL)
    assert heard.closed is not None and [one.speaker for one in heard.closed.speakers] == ["spk_1"]


async def test_turns_of_a_call_come_while_it_goes_on_and_never_before_all_channels_are_final(
    null_node: RunningNode,
) -> None:
    final_ms = 0
    async for response in null_node.stub.Diarize(requests(call(), format=CALL, latency_ms=500, provisional=True)):
        if response.WhichOneof("message") == "turns":
            for turn in response.turns.turns:
                if turn.state == common_pb2.Turn.STATE_FINAL:
                    assert final_ms <= turn.end_ms <= response.turns.final_ms
            assert response.turns.final_ms >= final_ms
            final_ms = response.turns.final_ms
    assert final_ms >= 11_500


async def test_a_call_goes_on_from_a_checkpoint_as_if_nothing_had_happened(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    data = call() * 4
    whole = await heard_of(null_node, data, format=CALL, latency_ms=500, stream_id="c")
    stream = null_node.stub.Diarize()
    await stream.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(format=CALL, latency_ms=500, stream_id="c")))
    before, checkpoint, final_ms = Heard(), None, 0
    for at in range(0, len(data), CHUNK_BYTES):  # of 20 s there is a checkpoint, however fast they come
        await stream.write(node_pb2.DiarizeRequest(audio=data[at : at + CHUNK_BYTES]))
    while checkpoint is None or checkpoint.position_ms < 4_000:
        response = await stream.read()
        before.take(response)
        if response.WhichOneof("message") == "turns":
            final_ms = response.turns.final_ms
        elif response.WhichOneof("message") == "checkpoint":
            checkpoint = response.checkpoint
    stream.cancel()
    async with asyncio.timeout(60):
        while await null_node.metric("speakerd_node_streams_active"):
            await asyncio.sleep(0.05)
    rest = data[checkpoint.position_ms * 64 :]
    after = await heard_of(null_node, rest, format=CALL, latency_ms=500, stream_id="c", checkpoint=checkpoint.data)
    assert after.opened is not None and after.opened.resume_ms == checkpoint.position_ms
    assert after.turns and after.turns[0].start_ms <= final_ms, "turns between checkpoint and loss were left out"

    def frames(turns: list[common_pb2.Turn], from_ms: int, to_ms: int) -> set[tuple[int, str, str]]:
        # In which of the first turns Ada is recognised depends on how many windows came back at once.
        return {
            (at, turn.speaker, turn.label if at >= 200 else "")
            for turn in turns
            for at in range(max(turn.start_ms, from_ms) // 20, min(turn.end_ms, to_ms) // 20)
        }

    end_ms = 48_000
    assert frames(before.turns, 0, final_ms) | frames(after.turns, final_ms, end_ms) == frames(whole.turns, 0, end_ms)


@pytest.mark.parametrize(
    ("format_", "hint"),
    [
        (common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER, parties_apart=True), "not raw samples"),
        (common_pb2.AudioFormat(channels=9, parties_apart=True), "channels"),
    ],
)
async def test_what_has_no_channels_to_tell_apart_is_refused(
    null_node: RunningNode, format_: common_pb2.AudioFormat, hint: str
) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await heard_of(null_node, b"\0" * 6_400, format=format_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT and hint in (refused.value.details() or "")
    assert await null_node.is_alive()


async def test_half_a_sample_at_the_end_of_a_call_is_told_of(null_node: RunningNode) -> None:
    with pytest.raises(aio.AioRpcError, match="inside a sample"):
        await heard_of(null_node, call()[:-2], format=CALL)


def piece(start: int, end: int, name: Name | None = None, *, final: bool = True) -> events.TurnPiece:
    return events.TurnPiece(start, end, 0, name, final, 7)


def opened(base: int) -> events.Opened:
    return events.Opened("c#0", "n", 1, 1, 0, base)


def told(found: list[events.Event]) -> list[tuple[int, int, int, int]]:
    return [
        (p.start_samples, p.end_samples, p.speaker, p.sequence)
        for event in found
        if isinstance(event, events.Turns)
        for p in event.pieces
    ]


def test_a_piece_waits_for_the_channel_that_is_behind_and_is_cut_where_that_is_final() -> None:
    made = PartyEvents("c", 2, provisional=False, sequence=0, may_say=lambda name: True)
    assert made.take(0, opened(0)) == [] and len(made.take(1, opened(0))) == 1
    assert made.take(0, events.Turns((piece(0, 100),), 120)) == []
    assert told(made.take(1, events.Turns((), 60))) == [(0, 60, 0, 1)]
    assert told(made.take(1, events.Turns((piece(30, 90),), 200))) == [(30, 90, 1, 2), (60, 100, 0, 3)]


def test_a_checkpoint_never_lies_beyond_what_was_sent() -> None:
    made = PartyEvents("c", 2, provisional=False, sequence=5, may_say=lambda name: True)
    for index in (0, 1):
        made.take(index, opened(0))
        made.take(index, events.Turns((), 100))
        made.take(index, events.Checkpoint(b"early%d" % index, 10))
    made.take(0, events.Turns((piece(150, 200),), 300))
    assert made.take(0, events.Checkpoint(b"late0", 200)) == []
    (checkpoint,) = made.take(1, events.Checkpoint(b"late1", 90))
    assert isinstance(checkpoint, events.Checkpoint) and checkpoint.position_samples == 10
    assert parted(checkpoint.data, 2) == ([b"early0", b"late1"], 5)


def test_a_name_that_was_taken_back_while_its_piece_waited_is_not_said() -> None:
    allowed = [True]
    made = PartyEvents("c", 2, provisional=False, sequence=0, may_say=lambda name: allowed[0])
    for index in (0, 1):
        made.take(index, opened(0))
    made.take(0, events.Turns((piece(0, 100, Name("v", "Ada", 1.0)),), 100))
    allowed[0] = False
    (said,) = made.take(1, events.Turns((), 100))
    assert isinstance(said, events.Turns) and said.pieces[0].name is None


def test_a_piece_that_waited_carries_what_was_relabelled_meanwhile() -> None:
    made = PartyEvents("c", 2, provisional=False, sequence=0, may_say=lambda name: True)
    for index in (0, 1):
        made.take(index, opened(0))
    early, late = piece(0, 100), piece(150, 200)
    made.take(0, events.Turns((early, late, replace(early, speaker=1), replace(late, speaker=2)), 200))
    made.take(0, events.Relabel(0, Name("v", "Ada", 1.0), 0, 100, None))
    made.take(0, events.Relabel(1, None, 2, 0, None))
    (said,) = made.take(1, events.Turns((), 200))
    assert isinstance(said, events.Turns)
    found = [(p.start_samples, p.speaker, p.name and p.name.label) for p in said.pieces]
    assert found == [(0, 0, None), (0, 4, None), (150, 0, "Ada"), (150, 4, None)]


class Kept(events.Checkpoint):
    """One of which can be told whether it is still there."""


def test_a_call_keeps_no_checkpoints_that_a_later_one_has_replaced() -> None:
    made = PartyEvents("c", 2, provisional=False, sequence=0, may_say=lambda name: True)
    for index in (0, 1):
        made.take(index, opened(0))
    sent: list[weakref.ref[events.Checkpoint]] = []
    for number in range(40):
        for index in (0, 1):
            made.take(index, events.Turns((), 100 * number))
            checkpoint = Kept(b"c", number)
            sent.append(weakref.ref(checkpoint))
            made.take(index, checkpoint)
            del checkpoint
    assert sum(each() is not None for each in sent) <= 4


@pytest.mark.parametrize(
    "data", [b"", b"CALL", joined([b"a"], 1), joined([b"a", b"b"], 1)[:-1], joined([b"a", b"b"], 1) + b"x", b"\0" * 60]
)
def test_a_checkpoint_of_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not one of this call"):
        parted(data, 2)

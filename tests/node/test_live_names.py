"""What a stream is told and asked: a voice that comes while it runs, how many people there are, provisional turns."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from speakerd.v1 import common_pb2, node_pb2
from tests.node.conftest import ADA, BOB, Heard, RunningNode, pcm, rest, tones

CAROL = (1700.0, 2300.0)
STEP_MS = 500


async def test_a_voice_enrolled_in_mid_stream_is_named_with_the_next_step_and_back_to_the_first_turn(
    null_node: RunningNode,
) -> None:
    call = null_node.stub.Diarize()
    heard = Heard()
    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen()))
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(8, *ADA))))
    while not heard.progress or heard.progress[-1].final_ms < 5_000:
        heard.take(await call.read())
    assert heard.names == {"spk_0"}
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    after = Heard()
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(4, *ADA))))
    await call.write(node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish()))
    async for response in rest(call):
        after.take(response)
    first = min(turn.start_ms for turn in heard.turns)
    assert [(r.speaker, r.label, r.since_ms) for r in after.relabels] == [("spk_0", "Ada Lovelace", first)]
    # Steps whose results were on their way before it was enrolled may come first, at most as much as was in flight.
    late = [turn for turn in after.turns if turn.label == "spk_0"]
    assert sum(turn.end_ms - turn.start_ms for turn in late) <= 3_000 + STEP_MS
    assert after.turns[-1].label == "Ada Lovelace"


async def test_no_more_speakers_are_told_apart_than_a_stream_is_said_to_have(null_node: RunningNode) -> None:
    sound = np.concatenate([tones(4, *voice) for voice in (ADA, BOB, CAROL, ADA, BOB, CAROL)])
    free = await null_node.diarize(sound)
    bound = await null_node.diarize(sound, num_speakers_max=2)
    assert free.closed is not None and bound.closed is not None
    assert len(free.closed.speakers) == 3
    assert len(bound.closed.speakers) == 2
    assert len({turn.speaker for turn in bound.turns}) == 2


async def test_provisional_turns_reach_where_final_ones_do_not_yet(null_node: RunningNode) -> None:
    call = null_node.stub.Diarize()
    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(provisional=True, latency_ms=2_000)))
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(12, *ADA))))
    await call.write(node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish()))
    final_ms, ahead, told = 0, [], []
    async for response in rest(call):
        final_ms = max(final_ms, response.turns.final_ms)
        for turn in response.turns.turns:
            if turn.state == common_pb2.Turn.STATE_FINAL:
                told.append((turn.start_ms, turn.end_ms))
            else:
                assert turn.start_ms >= final_ms
                ahead.append(turn.end_ms - final_ms)
    assert max(ahead) >= 1_500
    assert all(one[1] <= other[0] for one, other in pairwise(told))
    assert told[-1][1] >= 11_500

"""A node says who a recording's speakers are: out of voiceprints that came with it, and of enrolled voices."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from grpc import aio

from speakerd.late_status import keep_status
from speakerd.v1 import common_pb2, node_pb2
from tests.node.conftest import ADA, BOB, RunningNode, pcm, tones

CLEO = (700.0, 1100.0, 2700.0)
TALK = np.concatenate([tones(4, *ADA), np.zeros(8000, np.float32), tones(4, *BOB)])


async def voiceprint(node: RunningNode, *voice: float) -> common_pb2.Voiceprint:
    clip = common_pb2.AudioClip(data=pcm(tones(5, *voice)))
    return (await node.stub.Analyze(node_pb2.AnalyzeRequest(clip=clip))).voiceprint


async def identify(
    node: RunningNode, sent: list[common_pb2.Voiceprint], **asked: object
) -> dict[str, node_pb2.SpeakerIdentity]:
    result = await heard(node, node_pb2.FileIdentify(voiceprints=sent, exclusive=True, **asked))  # type: ignore[arg-type]
    assert {turn.speaker for turn in result.turns} == {"spk_0", "spk_1"}
    return {one.speaker: one for one in result.identities}


async def heard(node: RunningNode, asked: node_pb2.FileIdentify) -> node_pb2.FileResult:
    async def requests() -> AsyncIterator[node_pb2.DiarizeFileRequest]:
        form = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_S16LE)
        yield node_pb2.DiarizeFileRequest(open=node_pb2.FileOpen(format=form, identify=asked))
        yield node_pb2.DiarizeFileRequest(audio=pcm(TALK))

    call = keep_status(node.stub.DiarizeFile(requests(), timeout=60))
    answers = [answer async for answer in call]
    return answers[-1].result


async def test_speakers_are_told_by_the_voiceprints_that_came_with_the_recording(null_node: RunningNode) -> None:
    sent = [await voiceprint(null_node, *voice) for voice in (CLEO, BOB, ADA)]
    found = await identify(null_node, sent)
    assert {speaker: one.match.sent for speaker, one in found.items()} == {"spk_0": 3, "spk_1": 2}
    for one in found.values():
        assert sorted(candidate.sent for candidate in one.candidates) == [1, 2, 3]
        assert one.match.score == max(candidate.score for candidate in one.candidates) > 50
        assert one.match.score == round(100 * one.match.probability)


async def test_enrolled_voices_are_candidates_only_where_they_were_asked_for(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    sent = [await voiceprint(null_node, *BOB)]
    result = await heard(null_node, node_pb2.FileIdentify(voiceprints=sent, exclusive=True))
    assert "Ada" not in str(result) and "ada" not in str(result)
    result = await heard(null_node, node_pb2.FileIdentify(voiceprints=sent, exclusive=True, enrolled=True))
    first, second = result.identities
    assert (first.match.voice_id, first.match.label, second.match.sent) == ("ada", "Ada Lovelace", 1)
    assert {(turn.speaker, turn.label) for turn in result.turns} == {("spk_0", "Ada Lovelace"), ("spk_1", "spk_1")}
    assert result.speakers[0].match.best_voice_id == "ada"


async def test_a_voiceprint_of_another_model_matches_nobody_and_breaks_nothing(null_node: RunningNode) -> None:
    other = common_pb2.Voiceprint(model="other@9", embedding=b"\0" * 12)
    found = await identify(null_node, [other, await voiceprint(null_node, *ADA)])
    assert found["spk_0"].match.sent == 2
    assert [candidate.sent for candidate in found["spk_1"].candidates] == [2]


@pytest.mark.parametrize("embedding", [b"\0" * 4, b"\0\0\xc0\x7f" * 16, b"x"])
async def test_an_embedding_that_cannot_be_one_is_refused(null_node: RunningNode, embedding: bytes) -> None:
    model = (await voiceprint(null_node, *ADA)).model
    with pytest.raises(aio.AioRpcError) as refused:
        await heard(
            null_node,
            node_pb2.FileIdentify(voiceprints=[common_pb2.Voiceprint(model=model, embedding=embedding)]),
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await null_node.is_alive()

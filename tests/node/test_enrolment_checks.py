"""What a node with the builtin engine hears in an enrolment's clips, and what the control plane makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from controlplane.holdings import Print
from controlplane.nodes import Analysis, CollisionScope, Nodes
from controlplane.speaker_checks import SpeakerChecksFailed, SpeakerLimits, judge
from runtime.errors import InvalidRequest
from runtime.grpc_server import open_channel
from runtime.media import decode
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc
from tests.node.conftest import RATE, launch, pcm

LIMITS = SpeakerLimits()


@pytest.fixture(scope="module")
def people(audio: Path) -> list[list[np.ndarray]]:
    """Of five people, their recordings of 4 s and more, the longest first and at most 8 s of each."""
    folders = sorted((audio / "librispeech" / "members").iterdir())
    found = []
    for folder in folders:
        recordings = [decode(path).samples for path in sorted(folder.glob("*.*"), key=lambda p: -p.stat().st_size)[:5]]
        found.append([samples[: 8 * RATE] for samples in recordings if len(samples) >= 4 * RATE])
    return found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a standalone node with the builtin engine listens, one for all tests."""
    started, fields = launch("--standalone", "--device", "cpu", log=tmp_path_factory.mktemp("checks") / "node.log")
    yield fields["grpc"]
    started.kill()
    started.communicate()


async def heard(
    node: str,
    *clips: np.ndarray,
    consent: np.ndarray | None = None,
    against: Sequence[Print] = (),
    **scope: str,
) -> Analysis:
    nodes = Nodes("unused", push_timeout_s=5.0, analyze_timeout_s=60.0)
    try:
        return await nodes.analyze(
            node,
            [clip.astype("<f4").tobytes() for clip in clips],
            consent_f32=None if consent is None else consent.astype("<f4").tobytes(),
            scope=CollisionScope(**scope) if scope else None,
            against=against,
        )
    finally:
        await nodes.close()


def codes(analysis: Analysis) -> tuple[list[str], list[str]]:
    """What refuses, and what is told."""
    try:
        return [], [finding.code for finding in judge(analysis, LIMITS)]
    except SpeakerChecksFailed as refused:
        return [finding.code for finding in refused.findings], [finding.code for finding in refused.warnings]


async def test_a_person_s_own_clips_and_consent_pass(node: str, people: list[list[np.ndarray]]) -> None:
    for own in people[:3]:
        analysis = await heard(node, *own[:2], consent=own[2][: 6 * RATE])
        assert codes(analysis) == ([], [])
        assert analysis.consent is not None
        assert analysis.consent.probability > LIMITS.consent_warn_below


async def test_another_person_s_consent_is_refused_and_says_so(node: str, people: list[list[np.ndarray]]) -> None:
    for own, other in zip(people, people[1:3] + people[:1], strict=False):
        analysis = await heard(node, own[0], consent=other[1])
        refused, _ = codes(analysis)
        assert refused == ["consent_of_another_voice"]


async def test_two_people_in_one_recording_are_refused(node: str, people: list[list[np.ndarray]]) -> None:
    mixed = np.concatenate([people[0][0][: 8 * RATE], people[1][0][: 8 * RATE]])
    assert codes(await heard(node, mixed))[0] == ["several_speakers"]


async def test_a_clip_of_somebody_else_is_left_out_while_the_others_agree(
    node: str, people: list[list[np.ndarray]]
) -> None:
    own, other = people[0], people[2]
    analysis = await heard(node, own[0], other[0], own[1])
    assert [clip.left_out for clip in analysis.clips] == [False, True, False]
    assert codes(analysis) == ([], ["clip_left_out"])
    without = await heard(node, own[0], own[1])
    assert analysis.voiceprint.embedding == without.voiceprint.embedding
    assert analysis.net_speech_ms == without.net_speech_ms


async def test_two_clips_that_disagree_are_refused_since_nobody_knows_which_is_right(
    node: str, people: list[list[np.ndarray]]
) -> None:
    assert codes(await heard(node, people[0][0], people[1][0]))[0] == ["several_speakers"]


async def test_silence_in_place_of_the_consent_s_words_is_refused(node: str, people: list[list[np.ndarray]]) -> None:
    hiss = (0.01 * np.random.default_rng(0).standard_normal(5 * RATE)).astype("f4")
    assert codes(await heard(node, people[0][0], consent=hiss))[0] == ["consent_without_speech"]


async def test_a_voice_that_is_enrolled_already_is_noticed_in_its_own_tenant_alone(
    node: str, people: list[list[np.ndarray]]
) -> None:
    async with open_channel(node) as channel:
        stub = node_pb2_grpc.NodeStub(channel)
        for voice_id, samples in (("ada", people[3][0]), ("bob", people[4][0])):
            voice = common_pb2.VoiceRef(voice_id=voice_id, tenant_id="acme")
            await stub.Enroll(node_pb2.EnrollRequest(voice=voice, clip=common_pb2.AudioClip(data=pcm(samples))))
    again = await heard(node, people[3][1], tenant_id="acme")
    assert again.collision is not None
    assert again.collision.voice_id == "ada"
    assert codes(again) == ([], ["collision"])
    # Anew in place, she does not collide with herself; and another tenant has no such voice.
    itself = await heard(node, people[3][1], tenant_id="acme", except_voice_id="ada")
    assert codes(itself) == ([], [])
    assert (await heard(node, people[3][1], tenant_id="other")).collision is None
    stranger = await heard(node, people[0][0], tenant_id="acme")
    assert codes(stranger) == ([], [])


async def test_noise_under_a_person_s_clip_is_not_taken_for_another_person(
    node: str, people: list[list[np.ndarray]]
) -> None:
    speech = people[1][0]
    hiss = np.random.default_rng(1).standard_normal(len(speech))
    noisy = speech + (hiss * np.sqrt(np.mean(speech**2) / 10 ** (15 / 10))).astype("f4")
    assert codes(await heard(node, people[1][1], noisy))[0] == []


async def test_a_clip_is_compared_with_voiceprints_one_by_one_and_with_nothing_else(
    node: str, people: list[list[np.ndarray]]
) -> None:
    own = (await heard(node, people[0][0])).voiceprint
    other = (await heard(node, people[1][0])).voiceprint
    of_own, of_other = (await heard(node, people[0][1], against=[own, other])).against
    assert of_own > 0.75
    assert of_other < 0.25
    for wrong in (Print("another@1", own.embedding, own.net_speech_ms), Print(own.model, own.embedding[:-4], 1_000)):
        with pytest.raises(InvalidRequest):
            await heard(node, people[0][1], against=[wrong])

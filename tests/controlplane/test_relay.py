"""Recordings on their way through the control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio

from controlplane import arrivals, rpc_people
from controlplane.enrolment_request import Request
from speakerd.v1 import common_pb2, node_pb2, people_pb2
from tests.controlplane.conftest import WAIT_MS, Client, World, speech, wav


async def diarize(
    client: Client, data: bytes, *, opening: node_pb2.FileOpen | None = None
) -> list[node_pb2.DiarizeFileResponse]:
    async def requests() -> AsyncIterator[node_pb2.DiarizeFileRequest]:
        yield node_pb2.DiarizeFileRequest(open=opening or node_pb2.FileOpen())
        for start in range(0, len(data), 50_000):
            yield node_pb2.DiarizeFileRequest(audio=data[start : start + 50_000])

    call = client.jobs.DiarizeFile(requests(), metadata=client.metadata, timeout=20)
    return [answer async for answer in call]


async def test_a_file_is_decoded_here_and_reaches_the_node_as_sound_of_the_callers_tenant(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane)
    sound = speech(seconds=3)
    opening = node_pb2.FileOpen(tenant_id="somebody_else")
    answers = await diarize(client, wav(sound), opening=opening)
    assert answers[0].HasField("progress")
    assert answers[-1].result.duration_ms == 3_000
    assert answers[-1].result.speakers[0].label == "of default"
    (received,) = node.files
    np.testing.assert_allclose(np.frombuffer(received, dtype="<f4"), sound, atol=2e-4)


async def test_raw_samples_go_on_as_they_are(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane)
    data = speech(seconds=1).astype("<f4").tobytes()
    opening = node_pb2.FileOpen(format=common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_F32LE))
    await diarize(client, data, opening=opening)
    assert node.files == [data]


@pytest.mark.parametrize(
    ("data", "says"), [(b"", "empty"), (b"no sound at all " * 100, "send"), (wav(speech())[:60_000], "cut short")]
)
async def test_a_bad_file_gets_an_error_that_says_what_to_mend(world: World, data: bytes, says: str) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)
    with pytest.raises(aio.AioRpcError) as refused:
        await diarize(client, data)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in str(refused.value.details())


async def test_without_a_node_and_for_unknown_voices_it_says_so(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    with pytest.raises(aio.AioRpcError) as refused:
        await diarize(client, b"x")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(aio.AioRpcError) as refused:
        await diarize(client, b"x", opening=node_pb2.FileOpen(voice_ids=["v_of_another"]))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_match_reports_come_from_the_same_way(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)

    async def requests() -> AsyncIterator[people_pb2.ReportMatchesRequest]:
        yield people_pb2.ReportMatchesRequest(open=node_pb2.FileOpen())
        yield people_pb2.ReportMatchesRequest(audio=wav(speech(seconds=1)))

    report = await client.people.ReportMatches(requests(), metadata=client.metadata, timeout=20)
    assert [speaker.speaker for speaker in report.speakers] == ["spk_0"]


async def test_a_caller_who_sends_next_to_nothing_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "IDLE_S", 1.0)
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)

    async def trickle(*messages: Any) -> AsyncIterator[Any]:
        for message in messages[:-1]:
            yield message
        while True:
            yield messages[-1]
            await asyncio.sleep(0.05)

    spec, opening = people_pb2.VoiceSpec(label="Alice"), node_pb2.FileOpen()
    calls: tuple[Any, ...] = (
        client.people.EnrollVoice(
            trickle(people_pb2.EnrollVoiceRequest(spec=spec), people_pb2.EnrollVoiceRequest(chunk={})),
            metadata=client.metadata,
        ),
        client.jobs.DiarizeFile(
            trickle(node_pb2.DiarizeFileRequest(open=opening), node_pb2.DiarizeFileRequest(audio=b"\0")),
            metadata=client.metadata,
        ),
    )
    for call in calls:
        with pytest.raises(aio.AioRpcError) as error:
            async with asyncio.timeout(30):
                await (call if hasattr(call, "__await__") else call.read())
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "less than 1024 bytes" in (error.value.details() or "")


async def test_a_caller_who_stops_half_way_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "IDLE_S", 0.2)
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)
    spec, opening = people_pb2.VoiceSpec(label="Alice"), node_pb2.FileOpen()

    async def and_nothing_more(first: object) -> AsyncIterator[Any]:
        yield first
        await asyncio.sleep(60)

    people, jobs = client.people, client.jobs
    calls: tuple[Any, ...] = (
        people.EnrollVoice(and_nothing_more(people_pb2.EnrollVoiceRequest(spec=spec)), metadata=client.metadata),
        jobs.DiarizeFile(and_nothing_more(node_pb2.DiarizeFileRequest(open=opening)), metadata=client.metadata),
        people.ReportMatches(and_nothing_more(people_pb2.ReportMatchesRequest(open=opening)), metadata=client.metadata),
    )
    for call in calls:
        assert await asyncio.wait_for(call.code(), 30) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "running=0" in repr(plane.core.relay)


async def test_only_so_many_enrolments_lie_in_memory_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_people, "UPLOADS_MAX", 1)
    plane = await world.plane()
    client = await world.client(plane)
    goes_on, under_way = asyncio.Event(), asyncio.Event()
    collect = rpc_people.collected

    async def collected(requests: AsyncIterator[people_pb2.EnrollVoiceRequest]) -> Request:
        under_way.set()
        return await collect(requests)

    monkeypatch.setattr(rpc_people, "collected", collected)

    async def slow() -> AsyncIterator[people_pb2.EnrollVoiceRequest]:
        yield people_pb2.EnrollVoiceRequest(spec=people_pb2.VoiceSpec(label="Alice"))
        await goes_on.wait()

    first = client.people.EnrollVoice(slow(), metadata=client.metadata)
    await under_way.wait()
    with pytest.raises(aio.AioRpcError) as refused:
        await client.enrol("Bob")
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    goes_on.set()
    assert await first.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await client.enrol("Bob")).voice.voice_id


async def test_an_erased_voice_that_a_thawed_node_still_names_leaves_under_no_name(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    erased, kept = [(await client.enrol(label, seed=n)).voice.voice_id for n, label in enumerate(("Alice", "Bob"))]
    turns, speakers = [], []
    for number, (label, voice_id, other) in enumerate(
        (("Alice", erased, kept), ("Bob", kept, ""), ("Bob", kept, erased))
    ):
        said = {"speaker": f"spk_{number}", "label": label, "voice_id": voice_id, "probability": 0.9}
        match = common_pb2.MatchReport(best_voice_id=voice_id, runner_up_voice_id=other)
        turns.append(common_pb2.Turn(**said))  # type: ignore[arg-type]
        speakers.append(common_pb2.Speaker(match=match, **said))  # type: ignore[arg-type]
    node.result = node_pb2.FileResult(turns=turns, exclusive_turns=turns, speakers=speakers)
    before = await diarize(client, wav(speech(seconds=1)))
    assert before[-1].result == node.result
    await client.erase(erased, wait_ms=WAIT_MS)
    result = (await diarize(client, wav(speech(seconds=1))))[-1].result
    assert "Alice" not in str(result)
    assert erased not in str(result)
    for named in (result.turns, result.exclusive_turns, result.speakers):
        assert [one.label for one in named] == ["spk_0", "Bob", "Bob"]
        assert [one.voice_id for one in named] == ["", kept, kept]
    assert [speaker.HasField("match") for speaker in result.speakers] == [False, True, False]

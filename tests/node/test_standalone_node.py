"""A real node process with the null engine, driven by a real client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import runtime.health
from node.config import NodeSettings
from runtime.config import load
from runtime.errors import InvalidRequest
from runtime.grpc_server import ERROR_TRAILER, open_channel
from runtime.health import Health
from runtime.metrics import registry, serve_metrics
from speakerd.v1 import common_pb2, node_pb2
from tests.node.conftest import ADA, BOB, CHUNK_BYTES, ROOT, Heard, RunningNode, pcm, requests, rest, tones


async def test_an_enrolled_voice_is_named_and_after_eviction_is_a_stranger(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    talk = np.concatenate([tones(4, *ADA), np.zeros(8000, np.float32), tones(4, *BOB)])

    known = await null_node.diarize(talk)

    assert known.opened is not None and known.opened.num_voices == 1
    assert "Ada Lovelace" in known.names and "ada" in known.names
    assert known.closed is not None
    assert [(s.speaker, s.label) for s in known.closed.speakers] == [("spk_0", "Ada Lovelace"), ("spk_1", "spk_1")]
    assert known.closed.duration_ms == 8500
    assert abs(known.speech_s("spk_0") - 4) < 0.6 and abs(known.speech_s("spk_1") - 4) < 0.6
    assert [turn.sequence for turn in known.turns] == list(range(1, len(known.turns) + 1))

    evicted = await null_node.stub.Evict(node_pb2.EvictRequest(voice=common_pb2.VoiceRef(voice_id="ada")))
    assert evicted.was_held
    unknown = await null_node.diarize(talk)

    assert unknown.names == {"spk_0", "spk_1"}
    assert unknown.relabels == []


async def test_a_stranger_is_not_given_the_name_of_an_enrolled_voice(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    heard = await null_node.diarize(tones(4, *BOB))
    assert heard.names == {"spk_0"}


async def test_another_tenants_voice_is_never_matched_named_or_counted(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA), tenant_id="acme")

    other = await null_node.diarize(tones(4, *ADA), tenant_id="globex")
    own = await null_node.diarize(tones(4, *ADA), tenant_id="acme")
    listed = [
        voice.voice_id
        async for chunk in null_node.stub.Inventory(node_pb2.InventoryRequest(tenant_id="globex"))
        for voice in chunk.voices
    ]

    assert other.names == {"spk_0"}
    assert other.opened is not None and other.opened.num_voices == 0
    assert other.closed is not None
    assert other.closed.speakers[0].match.outcome == common_pb2.MatchReport.OUTCOME_NO_CANDIDATES
    assert listed == []
    assert "Ada Lovelace" in own.names


async def test_only_the_voices_asked_for_are_candidates(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    await null_node.enroll("bob", "Bob", tones(4, *BOB))
    heard = await null_node.diarize(np.concatenate([tones(3, *ADA), tones(3, *BOB)]), voice_ids=["bob"])
    assert "Bob" in heard.names and "Ada Lovelace" not in heard.names


async def test_a_voice_evicted_in_mid_stream_is_named_no_more_in_that_stream(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    call = null_node.stub.Diarize()
    heard = Heard()

    async def take_until(until_ms: int) -> None:
        while not heard.progress or heard.progress[-1].final_ms < until_ms:
            heard.take(await call.read())

    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen()))
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(8, *ADA))))
    await take_until(5_000)
    assert "ada" in heard.names
    await null_node.stub.Evict(node_pb2.EvictRequest(voice=common_pb2.VoiceRef(voice_id="ada")))
    after = Heard()
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(4, *ADA))))
    await call.write(node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish()))
    async for response in rest(call):
        after.take(response)

    assert after.names == {"spk_0"}
    assert [(relabel.speaker, relabel.label, relabel.voice_id) for relabel in after.relabels] == [
        ("spk_0", "spk_0", "")
    ]


async def test_provisional_turns_come_before_final_ones_and_only_when_asked_for(null_node: RunningNode) -> None:
    asked = await null_node.diarize(tones(4, *ADA), provisional=True)
    not_asked = await null_node.diarize(tones(4, *ADA))
    assert asked.provisional and all(turn.sequence == 0 for turn in asked.provisional)
    assert not not_asked.provisional and not_asked.turns


async def test_a_container_is_diarized_as_its_samples_are(null_node: RunningNode, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "talk.flac", tones(4, *ADA), 16_000)
    heard = Heard()
    container = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER)
    async for response in null_node.stub.Diarize(requests((tmp_path / "talk.flac").read_bytes(), format=container)):
        heard.take(response)
    raw = await null_node.diarize(tones(4, *ADA))
    assert heard.closed is not None and heard.closed.duration_ms == 4000
    assert abs(heard.speech_s("spk_0") - raw.speech_s("spk_0")) < 0.1


async def test_a_recording_is_diarized_and_named_while_it_is_uploaded(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    talk = pcm(np.concatenate([tones(20, *ADA), np.zeros(16_000, np.float32), tones(20, *BOB)]))

    async def upload(data: bytes) -> object:
        yield node_pb2.DiarizeFileRequest(open=node_pb2.FileOpen())
        for at in range(0, len(data), 1 << 18):
            yield node_pb2.DiarizeFileRequest(audio=data[at : at + (1 << 18)])

    answers = [answer async for answer in null_node.stub.DiarizeFile(upload(talk))]  # type: ignore[arg-type]
    result = answers[-1].result

    assert [speaker.label for speaker in result.speakers] == ["Ada Lovelace", "spk_1"]
    assert result.duration_ms == 41_000
    assert all(abs(speaker.speech_ms - 17_200) < 500 for speaker in result.speakers), result.speakers
    short = [answer async for answer in null_node.stub.DiarizeFile(upload(pcm(tones(2, *ADA))))]  # type: ignore[arg-type]
    assert [speaker.label for speaker in short[-1].result.speakers] == ["Ada Lovelace"]


async def refusal(call: object) -> tuple[grpc.StatusCode, str, common_pb2.ErrorInfo]:
    """The status, text and ErrorInfo with which a call is refused."""
    with pytest.raises(aio.AioRpcError) as refused:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call  # type: ignore[misc]
    trailers = [value for name, value in refused.value.trailing_metadata() if name == ERROR_TRAILER]
    assert trailers, refused.value
    return refused.value.code(), refused.value.details() or "", common_pb2.ErrorInfo.FromString(trailers[0])


F32 = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_F32LE)
CONTAINER = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER)
BAD_STREAMS = {
    "empty": (b"", common_pb2.AudioFormat(), "no audio"),
    "half a sample": (b"abc", common_pb2.AudioFormat(), "inside a sample"),
    "NaN": (np.full(1600, np.nan, "<f4").tobytes(), F32, "NaN"),
    "text as container": (b"this is not audio at all\n" * 100, CONTAINER, ""),
    "1 Hz": (b"\0" * 3200, common_pb2.AudioFormat(sample_rate_hz=1), "sample_rate_hz"),
    "9 channels": (b"\0" * 3200, common_pb2.AudioFormat(channels=9), "channels"),
    "unknown encoding": (b"\0" * 3200, common_pb2.AudioFormat(encoding=77), "encoding"),  # type: ignore[arg-type]
}
BAD_STREAMS["silence"] = (b"\0" * 3_200, common_pb2.AudioFormat(), "silent")
BAD_CLIPS = {
    **BAD_STREAMS,
    "room noise": (pcm(np.random.default_rng(1).normal(0, 0.002, 32_000)), common_pb2.AudioFormat(), "no speech"),
    "two people": (pcm(np.concatenate([tones(3, *ADA), tones(3, *BOB)])), common_pb2.AudioFormat(), "2 speakers"),
    "too short": (pcm(tones(0.6, *ADA)), common_pb2.AudioFormat(), "0.6 s of clean speech"),
    "cut short": (b"RIFF\x24\x00\x00\x00WAVE", CONTAINER, ""),
    "too long": (pcm(np.zeros(121 * 16_000, np.float32)), common_pb2.AudioFormat(), "longer than 120 s"),
}
BAD_INPUT = {grpc.StatusCode.INVALID_ARGUMENT}


async def test_bad_audio_at_every_door_gets_a_clear_error_and_the_node_lives_on(null_node: RunningNode) -> None:
    for what, (data, format_, hint) in BAD_STREAMS.items():
        code, text, _ = await refusal(null_node.stub.Diarize(requests(data, format=format_, pace_s=0.1)))
        assert code in BAD_INPUT and hint in text and len(text) > 20, (what, code, text)

        async def upload(data: bytes = data, format_: common_pb2.AudioFormat = format_) -> object:
            yield node_pb2.DiarizeFileRequest(open=node_pb2.FileOpen(format=format_))
            await asyncio.sleep(0.05)
            if data:
                yield node_pb2.DiarizeFileRequest(audio=data)
                await asyncio.sleep(0.05)

        code, text, _ = await refusal(null_node.stub.DiarizeFile(upload()))  # type: ignore[arg-type]
        assert code in BAD_INPUT and hint in text, (what, code, text)
    for what, (data, format_, hint) in BAD_CLIPS.items():
        clip = common_pb2.AudioClip(format=format_, data=data)
        request = node_pb2.EnrollRequest(voice=common_pb2.VoiceRef(voice_id="x"), clip=clip)
        code, text, _ = await refusal(null_node.stub.Enroll(request))
        assert code in BAD_INPUT and hint in text and len(text) > 20, (what, code, text)
    for what in ("empty", "NaN", "silence", "text as container", "cut short", "too long"):
        data, format_, hint = BAD_CLIPS[what]
        clip = common_pb2.AudioClip(format=format_, data=data)
        code, text, _ = await refusal(null_node.stub.Analyze(node_pb2.AnalyzeRequest(clip=clip)))
        assert code in BAD_INPUT, (what, code, text)
    assert await null_node.is_alive()
    assert (await null_node.diarize(tones(3, *ADA))).closed is not None
    assert await null_node.metric("speakerd_node_streams_active") == 0


async def test_a_stream_of_room_noise_is_no_error_and_has_no_speakers(null_node: RunningNode) -> None:
    noise = np.random.default_rng(1).normal(0, 0.001, 32_000).astype(np.float32)
    heard = await null_node.diarize(noise)
    assert heard.closed is not None and heard.closed.duration_ms == 2000
    assert not heard.turns and not heard.closed.speakers


@pytest.mark.parametrize(
    ("first", "hint"),
    [
        (node_pb2.DiarizeRequest(audio=b"\0\0"), "first message"),
        (node_pb2.DiarizeRequest(), "empty message"),
        (node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(latency_ms=50)), "latency_ms"),
        (node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(num_speakers_max=21)), "num_speakers_max"),
        (node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(stream_id="a b")), "stream_id"),
        (node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(checkpoint=b"x" * 100)), "checkpoint"),
    ],
)
async def test_an_opening_that_is_out_of_range_is_refused_by_its_field(
    null_node: RunningNode, first: node_pb2.DiarizeRequest, hint: str
) -> None:
    async def sent() -> object:
        yield first

    code, text, info = await refusal(null_node.stub.Diarize(sent()))  # type: ignore[arg-type]
    assert code is grpc.StatusCode.INVALID_ARGUMENT and hint in text and info.cause == "invalid"


async def test_a_voiceprint_of_another_model_or_dimension_is_refused(null_node: RunningNode) -> None:
    def request(model: str, floats: int) -> node_pb2.EnrollRequest:
        unit = np.zeros(floats, "<f4")
        unit[0] = 1.0
        voiceprint = common_pb2.Voiceprint(model=model, embedding=unit.tobytes())
        return node_pb2.EnrollRequest(voice=common_pb2.VoiceRef(voice_id="v"), voiceprint=voiceprint)

    _, other_model, _ = await refusal(null_node.stub.Enroll(request("other@1", 64)))
    _, other_length, _ = await refusal(null_node.stub.Enroll(request("null@1", 63)))
    assert "other@1" in other_model and "null@1" in other_model
    assert "63" in other_length and "64" in other_length
    assert (await null_node.stub.Enroll(request("null@1", 64))).generation >= 1


async def test_a_full_node_refuses_with_a_retry_hint_and_serves_those_it_admitted(null_node: RunningNode) -> None:
    rejected = await null_node.metric("speakerd_node_rejected_total")
    held = [null_node.stub.Diarize(requests(pcm(tones(3, *ADA)), pace_s=0.05)) for _ in range(2)]
    for call in held:
        assert (await call.read()).HasField("opened")

    code, text, info = await refusal(null_node.stub.Diarize(requests(b"", pace_s=0.2)))

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "2 stream slots" in text
    assert info.cause == "overloaded" and info.retry_after_ms > 0
    for call in held:
        assert [answer async for answer in rest(call)][-1].HasField("closed")
    assert await null_node.metric("speakerd_node_rejected_total") == rejected + 1


async def test_a_client_killed_in_mid_stream_frees_its_slot(null_node: RunningNode) -> None:
    script = (
        "import asyncio, sys\n"
        "from tests.node.conftest import *\n"
        "async def main():\n"
        "    async with open_channel(sys.argv[1]) as channel:\n"
        "        call = node_pb2_grpc.NodeStub(channel).Diarize(requests(pcm(tones(60, *ADA)), pace_s=0.1))\n"
        "        await call.read()\n"
        "        print('open', flush=True)\n"
        "        async for _ in rest(call): pass\n"
        "asyncio.run(main())\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, null_node.address], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert client.stdout is not None and await asyncio.to_thread(client.stdout.readline) == "open\n"
        assert await null_node.metric("speakerd_node_streams_active") == 1
    finally:
        client.kill()
        client.communicate()
    async with asyncio.timeout(10):
        while await null_node.metric("speakerd_node_streams_active"):
            await asyncio.sleep(0.05)
    assert (await null_node.diarize(tones(2, *ADA))).closed is not None


async def test_on_sigterm_a_stream_is_told_gets_its_last_turns_and_the_node_exits_0(own_node: RunningNode) -> None:
    await own_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    call = own_node.stub.Diarize()
    heard = Heard()
    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(stream_id="s")))
    await call.write(node_pb2.DiarizeRequest(audio=pcm(tones(4, *ADA))))
    while not heard.turns:
        heard.take(await call.read())

    own_node.process.terminate()
    with pytest.raises(aio.AioRpcError) as ended:
        async for response in rest(call):
            heard.take(response)

    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(heard.draining) == 1
    assert max(turn.end_ms for turn in heard.turns) >= 3_700  # what was spoken last, before it was 2 s old
    assert heard.closed is not None and [speaker.label for speaker in heard.closed.speakers] == ["Ada Lovelace"]
    assert heard.checkpoints
    assert await own_node.terminate() == 0


async def test_a_draining_node_refuses_new_streams_and_says_so_in_its_health(own_node: RunningNode) -> None:
    running = own_node.stub.Diarize(requests(pcm(tones(2, *ADA)), pace_s=0.02))
    assert (await running.read()).HasField("opened")
    drained = await own_node.stub.Drain(node_pb2.DrainRequest(deadline_ms=10_000))
    code, _, _ = await refusal(own_node.stub.Diarize(requests(b"", pace_s=0.2)))
    described = await own_node.stub.Describe(node_pb2.DescribeRequest())

    assert drained.streams == 1
    assert await own_node.page("/health/ready") == (503, "not ready\n")
    assert await own_node.page("/health/live") == (200, "live\n")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert described.state == node_pb2.NODE_STATE_DRAINING
    assert [answer async for answer in rest(running)][-1].HasField("closed")
    async with open_channel(own_node.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        ready = await health.Check(health_pb2.HealthCheckRequest(service="ready"))
        live = await health.Check(health_pb2.HealthCheckRequest())
    assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert live.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_stream_goes_on_from_its_checkpoint_with_the_same_speakers_and_sequence(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    talk = np.concatenate([tones(6, *ADA), tones(6, *BOB), tones(6, *ADA)])
    whole = await null_node.diarize(talk, stream_id="whole")

    call = null_node.stub.Diarize()
    broken = Heard()
    await call.write(node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(stream_id="broken")))
    data = pcm(talk[: 14 * 16_000])
    for at in range(0, len(data), CHUNK_BYTES):
        await call.write(node_pb2.DiarizeRequest(audio=data[at : at + CHUNK_BYTES]))
        await asyncio.sleep(0.016)  # for longer than from one checkpoint to the next
    while not broken.checkpoints:
        broken.take(await call.read())
    call.cancel()
    checkpoint = broken.checkpoints[-1]
    assert checkpoint.position_ms % 500 == 0

    rest = talk[checkpoint.position_ms * 16 :]
    resumed = await null_node.diarize(rest, stream_id="broken", checkpoint=checkpoint.data)

    assert resumed.opened is not None and resumed.opened.resume_ms == checkpoint.position_ms
    assert resumed.closed is not None and whole.closed is not None
    assert resumed.closed.duration_ms == whole.closed.duration_ms == 18_000
    before = {turn.sequence: turn for turn in broken.turns if turn.sequence < resumed.turns[0].sequence}
    told = [*before.values(), *resumed.turns]
    assert [turn.sequence for turn in told] == list(range(1, len(told) + 1))
    assert [(t.start_ms, t.end_ms, t.speaker) for t in told] == [(t.start_ms, t.end_ms, t.speaker) for t in whole.turns]
    code, text, _ = await refusal(
        null_node.stub.Diarize(requests(b"", pace_s=10.0, stream_id="another", checkpoint=checkpoint.data))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "checkpoint" in text


async def test_sound_sent_faster_than_real_time_is_held_back_and_none_is_skipped(null_node: RunningNode) -> None:
    heard = await null_node.diarize(np.concatenate([tones(60, *ADA), tones(60, *BOB)]))
    assert heard.closed is not None
    assert heard.closed.duration_ms == 120_000 and heard.closed.skipped_windows == 0
    assert abs(heard.speech_s("spk_0") - 60) < 1 and abs(heard.speech_s("spk_1") - 60) < 1


async def test_probes_are_answered_beside_the_metrics(own_node: RunningNode) -> None:
    assert await own_node.page("/health/live") == (200, "live\n")
    assert await own_node.page("/health/ready") == (200, "ready\n")
    assert (await own_node.page("/metrics"))[0] == 200


async def test_a_loop_that_does_not_turn_is_told_from_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.health, "LOOP_BOUND_S", 0.2)
    with serve_metrics(registry(), host="127.0.0.1", port=0, health=Health()) as port:

        def probe(page: str) -> int:
            with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", f"/health/{page}")
                return connection.getresponse().status

        assert await asyncio.to_thread(probe, "live") == 200
        assert await asyncio.to_thread(probe, "ready") == 503
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(probe, "live").result() == 503  # the loop stands still, waiting here


async def test_health_reflection_and_description_answer(null_node: RunningNode) -> None:
    async with open_channel(null_node.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "ready", "speakerd.v1.Node"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
        names = {service.name async for answer in call for service in answer.list_services_response.service}
    described = await null_node.stub.Describe(node_pb2.DescribeRequest())
    assert {"speakerd.v1.Node", "grpc.health.v1.Health"} <= names
    assert described.standalone and described.model == "null@1" and described.embedding_dim == 64
    assert (described.window_ms, described.step_ms, described.load.streams_max) == (5000, 500, 2)


def test_a_node_with_the_null_engine_never_imports_torch() -> None:
    script = (
        "import asyncio, sys\n"
        "from node.app import NodeDaemon\n"
        "from node.config import NodeSettings\n"
        "from runtime.clock import SystemClock\n"
        "from runtime.lifecycle import run_daemon\n"
        "async def main():\n"
        "    stop = asyncio.Event()\n"
        "    settings = NodeSettings(standalone=True, device='null')\n"
        "    daemon = NodeDaemon(settings, announce=lambda line: stop.set(), clock=SystemClock())\n"
        "    return await run_daemon([daemon], drain_s=1, stop=stop)\n"
        "assert asyncio.run(main()) == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ({"device": "null"}, "--standalone"),
        ({"standalone": True, "controlplane": "127.0.0.1:1"}, "not both"),
        ({"standalone": True, "device": "tpu"}, "device"),
        ({"standalone": True, "streams_max": 0}, "streams_max"),
        ({"standalone": True, "node_id": "a b"}, "node_id"),
    ],
)
def test_a_wrong_setting_is_named(flags: dict[str, object], hint: str) -> None:
    with pytest.raises(InvalidRequest, match=hint):
        load(NodeSettings, section="node", file=None, flags=flags)


def test_plain_text_beyond_loopback_has_to_be_asked_for() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "node", "--standalone", "--device", "null", "--listen", "0.0.0.0:0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2 and ran.stdout == "" and "--insecure" in ran.stderr

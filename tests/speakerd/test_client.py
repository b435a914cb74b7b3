from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc import aio

from runtime.errors import GRPC_STATUS, BadAudio, Cause, Overloaded, Unavailable
from runtime.errors import SpeakerdError as RuntimeSpeakerdError
from runtime.grpc_server import CHANNEL_OPTIONS as DAEMONS_CHANNEL_OPTIONS
from runtime.grpc_server import ERROR_TRAILER as DAEMONS_ERROR_TRAILER
from speakerd.channel import CHANNEL_OPTIONS
from speakerd.client import CHUNK_BYTES, Client, NodeClient, SpeakerdError, StreamOptions
from speakerd.errors import ERROR_TRAILER, error_from_status
from speakerd.sync_client import SyncClient
from speakerd.timeline import SpeechTimeline
from speakerd.uploads import answer_again
from speakerd.v1 import common_pb2, node_pb2
from tests.speakerd.conftest import Script


def turns(*pieces: tuple[int, int, str]) -> node_pb2.DiarizeResponse:
    final = common_pb2.Turn.STATE_FINAL
    return node_pb2.DiarizeResponse(
        turns=node_pb2.Turns(
            turns=[
                common_pb2.Turn(start_ms=start, end_ms=end, speaker=who, label=who, state=final)
                for start, end, who in pieces
            ]
        )
    )


def test_the_client_dials_as_the_daemons_do() -> None:
    assert CHANNEL_OPTIONS == DAEMONS_CHANNEL_OPTIONS
    assert ERROR_TRAILER == DAEMONS_ERROR_TRAILER


async def test_an_error_keeps_its_cause_its_text_and_its_advice(script: Script) -> None:
    script.raises = Overloaded("every slot is taken", retry_after_s=1.5)
    async with Client(script.address, "sk_test") as client:
        with pytest.raises(SpeakerdError) as caught:
            await client.open_stream()
    assert (caught.value.cause, caught.value.message) == ("overloaded", "every slot is taken")
    assert caught.value.retry_after_s == 1.5


@pytest.mark.parametrize("cause", list(Cause))
async def test_every_cause_reaches_the_caller_by_its_own_word(script: Script, cause: Cause) -> None:
    kind = type("Raised", (RuntimeSpeakerdError,), {"cause": cause})
    script.raises = kind("what to mend")
    async with Client(script.address, "sk_test") as client:
        with pytest.raises(SpeakerdError) as caught:
            await client.voices()
    assert caught.value.cause == cause.value
    assert cause in GRPC_STATUS


async def test_a_server_that_is_not_there_is_told_with_what_to_do() -> None:
    async with Client("127.0.0.1:1", "sk_test") as client:
        with pytest.raises(SpeakerdError, match=r"127\.0\.0\.1:1 does not answer: start it with") as caught:
            await client.voices()
    assert caught.value.cause == "unavailable"


async def test_clips_arrive_whole_and_in_order(script: Script, tmp_path: Path) -> None:
    first, second = bytes(range(256)) * (CHUNK_BYTES // 256) + b"tail", b"second"
    (tmp_path / "first.wav").write_bytes(first)
    async with Client(script.address, "sk_test") as client:
        answer = await client.enroll("alice", [tmp_path / "first.wav", second])
    assert script.clips == {0: bytearray(first), 1: bytearray(second)}
    assert script.spec is not None and script.spec.label == "alice"
    assert answer.voice.label == "alice"
    assert script.keys == ["sk_test"]


async def test_a_file_that_cannot_be_read_is_named(script: Script, tmp_path: Path) -> None:
    async with Client(script.address, "sk_test") as client:
        with pytest.raises(SpeakerdError, match=r"nothing\.wav: no such file"):
            await client.enroll("alice", [tmp_path / "nothing.wav"])


async def test_voices_are_listed_over_all_pages(script: Script) -> None:
    async with Client(script.address, "sk_test") as client:
        for number in range(5):
            await client.enroll(f"person {number}", [b"clip"])
        assert [voice.label for voice in await client.voices()] == [f"person {number}" for number in range(5)]
        assert [voice.label for voice in await client.voices(label="person 3")] == ["person 3"]


async def test_a_stream_carries_sound_one_way_and_events_the_other(script: Script) -> None:
    script.events = [
        turns((0, 500, "spk_0")),
        node_pb2.DiarizeResponse(relabel=node_pb2.Relabel(speaker="spk_0", label="alice", voice_id="v0")),
        turns((500, 900, "spk_0")),
    ]
    timeline = SpeechTimeline()
    async with (
        Client(script.address, "sk_test") as client,
        await client.open_stream(StreamOptions(latency_ms=700)) as stream,
    ):
        for _ in range(10):
            await stream.send(b"\0" * 3200)
        await stream.finish()
        kinds = []
        async for event in stream:
            kinds.append(type(event).__name__)
            timeline.take(event)
    assert kinds == ["Turns", "Relabel", "Turns", "StreamClosed"]
    assert len(script.audio) == 32_000
    assert script.opens[0].ticket == "ticket-1"
    assert script.opens[0].latency_ms == 700
    assert timeline.label(0, 0.5) == "alice"


async def test_a_node_that_cannot_take_a_stream_after_all_is_avoided(script: Script) -> None:
    script.open_failures = [Unavailable("draining")]
    async with Client(script.address, "sk_test") as client, await client.open_stream():
        pass
    assert [list(placed.avoid_node_ids) for placed in script.placements] == [[], ["node-1"]]


async def test_placing_again_has_a_bound(script: Script) -> None:
    script.open_failures = [Overloaded("full")] * 10
    async with Client(script.address, "sk_test") as client:
        with pytest.raises(SpeakerdError, match="full"):
            await client.open_stream()
    assert len(script.placements) == 3


async def test_a_stream_that_is_refused_for_its_request_is_not_placed_again(script: Script) -> None:
    script.open_failures = [BadAudio("0 Hz is no sample rate")]
    async with Client(script.address, "sk_test") as client:
        with pytest.raises(SpeakerdError, match="0 Hz"):
            await client.open_stream()
    assert len(script.placements) == 1


async def test_a_stream_that_breaks_off_tells_the_sender_why(script: Script) -> None:
    script.raises = None
    async with NodeClient(script.address) as node, await node.open_stream() as stream:
        script.raises = BadAudio("NaN at 0.1 s")
        script.fail_after_bytes = 3200
        with pytest.raises(SpeakerdError, match=r"NaN at 0\.1 s"):
            async with asyncio.timeout(10):
                while True:
                    await stream.send(b"\0" * 3200)
                    await asyncio.sleep(0.01)
        with pytest.raises(SpeakerdError, match=r"NaN at 0\.1 s"):
            async for _ in stream:
                pass


async def test_a_sender_who_never_pauses_is_told_why_too(script: Script) -> None:
    # gRPC alone would say INTERNAL, "Internal error from Core", to a write that the refusal crosses.
    script.raises = BadAudio("NaN at 0.1 s")
    script.fail_after_bytes = 3200
    for _ in range(10):
        async with NodeClient(script.address) as node, await node.open_stream() as stream:
            with pytest.raises(SpeakerdError, match=r"NaN at 0\.1 s"):
                async with asyncio.timeout(10):
                    while True:
                        await stream.send(b"\0" * 3200)


async def test_leaving_a_stream_early_ends_it_at_the_node(script: Script) -> None:
    async with NodeClient(script.address) as node:
        async with await node.open_stream() as stream:
            await stream.send(b"\0" * 320)
        with pytest.raises((SpeakerdError, asyncio.CancelledError)):
            await stream.send(b"\0" * 320)


async def test_a_recording_is_diarized_with_progress(script: Script) -> None:
    seen: list[int] = []
    async with Client(script.address, "sk_test") as client:
        result = await client.diarize_file(b"x" * (CHUNK_BYTES + 1), on_progress=lambda p: seen.append(p.processed_ms))
    assert len(script.file) == CHUNK_BYTES + 1
    assert seen == [500]
    assert result.turns[0].label == "alice"


async def test_a_recording_is_uploaded_while_it_is_read(script: Script, tmp_path: Path) -> None:
    """From a pipe whose writer waits: the first piece arrives before the last one exists."""
    pipe = tmp_path / "recording"
    os.mkfifo(pipe)
    more = threading.Event()

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            file.write(b"x" * CHUNK_BYTES)
            assert more.wait(60)
            file.write(b"y" * 10)

    writer = threading.Thread(target=write)
    writer.start()
    async with Client(script.address, "sk_test") as client:
        diarizing = asyncio.create_task(client.diarize_file(pipe))
        async with asyncio.timeout(60):
            while len(script.file) < CHUNK_BYTES:
                await asyncio.sleep(0.01)
        more.set()
        assert (await diarizing).turns[0].label == "alice"
    writer.join()
    assert len(script.file) == CHUNK_BYTES + 10


async def test_a_recording_that_cannot_be_read_is_told_of_by_its_path(script: Script, tmp_path: Path) -> None:
    async with Client(script.address, "sk_test") as client, NodeClient(script.address) as node:
        for missing in (tmp_path / "missing.wav", tmp_path):
            with pytest.raises(SpeakerdError, match=f"cannot read {missing}"):
                await client.diarize_file(missing)
            with pytest.raises(SpeakerdError, match=f"cannot read {missing}"):
                await node.enroll("v0", missing)
        broken = Path("/proc/self/mem")  # opens, and cannot be read at its beginning
        if broken.exists():
            with pytest.raises(SpeakerdError, match="cannot read /proc/self/mem"):
                await client.diarize_file(broken)


async def test_a_standalone_node_is_driven_without_a_control_plane(script: Script) -> None:
    async with NodeClient(script.address) as node:
        assert (await node.describe()).standalone
        assert (await node.enroll("v0", b"clip", label="alice")).generation == 1
        assert (await node.evict("v0")).was_held
    assert script.clips[0] == b"clip"


async def test_a_status_without_our_trailer_still_has_a_cause() -> None:
    none = aio.Metadata()
    error = aio.AioRpcError(grpc.StatusCode.PERMISSION_DENIED, none, none, details="proxy says no")
    told = error_from_status(error, peer="here")
    assert (told.cause, told.message) == ("denied", "proxy says no")


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_call_whose_daemon_went_away_under_it_is_made_once_more(status: grpc.StatusCode) -> None:
    calls = list[int]()

    def calling(lost: int, trailer: aio.Metadata) -> Callable[[], Awaitable[str]]:
        async def call() -> str:
            calls.append(lost)
            if calls.count(lost) <= lost:
                raise aio.AioRpcError(status, aio.Metadata(), trailer, details="shutting down")
            return "answered"

        return call

    assert await answer_again(calling(1, aio.Metadata()), peer="here") == "answered"
    with pytest.raises(SpeakerdError) as twice:
        await answer_again(calling(2, aio.Metadata()), peer="here")
    assert (twice.value.cause, calls.count(2)) == ("unavailable", 2)
    # Who has answered, and be it with a refusal, is not asked again.
    refusal = aio.Metadata((ERROR_TRAILER, common_pb2.ErrorInfo(cause="unavailable").SerializeToString()))
    with pytest.raises(SpeakerdError):
        await answer_again(calling(3, refusal), peer="here")
    assert calls.count(3) == 1


def test_who_went_away_in_mid_stream_is_told_from_who_was_never_there() -> None:
    gone = aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), details="socket closed")
    assert "does not answer" in error_from_status(gone, peer="here").message
    assert error_from_status(gone, peer="here", had_answered=True).message.startswith("here went away in the middle")


async def test_the_blocking_client_does_the_same_without_a_loop(script: Script) -> None:
    script.events = [turns((0, 500, "spk_0"))]

    def use() -> list[str]:
        with SyncClient(script.address, "sk_test") as client:
            client.enroll("alice", [b"clip"])
            assert [voice.label for voice in client.voices()] == ["alice"]
            assert client.diarize_file(b"file").turns[0].label == "alice"
            return [type(event).__name__ for event in client.stream([b"\0" * 3200] * 3)]

    assert await asyncio.to_thread(use) == ["Turns", "StreamClosed"]
    assert len(script.audio) == 9600


async def test_the_blocking_client_raises_what_the_other_raises(script: Script) -> None:
    def use() -> None:
        with SyncClient(script.address, "sk_test") as client:
            script.open_failures = [BadAudio("not sound")]
            list(client.stream([b"\0" * 3200]))

    with pytest.raises(SpeakerdError, match="not sound"):
        await asyncio.to_thread(use)


async def test_sound_that_fails_to_come_ends_the_blocking_stream_with_its_reason(script: Script) -> None:
    def sound() -> Iterator[bytes]:
        yield b"\0" * 3200
        raise RuntimeError("the microphone was pulled out")

    def use() -> None:
        with SyncClient(script.address, "sk_test") as client:
            list(client.stream(sound()))

    with pytest.raises(RuntimeError, match="pulled out"):
        await asyncio.to_thread(use)

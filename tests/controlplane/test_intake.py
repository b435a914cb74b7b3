"""Bad audio at the enrolment's door: a clear refusal, and nothing kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from grpc import aio
from sqlalchemy import text

from controlplane import audit
from runtime.errors import Unavailable
from speakerd.v1 import common_pb2, node_pb2, people_pb2
from tests.controlplane.conftest import Client, World, speech, until, wav


def f32(samples: np.ndarray) -> bytes:
    return samples.astype("<f4").tobytes()


GOOD = wav(speech())
BAD_FILES = {
    "empty": (b"", "empty"),
    "text": (b"this is not sound, it is a sentence. " * 40, "send"),
    "truncated": (GOOD[: len(GOOD) // 2], "cut short"),
    "0 Hz": (GOOD[:24] + bytes(4) + GOOD[28:], ""),
    "silence": (wav(np.zeros(48_000, dtype=np.float32)), "silent"),
    "too short": (wav(speech(seconds=0.4)), "at least 1 s"),
    "steady hum": (wav((0.1 * np.sin(np.arange(64_000) * 0.05)).astype(np.float32)), "no speech"),
}


async def refused(client: Client, **fields: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as error:
        await client.enrol(**fields)  # type: ignore[arg-type]
    return error.value.code(), str(error.value.details())


async def rows_and_blobs(world: World, plane: object) -> int:
    async with plane.core.database.read() as connection:  # type: ignore[attr-defined]
        rows = 0
        for table in ("voices", "data_keys", "voiceprints", "samples", "consents", "fleet_log", "audit"):
            rows += (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
    return rows + sum(path.is_file() for path in (world.data / "blobs").rglob("*"))


async def test_bad_files_are_refused_with_what_to_mend_and_leave_nothing(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    for name, (data, says) in BAD_FILES.items():
        code, message = await refused(client, data=data, container=True)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, name
        assert says in message, (name, message)
        assert len(message) > 20, name
    assert await rows_and_blobs(world, plane) == 0
    assert (await client.enrol("Alice", data=GOOD, container=True)).voice.voice_id


async def test_bad_raw_samples_are_refused(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    broken = speech()
    broken[20_000] = np.nan

    async def raw(data: bytes, **form: int) -> tuple[grpc.StatusCode, str]:
        async def requests() -> AsyncIterator[people_pb2.EnrollVoiceRequest]:
            yield people_pb2.EnrollVoiceRequest(spec=people_pb2.VoiceSpec(label="Alice"))
            form_ = common_pb2.AudioFormat(**form)  # type: ignore[arg-type]
            yield people_pb2.EnrollVoiceRequest(chunk=people_pb2.ClipChunk(format=form_, data=data))

        with pytest.raises(aio.AioRpcError) as error:
            await client.people.EnrollVoice(requests(), metadata=client.metadata)
        return error.value.code(), str(error.value.details())

    assert "NaN" in (await raw(f32(broken), encoding=2))[1]
    assert "sample_rate_hz" in (await raw(f32(speech()), encoding=2, sample_rate_hz=4_000))[1]
    assert "inside a sample" in (await raw(f32(speech())[:-1], encoding=2))[1]
    assert "encoding 9" in (await raw(f32(speech()), encoding=9))[1]
    assert await rows_and_blobs(world, plane) == 0


async def test_what_a_node_hears_decides_and_a_refusal_leaves_nothing(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    node = await world.node(plane)
    node.num_speakers = 2
    code, message = await refused(client)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "2 different voices" in message
    node.num_speakers = 0
    assert "no speech" in (await refused(client))[1]
    node.num_speakers, node.net_speech_ms = 1, 400
    assert "0.4 s of clean speech" in (await refused(client))[1]
    assert await rows_and_blobs(world, plane) == 0
    assert node.voices == {}


async def test_a_pending_voice_whose_checks_fail_later_is_failed_and_its_recordings_deleted(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    node = await world.node(plane, renew=False)
    node.num_speakers = 2
    await node.renew_once()
    await node.sync()
    node.state = node_pb2.NODE_STATE_SERVING
    await node.renew_once()

    async def failed() -> bool:
        voice = await client.get(voice_id)
        return voice.state == people_pb2.Voice.STATE_FAILED and "2 different voices" in voice.state_reason

    await until(failed)
    await until(lambda: not any(path.is_file() for path in (world.data / "blobs").rglob("*")))
    assert node.voices == {}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"label": ""}, "label"),
        ({"label": "x" * 201}, "label"),
        ({"label": "a\nb"}, "label"),
        ({"clips": []}, "no recording"),
        ({"key": "k" * 256}, "idempotency_key"),
    ],
)
async def test_a_malformed_request_says_which_field(world: World, fields: dict[str, object], says: str) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    code, message = await refused(client, **fields)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in message
    assert "a\nb" not in message


async def test_chunks_out_of_order_and_floods_are_refused(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    spec = people_pb2.EnrollVoiceRequest(spec=people_pb2.VoiceSpec(label="Alice"))

    def chunk(clip: int, size: int = 10) -> people_pb2.EnrollVoiceRequest:
        return people_pb2.EnrollVoiceRequest(chunk=people_pb2.ClipChunk(clip=clip, data=bytes(size)))

    cases = {
        "first message": [chunk(0)],
        "ended without": [],
        "comes once": [spec, spec],
        "numbered": [spec, chunk(1)],
        "one after the other": [spec, chunk(0), chunk(1), chunk(0)],
        "at most 1 MiB": [spec, chunk(0, (1 << 20) + 1)],
        "at most 10 clips": [spec, *(chunk(index) for index in range(11))],
        "32 MiB a clip": [spec, *(chunk(0, 1 << 20) for _ in range(33))],
    }
    for says, messages in cases.items():

        async def requests(
            messages: list[people_pb2.EnrollVoiceRequest] = messages,
        ) -> AsyncIterator[people_pb2.EnrollVoiceRequest]:
            for message in messages:
                yield message

        with pytest.raises(aio.AioRpcError) as error:
            await client.people.EnrollVoice(requests(), metadata=client.metadata)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, says
        assert says in str(error.value.details())


async def test_a_store_or_database_that_fails_half_way_leaves_nothing_and_says_try_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await world.node(plane)

    async def full(*_: object, **__: object) -> None:
        raise Unavailable("the recordings' store is away or full; try again", retry_after_s=1.0)

    with monkeypatch.context() as patch:
        patch.setattr(plane.core.blobs, "put", full)
        assert (await refused(client))[0] is grpc.StatusCode.UNAVAILABLE
    assert await rows_and_blobs(world, plane) == 0
    with monkeypatch.context() as patch:
        patch.setattr(audit, "append", full)
        assert (await refused(client))[0] is grpc.StatusCode.UNAVAILABLE
    assert await rows_and_blobs(world, plane) == 0
    assert (await client.enrol("Alice")).voice.state == people_pb2.Voice.STATE_READY

"""Scryon's voice profile, as its contract has it: fields, codes, limits, and what it never does."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from sqlalchemy import select, text

from controlplane.database.schema import samples, voices
from controlplane.match_outcome import Match, Outcome, match_of
from speakerd.v1 import common_pb2, node_pb2
from tests.controlplane.conftest import speech, until, wav
from tests.edge.conftest import Served, Serving, collected, served, serving

__all__ = ["collected", "served", "serving"]  # fixtures

PROFILE = "/api/users/me/voice-profile"
ON: dict[str, Any] = {"scryon_voice_embedding_enabled": True}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def sample(seed: int = 0, seconds: float = 20.0) -> dict[str, tuple[str, bytes, str]]:
    return {"file": ("me.wav", wav(speech(seed, seconds)), "audio/wav")}


def encoded(container: str, codec: str, seconds: float = 20.0) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray((speech(0, seconds) * 32767).astype("<i2")[None], "s16", "mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return buffer.getvalue()


async def user(served: Served, user_id: str = "u1", tenant_id: str = "acme") -> httpx.AsyncClient:
    """A client of a user's key, of a tenant that is made for it."""
    await served.tenant(tenant_id, user_id)
    return await served.http(await served.key("admin", tenant_id=tenant_id, user_id=user_id))


def error_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    assert body["error"]["message"]
    return answer.status_code, body["error"]["code"]


async def test_while_the_feature_is_off_every_call_is_not_available(serving: Serving) -> None:
    http = await user(await serving(nodes=1))
    calls = [
        await http.post(PROFILE, files=sample()),
        await http.get(f"{PROFILE}/status"),
        await http.delete(PROFILE),
        await http.post(f"{PROFILE}/match", files=sample()),
    ]
    assert [error_of(answer) for answer in calls] == [(404, "feature_not_available")] * 4


async def test_deletion_may_be_left_on_while_the_feature_is_off(serving: Serving) -> None:
    http = await user(await serving(scryon_voice_delete_when_disabled=True))
    assert (await http.delete(PROFILE)).status_code == 204
    assert error_of(await http.get(f"{PROFILE}/status")) == (404, "feature_not_available")


async def test_a_profile_is_made_shown_and_deleted_with_the_fields_of_the_contract(serving: Serving) -> None:
    http = await user(await serving(nodes=1, **ON))
    assert (await http.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}
    made = await http.post(PROFILE, files=sample(seconds=22), data={"consentAccepted": "true"})
    assert made.status_code == 201
    body = made.json()
    assert ISO.fullmatch(body["createdAt"])
    assert body == {
        "status": "ACTIVE",
        "provider": "pyannote",
        "consentVersion": "v1",
        "createdAt": body["createdAt"],
        "sampleDurationSeconds": 22,
    }
    shown = await http.get(f"{PROFILE}/status")
    assert shown.status_code == 200
    del body["sampleDurationSeconds"]
    assert shown.json() == body
    for _ in range(2):
        gone = await http.delete(PROFILE)
        assert (gone.status_code, gone.content) == (204, b"")
        assert (await http.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}


async def test_a_profile_is_the_voice_of_its_user_alone_in_the_fleet(serving: Serving) -> None:
    served = await serving(**ON)
    node = await served.world.node(served.plane)
    http = await user(served)
    await http.post(PROFILE, files=sample())
    await until(lambda: len(node.voices) == 1)
    ((_, label, _),) = node.voices.values()
    assert label == "u1"
    async with served.plane.core.database.read() as connection:
        row = (await connection.execute(select(voices.c.scope, voices.c.owner_user_id))).one()
    assert tuple(row) == ("user", "u1")
    await http.delete(PROFILE)
    await until(lambda: not node.voices)


async def test_another_sample_replaces_the_profile_in_place(serving: Serving) -> None:
    served = await serving(nodes=1, **ON)
    http = await user(served)
    assert (await http.post(PROFILE, files=sample(1))).status_code == 201
    async with served.plane.core.database.read() as connection:
        first = (await connection.execute(select(voices.c.voice_id, voices.c.generation))).one()
    assert (await http.post(PROFILE, files=sample(2))).status_code == 201
    async with served.plane.core.database.read() as connection:
        second = (await connection.execute(select(voices.c.voice_id, voices.c.generation))).one()
    assert second == (first.voice_id, first.generation + 1)


async def test_uploads_at_once_leave_one_profile(serving: Serving) -> None:
    served = await serving(nodes=1, **ON)
    http = await user(served)
    answers = await asyncio.gather(*(http.post(PROFILE, files=sample(seed)) for seed in range(4)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert 201 in {answer.status_code for answer in answers}
    async with served.plane.core.database.read() as connection:
        assert len((await connection.execute(select(voices.c.voice_id))).all()) == 1


async def test_the_sample_is_kept_nowhere(serving: Serving) -> None:
    served = await serving(nodes=1, **ON)
    http = await user(served)
    data = wav(speech(0, 20))
    assert (await http.post(PROFILE, files={"file": ("me.wav", data, "audio/wav")})).status_code == 201
    async with served.plane.core.database.read() as connection:
        assert (await connection.execute(select(samples))).all() == []
    kept = [path for path in Path(served.world.data).rglob("*") if path.is_file() and path.stat().st_size > len(data)]
    needle = data[20_000:20_064]
    assert not [path for path in kept if needle in path.read_bytes()]
    assert not list((Path(served.world.data) / "blobs").rglob("samples/*"))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(14.9, (400, "voice_sample_too_short")), (45.2, (400, "voice_sample_too_long")), (15.0, 201), (45.0, 201)],
)
async def test_a_sample_has_from_15_to_45_seconds(serving: Serving, seconds: float, expected: Any) -> None:
    http = await user(await serving(nodes=1, **ON))
    answer = await http.post(PROFILE, files=sample(seconds=seconds))
    assert (answer.status_code if answer.status_code == 201 else error_of(answer)) == expected


async def test_limits_and_the_consent_version_are_settings(serving: Serving) -> None:
    served = await serving(
        nodes=1,
        scryon_voice_sample_min_seconds=2,
        scryon_voice_sample_max_seconds=4,
        scryon_voice_sample_max_size_mb=0.2,
        scryon_voice_consent_version="2026-06",
        **ON,
    )
    http = await user(served)
    assert (await http.post(PROFILE, files=sample(seconds=3))).json()["consentVersion"] == "2026-06"
    assert error_of(await http.post(PROFILE, files=sample(seconds=1.5))) == (400, "voice_sample_too_short")
    assert error_of(await http.post(PROFILE, files=sample(seconds=5))) == (400, "voice_sample_too_long")
    assert error_of(await http.post(PROFILE, files=sample(seconds=8))) == (413, "voice_sample_too_large")


async def test_a_sample_has_at_most_ten_mebibytes(serving: Serving) -> None:
    http = await user(await serving(nodes=1, **ON))
    for size in ((10 << 20) + 1, 12 << 20):
        files = {"file": ("me.wav", b"RIFF" + bytes(size), "audio/wav")}
        assert error_of(await http.post(PROFILE, files=files)) == (413, "voice_sample_too_large")


async def test_wav_mp3_and_m4a_are_read_and_nothing_else(serving: Serving) -> None:
    http = await user(await serving(nodes=1, **ON))
    mp3, m4a = encoded("mp3", "mp3"), encoded("ipod", "aac")
    for name, data, kind in (("a.mp3", mp3, "audio/mpeg"), ("a.m4a", m4a, "audio/mp4"), ("a.m4a", m4a, "audio/x-m4a")):
        answer = await http.post(PROFILE, files={"file": (name, data, kind)})
        assert answer.status_code == 201, answer.text
    flac = encoded("flac", "flac")
    for name, data, kind in (
        ("a.flac", flac, "audio/flac"),
        ("a.wav", flac, "audio/wav"),
        ("a.txt", b"hello", "text/plain"),
        ("a.wav", b"this is no sound at all" * 100, "audio/wav"),
    ):
        answer = await http.post(PROFILE, files={"file": (name, data, kind)})
        assert error_of(answer) == (415, "unsupported_media_type"), (name, kind)


async def test_what_is_wrong_with_the_form_is_named(serving: Serving) -> None:
    http = await user(await serving(nodes=1, **ON))
    without = await http.post(PROFILE, files={"other": ("a.wav", b"x", "audio/wav")})
    assert error_of(without) == (400, "invalid_request")
    assert without.json()["error"]["details"]["fields"][0]["field"] == "file"
    refused = await http.post(PROFILE, files=sample(), data={"consentAccepted": "false"})
    assert error_of(refused) == (400, "invalid_request")
    assert refused.json()["error"]["details"]["fields"][0]["field"] == "consentAccepted"
    silent = {"file": ("a.wav", wav(np.zeros(20 * 16_000, np.float32)), "audio/wav")}
    assert error_of(await http.post(PROFILE, files=silent)) == (400, "voice_sample_unusable")
    assert (await http.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}


async def test_two_people_in_the_sample_are_told_with_the_reason(serving: Serving) -> None:
    served = await serving(**ON)
    node = await served.world.node(served.plane)
    node.num_speakers = 2
    answer = await (await user(served)).post(PROFILE, files=sample())
    assert error_of(answer) == (400, "voice_sample_unusable")
    assert answer.json()["error"]["details"]["reasons"] == ["several_speakers"]


async def test_without_a_node_the_provider_is_at_fault_and_the_profile_stays_as_it_was(serving: Serving) -> None:
    served = await serving(**ON)
    http = await user(served)
    assert error_of(await http.post(PROFILE, files=sample())) == (502, "voice_provider_error")
    assert (await http.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}


async def test_a_repeated_request_is_answered_as_the_first_was_for_a_day(serving: Serving) -> None:
    served = await serving(nodes=1, **ON)
    http = await user(served)
    key = {"idempotency-key": "upload-1"}
    first = await http.post(PROFILE, files=sample(), headers=key)
    again = await http.post(PROFILE, files=sample(), headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    async with served.plane.core.database.read() as connection:
        assert (await connection.execute(select(voices.c.generation))).scalar_one() == 1
    other = await http.post(PROFILE, files=sample(seed=3), headers=key)
    assert error_of(other) == (409, "conflict")


async def test_a_user_s_profile_is_nobody_else_s(serving: Serving) -> None:
    served = await serving(nodes=1, **ON)
    ada = await user(served)
    await served.tenant("other", "u1")
    same_id = await served.http(await served.key("admin", tenant_id="other", user_id="u1"))
    colleague = await user(served, "u2", "third")
    assert (await ada.post(PROFILE, files=sample())).status_code == 201
    for stranger in (same_id, colleague):
        assert (await stranger.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}
        assert error_of(await stranger.post(f"{PROFILE}/match", files=sample())) == (404, "voice_profile_missing")
        assert (await stranger.delete(PROFILE)).status_code == 204
    assert (await ada.get(f"{PROFILE}/status")).json()["status"] == "ACTIVE"


async def test_who_may_not_call_is_told_so_in_the_envelope(serving: Serving) -> None:
    served = await serving(nodes=1, **ON)
    calls = (("POST", ""), ("GET", "/status"), ("DELETE", ""), ("POST", "/match"))
    nobody = await served.http("")
    service = await served.http()  # stands for no user
    await served.tenant("acme", "u1")
    powerless = await served.http(await served.key("audit:read", tenant_id="acme", user_id="u1"))
    for method, path in calls:
        files = sample() if method == "POST" else None
        assert error_of(await nobody.request(method, PROFILE + path, files=files)) == (401, "unauthenticated")
        assert error_of(await service.request(method, PROFILE + path, files=files)) == (403, "forbidden")
        assert error_of(await powerless.request(method, PROFILE + path, files=files)) == (403, "forbidden")
    assert error_of(await service.get(f"{PROFILE}/nothing")) == (404, "not_found")


async def test_a_profile_that_is_erased_elsewhere_is_missing(serving: Serving) -> None:
    served = await serving(nodes=1, **ON)
    http = await user(served)
    await http.post(PROFILE, files=sample())
    async with served.plane.core.database.read() as connection:
        voice_id = (await connection.execute(select(voices.c.voice_id))).scalar_one()
        owner = await connection.execute(text("SELECT count(*) FROM voice_profiles"))
        assert owner.scalar_one() == 1
    principal = await served.plane.core.identity.principal(http.headers["authorization"][7:], "voices:erase")
    await served.plane.core.erasures.erase(principal, voice_id)
    assert (await http.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}
    assert (await http.post(PROFILE, files=sample())).status_code == 201


def result(*probabilities: float, voice_id: str = "") -> node_pb2.FileResult:
    speakers = [
        common_pb2.Speaker(
            speaker=f"spk_{number}",
            label=f"spk_{number}",
            match=common_pb2.MatchReport(best_voice_id=voice_id, best_probability=probability),
        )
        for number, probability in enumerate(probabilities)
    ]
    return node_pb2.FileResult(duration_ms=20_000, speakers=speakers)


async def test_a_match_is_one_speaker_over_the_threshold_and_one_number(serving: Serving) -> None:
    served = await serving(**ON)
    node = await served.world.node(served.plane)
    http = await user(served)
    await http.post(PROFILE, files=sample())
    async with served.plane.core.database.read() as connection:
        voice_id = (await connection.execute(select(voices.c.voice_id))).scalar_one()
    found = []
    for probabilities, confidence in (
        ((0.97, 0.12), "high"),
        ((0.97, 0.91), "high"),
        ((0.80, 0.12), "high"),
        ((0.80, 0.12), "medium"),
        ((), "high"),
    ):
        node.result = result(*probabilities, voice_id=voice_id)
        answer = await http.post(f"{PROFILE}/match", params={"confidence": confidence}, files=sample(5))
        assert answer.status_code == 200
        found.append(answer.json())
    assert found == [
        {"outcome": "MATCHED", "speaker": "spk_0", "voiceMatchScore": 0.97},
        {"outcome": "AMBIGUOUS", "speaker": None, "voiceMatchScore": 0.97},
        {"outcome": "NO_MATCH", "speaker": None, "voiceMatchScore": 0.8},
        {"outcome": "MATCHED", "speaker": "spk_0", "voiceMatchScore": 0.8},
        {"outcome": "NO_MATCH", "speaker": None, "voiceMatchScore": None},
    ]
    await http.delete(PROFILE)
    assert error_of(await http.post(f"{PROFILE}/match", files=sample(5))) == (404, "voice_profile_missing")


def test_a_probability_that_equals_the_threshold_reaches_it() -> None:
    assert match_of({"a": 0.85, "b": 0.1}, 0.85) == Match(Outcome.MATCHED, "a", 0.85)
    assert match_of({"a": 0.84, "b": 0.1}, 0.85) == Match(Outcome.NO_MATCH, None, 0.84)
    assert match_of({"a": 0.85, "b": 0.9}, 0.85) == Match(Outcome.AMBIGUOUS, None, 0.9)
    assert match_of({}, 0.85) == Match(Outcome.NO_MATCH, None, None)

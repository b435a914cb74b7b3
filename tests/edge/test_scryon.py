"""Scryon's voice profile, as its contract has it: fields, codes, limits, and what it never does."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy import select

from controlplane.database.schema import samples, users, voices
from controlplane.database.spaces_schema import voice_profiles
from controlplane.match_outcome import Match, Outcome, match_of
from speakerd.v1 import common_pb2, node_pb2
from tests.controlplane.conftest import World, speech, until, wav
from tests.controlplane.fake_node import FakeNode
from tests.edge.conftest import Served, Serving, collected

__all__ = ["collected"]  # a fixture
pytestmark = pytest.mark.asyncio(loop_scope="module")

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


_numbers = itertools.count()


class User:
    """Somebody's calls, and their rows."""

    def __init__(self, served: Served, http: httpx.AsyncClient, tenant: str) -> None:
        self.served = served
        self.http = http
        self.tenant = tenant
        self.get, self.post, self.delete = http.get, http.post, http.delete

    async def voices(self) -> list[Any]:
        return await self.rows(voices)

    async def rows(self, table: Any) -> list[Any]:
        async with self.served.plane.core.database.read() as connection:
            return list((await connection.execute(select(table).where(table.c.tenant_id == self.tenant))).all())

    def held(self, node: FakeNode) -> list[str]:
        """The labels that a node holds of the user's tenant."""
        return [label for (tenant_id, _), (_, label, _) in node.voices.items() if tenant_id == self.tenant]


async def user(served: Served, user_id: str = "u1") -> User:
    """A user of a tenant that is made for them."""
    tenant = f"t{next(_numbers)}"
    await served.tenant(tenant, user_id)
    return User(served, await served.http(await served.key("admin", tenant_id=tenant, user_id=user_id)), tenant)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everything(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, FakeNode]]:
    """One control plane and one node for all tests but those that need their own."""
    async with AsyncExitStack() as stack:
        serving = Serving(World(tmp_path_factory.mktemp("scryon") / "data", stack, None), stack)
        served = await serving(http_rate_limits={"scryon.upload": 0}, **ON)
        yield served, await served.world.node(served.plane)


@pytest.fixture
def shared(everything: tuple[Served, FakeNode]) -> tuple[Served, FakeNode]:
    """The same, and the node as it was."""
    _, node = everything
    node.num_speakers, node.result = 1, None
    return everything


@pytest_asyncio.fixture(loop_scope="module")
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    """For a test that needs settings of its own."""
    async with AsyncExitStack() as stack:
        yield Serving(World(tmp_path / "data", stack, None), stack)


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


async def test_while_the_feature_is_off_nothing_else_is_told_to_anybody(serving: Serving) -> None:
    served = await serving(nodes=1, scryon_voice_embedding_enabled=True)
    http = await user(served)
    repeated = {"idempotency-key": "once"}
    assert (await http.post(PROFILE, files=sample(), headers=repeated)).status_code == 201
    off = served.plane.settings.model_copy(update={"scryon_voice_embedding_enabled": False})
    served.plane.settings = off
    without, denied = await served.http(""), await served.http(await served.key("audit:read"))
    calls = [
        await http.post(PROFILE, files=sample(), headers=repeated),
        await without.post(PROFILE, files=sample()),
        await denied.get(f"{PROFILE}/status"),
        await without.delete(PROFILE),
    ]
    assert [error_of(answer) for answer in calls] == [(404, "feature_not_available")] * 4
    assert (await without.put(PROFILE)).status_code == 405
    served.plane.settings = off.model_copy(update={"scryon_voice_delete_when_disabled": True})
    assert (await http.delete(PROFILE)).status_code == 204
    assert error_of(await without.delete(PROFILE)) == (401, "unauthenticated")


async def test_deletion_may_be_left_on_while_the_feature_is_off(serving: Serving) -> None:
    http = await user(await serving(scryon_voice_delete_when_disabled=True))
    assert (await http.delete(PROFILE)).status_code == 204
    assert error_of(await http.get(f"{PROFILE}/status")) == (404, "feature_not_available")


async def test_a_profile_is_made_shown_and_deleted_with_the_fields_of_the_contract(
    shared: tuple[Served, FakeNode],
) -> None:
    http = await user(shared[0])
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


async def test_a_profile_is_the_voice_of_its_user_alone_in_the_fleet(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    http = await user(served)
    await http.post(PROFILE, files=sample())
    await until(lambda: http.held(node) == ["u1"])
    (voice,) = await http.voices()
    assert (voice.scope, voice.owner_user_id) == ("user", "u1")
    await http.delete(PROFILE)
    await until(lambda: not http.held(node))


async def test_another_sample_replaces_the_profile_in_place(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    http = await user(served)
    assert (await http.post(PROFILE, files=sample(1))).status_code == 201
    (first,) = await http.voices()
    assert (await http.post(PROFILE, files=sample(2))).status_code == 201
    (second,) = await http.voices()
    assert (second.voice_id, second.generation) == (first.voice_id, first.generation + 1)


async def test_uploads_at_once_leave_one_profile(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    http = await user(served)
    answers = await asyncio.gather(*(http.post(PROFILE, files=sample(seed)) for seed in range(4)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert 201 in {answer.status_code for answer in answers}
    assert len(await http.voices()) == 1


async def test_the_sample_is_kept_nowhere(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    http = await user(served)
    data = wav(speech(0, 20))
    assert (await http.post(PROFILE, files={"file": ("me.wav", data, "audio/wav")})).status_code == 201
    assert await http.rows(samples) == []
    kept = [path for path in Path(served.world.data).rglob("*") if path.is_file() and path.stat().st_size > len(data)]
    needle = data[20_000:20_064]
    assert not [path for path in kept if needle in path.read_bytes()]
    assert not list((Path(served.world.data) / "blobs").rglob("samples/*"))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(14.9, (400, "voice_sample_too_short")), (45.2, (400, "voice_sample_too_long")), (15.0, 201), (45.0, 201)],
)
async def test_a_sample_has_from_15_to_45_seconds(
    shared: tuple[Served, FakeNode], seconds: float, expected: Any
) -> None:
    http = await user(shared[0])
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


async def test_a_sample_has_at_most_ten_mebibytes(shared: tuple[Served, FakeNode]) -> None:
    http = await user(shared[0])
    for size in ((10 << 20) + 1, 12 << 20):
        files = {"file": ("me.wav", b"RIFF" + bytes(size), "audio/wav")}
        assert error_of(await http.post(PROFILE, files=files)) == (413, "voice_sample_too_large")


async def test_wav_mp3_and_m4a_are_read_and_nothing_else(shared: tuple[Served, FakeNode]) -> None:
    http = await user(shared[0])
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


async def test_what_is_wrong_with_the_form_is_named(shared: tuple[Served, FakeNode]) -> None:
    http = await user(shared[0])
    without = await http.post(PROFILE, files={"other": ("a.wav", b"x", "audio/wav")})
    assert error_of(without) == (400, "invalid_request")
    assert without.json()["error"]["details"]["fields"][0]["field"] == "file"
    refused = await http.post(PROFILE, files=sample(), data={"consentAccepted": "false"})
    assert error_of(refused) == (400, "invalid_request")
    assert refused.json()["error"]["details"]["fields"][0]["field"] == "consentAccepted"
    silent = {"file": ("a.wav", wav(np.zeros(20 * 16_000, np.float32)), "audio/wav")}
    assert error_of(await http.post(PROFILE, files=silent)) == (400, "voice_sample_unusable")
    assert (await http.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}


async def test_two_people_in_the_sample_are_told_with_the_reason(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    node.num_speakers = 2
    answer = await (await user(served)).post(PROFILE, files=sample())
    assert error_of(answer) == (400, "voice_sample_unusable")
    assert answer.json()["error"]["details"]["reasons"] == ["several_speakers"]


async def test_without_a_node_the_provider_is_at_fault_and_the_profile_stays_as_it_was(serving: Serving) -> None:
    served = await serving(**ON)
    http = await user(served)
    assert error_of(await http.post(PROFILE, files=sample())) == (502, "voice_provider_error")
    assert (await http.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}


async def test_a_repeated_request_is_answered_as_the_first_was_for_a_day(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    http = await user(served)
    key = {"idempotency-key": "upload-1"}
    first = await http.post(PROFILE, files=sample(), headers=key)
    again = await http.post(PROFILE, files=sample(), headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert [voice.generation for voice in await http.voices()] == [1]
    other = await http.post(PROFILE, files=sample(seed=3), headers=key)
    assert error_of(other) == (409, "conflict")
    # Once it is deleted, nobody is told that it is active.
    assert (await http.delete(PROFILE)).status_code == 204
    assert error_of(await http.post(PROFILE, files=sample(), headers=key)) == (409, "conflict")


async def test_a_user_s_profile_is_nobody_else_s(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    ada = await user(served)
    same_id = await user(served)
    async with served.plane.core.database.write() as connection:
        await connection.execute(users.insert().values(tenant_id=ada.tenant, user_id="u2", created_at_s=1.0))
    colleague = await served.http(await served.key("admin", tenant_id=ada.tenant, user_id="u2"))
    assert (await ada.post(PROFILE, files=sample())).status_code == 201
    for stranger in (same_id, colleague):
        assert (await stranger.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}
        assert error_of(await stranger.post(f"{PROFILE}/match", files=sample())) == (404, "voice_profile_missing")
        assert (await stranger.delete(PROFILE)).status_code == 204
    assert (await ada.get(f"{PROFILE}/status")).json()["status"] == "ACTIVE"


async def test_who_may_not_call_is_told_so_in_the_envelope(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    calls = (("POST", ""), ("GET", "/status"), ("DELETE", ""), ("POST", "/match"))
    nobody = await served.http("")
    tenant = (await user(served)).tenant
    powers = ("voices:read", "voices:write", "voices:erase", "jobs:write")
    service = await served.http(await served.key(*powers, tenant_id=tenant))  # stands for no user
    powerless = await served.http(await served.key("audit:read", tenant_id=tenant, user_id="u1"))
    for method, path in calls:
        files = sample() if method == "POST" else None
        assert error_of(await nobody.request(method, PROFILE + path, files=files)) == (401, "unauthenticated")
        assert error_of(await service.request(method, PROFILE + path, files=files)) == (403, "forbidden")
        assert error_of(await powerless.request(method, PROFILE + path, files=files)) == (403, "forbidden")
    assert error_of(await service.get(f"{PROFILE}/nothing")) == (404, "not_found")


async def test_an_administrator_s_key_is_the_administrator_s(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    ada = await user(served)
    admin = User(served, await served.http(await served.key("admin", tenant_id=ada.tenant)), ada.tenant)
    assert (await admin.post(PROFILE, files=sample())).status_code == 201
    assert (await admin.get(f"{PROFILE}/status")).json()["status"] == "ACTIVE"
    assert (await ada.get(f"{PROFILE}/status")).json() == {"status": "MISSING"}
    await until(lambda: ada.held(node) == ["administrator"])
    assert (await admin.delete(PROFILE)).status_code == 204


async def test_a_profile_that_is_erased_elsewhere_is_missing(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    http = await user(served)
    await http.post(PROFILE, files=sample())
    (voice,) = await http.voices()
    assert len(await http.rows(voice_profiles)) == 1
    principal = await served.plane.core.identity.principal(http.http.headers["authorization"][7:], "voices:erase")
    await served.plane.core.erasures.erase(principal, voice.voice_id)
    assert await http.rows(voice_profiles) == []
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


async def test_a_match_is_one_speaker_over_the_threshold_and_one_number(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    http = await user(served)
    await http.post(PROFILE, files=sample())
    voice_id = (await http.voices())[0].voice_id
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


async def test_a_probability_that_equals_the_threshold_reaches_it() -> None:
    assert match_of({"a": 0.85, "b": 0.1}, 0.85) == Match(Outcome.MATCHED, "a", 0.85)
    assert match_of({"a": 0.84, "b": 0.1}, 0.85) == Match(Outcome.NO_MATCH, None, 0.84)
    assert match_of({"a": 0.85, "b": 0.9}, 0.85) == Match(Outcome.AMBIGUOUS, None, 0.9)
    assert match_of({}, 0.85) == Match(Outcome.NO_MATCH, None, None)

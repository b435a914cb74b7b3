"""Loccus' spaces, identities, audios, voiceprints, verifications and records, as their contract has them."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy import select

from controlplane.database.schema import erasures, samples, users, voices
from controlplane.database.spaces_schema import (
    space_audios,
    space_identities,
    space_keys,
    space_members,
    space_records,
    space_verifications,
    space_voiceprints,
)
from tests.controlplane.conftest import World, postgresql_server, postgresql_url, speech, until, wav
from tests.controlplane.fake_node import FakeNode
from tests.edge.conftest import Served, Serving, collected

__all__ = ["collected", "postgresql_server", "postgresql_url"]  # fixtures
pytestmark = pytest.mark.asyncio(loop_scope="module")

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DURATION = re.compile(r"PT\d+\.\d{3}S")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sound(seed: int = 0, seconds: float = 6.0) -> str:
    return base64_of(wav(speech(seed, seconds)))


def error_of(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"id", "code", "errors"}
    assert body["error"]["id"] == answer.headers["x-request-id"]
    assert body["error"]["errors"]
    assert all(set(one) == {"message"} and one["message"] for one in body["error"]["errors"])
    return answer.status_code, body["error"]["code"]


@dataclass
class Caller:
    """Somebody's calls, which have to succeed."""

    http: httpx.AsyncClient
    tenant: str

    @property
    def space(self) -> str:
        return f"/v1/spaces/{self.tenant}/calls"

    async def post(self, path: str, body: Any = None, status: int = 201, **options: Any) -> Any:
        answer = await self.http.post(path, json=body, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def computed(self, space: str = "", identity: str = "ada", handle: str = "main", seed: int = 0) -> Any:
        """A computed voiceprint of an identity that is made if need be."""
        space = space or self.space
        if (await self.http.get(f"{space}/identities/{identity}")).status_code == 404:
            await self.post(f"{space}/identities", {"handle": identity, "alias": f"{identity} of the tests"})
        audio = await self.post(f"{space}/audios", {"file": sound(seed), "identity": identity})
        body = {"handle": handle, "model": "default/v1", "identity": identity, "minAudios": 1}
        await self.post(f"{space}/voiceprints", body)
        one = f"{space}/voiceprints/{identity}/{handle}"
        await self.post(f"{one}/audios/{audio['id']}")
        return await self.post(f"{one}:compute", status=200)

    def held(self, node: FakeNode) -> list[str]:
        """The labels that a node holds of this caller's tenant."""
        return [label for (tenant_id, _), (_, label, _) in node.voices.items() if tenant_id == self.tenant]


_numbers = itertools.count()


async def acme(served: Served, *, user_id: str | None = None) -> Caller:
    """A caller of a tenant that is made, with the space `calls`."""
    tenant = f"acme-{next(_numbers)}"
    await served.tenant(tenant, *([user_id] if user_id else []))
    caller = Caller(await served.http(await served.key("admin", tenant_id=tenant, user_id=user_id)), tenant)
    await caller.post(f"/v1/spaces/{tenant}", {"handle": "calls", "alias": "Calls"})
    return caller


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everything(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, FakeNode]]:
    """One control plane and one node for all tests but those that need their own; each has tenants of its own."""
    async with AsyncExitStack() as stack:
        serving = Serving(World(tmp_path_factory.mktemp("loccus") / "data", stack, None), stack)
        served = await serving(http_rate_limits={"loccus.listen": 0}, scryon_voice_embedding_enabled=True)
        yield served, await served.world.node(served.plane)


@pytest.fixture
def shared(everything: tuple[Served, FakeNode]) -> tuple[Served, FakeNode]:
    """The same, and the node as it was."""
    _, node = everything
    node.net_speech_ms, node.num_speakers, node.same_probability = 5_000, 1, 0.93
    return everything


@pytest_asyncio.fixture(loop_scope="module")
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    """For a test that needs a control plane of its own."""
    async with AsyncExitStack() as stack:
        yield Serving(World(tmp_path / "data", stack, None), stack)


def blobs(served: Served) -> set[Path]:
    return set((Path(served.world.data) / "blobs").rglob("samples/*"))


# Spaces


async def test_spaces_belong_to_an_organisation_or_a_user(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    tenant = f"acme-{next(_numbers)}"
    await served.tenant(tenant, "u1")
    caller = Caller(await served.http(await served.key("admin", tenant_id=tenant, user_id="u1")), tenant)
    made = await caller.post(f"/v1/spaces/{caller.tenant}", {"handle": "calls", "alias": "Calls"})
    assert ISO.fullmatch(made["createdAt"])
    assert uuid.UUID(made["id"])
    assert made == {
        "id": made["id"],
        "handle": "calls",
        "alias": "Calls",
        "owner": tenant,
        "isOrganisation": True,
        "createdAt": made["createdAt"],
    }
    own = await caller.post("/v1/spaces/u1", {"handle": "calls"})
    assert (own["owner"], own["isOrganisation"], own["alias"]) == ("u1", False, None)
    assert await caller.get(caller.space) == made
    assert await caller.get(f"/v1/spaces/{caller.tenant}/{made['id']}") == made
    listed = await caller.get(f"/v1/spaces/{caller.tenant}", sort="handle")
    assert [one["handle"] for one in listed["items"]] == ["calls", "voices"]
    assert (listed["page"], listed["pageSize"], listed["totalItems"], listed["totalPages"]) == (1, 20, 2, 1)


async def test_handles_are_lower_case_and_taken_once(shared: tuple[Served, FakeNode]) -> None:
    caller = await acme(shared[0])
    for handle in ("Calls", "a_b", "ä", "", "x" * 51, "a b", str(uuid.uuid4())):
        assert error_of(await caller.http.post(f"/v1/spaces/{caller.tenant}", json={"handle": handle})) == (
            400,
            "badRequest",
        )
    await caller.post(f"/v1/spaces/{caller.tenant}", {"handle": "x" * 50})
    assert error_of(await caller.http.post(f"/v1/spaces/{caller.tenant}", json={"handle": "calls"})) == (
        409,
        "conflict",
    )
    too_long = {"handle": "a", "alias": "x" * 101}
    assert error_of(await caller.http.post(f"/v1/spaces/{caller.tenant}", json=too_long)) == (400, "badRequest")
    await caller.post(f"/v1/spaces/{caller.tenant}", {"handle": "a", "alias": "x" * 100})
    await caller.post(f"{caller.space}/identities", {"handle": "ada"})
    assert error_of(await caller.http.post(f"{caller.space}/identities", json={"handle": "ada"})) == (409, "conflict")
    await caller.post(f"/v1/spaces/{caller.tenant}/a/identities", {"handle": "ada"})


async def test_a_user_s_space_is_for_the_user_and_whom_the_user_lets_in(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    tenant = f"acme-{next(_numbers)}"
    await served.tenant(tenant, "u1", "u2")
    scopes = ("voices:read", "voices:write")
    own = Caller(await served.http(await served.key(*scopes, tenant_id=tenant, user_id="u1")), tenant)
    guest = Caller(await served.http(await served.key(*scopes, tenant_id=tenant, user_id="u2")), tenant)
    await own.post("/v1/spaces/u1", {"handle": "mine"})
    await own.post("/v1/spaces/u1/mine/identities", {"handle": "ada"})
    place = "/v1/spaces/u1/mine"
    assert error_of(await guest.http.get(place)) == (404, "notFound")
    assert error_of(await guest.http.get("/v1/spaces/u1")) == (404, "notFound")
    assert error_of(await guest.http.post("/v1/spaces/u1", json={"handle": "theirs"})) == (404, "notFound")
    let_in = await own.http.put(f"{place}/collaborators/u2", json={})
    assert (let_in.status_code, let_in.json()["mayWrite"]) == (200, False)
    assert (await guest.get(f"{place}/identities/ada"))["handle"] == "ada"
    assert [one["handle"] for one in (await guest.get("/v1/spaces/u1"))["items"]] == ["mine"]
    assert error_of(await guest.http.post(f"{place}/identities", json={"handle": "b"})) == (403, "forbidden")
    assert error_of(await guest.http.put(f"{place}/collaborators/u2", json={"mayWrite": True})) == (403, "forbidden")
    await own.http.put(f"{place}/collaborators/u2", json={"mayWrite": True})
    await guest.post(f"{place}/identities", {"handle": "bob"})
    assert [one["user"] for one in await own.get(f"{place}/collaborators")] == ["u2"]
    assert (await own.http.delete(f"{place}/collaborators/u2")).status_code == 204
    assert error_of(await guest.http.get(place)) == (404, "notFound")
    assert error_of(await own.http.delete(f"{place}/collaborators/u2")) == (404, "notFound")
    assert error_of(await own.http.put(f"{place}/collaborators/nobody", json={})) == (404, "notFound")


# Identities and audios


async def test_an_identity_has_a_handle_an_alias_and_an_id_by_which_it_is_found(
    shared: tuple[Served, FakeNode],
) -> None:
    caller = await acme(shared[0])
    made = await caller.post(f"{caller.space}/identities", {"handle": "ada", "alias": "Ada Example"})
    assert made == {
        "id": made["id"],
        "handle": "ada",
        "alias": "Ada Example",
        "voice": None,
        "voiceprints": [],
        "createdAt": made["createdAt"],
    }
    assert (
        await caller.get(f"{caller.space}/identities/ada")
        == await caller.get(f"{caller.space}/identities/{made['id']}")
        == made
    )
    nameless = await caller.post(f"{caller.space}/identities", {"handle": None})
    assert nameless["handle"] == nameless["id"] == str(uuid.UUID(nameless["id"]))
    listed = await caller.get(f"{caller.space}/identities", search="AD")
    assert [one["id"] for one in listed["items"]] == [made["id"]]
    assert error_of(await caller.http.get(f"{caller.space}/identities/eve")) == (404, "notFound")


async def test_an_audio_comes_as_base64_with_what_is_said_of_it(shared: tuple[Served, FakeNode]) -> None:
    caller = await acme(shared[0])
    await caller.post(f"{caller.space}/identities", {"handle": "ada", "alias": "Ada"})
    made = await caller.post(
        f"{caller.space}/audios", {"alias": "first", "file": sound(seconds=3.5), "identity": "ada"}
    )
    assert uuid.UUID(made["id"])
    assert ISO.fullmatch(made["createdAt"])
    assert ISO.fullmatch(made["uploadedAt"])
    assert made == {
        "id": made["id"],
        "handle": made["id"],
        "alias": "first",
        "state": "available",
        "duration": "PT3.500S",
        "voiceDuration": "PT5.000S",  # what the node of this test always hears
        "sampleRate": 16_000,
        "identity": {"handle": "ada", "alias": "Ada"},
        "voiceprints": [],
        "verifications": 0,
        "createdAt": made["createdAt"],
        "uploadedAt": made["uploadedAt"],
    }
    assert await caller.get(f"{caller.space}/audios/{made['id']}") == made


async def test_an_audio_that_is_said_first_waits_for_its_file(shared: tuple[Served, FakeNode]) -> None:
    caller = await acme(shared[0])
    made = await caller.post(f"{caller.space}/audios", {})
    assert (made["state"], made["duration"], made["uploadedAt"], made["identity"]) == ("avaitingFile", None, None, None)
    place = f"{caller.space}/audios/{made['id']}/file"
    for nothing in (b"", b"this is no sound"):
        answer = await caller.http.post(place, content=nothing)
        assert answer.status_code in (400, 415), answer.text
        error_of(answer)
    sent = await caller.http.post(place, content=wav(speech(1, 5)), headers={"content-type": "audio/wav"})
    assert sent.status_code == 201
    assert (sent.json()["state"], sent.json()["duration"]) == ("available", "PT5.000S")
    assert error_of(await caller.http.post(place, content=wav(speech(1, 5)))) == (409, "conflict")


async def test_what_is_no_audio_leaves_nothing_behind(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served)
    silent, before = base64_of(wav(np.zeros(48_000, np.float32))), blobs(served)
    for body, expected in (
        ({"file": "not base64!"}, (400, "badRequest")),
        ({"file": base64_of(b"no sound at all " * 50)}, (415, "unsupportedMedia")),
        ({"file": silent}, (400, "audioUnfit")),
        ({"file": sound(), "identity": "nobody"}, (404, "notFound")),
        ({"file": sound(), "handle": "UPPER"}, (400, "badRequest")),
        ({"file": 7}, (400, "badRequest")),
    ):
        assert error_of(await caller.http.post(f"{caller.space}/audios", json=body)) == expected, body
    broken = await caller.http.post(
        f"{caller.space}/audios", content=b"{", headers={"content-type": "application/json"}
    )
    assert error_of(broken) == (400, "badRequest")
    assert (await caller.get(f"{caller.space}/audios"))["totalItems"] == 0
    assert blobs(served) <= before


async def test_audios_and_aliases_are_ciphertext_where_they_lie(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served)
    data = wav(speech(0, 6))
    await caller.post(f"{caller.space}/identities", {"handle": "ada", "alias": "Zanzibar Alias"})
    made = await caller.post(
        f"{caller.space}/audios", {"alias": "Zanzibar Audio", "file": base64_of(data), "identity": "ada"}
    )
    await caller.post(
        f"{caller.space}/voiceprints",
        {"handle": "main", "alias": "Zanzibar Print", "model": "default/v1", "identity": "ada"},
    )
    await caller.post(f"{caller.space}/voiceprints/ada/main/audios/{made['id']}")
    await caller.post(f"{caller.space}/voiceprints/ada/main:compute", status=200)
    files = [path.read_bytes() for path in Path(served.world.data).rglob("*") if path.is_file()]
    assert not [file for file in files if b"Zanzibar" in file or data[20_000:20_064] in file]


# Models and voiceprints


async def test_the_model_index_says_what_audios_have_to_be(shared: tuple[Served, FakeNode]) -> None:
    caller = await acme(shared[0])
    index = await caller.get("/v1/models")
    (model,) = index["items"]
    assert model == await caller.get("/v1/models/default/v1")
    assert (model["handle"], model["version"]) == ("default", "v1")
    assert model["requirements"] == {
        "voiceDuration": "PT4.500S",
        "maxDuration": "PT120.000S",
        "minSampleRate": 8_000,
    }
    assert error_of(await caller.http.get("/v1/models/default/v2")) == (404, "notFound")


async def test_the_guide_step_by_step(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    caller = await acme(served)
    await caller.post(f"{caller.space}/identities", {"handle": "ada", "alias": "Ada"})
    audio = await caller.post(f"{caller.space}/audios", {"file": sound(), "identity": "ada"})
    # The guide posts a voiceprint to …/identities, and so may we.
    body = {
        "handle": "main",
        "model": {"handle": "default", "version": "v1"},
        "identity": "ada",
        "minAudios": 1,
    }
    made = await caller.post(f"{caller.space}/identities", body)
    assert made == {
        "id": made["id"],
        "handle": "main",
        "alias": None,
        "state": "notComputable",
        "model": {"handle": "default", "version": "v1"},
        "identity": {"handle": "ada", "alias": "Ada"},
        "totalDuration": "PT0.000S",
        "minAudios": 1,
        "audios": [],
        "verifications": 0,
        "createdAt": made["createdAt"],
        "computedAt": None,
    }
    one = f"{caller.space}/voiceprints/ada/main"
    assert error_of(await caller.http.post(f"{one}:compute")) == (409, "conflict")
    added = await caller.post(f"{one}/audios/{audio['id']}")
    assert (added["state"], added["totalDuration"]) == ("computable", "PT6.000S")
    assert added["audios"] == [
        {
            "id": audio["id"],
            "handle": audio["id"],
            "alias": None,
            "duration": "PT6.000S",
            "voiceDuration": "PT5.000S",
            "leftOut": False,
        }
    ]
    computed = await caller.post(f"{one}:compute", status=200)
    assert (computed["state"], computed["identity"]["handle"]) == ("computed", "ada")
    assert ISO.fullmatch(computed["computedAt"])
    assert await caller.get(one) == computed
    (voiceprint,) = (await caller.get(f"{caller.space}/audios/{audio['id']}"))["voiceprints"]
    assert voiceprint["handle"] == "main"
    records = await caller.get(f"/v1/orgs/{caller.tenant}/records/voiceprint")
    (used,) = records["items"]
    assert (used["voiceprint"], used["audios"], used["duration"]) == (made["id"], 1, "PT6.000S")
    assert used["model"] == {"handle": "default", "version": "v1"}
    assert DURATION.fullmatch(used["voiceDuration"])
    # Everybody's streams of the organisation hear of Ada.
    await until(lambda: caller.held(node) == ["Ada"])


async def test_a_computed_voiceprint_is_frozen(shared: tuple[Served, FakeNode]) -> None:
    caller = await acme(shared[0])
    computed = await caller.computed()
    one = f"{caller.space}/voiceprints/ada/main"
    other = await caller.post(f"{caller.space}/audios", {"file": sound(3)})
    (member,) = computed["audios"]
    refused = [
        await caller.http.post(f"{one}:compute"),
        await caller.http.post(f"{one}/audios/{other['id']}"),
        await caller.http.delete(f"{one}/audios/{member['id']}"),
        await caller.http.delete(one),
    ]
    assert [error_of(answer) for answer in refused] == [(409, "conflict")] * 4
    assert await caller.get(one) == computed


async def test_computing_at_once_computes_once(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served)
    await caller.post(f"{caller.space}/identities", {"handle": "ada"})
    audio = await caller.post(f"{caller.space}/audios", {"file": sound()})
    for handle in ("main", "other"):
        await caller.post(f"{caller.space}/voiceprints", {"handle": handle, "model": "default/v1", "identity": "ada"})
        await caller.post(f"{caller.space}/voiceprints/ada/{handle}/audios/{audio['id']}")
    one = f"{caller.space}/voiceprints/ada/main:compute"
    answers = await asyncio.gather(*(caller.http.post(one) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    # Another voiceprint of the same person is the same voice, enrolled anew.
    await caller.post(f"{caller.space}/voiceprints/ada/other:compute", status=200)
    async with served.plane.core.database.read() as connection:
        query = select(voices.c.generation).where(voices.c.tenant_id == caller.tenant)
        assert (await connection.execute(query)).scalar_one() == 2
    assert await rows(served, caller, space_records) == [2]


async def test_a_voiceprint_needs_as_many_audios_as_it_says_each_with_its_share_of_voice(
    shared: tuple[Served, FakeNode],
) -> None:
    served, node = shared
    caller = await acme(served)
    await caller.post(f"{caller.space}/identities", {"handle": "ada"})
    body = {"handle": "main", "model": "default/v1", "identity": "ada", "minAudios": 3}
    await caller.post(f"{caller.space}/voiceprints", body)
    one = f"{caller.space}/voiceprints/ada/main"
    node.net_speech_ms = 1_400  # 4.5 s / 3 is 1.5 s
    short = await caller.post(f"{caller.space}/audios", {"file": sound(0, 2.0)})
    answer = await caller.http.post(f"{one}/audios/{short['id']}")
    assert error_of(answer) == (400, "audioUnfit")
    node.net_speech_ms = 1_500
    states = []
    for seed in range(1, 4):
        audio = await caller.post(f"{caller.space}/audios", {"file": sound(seed, 2.0)})
        states.append((await caller.post(f"{one}/audios/{audio['id']}"))["state"])
    assert states == ["notComputable", "notComputable", "computable"]
    again = await caller.http.post(f"{one}/audios/{audio['id']}")
    assert error_of(again) == (409, "conflict")
    taken = await caller.http.delete(f"{one}/audios/{audio['id']}")
    assert (taken.status_code, taken.json()["state"]) == (200, "notComputable")
    assert error_of(await caller.http.delete(f"{one}/audios/{audio['id']}")) == (404, "notFound")
    for minimum in (0, 11, "many"):
        wrong = await caller.http.post(
            f"{caller.space}/voiceprints", json={**body, "handle": "x", "minAudios": minimum}
        )
        assert error_of(wrong) == (400, "badRequest")
    for model in ("default", "default/v9", {"handle": "default"}):
        wrong = await caller.http.post(f"{caller.space}/voiceprints", json={**body, "handle": "x", "model": model})
        assert error_of(wrong)[0] in (400, 404)


async def test_an_unfit_audio_is_refused_when_it_is_added_and_every_reason_is_named(
    shared: tuple[Served, FakeNode],
) -> None:
    served, node = shared
    caller = await acme(served)
    await caller.post(f"{caller.space}/identities", {"handle": "ada"})
    await caller.post(f"{caller.space}/voiceprints", {"handle": "main", "model": "default/v1", "identity": "ada"})
    long = await caller.post(f"{caller.space}/audios", {"file": sound(0, 121)})
    slow = wav(speech(1, 6)[::3], 5_333)
    slow_audio = await caller.post(f"{caller.space}/audios", {"file": base64_of(slow)})
    node.num_speakers = 2
    two = await caller.post(f"{caller.space}/audios", {"file": sound(2)})
    node.num_speakers, node.net_speech_ms = 1, 4_400
    little = await caller.post(f"{caller.space}/audios", {"file": sound(3)})
    told = []
    for audio in (long, slow_audio, two, little):
        answer = await caller.http.post(f"{caller.space}/voiceprints/ada/main/audios/{audio['id']}")
        assert error_of(answer) == (400, "audioUnfit")
        told.append([one["message"] for one in answer.json()["error"]["errors"]])
    assert "121.0 s long" in told[0][0]
    assert "5333 Hz" in told[1][0]
    assert "2 different voices" in told[2][0]
    assert "4.4 s of voice" in told[3][0]
    awaiting = await caller.post(f"{caller.space}/audios", {})
    answer = await caller.http.post(f"{caller.space}/voiceprints/ada/main/audios/{awaiting['id']}")
    assert error_of(answer) == (409, "conflict")


async def test_an_audio_of_one_identity_is_not_another_s(shared: tuple[Served, FakeNode]) -> None:
    caller = await acme(shared[0])
    await caller.computed(identity="ada")
    (member,) = (await caller.get(f"{caller.space}/voiceprints/ada/main"))["audios"]
    await caller.post(f"{caller.space}/identities", {"handle": "bob"})
    await caller.post(f"{caller.space}/voiceprints", {"handle": "main", "model": "default/v1", "identity": "bob"})
    answer = await caller.http.post(f"{caller.space}/voiceprints/bob/main/audios/{member['id']}")
    assert error_of(answer) == (409, "conflict")


async def test_without_a_node_audios_are_taken_and_what_needs_listening_waits(serving: Serving) -> None:
    served = await serving()
    caller = await acme(served)
    await caller.post(f"{caller.space}/identities", {"handle": "ada"})
    audio = await caller.post(f"{caller.space}/audios", {"file": sound()})
    assert (audio["state"], audio["voiceDuration"]) == ("available", None)
    await caller.post(f"{caller.space}/voiceprints", {"handle": "main", "model": "default/v1", "identity": "ada"})
    one = f"{caller.space}/voiceprints/ada/main"
    refused = await caller.http.post(f"{one}/audios/{audio['id']}")
    assert error_of(refused) == (503, "unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    node = await served.world.node(served.plane)
    await caller.post(f"{one}/audios/{audio['id']}")
    assert (await caller.get(f"{caller.space}/audios/{audio['id']}"))["voiceDuration"] == "PT5.000S"
    await node.stop()

    async def alone() -> bool:
        return (await caller.http.post(f"{one}:compute")).status_code == 503

    await until(alone)
    assert (await caller.get(one))["state"] == "computable"


async def test_voiceprints_are_listed_in_pages_sorted_sought_and_bounded_in_time(
    shared: tuple[Served, FakeNode],
) -> None:
    caller = await acme(shared[0])
    await caller.computed(handle="main")
    for handle, alias in (("b", "Zeta"), ("a", "Eta"), ("c", None)):
        body = {"handle": handle, "alias": alias, "model": "default/v1", "identity": "ada"}
        await caller.post(f"{caller.space}/voiceprints", body)
    place = f"{caller.space}/identities/ada/voiceprints"

    async def handles(**params: Any) -> list[str]:
        return [one["handle"] for one in (await caller.get(place, **params))["items"]]

    assert await handles() == ["main", "b", "a", "c"]
    assert await handles(sort="handle") == ["a", "b", "c", "main"]
    assert await handles(sort="-handle") == await handles(sort="handle:desc") == ["main", "c", "b", "a"]
    assert await handles(search="ETA") == ["b", "a"]
    assert await handles(sort="-computedAt", **{"page-size": 1}) == ["main"]
    paged = await caller.get(place, page=2, **{"page-size": 3})
    assert [one["handle"] for one in paged["items"]] == ["c"]
    assert (paged["page"], paged["pageSize"], paged["totalItems"], paged["totalPages"]) == (2, 3, 4, 2)
    first = (await caller.get(f"{caller.space}/voiceprints/ada/main"))["createdAt"]
    assert await handles(before=first) == []
    assert len(await handles(after="2020-01-01T00:00:00Z")) == 4
    assert await handles(after="2999-01-01") == []
    for wrong in ({"page": 0}, {"page-size": 101}, {"sort": "nothing"}, {"after": "soon"}):
        assert error_of(await caller.http.get(place, params=wrong)) == (400, "badRequest")


# Verifications


async def test_a_verification_gives_one_score_between_nought_and_one(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    caller = await acme(served)
    await caller.computed()
    audio = await caller.post(f"{caller.space}/audios", {"alias": "asked", "file": sound(9)})
    body = {"audio": audio["id"], "identity": "ada", "voiceprint": "main"}
    scores = []
    for probability in (0.93, 1.0, 0.0):
        node.same_probability = probability
        made = await caller.post(f"{caller.space}/verifications/identity", body)
        scores.append(made["score"])
    assert scores == [0.93, 0.999999, 0.000001]
    assert all(0 < score < 1 for score in scores)
    assert made == {
        "id": made["id"],
        "state": "computed",
        "model": {"handle": "default", "version": "v1"},
        "score": made["score"],
        "audio": {"id": audio["id"], "handle": audio["id"], "alias": None},
        "identity": {"handle": "ada", "alias": "ada of the tests"},
        "voiceprint": {**made["voiceprint"], "handle": "main", "alias": None},
        "createdAt": made["createdAt"],
    }
    assert await caller.get(f"{caller.space}/verifications/{made['id']}") == made
    assert (await caller.get(f"{caller.space}/voiceprints/ada/main"))["verifications"] == 3
    assert (await caller.get(f"{caller.space}/audios/{audio['id']}"))["verifications"] == 3
    used = await caller.get(f"/v1/orgs/{caller.tenant}/records/verification")
    assert used["totalItems"] == 3


async def test_what_is_not_computed_or_unfit_is_not_verified(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    caller = await acme(served)
    await caller.computed()
    await caller.post(f"{caller.space}/voiceprints", {"handle": "empty", "model": "default/v1", "identity": "ada"})
    good = await caller.post(f"{caller.space}/audios", {"file": sound(9)})
    node.net_speech_ms = 0
    mute = await caller.post(f"{caller.space}/audios", {"file": sound(10)})
    place = f"{caller.space}/verifications/identity"
    for audio, identity, voiceprint, expected in (
        (good["id"], "ada", "empty", (409, "conflict")),
        (mute["id"], "ada", "main", (400, "audioUnfit")),
        ("nothing", "ada", "main", (404, "notFound")),
        (good["id"], "eve", "main", (404, "notFound")),
        (good["id"], "ada", "none", (404, "notFound")),
    ):
        body = {"audio": audio, "identity": identity, "voiceprint": voiceprint}
        assert error_of(await caller.http.post(place, json=body)) == expected
    assert error_of(await caller.http.post(place, json={"audio": good["id"]})) == (400, "badRequest")


async def test_nodes_of_another_model_compare_by_what_the_voiceprint_was_made_of(serving: Serving) -> None:
    served = await serving()
    node = await served.world.node(served.plane)
    caller = await acme(served)
    await caller.computed()
    audio = await caller.post(f"{caller.space}/audios", {"file": sound(9)})
    await node.stop()
    other = await served.world.node(served.plane, "node-2", model="another@1")
    other.same_probability = 0.66
    body = {"audio": audio["id"], "identity": "ada", "voiceprint": "main"}

    async def compared() -> bool:
        answer = await caller.http.post(f"{caller.space}/verifications/identity", json=body)
        return answer.status_code == 201 and abs(answer.json()["score"] - 0.66) < 1e-6

    await until(compared)


async def test_a_voice_whose_consent_was_withdrawn_is_compared_with_nothing(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served)
    await caller.computed()
    audio = await caller.post(f"{caller.space}/audios", {"file": sound(9)})
    voice_id = (await caller.get(f"{caller.space}/identities/ada"))["voice"]
    principal = await served.plane.core.identity.principal(caller.http.headers["authorization"][7:], "voices:write")
    await served.plane.core.people.changes.withdraw(principal, voice_id, opt_out=False)
    body = {"audio": audio["id"], "identity": "ada", "voiceprint": "main"}
    assert error_of(await caller.http.post(f"{caller.space}/verifications/identity", json=body)) == (409, "conflict")


# Erasure, records


async def rows(served: Served, caller: Caller, *tables: Any) -> list[int]:
    """How many there are of the caller's."""
    async with served.plane.core.database.read() as connection:
        return [
            len((await connection.execute(select(table).where(table.c.tenant_id == caller.tenant))).all())
            for table in tables
        ]


async def test_an_identity_is_erased_with_audit_and_its_records_stay(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    caller = await acme(served)
    before = blobs(served)
    await caller.computed()
    audio = await caller.post(f"{caller.space}/audios", {"file": sound(9), "identity": "ada"})
    body = {"audio": audio["id"], "identity": "ada", "voiceprint": "main"}
    verification = await caller.post(f"{caller.space}/verifications/identity", body)
    await until(lambda: len(caller.held(node)) == 1)
    gone = await caller.http.delete(f"{caller.space}/identities/ada")
    assert gone.status_code == 200
    assert gone.json()["state"] in ("erasing", "erased")
    await until(lambda: not caller.held(node))
    for path in (
        "identities/ada",
        "voiceprints/ada/main",
        "identities/ada/voiceprints",
        f"audios/{audio['id']}",
        f"verifications/{verification['id']}",
    ):
        assert error_of(await caller.http.get(f"{caller.space}/{path}")) == (404, "notFound")
    assert error_of(await caller.http.delete(f"{caller.space}/identities/ada")) == (404, "notFound")
    records = await caller.get(f"/v1/orgs/{caller.tenant}/records/voiceprint")
    assert records["totalItems"] == 1
    tables = (space_identities, space_audios, space_voiceprints, space_members, space_verifications)
    assert await rows(served, caller, *tables) == [0] * len(tables)
    assert await rows(served, caller, space_keys) == [1]  # the space's own

    async def blobs_are_gone() -> bool:
        async with served.plane.core.database.read() as connection:
            query = select(erasures).where(erasures.c.tenant_id == caller.tenant)
            row = (await connection.execute(query)).one()
        is_erased = row.state == "erased" and not row.blobs_pending and row.blob_bytes_deleted > 0
        return bool(is_erased and await rows(served, caller, samples) == [0])

    await until(blobs_are_gone)
    assert blobs(served) <= before


async def test_an_identity_of_which_nothing_was_computed_is_erased_as_any_other(
    shared: tuple[Served, FakeNode],
) -> None:
    served, _ = shared
    caller = await acme(served)
    before = blobs(served)
    await caller.post(f"{caller.space}/identities", {"handle": "ada"})
    await caller.post(f"{caller.space}/audios", {"file": sound(), "identity": "ada"})
    erased = (await caller.http.delete(f"{caller.space}/identities/ada")).json()
    assert erased["auditId"].startswith("e_")
    assert error_of(await caller.http.get(f"{caller.space}/identities/ada")) == (404, "notFound")
    assert (await caller.get(f"{caller.space}/audios"))["totalItems"] == 0
    await until(lambda: blobs(served) <= before)


async def test_an_identity_whose_voice_is_erased_elsewhere_is_gone(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served)
    await caller.computed()
    voice_id = (await caller.get(f"{caller.space}/identities/ada"))["voice"]
    principal = await served.plane.core.identity.principal(caller.http.headers["authorization"][7:], "voices:erase")
    await served.plane.core.erasures.erase(principal, voice_id)
    for path in ("identities/ada", "voiceprints/ada/main"):
        assert error_of(await caller.http.get(f"{caller.space}/{path}")) == (404, "notFound")
    assert (await caller.get(f"{caller.space}/audios"))["totalItems"] == 0
    # The handle is free for a person who comes anew.
    await caller.computed()


async def test_a_voice_enrolled_elsewhere_is_an_identity_of_the_library(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    caller = await acme(served)
    client = await served.world.client(served.plane, caller.http.headers["authorization"][7:])
    voice_id = (await client.enrol("Grace")).voice.voice_id
    await until(lambda: len(caller.held(node)) == 1)
    library = f"/v1/spaces/{caller.tenant}/voices"
    handle = voice_id.replace("_", "-")
    shown = await caller.get(f"{library}/identities/{handle}")
    assert (shown["handle"], shown["alias"], shown["voice"]) == (handle, "Grace", voice_id)
    assert [one["id"] for one in (await caller.get(f"{library}/identities"))["items"]] == [shown["id"]]
    assert (await caller.get(f"{library}/voiceprints/{handle}/main"))["state"] == "computed"
    audio = await caller.post(f"{library}/audios", {"file": sound(9)})
    body = {"audio": audio["id"], "identity": handle, "voiceprint": "main"}
    assert (await caller.post(f"{library}/verifications/identity", body))["score"] == pytest.approx(0.93)
    for path, body in (("identities", {"handle": "x"}), ("voiceprints", {"model": "default/v1", "identity": handle})):
        assert error_of(await caller.http.post(f"{library}/{path}", json=body)) == (409, "conflict")
    assert error_of(await caller.http.delete(library)) == (409, "conflict")
    assert (await caller.http.delete(f"{library}/identities/{handle}")).status_code == 200
    assert error_of(await caller.http.get(f"{library}/identities/{handle}")) == (404, "notFound")
    await until(lambda: not caller.held(node))


async def test_a_voice_profile_is_an_identity_of_its_user_s_library(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served, user_id="u1")
    profile = "/api/users/me/voice-profile"
    sent = {"file": ("me.wav", wav(speech(4, 16)), "audio/wav")}
    assert (await caller.http.post(profile, files=sent)).status_code == 201
    (shown,) = (await caller.get("/v1/spaces/u1/voices/identities"))["items"]
    assert shown["alias"] == "u1"
    assert (await caller.get(f"/v1/spaces/{caller.tenant}/voices/identities"))["items"] == []
    assert (await caller.http.delete(f"/v1/spaces/u1/voices/identities/{shown['handle']}")).status_code == 200
    assert (await caller.get(f"{profile}/status")) == {"status": "MISSING"}
    assert (await caller.get("/v1/spaces/u1/voices/identities"))["items"] == []


async def test_a_deleted_audio_of_a_voiceprint_stays_written_down_without_its_file(
    shared: tuple[Served, FakeNode],
) -> None:
    served, _ = shared
    caller = await acme(served)
    (member,) = (await caller.computed())["audios"]
    place = f"{caller.space}/audios/{member['id']}"
    assert (await caller.http.delete(place)).status_code == 204
    shown = await caller.get(place)
    assert (shown["state"], shown["alias"]) == ("notAvailable", None)
    assert (await caller.get(f"{caller.space}/voiceprints/ada/main"))["audios"] == [member]
    assert error_of(await caller.http.delete(place)) == (409, "conflict")
    free = await caller.post(f"{caller.space}/audios", {"file": sound(9)})
    assert (await caller.http.delete(f"{caller.space}/audios/{free['id']}")).status_code == 204
    assert error_of(await caller.http.get(f"{caller.space}/audios/{free['id']}")) == (404, "notFound")


async def test_a_space_is_deleted_with_all_that_is_in_it_but_its_records(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    caller = await acme(served)
    await caller.computed()
    await caller.post(f"{caller.space}/identities", {"handle": "bob"})
    await caller.post(f"{caller.space}/audios", {"file": sound(9)})
    gone = await caller.http.delete(caller.space)
    assert (gone.status_code, len(gone.json()["erasures"])) == (200, 2)
    assert error_of(await caller.http.get(caller.space)) == (404, "notFound")
    await until(lambda: not caller.held(node))
    assert (await caller.get(f"/v1/orgs/{caller.tenant}/records/voiceprint"))["totalItems"] == 1
    assert await rows(served, caller, space_identities, space_audios, space_keys) == [0, 0, 0]


async def test_records_of_a_user_s_spaces_are_the_user_s(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served, user_id="u1")
    await caller.post("/v1/spaces/u1", {"handle": "mine"})
    await caller.computed("/v1/spaces/u1/mine")
    assert (await caller.get("/v1/records/voiceprint"))["totalItems"] == 1
    assert (await caller.get(f"/v1/orgs/{caller.tenant}/records/voiceprint"))["totalItems"] == 0
    assert error_of(await caller.http.get("/v1/orgs/other/records/voiceprint")) == (404, "notFound")
    service = await served.http(await served.key("admin", tenant_id=caller.tenant))
    assert error_of(await service.get("/v1/records/voiceprint")) == (403, "forbidden")
    # Its voice is for the user's own streams alone.
    async with served.plane.core.database.read() as connection:
        query = select(voices.c.scope, voices.c.owner_user_id).where(voices.c.tenant_id == caller.tenant)
        row = (await connection.execute(query)).one()
    assert tuple(row) == ("user", "u1")


async def test_who_looks_after_a_user_s_space_matches_against_nobody_in_it(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served, user_id="u1")
    await caller.post("/v1/spaces/u1", {"handle": "mine"})
    await caller.computed("/v1/spaces/u1/mine")
    audio = await caller.post("/v1/spaces/u1/mine/audios", {"file": sound(9)})
    admin = await served.http(await served.key("admin", tenant_id=caller.tenant))
    assert (await admin.get("/v1/spaces/u1/mine/identities/ada")).status_code == 200
    body = {"audio": audio["id"], "identity": "ada", "voiceprint": "main"}
    refused = await admin.post("/v1/spaces/u1/mine/verifications/identity", json=body)
    assert error_of(refused) == (403, "forbidden")


async def test_a_closed_user_s_spaces_are_erased(shared: tuple[Served, FakeNode]) -> None:
    served, node = shared
    caller = await acme(served, user_id="u1")
    await caller.post("/v1/spaces/u1", {"handle": "mine"})
    await caller.computed("/v1/spaces/u1/mine")
    await caller.post("/v1/spaces/u1/mine/identities", {"handle": "bob"})
    core = served.plane.core
    admin = await core.identity.principal(await served.key("admin", tenant_id=caller.tenant), "admin")
    await core.people.administration.delete_user(admin, "", "u1")
    await core.spaces.chore.run()
    assert await rows(served, caller, space_identities, space_audios) == [0, 0]
    await until(lambda: not caller.held(node))


# Who may


ROUTES = (
    ("GET", "", None),
    ("DELETE", "", None),
    ("GET", "/collaborators", None),
    ("PUT", "/collaborators/u1", {}),
    ("DELETE", "/collaborators/u1", None),
    ("POST", "/identities", {"handle": "x"}),
    ("GET", "/identities", None),
    ("GET", "/identities/ada", None),
    ("DELETE", "/identities/ada", None),
    ("GET", "/identities/ada/voiceprints", None),
    ("POST", "/audios", {"alias": "x"}),
    ("GET", "/audios", None),
    ("GET", "/audios/AUDIO", None),
    ("DELETE", "/audios/AUDIO", None),
    ("POST", "/audios/AUDIO/file", {}),
    ("POST", "/voiceprints", {"handle": "x", "model": "default/v1", "identity": "ada"}),
    ("GET", "/voiceprints/ada/main", None),
    ("DELETE", "/voiceprints/ada/main", None),
    ("POST", "/voiceprints/ada/main:compute", None),
    ("POST", "/voiceprints/ada/main/audios/AUDIO", None),
    ("DELETE", "/voiceprints/ada/main/audios/AUDIO", None),
    ("POST", "/verifications/identity", {"audio": "AUDIO", "identity": "ada", "voiceprint": "main"}),
    ("GET", "/verifications/VERIFICATION", None),
)


async def test_another_tenant_and_another_user_find_each_route_as_empty_as_one_that_never_was(
    shared: tuple[Served, FakeNode],
) -> None:
    served, _ = shared
    caller = await acme(served, user_id="u1")
    await caller.post("/v1/spaces/u1", {"handle": "mine"})
    evil = f"evil-{caller.tenant}"
    await served.tenant(evil, caller.tenant, "u1")
    async with served.plane.core.database.write() as connection:
        await connection.execute(users.insert().values(tenant_id=caller.tenant, user_id="u2", created_at_s=1.0))
    stranger = await served.http(await served.key("admin", tenant_id=evil, user_id="u1"))
    powers = ("voices:read", "voices:write", "voices:erase", "jobs:write")
    colleague = await served.http(await served.key(*powers, tenant_id=caller.tenant, user_id="u2"))
    for place, callers in ((caller.space, [stranger]), ("/v1/spaces/u1/mine", [stranger, colleague])):
        await caller.computed(place)
        audio = await caller.post(f"{place}/audios", {"file": sound(9), "identity": "ada"})
        body = {"audio": audio["id"], "identity": "ada", "voiceprint": "main"}
        verification = await caller.post(f"{place}/verifications/identity", body)
        for http in callers:
            for method, route, payload in ROUTES:
                path = route.replace("AUDIO", audio["id"]).replace("VERIFICATION", verification["id"])
                sent = json.loads(json.dumps(payload).replace("AUDIO", audio["id"]))
                absent = place.replace("calls", "never").replace("mine", "never")
                answers = [await http.request(method, where + path, json=sent) for where in (place, absent)]
                bodies = [answer.json()["error"] for answer in answers]
                assert [error_of(answer) for answer in answers] == [(404, "notFound")] * 2, (method, path)
                assert bodies[0]["errors"] == bodies[1]["errors"], (method, path)
        assert (await caller.get(f"{place}/voiceprints/ada/main"))["state"] == "computed"
    assert error_of(await stranger.get(f"/v1/orgs/{caller.tenant}/records/voiceprint")) == (404, "notFound")
    assert (await stranger.get("/v1/records/voiceprint")).json()["totalItems"] == 0


async def test_keys_without_the_scope_or_none_are_told_so_in_the_envelope(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served)
    nobody = await served.http("")
    powerless = await served.http(await served.key("audit:read", tenant_id=caller.tenant))
    for method, path, payload in ROUTES:
        for http, expected in ((nobody, (401, "unauthorized")), (powerless, (403, "forbidden"))):
            assert error_of(await http.request(method, caller.space + path, json=payload)) == expected, (method, path)
    assert error_of(await nobody.get("/v1/spaces")) == (404, "notFound")


async def test_a_repeated_request_makes_one_thing(shared: tuple[Served, FakeNode]) -> None:
    caller = await acme(shared[0])
    key = {"idempotency-key": "once"}
    first = await caller.post(f"{caller.space}/audios", {"file": sound()}, headers=key)
    assert await caller.post(f"{caller.space}/audios", {"file": sound()}, headers=key) == first
    assert (await caller.get(f"{caller.space}/audios"))["totalItems"] == 1
    body = {"handle": "ada", "alias": "Ada Example"}
    made = await caller.post(f"{caller.space}/identities", body, headers=key)
    assert await caller.post(f"{caller.space}/identities", body, headers=key) == made
    await caller.http.delete(f"{caller.space}/identities/ada")
    # What was answered then told of the person.
    again = await caller.http.post(f"{caller.space}/identities", json=body, headers=key)
    assert error_of(again) == (409, "conflict")


# Under it all


async def test_keys_of_spaces_are_rotated_with_the_others(shared: tuple[Served, FakeNode]) -> None:
    served, _ = shared
    caller = await acme(served)
    computed = await caller.computed()
    core = served.plane.core
    admin = await core.identity.principal(served.admin_key, "platform:admin")
    await core.people.rotation.rotate(admin)
    assert await caller.get(f"{caller.space}/voiceprints/ada/main") == computed
    audio = await caller.post(f"{caller.space}/audios", {"file": sound(9)})
    body = {"audio": audio["id"], "identity": "ada", "voiceprint": "main"}
    await caller.post(f"{caller.space}/verifications/identity", body)


async def test_it_is_the_same_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    async with AsyncExitStack() as stack:
        serving = Serving(World(tmp_path / "data", stack, postgresql_url), stack)
        served = await serving()
        node = await served.world.node(served.plane)
        caller = await acme(served)
        await caller.computed()
        one = f"{caller.space}/voiceprints/ada/main:compute"
        assert {answer.status_code for answer in await asyncio.gather(*(caller.http.post(one) for _ in range(3)))} == {
            409
        }
        await caller.post(f"{caller.space}/identities", {"handle": "bob"})
        assert (await caller.get(f"{caller.space}/identities", sort="-handle"))["items"][0]["handle"] == "bob"
        for identity in ("ada", "bob"):
            assert (await caller.http.delete(f"{caller.space}/identities/{identity}")).status_code == 200
        await until(lambda: not caller.held(node))
        assert (await caller.get(f"/v1/orgs/{caller.tenant}/records/voiceprint"))["totalItems"] == 1
        assert await rows(served, caller, space_identities, space_audios, space_voiceprints) == [0, 0, 0]

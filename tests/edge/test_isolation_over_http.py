"""Whatever route is asked for what is not the caller's answers word for word as it does for what is not there.

The routes are those of the application itself: one that is new fails the first test until it stands in a table here.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import httpx
from fastapi.routing import APIRoute, APIWebSocketRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from edge.app import DIALECTS
from edge.dialect import Edge
from edge.frame import application_of
from tests.controlplane.conftest import speech, wav
from tests.edge.conftest import Served
from tests.edge.scai import ECHO, SPEAK, clone
from tests.edge.spaces import computed, did, sound

NO_BODY: dict[str, Any] = {}
OF_SPACES = "/v1/spaces/{owner}/{space}"
FIXED_ID = {"x-request-id": "the-same"}

NAMING: dict[tuple[str, str], dict[str, Any]] = {
    ("GET", f"{ECHO}/speakers/{{speaker_id}}"): NO_BODY,
    ("DELETE", f"{ECHO}/speakers/{{speaker_id}}"): NO_BODY,
    ("GET", f"{ECHO}/speakers/{{speaker_id}}/warm"): NO_BODY,
    ("POST", f"{ECHO}/speakers/{{speaker_id}}/warm"): {"json": {"node_ids": []}},
    ("GET", f"{SPEAK}/voices/{{voice_id}}"): NO_BODY,
    ("DELETE", f"{SPEAK}/voices/{{voice_id}}"): NO_BODY,
    ("POST", f"{SPEAK}/voices/{{voice_id}}/share"): NO_BODY,
    ("POST", f"{SPEAK}/voices/{{voice_id}}/repromote"): NO_BODY,
    ("DELETE", f"{SPEAK}/admin/voices/global/{{voice_id}}"): {"params": {"trigger": "license_revoked"}},
    ("GET", "/v1/jobs/{jobId}"): NO_BODY,
    ("DELETE", "/v1/jobs/{jobId}"): NO_BODY,
    ("GET", "/v1/jobs/{jobId}/rttm"): NO_BODY,
    ("GET", "/v1/jobs/{jobId}/srt"): NO_BODY,
    ("GET", "/v1/jobs/{jobId}/report"): NO_BODY,
    ("GET", "/v1/live/{session_id}"): NO_BODY,
    ("GET", "/v1/spaces/{owner}"): NO_BODY,
    ("POST", "/v1/spaces/{owner}"): {"json": {"handle": "new"}},
    ("GET", OF_SPACES): NO_BODY,
    ("DELETE", OF_SPACES): NO_BODY,
    ("GET", f"{OF_SPACES}/collaborators"): NO_BODY,
    ("PUT", f"{OF_SPACES}/collaborators/{{user}}"): {"json": {"mayWrite": True}},
    ("DELETE", f"{OF_SPACES}/collaborators/{{user}}"): NO_BODY,
    ("POST", f"{OF_SPACES}/identities"): {"json": {"handle": "new"}},
    ("GET", f"{OF_SPACES}/identities"): NO_BODY,
    ("GET", f"{OF_SPACES}/identities/{{identity}}"): NO_BODY,
    ("DELETE", f"{OF_SPACES}/identities/{{identity}}"): NO_BODY,
    ("GET", f"{OF_SPACES}/identities/{{identity}}/voiceprints"): NO_BODY,
    ("POST", f"{OF_SPACES}/audios"): {"json": {"file": sound(9)}},
    ("POST", f"{OF_SPACES}/audios/{{audio}}/file"): {"content": wav(speech(9))},
    ("GET", f"{OF_SPACES}/audios"): NO_BODY,
    ("GET", f"{OF_SPACES}/audios/{{audio}}"): NO_BODY,
    ("DELETE", f"{OF_SPACES}/audios/{{audio}}"): NO_BODY,
    ("POST", f"{OF_SPACES}/voiceprints"): {"json": {"model": "default/v1", "identity": "alice", "minAudios": 1}},
    ("POST", f"{OF_SPACES}/voiceprints/{{identity}}/{{voiceprint}}:compute"): NO_BODY,
    ("GET", f"{OF_SPACES}/voiceprints/{{identity}}/{{voiceprint}}"): NO_BODY,
    ("DELETE", f"{OF_SPACES}/voiceprints/{{identity}}/{{voiceprint}}"): NO_BODY,
    ("POST", f"{OF_SPACES}/voiceprints/{{identity}}/{{voiceprint}}/audios/{{audio}}"): NO_BODY,
    ("DELETE", f"{OF_SPACES}/voiceprints/{{identity}}/{{voiceprint}}/audios/{{audio}}"): NO_BODY,
    ("POST", f"{OF_SPACES}/verifications/identity"): {
        "json": {"audio": "a", "identity": "alice", "voiceprint": "main"}
    },
    ("GET", f"{OF_SPACES}/verifications/{{verification}}"): NO_BODY,
    ("GET", "/v1/orgs/{org}/records/{kind}"): NO_BODY,
}
"""Routes whose path names something of somebody's, and what has to be sent with it."""

LISTING = {
    ("GET", f"{ECHO}/speakers"),
    ("GET", f"{SPEAK}/voices"),
    ("GET", f"{SPEAK}/admin/erasure/audit"),
    ("GET", "/v2/jobs"),
    ("GET", "/v1/records/{kind}"),
}
"""Routes that show what is the caller's: nothing of another's may be in it."""

ABOUT_ONESELF = {
    ("POST", f"{ECHO}/speakers"): "makes a speaker of the caller's own",
    ("POST", f"{SPEAK}/voices"): "makes a voice of the caller's own",
    ("POST", f"{SPEAK}/admin/voices/global"): "makes a voice for everybody",
    ("GET", "/v1/test"): "says whether the key is good",
    ("POST", "/v1/media/input"): "names a place among the caller's own",
    ("POST", "/v1/media/output"): "below",
    ("POST", "/v1/diarize"): "below",
    ("POST", "/v1/identify"): "below",
    ("POST", "/v1/voiceprint"): "below",
    ("POST", "/v1/live"): "opens a session of the caller's own",
    ("POST", "/v1/webhook-secret"): "the secret of the caller's own tenant",
    ("GET", "/v1/webhook-secret"): "the secret of the caller's own tenant",
    ("POST", "/api/users/me/voice-profile"): "the caller's own profile",
    ("GET", "/api/users/me/voice-profile/status"): "the caller's own profile",
    ("DELETE", "/api/users/me/voice-profile"): "the caller's own profile",
    ("POST", "/api/users/me/voice-profile/match"): "the caller's own profile",
    ("GET", "/v1/models"): "the same for everybody",
    ("GET", "/v1/models/{model}/{version}"): "the same for everybody",
}
"""Routes that name nothing of anybody else's in their path, and why; `below`: their body is tried further down."""

SECRETS = {
    ("PUT", "/v1/media/objects/{token}"),
    ("GET", "/v1/media/objects/{token}"),
}
"""Routes whose path is itself what lets one in; a wrong one is tried."""

SOCKETS = {
    "/v1/live/{session_id}/stream": "its url is a secret",
    f"{ECHO}/stream/transcribe": "names nothing; its own test has who may open it",
    f"{SPEAK}/voices/record": "makes a voice of the caller's own",
}
"""WebSockets, and what they name."""


def served_routes() -> tuple[set[tuple[str, str]], set[str]]:
    """What is served: (method, path) of HTTP, and paths of WebSockets."""
    http: set[tuple[str, str]] = set()
    sockets: set[str] = set()
    edge = cast(Edge, SimpleNamespace(plane=SimpleNamespace()))
    for dialect in DIALECTS:
        for route in application_of(dialect, edge).routes:
            if isinstance(route, APIRoute):
                http |= {(method, route.path) for method in route.methods}
            elif isinstance(route, APIWebSocketRoute):
                sockets.add(route.path)
    return http, sockets


def test_every_route_of_the_application_stands_in_a_table() -> None:
    http, sockets = served_routes()
    tried = set(NAMING) | LISTING | set(ABOUT_ONESELF) | SECRETS
    assert http - tried == set(), "say in a table of this file what such a route names of somebody's"
    assert tried - http == set(), "these are served no more"
    assert sockets <= set(SOCKETS)


@dataclass
class Scene:
    """Ada of acme owns a bit of everything. Bob is her colleague; Eve administers another tenant."""

    owner: httpx.AsyncClient
    colleague: httpx.AsyncClient
    stranger: httpx.AsyncClient
    platform: httpx.AsyncClient
    hers: dict[str, str]
    tenants: dict[str, str]

    def marks(self) -> list[str]:
        """What would show that something of hers leaked."""
        return ["Ada Private", *(value for name, value in self.hers.items() if name not in ("owner", "space", "kind"))]


async def scene(served: Served) -> Scene:
    await served.tenant("acme", "ada", "bob")
    await served.tenant("other", "eve")
    ada = await served.http(await served.key("admin", tenant_id="acme", user_id="ada"))
    every = ("voices:read", "voices:write", "voices:share", "voices:erase", "streams:open", "jobs:write")
    dialects = ("voice.read", "voice.write", "voice.share", "scaiecho:enroll", "scaiecho:transcribe")
    bob = await served.http(await served.key(*every, *dialects, tenant_id="acme", user_id="bob"))
    eve = await served.http(await served.key("admin", tenant_id="other", user_id="eve"))
    voice = await clone(ada, 5, display_name="Ada Private")
    upload = await ada.post("/v1/media/input", json={"url": "media://hers.wav"})
    assert upload.status_code == 201, upload.text
    async with httpx.AsyncClient(timeout=60) as anybody:
        put = await anybody.put(upload.json()["url"], content=wav(speech(6)))
        assert put.status_code < 300, put.text
    job = await ada.post("/v1/diarize", json={"url": "media://hers.wav"})
    assert job.status_code == 200, job.text
    live = await ada.post("/v1/live")
    assert live.status_code < 300, live.text
    ids: dict[str, str] = {}
    for owner in ("acme", "ada"):
        await did(ada, f"/v1/spaces/{owner}", {"handle": "calls"})
        space = f"/v1/spaces/{owner}/calls"
        await computed(ada, space, "alice", 7)
        audio = await did(ada, f"{space}/audios", {"file": sound(8), "identity": "alice"})
        body = {"audio": audio["id"], "identity": "alice", "voiceprint": "main"}
        verification = await did(ada, f"{space}/verifications/identity", body)
        ids |= {f"{owner}.audio": audio["id"], f"{owner}.verification": verification["id"]}
    of_voice = {"speaker_id": voice["id"], "voice_id": voice["id"]}
    of_others = {"jobId": job.json()["jobId"], "session_id": live.json()["id"], "org": "acme", "kind": "voiceprint"}
    in_space = {"space": "calls", "identity": "alice", "voiceprint": "main", "user": "bob"}

    def hers(owner: str) -> dict[str, str]:
        ids_there = {"owner": owner, "audio": ids[f"{owner}.audio"], "verification": ids[f"{owner}.verification"]}
        return {**of_voice, **of_others, **in_space, **ids_there}

    return Scene(ada, bob, eve, await served.http(), hers("ada"), hers("acme"))


ABSENT = {
    "speaker_id": "v_00000000000000000000",
    "voice_id": "v_00000000000000000000",
    "owner": "nobody",
    "org": "nobody",
    "jobId": "00000000-0000-4000-8000-000000000000",
    "session_id": "00000000-0000-4000-8000-000000000000",
}


async def compared(http: httpx.AsyncClient, key: tuple[str, str], hers: dict[str, str]) -> None:
    """What is hers and what is not there are the same 404, word for word."""
    method, path = key
    sent = NAMING[key]
    theirs = await http.request(method, path.format(**hers), headers=FIXED_ID, **sent)
    absent = await http.request(method, path.format(**{**hers, **ABSENT}), headers=FIXED_ID, **sent)
    assert theirs.status_code == 404, (key, theirs.status_code, theirs.text)
    assert absent.status_code == 404, (key, absent.status_code, absent.text)
    assert theirs.content == absent.content, key
    varying = ("date", "x-ratelimit-remaining", "x-ratelimit-reset")
    headers = [
        {name: value for name, value in answer.headers.items() if name not in varying} for answer in (theirs, absent)
    ]
    assert headers[0] == headers[1], key


async def test_what_is_anothers_answers_as_what_is_not_there_on_every_route(served: Served) -> None:
    made = await scene(served)
    for key in NAMING:
        http = made.platform if "/admin/" in key[1] else made.stranger
        for hers in (made.hers, made.tenants):
            await compared(http, key, hers)
    # Within the tenant: what is Ada's alone.
    alone = [
        key for key in NAMING if not key[1].startswith(("/v1/jobs", "/v1/live", "/v1/orgs")) and "/admin/" not in key[1]
    ]
    assert len(alone) > 30
    for key in alone:
        await compared(made.colleague, key, made.hers)
    # All of that changed nothing for her.
    assert (await made.owner.get(f"{ECHO}/speakers/{made.hers['voice_id']}")).status_code == 200
    for owned in (made.hers, made.tenants):
        for path in (
            "/v1/spaces/{owner}/{space}/identities/{identity}",
            "/v1/spaces/{owner}/{space}/audios/{audio}",
            "/v1/spaces/{owner}/{space}/voiceprints/{identity}/{voiceprint}",
        ):
            assert (await made.owner.get(path.format(**owned))).status_code == 200, path


async def test_lists_show_nothing_of_anothers(served: Served) -> None:
    made = await scene(served)
    await made.owner.delete(f"{ECHO}/speakers/{(await clone(made.owner, 11))['id']}")  # for the audit
    for method, path in LISTING:
        answer = await made.stranger.request(method, path.format(kind="voiceprint"))
        assert answer.status_code == 200, (path, answer.text)
        assert not [mark for mark in made.marks() if mark in answer.text], path
    for path in (f"{ECHO}/speakers", f"{SPEAK}/voices"):
        assert made.hers["voice_id"] not in (await made.colleague.get(path)).text
        assert made.hers["voice_id"] in (await made.owner.get(path)).text


async def test_bodies_that_name_what_is_anothers_are_answered_as_if_it_were_not_there(served: Served) -> None:
    made = await scene(served)
    hers, never = "media://hers.wav", "media://never.wav"
    mine = {"url": "media://mine.wav"}
    upload = await made.stranger.post("/v1/media/input", json=mine)
    async with httpx.AsyncClient(timeout=60) as anybody:
        await anybody.put(upload.json()["url"], content=wav(speech(6)))

    def naming(voice_id: str) -> dict[str, Any]:
        return {**mine, "matching": {"speakers": [voice_id]}}

    tried: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("/v1/diarize", {"url": hers}, {"url": never}),
        ("/v1/voiceprint", {"url": hers}, {"url": never}),
        ("/v1/identify", naming(made.hers["voice_id"]), naming(ABSENT["voice_id"])),
    ]
    for path, theirs, absent in tried:
        first, second = [await made.stranger.post(path, json=body, headers=FIXED_ID) for body in (theirs, absent)]
        assert (first.status_code, first.content) == (second.status_code, second.content), path
        assert first.status_code >= 400, path
    urls = [(await made.stranger.post("/v1/media/output", json={"url": url})).json()["url"] for url in (hers, never)]
    async with httpx.AsyncClient(timeout=60) as anybody:
        first, second = [await anybody.get(url, headers=FIXED_ID) for url in urls]
        assert (first.status_code, first.content) == (second.status_code, second.content)
        assert first.status_code == 404


async def test_a_secret_in_a_path_lets_nobody_in_who_changed_it(served: Served) -> None:
    made = await scene(served)
    upload = (await made.owner.post("/v1/media/input", json={"url": "media://x.wav"})).json()["url"]
    token = upload.rpartition("/")[2].partition("?")[0]
    forged = ("B" if token[0] != "B" else "C") + token[1:]
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as anybody:
        for method, path in SECRETS:
            first, second = [
                await anybody.request(method, path.format(token=given), headers=FIXED_ID)
                for given in (forged, "nothing")
            ]
            assert first.status_code in (403, 404), first.text
            assert first.status_code == second.status_code, path
    live = (await made.owner.post("/v1/live")).json()["url"]
    forged = live[:-1] + ("B" if live[-1] != "B" else "C")
    absent = live.replace(live.split("/live/")[1].split("/")[0], "00000000-0000-4000-8000-000000000000")
    assert await refused(forged) == await refused(absent)


async def refused(url: str) -> tuple[object, ...]:
    """How a WebSocket was refused."""
    try:
        async with connect(url) as socket:
            said = [message async for message in socket]
            return ("closed", socket.close_code, socket.close_reason, *said)
    except InvalidStatus as error:
        return ("status", error.response.status_code)
    except WebSocketException as error:
        return ("closed", type(error).__name__, str(error))

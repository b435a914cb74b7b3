"""One voice through all dialects: enrolled in one, seen in the others, erased in another, gone from all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from tests.controlplane.conftest import speech, until, wav
from tests.controlplane.fake_node import FakeNode
from tests.edge.conftest import Serving
from tests.edge.scai import ECHO, SPEAK, clone, enrol
from tests.edge.spaces import computed, did

PROFILE = "/api/users/me/voice-profile"
IDENTITY, LOCCUS, SCRYON = "an identity", "the identity that it was computed for", "a profile"
EVERYWHERE = {"a speaker", "warm", "a voice", IDENTITY, "speakers", "voices", "node"}


@dataclass
class Ada:
    """A user's calls, in every dialect."""

    http: httpx.AsyncClient
    tenant: str
    node: FakeNode

    @property
    def calls(self) -> str:
        return f"/v1/spaces/{self.tenant}/calls"

    async def in_scaiecho(self) -> str:
        return str((await enrol(self.http))["id"])

    async def in_scaispeak(self) -> str:
        return str((await clone(self.http))["id"])

    async def in_scryon(self) -> str:
        sample = {"file": ("me.wav", wav(speech(3, 20.0)), "audio/wav")}
        answer = await self.http.post(PROFILE, files=sample)
        assert answer.status_code == 201, answer.text
        return await self.only_one()

    async def in_loccus(self) -> str:
        await did(self.http, f"/v1/spaces/{self.tenant}", {"handle": "calls"})
        return str((await computed(self.http, self.calls, "ada", 4))["voice"])

    async def only_one(self) -> str:
        (speaker,) = (await self.http.get(f"{ECHO}/speakers")).json()["data"]
        return str(speaker["id"])

    async def library(self, voice_id: str) -> str:
        """Where Loccus shows a voice of the library: in the space `voices` of whoever it belongs to."""
        scope = (await self.http.get(f"{SPEAK}/voices/{voice_id}")).json()["data"]["scope"]
        owner = "ada" if scope == "user" else self.tenant
        return f"/v1/spaces/{owner}/voices/identities/{voice_id.replace('_', '-')}"

    async def erased_in_scaiecho(self, voice_id: str) -> None:
        await self.well(self.http.delete(f"{ECHO}/speakers/{voice_id}"))

    async def erased_in_scaispeak(self, voice_id: str) -> None:
        await self.well(self.http.delete(f"{SPEAK}/voices/{voice_id}"))

    async def erased_in_loccus(self, voice_id: str) -> None:
        await self.well(self.http.delete(await self.library(voice_id)))

    async def erased_in_scryon(self, _voice_id: str) -> None:
        await self.well(self.http.delete(PROFILE))

    async def well(self, call: Awaitable[httpx.Response]) -> None:
        answer = await call
        assert answer.status_code in (200, 204), answer.text

    async def seen(self, voice_id: str) -> set[str]:
        """Where the voice is seen."""
        one = f"identities/{voice_id.replace('_', '-')}"
        reads = {
            "a speaker": f"{ECHO}/speakers/{voice_id}",
            "warm": f"{ECHO}/speakers/{voice_id}/warm",
            "a voice": f"{SPEAK}/voices/{voice_id}",
            "an identity of the tenant": f"/v1/spaces/{self.tenant}/voices/{one}",
            "an identity of hers": f"/v1/spaces/ada/voices/{one}",
            LOCCUS: f"{self.calls}/identities/ada",
        }
        statuses = {name: (await self.http.get(path)).status_code for name, path in reads.items()}
        assert set(statuses.values()) <= {200, 404}, statuses
        found = {name for name, status in statuses.items() if status == 200}
        lists = {"speakers": f"{ECHO}/speakers", "voices": f"{SPEAK}/voices"}
        found |= {name for name, path in lists.items() if voice_id in (await self.http.get(path)).text}
        if (await self.http.get(f"{PROFILE}/status")).json()["status"] == "ACTIVE":
            found.add(SCRYON)
        if any(voice_id == held for _, held in self.node.voices):
            found.add("node")
        # Whose it is in Loccus depends on its scope: it is one of the two.
        return {IDENTITY if name.startswith(IDENTITY) else name for name in found}


Enrol = Callable[[Ada], Awaitable[str]]
Erase = Callable[[Ada, str], Awaitable[None]]
JOURNEYS: dict[str, tuple[Enrol, Erase, set[str]]] = {
    "ScaiEcho, ScaiSpeak": (Ada.in_scaiecho, Ada.erased_in_scaispeak, set()),
    "ScaiEcho, Loccus": (Ada.in_scaiecho, Ada.erased_in_loccus, set()),
    "ScaiSpeak, ScaiEcho": (Ada.in_scaispeak, Ada.erased_in_scaiecho, set()),
    "ScaiSpeak, Loccus": (Ada.in_scaispeak, Ada.erased_in_loccus, set()),
    "Scryon, ScaiSpeak": (Ada.in_scryon, Ada.erased_in_scaispeak, {SCRYON}),
    "Scryon, Loccus": (Ada.in_scryon, Ada.erased_in_loccus, {SCRYON}),
    "Scryon, Scryon": (Ada.in_scryon, Ada.erased_in_scryon, {SCRYON}),
    "Loccus, ScaiEcho": (Ada.in_loccus, Ada.erased_in_scaiecho, {LOCCUS}),
    "Loccus, ScaiSpeak": (Ada.in_loccus, Ada.erased_in_scaispeak, {LOCCUS}),
}
"""Where it is enrolled, where erased, and where it is seen besides."""


async def test_a_voice_of_any_dialect_is_seen_in_all_and_gone_from_all_when_one_erases_it(serving: Serving) -> None:
    served = await serving(nodes=0, scryon_voice_embedding_enabled=True)
    node = await served.world.node(served.plane)

    async def travel(name: str, tenant: str) -> None:
        enrol_voice, erase_voice, besides = JOURNEYS[name]
        await served.tenant(tenant, "ada")
        http = await served.http(await served.key("admin", tenant_id=tenant, user_id="ada"))
        ada = Ada(http, tenant, node)
        voice_id = await enrol_voice(ada)
        # What was computed in Loccus is the identity that it was computed for, and not once more one of the library.
        everywhere = (EVERYWHERE | besides) - ({IDENTITY} if LOCCUS in besides else set())

        async def is_everywhere() -> bool:
            return await ada.seen(voice_id) == everywhere

        await until(is_everywhere)
        await erase_voice(ada, voice_id)
        assert await ada.seen(voice_id) <= {"node"}, name

        async def is_nowhere() -> bool:
            return await ada.seen(voice_id) == set()

        await until(is_nowhere)
        erasures = (await http.get(f"{SPEAK}/admin/erasure/audit")).json()["data"]
        assert [erasure["voice_id"] for erasure in erasures] == [voice_id], name

    async with asyncio.TaskGroup() as journeys:
        for number, name in enumerate(JOURNEYS):
            journeys.create_task(travel(name, f"acme{number}"))

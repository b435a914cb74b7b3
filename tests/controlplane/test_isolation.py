"""What is not a caller's cannot be told from what is not there, by any call, in any order."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from controlplane.database.schema import voices
from controlplane.policy import Right, Verdict, decide
from controlplane.voice_lookup import facts_of
from runtime.errors import Cause, SpeakerdError
from speakerd.v1 import node_pb2, people_pb2, streams_pb2
from tests.controlplane.conftest import World
from tests.controlplane.people import Call, Library, make_key, make_tenant, statements

FULL = ("voices:read", "voices:write", "voices:share", "voices:erase", "usage:write", "jobs:write", "streams:open")
WHO = [(tenant, user, admin) for tenant in ("a", "b") for user in (None, "u1", "u2") for admin in (False, True)]
CONSENT = people_pb2.Consent(full_name="N", purpose="p", text="t")

Doing = Callable[["Scene", str, str], Awaitable[Any]]


class Scene:
    """A control plane with two tenants, their keys, and a few voices."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.library = Library(plane)
        self.keys: list[str] = []
        self.voice_ids: list[str] = []
        self.labels = 0

    async def fill(self) -> None:
        for tenant in ("a", "b"):
            await make_tenant(self.plane, tenant, "u1", "u2")
        for tenant, user, admin in WHO:
            self.keys.append(await make_key(self.plane, tenant, *(("admin",) if admin else FULL), user_id=user))
        for index, (_, user, admin) in enumerate(WHO):
            if not admin:
                for scope in ("USER", "TENANT") if user else ("TENANT",):
                    await self.enrol(index, scope)

    async def enrol(self, who: int, scope: str) -> None:
        self.labels += 1
        answer = await self.library.enrol(
            self.keys[who],
            label=f"L{self.labels % 3}",
            subject=f"s{self.labels}",
            scope=people_pb2.VoiceScope.Value(f"VOICE_SCOPE_{scope}"),
        )
        self.voice_ids.append(answer.voice.voice_id)

    async def seen_by(self, who: int) -> set[str]:
        tenant, _, _ = WHO[who]
        principal = await self.plane.core.identity.principal(self.keys[who], "voices:read")
        assert principal.tenant_id == tenant
        async with self.plane.core.database.read() as connection:
            rows = (await connection.execute(select(voices))).all()
        return {row.voice_id for row in rows if decide(principal, facts_of(row), Right.SEE) is Verdict.ALLOWED}


def unary(name: str, **fields: Any) -> Doing:
    async def do(scene: Scene, token: str, voice_id: str) -> Any:
        return await getattr(scene.library, name)(token, voice_id=voice_id, **fields)

    return do


async def enrol_anew(scene: Scene, token: str, voice_id: str) -> Any:
    return await scene.library.enrol(token, voice_id=voice_id)


async def add_clip(scene: Scene, token: str, voice_id: str) -> Any:
    return await scene.library.enrol(token, voice_id=voice_id, add_clips=True)


async def export(scene: Scene, token: str, voice_id: str) -> Any:
    return await scene.library.export(token, voice_id)


async def match(scene: Scene, token: str, voice_id: str) -> Any:
    async def requests() -> Any:
        yield people_pb2.ReportMatchesRequest(open=node_pb2.FileOpen(voice_ids=[voice_id]))

    return await scene.library.servicer.ReportMatches(requests(), Call(token))


async def place(scene: Scene, token: str, voice_id: str) -> Any:
    request = streams_pb2.PlaceStreamRequest(voice_ids=[voice_id])
    principal = await scene.plane.core.identity.principal(token, "streams:open")
    return await scene.plane.core.placing.place(principal, stream_id="s", voice_ids=list(request.voice_ids), avoid=())


DOING: dict[str, Doing] = {
    "GetVoice": unary("GetVoice"),
    "GetWarm": unary("GetWarm"),
    "WarmVoice": unary("WarmVoice"),
    "UpdateVoice": unary("UpdateVoice", label="L0"),
    "ShareVoice": unary("ShareVoice"),
    "WithdrawConsent": unary("WithdrawConsent", opt_out=True),
    "GiveConsent": unary("GiveConsent", consent=CONSENT),
    "RecordUsage": unary("RecordUsage", unit="seconds", quantity=1),
    "EraseVoice": unary("EraseVoice"),
    "ExportVoice": export,
    "EnrollVoice": enrol_anew,
    "EnrollVoice+": add_clip,
    "ReportMatches": match,
    "PlaceStream": place,
}
STEP = st.tuples(st.integers(0, len(WHO) - 1), st.sampled_from(sorted(DOING)), st.integers(0, 99))


async def outcome(scene: Scene, doing: Doing, token: str, target: str) -> tuple[object, list[str]]:
    """What came of a call, and the shape of the statements that it made."""
    with statements(scene.plane) as seen:
        try:
            await doing(scene, token, target)
            said: object = "done"
        except SpeakerdError as error:
            said = (type(error), str(error), error.retry_after_s)
    return said, list(seen)


def test_every_call_that_names_a_voice_is_among_those_that_are_tried() -> None:
    methods = people_pb2.DESCRIPTOR.services_by_name["People"].methods
    naming = {method.name for method in methods if "voice_id" in method.input_type.fields_by_name}
    assert naming <= DOING.keys()


@pytest.fixture
async def scene(any_world: World) -> Scene:
    made = Scene(await any_world.plane(chore_s=3600.0))
    await made.fill()
    return made


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=4, max_size=12))
async def test_absent_and_not_yours_are_the_same_in_word_and_in_work(
    scene: Scene, steps: list[tuple[int, str, int]]
) -> None:
    await nothing_differs(scene, steps)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=4, max_size=20))
async def test_absent_and_not_yours_are_the_same_in_long_sequences_too(
    scene: Scene, steps: list[tuple[int, str, int]]
) -> None:
    await nothing_differs(scene, steps)


async def nothing_differs(scene: Scene, steps: list[tuple[int, str, int]]) -> None:
    """Each step by its caller; what is hidden from them is asked for beside what never was."""
    for who, name, at in steps:
        target = scene.voice_ids[at % len(scene.voice_ids)]
        token = scene.keys[who]
        if target in await scene.seen_by(who):
            # Whatever comes of it: it changes who sees what, and is one more state to ask in.
            said, _ = await outcome(scene, DOING[name], token, target)
            if said == "done" and name == "EraseVoice":
                await scene.enrol(who if WHO[who][1] else 0, "TENANT")
        else:
            others = await outcome(scene, DOING[name], token, target)
            absent = await outcome(scene, DOING[name], token, f"v_{secrets.token_hex(10)}")
            assert others == absent, (WHO[who], name)
            assert isinstance(others[0], tuple), (WHO[who], name)
            # Or the key lacks the scope that the call needs, which it does for every voice.
            assert others[0][0].cause in (Cause.NOT_FOUND, Cause.DENIED)
            assert others[0][0].cause is Cause.NOT_FOUND or "lacks the scope" in others[0][1]
        listed = await scene.library.ListVoices(token, page_size=200)
        seen = await scene.seen_by(who)
        assert {voice.voice_id for voice in listed.voices} <= seen
        by_label = await scene.library.ListVoices(token, label="l1")
        assert {voice.voice_id for voice in by_label.voices} <= {
            voice.voice_id for voice in listed.voices if voice.label == "L1"
        }


async def test_an_erasure_that_is_not_yours_is_as_one_that_never_was(scene: Scene) -> None:
    admins = {tenant: scene.keys[index] for index, (tenant, user, admin) in enumerate(WHO) if admin and user is None}
    first = {tenant: scene.keys[index] for index, (tenant, user, admin) in enumerate(WHO) if not admin and user is None}
    audit_ids = {}
    for tenant, admin in admins.items():
        voice_id = (await scene.library.ListVoices(admin)).voices[0].voice_id
        audit_ids[tenant] = (await scene.library.EraseVoice(admin, voice_id=voice_id)).audit_id
    for tenant, key in first.items():
        other = "b" if tenant == "a" else "a"
        said = []
        for audit_id in (audit_ids[other], "e_0123456789"):
            with statements(scene.plane) as seen, pytest.raises(SpeakerdError) as refused:
                await scene.library.GetErasure(key, audit_id=audit_id)
            said.append((str(refused.value), refused.value.cause, list(seen)))
        assert said[0] == said[1]
        assert said[0][1] is Cause.NOT_FOUND

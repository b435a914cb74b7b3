"""Who may do what with which voice, and that the policy and its twin in SQL never differ."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from controlplane.database.engine import open_database
from controlplane.database.schema import tenants, voices
from controlplane.policy import (
    GLOBAL_TENANT,
    Principal,
    Right,
    Verdict,
    VoiceFacts,
    VoiceScope,
    audience_of,
    audiences_of,
    decide,
    may_grant,
    scope_of_new,
)
from controlplane.scopes import ADMIN, PLATFORM, SCOPES, VOICES_ERASE, VOICES_READ, VOICES_WRITE, expand, validate
from controlplane.voice_lookup import usable_by, visible_to
from runtime.clock import SteppedClock
from runtime.errors import Denied, InvalidRequest

PRINCIPALS = [
    Principal(tenant_id, "k", expand(scopes), user_id)
    for tenant_id in ("a", "b")
    for scopes in ({VOICES_READ}, {ADMIN}, {ADMIN, PLATFORM})
    for user_id in (None, "u1", "u2")
]
VOICES = [
    *(
        VoiceFacts(tenant_id, scope, owner)
        for tenant_id in ("a", "b")
        for scope, owner in (
            (VoiceScope.USER, "u1"),
            (VoiceScope.USER, "u2"),
            (VoiceScope.TENANT, None),
            (VoiceScope.TENANT, "u1"),
        )
    ),
    VoiceFacts(GLOBAL_TENANT, VoiceScope.GLOBAL, None),
]


def test_another_tenants_voice_is_hidden_whoever_asks_for_whatever() -> None:
    for principal, voice, right in itertools.product(PRINCIPALS, VOICES, Right):
        if voice.scope is not VoiceScope.GLOBAL and voice.tenant_id != principal.tenant_id:
            assert decide(principal, voice, right) is Verdict.HIDDEN


def test_what_cannot_be_seen_can_be_nothing_and_what_can_be_something_can_be_seen() -> None:
    for principal, voice, right in itertools.product(PRINCIPALS, VOICES, Right):
        seen = decide(principal, voice, Right.SEE)
        assert seen is not Verdict.DENIED
        assert (decide(principal, voice, right) is Verdict.HIDDEN) == (seen is Verdict.HIDDEN)


def test_a_users_voice_is_used_for_that_user_alone_even_by_administrators() -> None:
    voice = VoiceFacts("a", VoiceScope.USER, "u1")
    allowed = {
        principal.user_id
        for principal in PRINCIPALS
        if principal.tenant_id == "a" and decide(principal, voice, Right.USE) is Verdict.ALLOWED
    }
    assert allowed == {"u1"}


def test_only_the_platform_changes_shares_erases_or_exports_a_global_voice() -> None:
    voice = VOICES[-1]
    for principal, right in itertools.product(PRINCIPALS, Right):
        expected = principal.is_super or right in (Right.SEE, Right.USE)
        assert (decide(principal, voice, right) is Verdict.ALLOWED) == expected


def test_a_voice_is_matched_for_a_stream_exactly_when_its_caller_may_use_it() -> None:
    for principal, voice in itertools.product(PRINCIPALS, VOICES):
        heard = audience_of(voice) in audiences_of(principal)
        assert heard == (decide(principal, voice, Right.USE) is Verdict.ALLOWED)


async def test_the_policy_in_sql_says_what_the_policy_says(tmp_path: Path) -> None:
    database = await open_database(f"sqlite+aiosqlite:///{tmp_path}/x.db", SteppedClock(), lease_s=1.0)
    try:
        async with database.write() as connection:
            for tenant_id in ("a", "b", GLOBAL_TENANT):
                await connection.execute(insert(tenants).values(tenant_id=tenant_id, created_at_s=0.0))
            for number, voice in enumerate(VOICES):
                await connection.execute(
                    insert(voices).values(
                        tenant_id=voice.tenant_id,
                        voice_id=str(number),
                        generation=1,
                        state="ready",
                        state_reason="",
                        net_speech_ms=0,
                        model="",
                        revision=1,
                        created_at_s=0.0,
                        updated_at_s=0.0,
                        scope=voice.scope.value,
                        owner_user_id=voice.owner_user_id,
                    )
                )
        async with database.read() as connection:
            for principal in PRINCIPALS:
                for right, condition in ((Right.SEE, visible_to(principal)), (Right.USE, usable_by(principal))):
                    rows = await connection.execute(select(voices.c.voice_id).where(condition))
                    allowed = {
                        str(number)
                        for number, voice in enumerate(VOICES)
                        if decide(principal, voice, right) is Verdict.ALLOWED
                    }
                    assert {row.voice_id for row in rows} == allowed, (principal, right)
    finally:
        await database.close()


def test_a_new_voice_is_for_whom_its_caller_may_say() -> None:
    user = Principal("a", "k", expand({VOICES_WRITE}), "u1")
    assert scope_of_new(user, VoiceScope.USER) == VoiceFacts("a", VoiceScope.USER, "u1")
    assert scope_of_new(user, VoiceScope.TENANT) == VoiceFacts("a", VoiceScope.TENANT, "u1")
    with pytest.raises(Denied, match="stands for no user"):
        scope_of_new(Principal("a", "k", expand({ADMIN})), VoiceScope.USER)
    with pytest.raises(Denied, match="platform"):
        scope_of_new(Principal("a", "k", expand({ADMIN})), VoiceScope.GLOBAL)
    root = Principal("a", "k", expand({PLATFORM}))
    assert scope_of_new(root, VoiceScope.GLOBAL).tenant_id == GLOBAL_TENANT


def test_scopes_of_dialects_include_those_of_the_core_and_administrators_have_all_of_their_tenant() -> None:
    assert {VOICES_READ, VOICES_WRITE, VOICES_ERASE} <= expand({"scaiecho:enroll"})
    assert VOICES_WRITE not in expand({"voice.read"})
    assert set(SCOPES) - expand({ADMIN}) == {PLATFORM}
    assert set(SCOPES) == expand({PLATFORM})
    with pytest.raises(InvalidRequest, match="voices:raed"):
        validate({"voices:raed"})
    with pytest.raises(InvalidRequest, match="at least one"):
        validate(set())


def test_what_asks_for_the_platform_is_not_had_by_administrators_of_a_tenant() -> None:
    admin = Principal("a", "k", expand({ADMIN}))
    for scope in set(SCOPES) - {PLATFORM}:
        admin.require(scope)
    with pytest.raises(Denied, match=PLATFORM):
        admin.require(PLATFORM)
    Principal("a", "k", expand({PLATFORM})).require(PLATFORM)


def test_nobody_gives_more_than_they_have() -> None:
    assert may_grant(Principal("a", "k", expand({ADMIN})), {ADMIN, "voice.read"})
    assert not may_grant(Principal("a", "k", expand({ADMIN})), {PLATFORM})
    assert not may_grant(Principal("a", "k", expand({VOICES_READ})), {VOICES_READ})
    assert may_grant(Principal("a", "k", expand({PLATFORM})), {PLATFORM})

"""ScaiSpeak's contract over HTTP: the voice library, every field, state, code and limit of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import select, update

from controlplane.database.schema import agreement_events, licences, samples, voices
from runtime.media import PreflightLimits
from tests.controlplane.conftest import speech, until, wav
from tests.edge.conftest import Served, Serving
from tests.edge.scai import FILES, GOOD, SILENCE, SPEAK, SPEAKER, SPOKEN, clone, fields_of, refusal

VOICE_FIELDS = {
    "id",
    "voice_id",
    "display_name",
    "description",
    "scope",
    "owner_user_id",
    "language_primary",
    "language_supported",
    "gender_hint",
    "age_hint",
    "style_tags",
    "embedding_status",
    "embedding_status_reason",
    "created_at",
    "updated_at",
}
PREFLIGHT = ["duration_ms", "sample_rate", "channels", "peak_dbfs", "snr_db", "voice_activity_ratio", "warnings"]
LICENCE = {"licensor_name": "Voices & Co", "license_type": "perpetual", "license_terms": "everywhere"}
ABSENT = "v_00000000000000000000"
READS, WRITES, SHARES = ("voice.read",), ("voice.read", "voice.write"), ("voice.share",)
Voice = dict[str, Any]


class People:
    """A tenant with two users, another tenant, and the platform's administrator."""

    ada: httpx.AsyncClient
    bob: httpx.AsyncClient
    admin: httpx.AsyncClient
    stranger: httpx.AsyncClient
    platform: httpx.AsyncClient


async def people(served: Served) -> People:
    found = People()
    await served.tenant("acme", "ada", "bob")
    await served.tenant("other", "eve")
    scopes = ("voice.read", "voice.write", "voice.share")
    found.ada = await served.http(await served.key(*scopes, tenant_id="acme", user_id="ada"))
    found.bob = await served.http(await served.key(*scopes, tenant_id="acme", user_id="bob"))
    found.admin = await served.http(await served.key("admin", tenant_id="acme"))
    found.stranger = await served.http(await served.key(*scopes, tenant_id="other", user_id="eve"))
    found.platform = await served.http()
    return found


async def take_in(http: httpx.AsyncClient, seed: int = 7, **fields: str) -> httpx.Response:
    data = {"display_name": "Global Voice", "language_primary": "en", **LICENCE, **fields}
    reference = ("r.wav", wav(speech(seed, 6.0)), "audio/wav")
    return await http.post(f"{SPEAK}/admin/voices/global", data=data, files={"reference": reference})


async def global_voice(http: httpx.AsyncClient, seed: int = 7, **fields: str) -> Voice:
    answer = await take_in(http, seed, **fields)
    assert answer.status_code == 201, answer.text
    data: Voice = answer.json()["data"]
    return data


async def read(http: httpx.AsyncClient, voice: Voice) -> Voice:
    answer = await http.get(f"{SPEAK}/voices/{voice['id']}")
    assert answer.status_code == 200, answer.text
    data: Voice = answer.json()["data"]
    return data


async def names(http: httpx.AsyncClient, **query: Any) -> list[str]:
    answer = await http.get(f"{SPEAK}/voices", params=query)
    assert answer.status_code == 200, answer.text
    return sorted(voice["display_name"] for voice in answer.json()["data"])


# Cloning


async def test_a_clone_answers_the_voice_and_its_preflight(served: Served) -> None:
    ada = (await people(served)).ada
    said = {
        **SPEAKER,
        "language_supported_json": '["en", "de"]',
        "gender_hint": "female",
        "age_hint": "30-40",
        "style_tags_json": '["warm", "calm"]',
    }
    answer = await ada.post(f"{SPEAK}/voices", data=said, files=FILES)
    assert answer.status_code == 201, answer.text
    data = answer.json()["data"]
    assert set(data) == VOICE_FIELDS | {"voice", "preflight"}
    assert data["voice"] == {name: data[name] for name in VOICE_FIELDS}
    assert (data["scope"], data["owner_user_id"]) == ("user", "ada")
    assert (data["language_primary"], data["language_supported"]) == ("en", ["en", "de"])
    assert (data["gender_hint"], data["age_hint"], data["style_tags"]) == ("female", "30-40", ["warm", "calm"])
    assert (data["embedding_status"], data["embedding_status_reason"]) == ("ready", None)
    assert list(data["preflight"]) == [*PREFLIGHT, "fail_reasons", "findings"]
    assert (data["preflight"]["duration_ms"], data["preflight"]["fail_reasons"]) == (6000, [])


async def test_a_key_that_stands_for_no_user_clones_for_the_tenant(served: Served) -> None:
    data = await clone(await served.http())
    assert (data["scope"], data["owner_user_id"]) == ("tenant", None)


async def test_the_required_fields_are_named_all_at_once(served: Served) -> None:
    ada = (await people(served)).ada
    answer = await ada.post(f"{SPEAK}/voices", data={"description": "x"}, files={"other": b"x"})
    assert fields_of(refusal(answer, 422, "VALIDATION_ERROR")) == [
        "display_name",
        "language_primary",
        "consent_user_full_name",
        "consent_stated_purpose",
        "consent_text",
        "reference",
        "consent",
    ]
    for field, value in (
        ("language_supported_json", "en"),
        ("language_supported_json", '{"en": 1}'),
        ("style_tags_json", "[1]"),
        ("style_tags_json", r'["half a character: \ud800"]'),
        ("style_tags_json", "[" * 5000),
        ("reference_scaidrive_json", "nonsense"),
        ("gender_hint", "x" * 20),
        ("display_name", "spk_1"),
        ("language_primary", "english, mostly"),
    ):
        files = {name: file for name, file in FILES.items() if not field.startswith(name)}
        answer = await ada.post(f"{SPEAK}/voices", data={**SPEAKER, field: value}, files=files)
        assert field in fields_of(refusal(answer, 422, "VALIDATION_ERROR")), field


async def test_a_repeated_request_clones_once(served: Served) -> None:
    ada = (await people(served)).ada
    for _ in range(2):
        answer = await ada.post(f"{SPEAK}/voices", data=SPEAKER, files=FILES, headers={"idempotency-key": "k"})
        assert answer.status_code == 201
    assert await names(ada) == ["Alice Example"]


async def test_the_consent_row_pins_who_agreed_to_what_and_the_hash_of_both(served: Served) -> None:
    group = await people(served)
    data = await clone(group.ada)
    consent = (await read(group.ada, data))["consent"]
    assert consent["user_full_name"] == SPEAKER["consent_user_full_name"]
    assert consent["stated_purpose"] == SPEAKER["consent_stated_purpose"]
    assert consent["consent_text"] == SPEAKER["consent_text"]
    assert consent["consent_text_sha256"] == hashlib.sha256(SPEAKER["consent_text"].encode()).hexdigest()
    assert consent["consent_audio_sha256"] == hashlib.sha256(SPOKEN).hexdigest()
    assert consent["recorded_at"].endswith("Z")
    assert len(consent["evidence"]) == 64
    await group.ada.post(f"{SPEAK}/voices/{data['id']}/share")
    # Who may only see the voice does not read what its person said.
    assert "consent" not in await read(group.bob, data)
    assert "consent" in await read(group.admin, data)


# Preflight


def with_noise(level: float) -> bytes:
    return wav((speech(1, 6.0) + np.random.default_rng(0).normal(0, level, 6 * 16_000)).clip(-1, 1).astype("f4"))


FAILING = {
    "duration_below_minimum": wav(speech(1, 4.9)),
    "duration_above_maximum": wav(speech(1, 30.5)),
    "low_voice_activity_ratio": SILENCE,
    "peak_dbfs_above_threshold": wav((speech(1, 6.0) * 20).clip(-1, 1)),
    "snr_below_threshold": with_noise(0.4),
}


async def test_a_failing_preflight_gives_the_whole_block_and_stores_nothing(served: Served) -> None:
    ada = (await people(served)).ada
    for reason, reference in FAILING.items():
        files = {**FILES, "reference": ("r.wav", reference, "audio/wav")}
        answer = await ada.post(f"{SPEAK}/voices", data=SPEAKER, files=files)
        error = refusal(answer, 400, "SCAISPEAK_VOICE_PREFLIGHT_FAILED")
        block = error["preflight"]
        assert list(block) == [*PREFLIGHT, "fail_reasons", "findings"]
        assert reason in block["fail_reasons"], (reason, block)
        assert set(block["fail_reasons"]) <= set(FAILING)
        assert all(isinstance(block[name], int | float) for name in PREFLIGHT[:-1])
        assert set(fields_of(error)) == {"reference"}
    assert await names(ada) == []
    assert not list((served.world.data / "blobs").rglob("samples/*"))


async def test_five_and_thirty_seconds_are_both_good(served: Served) -> None:
    ada = (await people(served)).ada
    for seconds in (5.0, 30.0):
        files = {**FILES, "reference": ("r.wav", wav(speech(1, seconds)), "audio/wav")}
        assert (await ada.post(f"{SPEAK}/voices", data=SPEAKER, files=files)).status_code == 201


async def test_a_warning_blocks_nothing(serving: Serving) -> None:
    served = await serving(nodes=1, preflight=PreflightLimits(snr_db_warn_below=60.0))
    data = await clone(await served.http())
    assert data["preflight"]["warnings"] == ["snr_below_recommended"]
    (finding,) = data["preflight"]["findings"]
    assert set(finding) == {"code", "measured", "threshold", "message"}


async def test_a_recording_that_is_no_sound_is_a_wrong_field(served: Served) -> None:
    ada = (await people(served)).ada
    for name, data in (("reference", b"words " * 99), ("consent", b"words " * 99), ("consent", SILENCE)):
        answer = await ada.post(f"{SPEAK}/voices", data=SPEAKER, files={**FILES, name: ("x", data, "audio/wav")})
        assert fields_of(refusal(answer, 422, "VALIDATION_ERROR")) == [name]


# Drives


async def test_each_recording_comes_from_the_form_or_from_the_drive(serving: Serving, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    (drive / "clips").mkdir(parents=True)
    (drive / "clips" / "reference.wav").write_bytes(GOOD)
    (drive / "consent.wav").write_bytes(SPOKEN)
    (tmp_path / "secret.wav").write_bytes(GOOD)
    served = await serving(nodes=1, drive_folder=drive)
    http = await served.http()
    references = [
        {"file_id": "clips/reference.wav"},
        {"mcp_uri": "scaidrive://drive/clips/reference.wav", "file_id": None},
        {"share_url": "https://drive.example/clips/reference.wav?s=1", "file_id": None, "mcp_uri": None},
    ]
    for reference in references:
        said = {**SPEAKER, "reference_scaidrive_json": json.dumps(reference)}
        answer = await http.post(f"{SPEAK}/voices", data=said, files={"consent": FILES["consent"]})
        assert answer.status_code == 201, answer.text
    both = {
        "reference_scaidrive_json": json.dumps(references[0]),
        "consent_scaidrive_json": '{"file_id":"consent.wav"}',
    }
    answer = await http.post(f"{SPEAK}/voices", data={**SPEAKER, **both}, files={"unused": b""})
    assert answer.status_code == 201, answer.text
    consent = (await read(http, answer.json()["data"]))["consent"]
    assert consent["consent_audio_sha256"] == hashlib.sha256(SPOKEN).hexdigest()

    async def refused(field: str, reference: str, *files: str) -> list[str]:
        data = {**SPEAKER, field: reference}
        answer = await http.post(f"{SPEAK}/voices", data=data, files={name: FILES[name] for name in files})
        return fields_of(refusal(answer, 422, "VALIDATION_ERROR"))

    drive_json = "reference_scaidrive_json"
    assert await refused(drive_json, '{"file_id": "nothing.wav"}', "consent") == ["reference"]
    assert await refused("consent_scaidrive_json", '{"file_id": "nothing.wav"}', "reference") == ["consent"]
    assert await refused(drive_json, '{"file_id": "../secret.wav"}', "consent") == ["reference"]
    assert await refused(drive_json, '{"share_url": "https://x/../../secret.wav"}', "consent") == ["reference"]
    for wrong in ("{}", "[]", '"x"', '{"file_id": 1}', '{"path": "x"}', '{"file_id": "a", "share_url": "b"}'):
        assert await refused(drive_json, wrong, "consent") == [drive_json], wrong


async def test_one_recording_in_two_ways_is_ambiguous(served: Served) -> None:
    ada = (await people(served)).ada
    for name in ("reference", "consent"):
        said = {**SPEAKER, f"{name}_scaidrive_json": '{"file_id": "x.wav"}'}
        refusal(await ada.post(f"{SPEAK}/voices", data=said, files=FILES), 400, "SCAISPEAK_AMBIGUOUS_SOURCE")


async def test_without_a_drive_a_reference_to_one_is_refused(served: Served) -> None:
    ada = (await people(served)).ada
    said = {**SPEAKER, "reference_scaidrive_json": '{"file_id": "x.wav"}'}
    answer = await ada.post(f"{SPEAK}/voices", data=said, files={"consent": FILES["consent"]})
    assert "no drive is configured" in refusal(answer, 422, "VALIDATION_ERROR")["message"]


# Three scopes, one list


async def test_one_list_merges_what_is_ones_own_the_tenants_and_everybodys(served: Served) -> None:
    group = await people(served)
    await clone(group.ada, 1, display_name="Ada's")
    await clone(group.bob, 2, display_name="Bob's")
    shared = await clone(group.bob, 3, display_name="Shared")
    answer = await group.bob.post(f"{SPEAK}/voices/{shared['id']}/share")
    assert (answer.status_code, answer.json()["data"]["scope"]) == (200, "tenant")
    await clone(group.stranger, 4, display_name="Eve's")
    await global_voice(group.platform, display_name="Everybody's")
    assert await names(group.ada) == ["Ada's", "Everybody's", "Shared"]
    assert await names(group.bob) == ["Bob's", "Everybody's", "Shared"]
    assert await names(group.stranger) == ["Eve's", "Everybody's"]
    assert await names(group.ada, scope="user") == ["Ada's"]
    assert await names(group.ada, scope="tenant") == ["Shared"]
    assert await names(group.ada, scope="global") == ["Everybody's"]
    listed = (await group.ada.get(f"{SPEAK}/voices", params={"scope": "global"})).json()
    assert set(listed) == {"data", "meta"}
    assert set(listed["data"][0]) == VOICE_FIELDS | {"license"}


async def test_a_list_is_filtered_searched_and_paged(served: Served) -> None:
    http = await served.http()
    await clone(http, 1, display_name="One", gender_hint="female", style_tags_json='["Warm"]')
    await clone(http, 2, display_name="Two", gender_hint="male", language_primary="de-AT")
    await clone(http, 3, display_name="Three", gender_hint="male", description="a WARM voice")
    assert await names(http, gender="male") == ["Three", "Two"]
    assert await names(http, language="de") == ["Two"]
    assert await names(http, language="en", gender="male") == ["Three"]
    assert await names(http, q="warm") == ["One", "Three"]
    assert await names(http, q="t", gender="male") == ["Three", "Two"]
    assert await names(http, embedding_status="ready") == ["One", "Three", "Two"]
    for status in ("pending", "processing", "failed", "evicted"):
        assert await names(http, embedding_status=status) == []
    for query in ({}, {"q": "warm"}):
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            answer = await http.get(f"{SPEAK}/voices", params={**query, "limit": 1, "cursor": cursor})
            seen += [voice["display_name"] for voice in answer.json()["data"]]
            cursor = answer.json()["meta"]["next_cursor"]
        assert sorted(seen) == (["One", "Three"] if query else ["One", "Three", "Two"])
    queries: list[dict[str, Any]] = [{"limit": 0}, {"limit": 201}, {"scope": "all"}, {"embedding_status": "gone"}]
    for wrong in queries:
        error = refusal(await http.get(f"{SPEAK}/voices", params=wrong), 422, "VALIDATION_ERROR")
        assert fields_of(error) == list(wrong)


async def test_what_is_out_of_scope_is_as_what_is_not_there(served: Served) -> None:
    group = await people(served)
    private = await clone(group.ada)
    for http in (group.bob, group.stranger):
        for method, path in ON_ONE_VOICE:
            theirs = await http.request(method, f"{SPEAK}{path.format(private['id'])}")
            absent = await http.request(method, f"{SPEAK}{path.format(ABSENT)}")
            assert refusal(theirs, 404, "NOT_FOUND") == refusal(absent, 404, "NOT_FOUND")
    await group.ada.post(f"{SPEAK}/voices/{private['id']}/share")
    # Bob sees it now, and it is not his to change.
    assert (await read(group.bob, private))["scope"] == "tenant"
    for method, path in ON_ONE_VOICE[1:]:
        answer = await group.bob.request(method, f"{SPEAK}{path.format(private['id'])}")
        refusal(answer, 403, "AUTHZ_PERMISSION_DENIED")
    for method, path in ON_ONE_VOICE:
        refusal(await group.stranger.request(method, f"{SPEAK}{path.format(private['id'])}"), 404, "NOT_FOUND")


async def test_sharing_twice_changes_nothing_and_a_global_voice_is_not_shared(served: Served) -> None:
    group = await people(served)
    voice = await clone(group.ada)
    first, second = [await group.ada.post(f"{SPEAK}/voices/{voice['id']}/share") for _ in range(2)]
    assert first.json() == second.json()
    everybodys = await global_voice(group.platform)
    refusal(await group.ada.post(f"{SPEAK}/voices/{everybodys['id']}/share"), 403, "AUTHZ_PERMISSION_DENIED")
    refusal(await group.platform.post(f"{SPEAK}/voices/{everybodys['id']}/share"), 409, "CONFLICT")


# States


async def test_with_no_node_a_voice_is_pending_and_ready_by_itself_when_one_joins(serving: Serving) -> None:
    served = await serving(nodes=0)
    http = await served.http()
    voice = await clone(http)
    assert (voice["embedding_status"], voice["embedding_status_reason"]) == ("pending", "no_node_online")
    assert "no node is online" in voice["note"]
    assert await names(http, embedding_status="pending") == ["Alice Example"]
    await served.world.node(served.plane, "late")

    async def ready() -> bool:
        return (await read(http, voice))["embedding_status"] == "ready"

    await until(ready)


async def test_a_voice_that_was_heard_and_is_held_by_nobody_yet_is_processing(served: Served) -> None:
    http = await served.http()
    voice = await clone(http)
    async with served.plane.core.database.write() as connection:
        await connection.execute(update(voices).values(state="pending", revision=voices.c.revision + 10_000))
    found = await read(http, voice)
    assert (found["embedding_status"], found["embedding_status_reason"]) == ("processing", "no_node_holds_it_yet")
    assert await names(http, embedding_status="processing") == ["Alice Example"]


async def test_failures_carry_a_short_tag(serving: Serving) -> None:
    served = await serving(nodes=0)
    http = await served.http()
    voice = await clone(http)
    async with served.plane.core.database.write() as connection:
        await connection.execute(update(voices).values(updated_at_s=1.0))
    await served.plane.core.people.chores.run_all_once()
    found = await read(http, voice)
    assert (found["embedding_status"], found["embedding_status_reason"]) == ("failed", "no_node_listened")
    refusal(await http.post(f"{SPEAK}/voices/{voice['id']}/repromote"), 409, "CONFLICT")


async def test_too_little_speech_in_a_reference_fails_as_too_short(serving: Serving) -> None:
    served = await serving(nodes=0)
    http = await served.http()
    voice = await clone(http)
    node = await served.world.node(served.plane, "late", renew=False)
    node.net_speech_ms = 300
    await node.renew_once()
    await node.sync()
    node.state = 2
    await node.renew_once()

    async def failed() -> bool:
        await node.renew_once()
        return (await read(http, voice))["embedding_status"] == "failed"

    await until(failed)
    assert (await read(http, voice))["embedding_status_reason"] == "reference_too_short"


async def test_a_reference_that_is_missing_fails_its_voice_and_repromoting_takes_it_up_once_it_is_back(
    serving: Serving,
) -> None:
    served = await serving(nodes=0)
    http = await served.http()
    voice = await clone(http)
    async with served.plane.core.database.read() as connection:
        row = (await connection.execute(select(samples).where(samples.c.purpose == "reference"))).one()
    blob = served.world.data / "blobs" / row.blob_key
    kept = blob.rename(served.world.data / "elsewhere")
    await served.world.node(served.plane, "late")

    async def failed() -> bool:
        return (await read(http, voice))["embedding_status"] == "failed"

    await until(failed)
    assert (await read(http, voice))["embedding_status_reason"] == "reference_unavailable"
    path = f"{SPEAK}/voices/{voice['id']}/repromote"
    answer = await http.post(path)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"]["embedding_status"] == "failed"
    kept.rename(blob)
    assert (await http.post(path)).json()["data"]["embedding_status"] in ("processing", "ready")

    async def ready() -> bool:
        return (await read(http, voice))["embedding_status"] == "ready"

    await until(ready)
    before = await read(http, voice)
    assert (await http.post(path)).status_code == 200
    assert await read(http, voice) == before  # on a ready one nothing happens


async def test_repromoting_with_no_node_leaves_a_voice_pending(serving: Serving) -> None:
    served = await serving(nodes=0)
    http = await served.http()
    voice = await clone(http)
    answer = await http.post(f"{SPEAK}/voices/{voice['id']}/repromote")
    assert (answer.status_code, answer.json()["data"]["embedding_status"]) == (200, "pending")


async def test_a_voice_whose_consent_is_withdrawn_is_evicted_and_says_so(served: Served) -> None:
    http = await served.http()
    voice = await clone(http)
    principal = await served.plane.core.identity.principal(served.admin_key, "voices:write")
    await served.plane.core.people.changes.withdraw(principal, voice["id"], opt_out=False)
    found = await read(http, voice)
    assert (found["embedding_status"], found["embedding_status_reason"]) == ("evicted", "consent_withdrawn")
    refusal(await http.post(f"{SPEAK}/voices/{voice['id']}/repromote"), 409, "CONFLICT")


# Global voices


async def test_a_global_voice_has_a_licence_and_no_consent(served: Served) -> None:
    group = await people(served)
    voice = await global_voice(group.platform)
    assert set(voice) == VOICE_FIELDS | {"voice", "preflight", "license"}
    assert (voice["scope"], voice["owner_user_id"], voice["embedding_status"]) == ("global", None, "ready")
    assert voice["license"] == {
        **LICENCE,
        "license_expires_at": None,
        "license_character_cap": None,
    }
    found = await read(group.stranger, voice)
    assert found["license"] == voice["license"]
    assert "consent" not in found
    timed = await global_voice(
        group.platform, 8, license_type="time_bound", license_expires_at="2099-01-31T12:00:00+01:00"
    )
    assert timed["license"]["license_expires_at"] == "2099-01-31T11:00:00.000Z"
    capped = await global_voice(group.platform, 9, license_type="usage_bound", license_character_cap="1000")
    assert capped["license"]["license_character_cap"] == 1000


async def test_a_licence_has_the_bounds_of_its_kind(served: Served) -> None:
    http = await served.http()
    for wrong, field in (
        ({"license_type": "for ever"}, "license_type"),
        ({"license_type": ""}, "license_type"),
        ({"licensor_name": " "}, "licensor_name"),
        ({"license_type": "time_bound"}, "license_expires_at"),
        ({"license_expires_at": "2099-01-31T00:00:00Z"}, "license_expires_at"),
        ({"license_type": "time_bound", "license_expires_at": "soon"}, "license_expires_at"),
        # What cannot be told in UTC would break every list that the voice is in.
        ({"license_type": "time_bound", "license_expires_at": "9999-12-31T23:59:59-23:59"}, "license_expires_at"),
        ({"license_type": "time_bound", "license_expires_at": "0001-01-01T00:00:00+23:59"}, "license_expires_at"),
        ({"license_type": "usage_bound"}, "license_character_cap"),
        ({"license_character_cap": "10"}, "license_character_cap"),
        ({"license_type": "usage_bound", "license_character_cap": "-1"}, "license_character_cap"),
    ):
        assert field in fields_of(refusal(await take_in(http, **wrong), 422, "VALIDATION_ERROR")), wrong
    assert await names(http) == []


async def test_global_voices_are_the_platforms_alone_to_import_and_erase(served: Served) -> None:
    group = await people(served)
    voice = await global_voice(group.platform)
    path = f"{SPEAK}/admin/voices/global/{voice['id']}"
    for http in (group.ada, group.admin):
        refusal(await take_in(http), 403, "AUTHZ_PERMISSION_DENIED")
        refusal(await http.delete(path, params={"trigger": "license_revoked"}), 403, "AUTHZ_PERMISSION_DENIED")
        refusal(await http.delete(f"{SPEAK}/voices/{voice['id']}"), 403, "AUTHZ_PERMISSION_DENIED")
    # Nor does the platform erase one without saying what becomes of its licence.
    refusal(await group.platform.delete(f"{SPEAK}/voices/{voice['id']}"), 403, "AUTHZ_PERMISSION_DENIED")
    assert fields_of(refusal(await group.platform.delete(path), 422, "VALIDATION_ERROR")) == ["trigger"]
    for wrong in ("user_request", "", "because"):
        answer = await group.platform.delete(path, params={"trigger": wrong})
        assert fields_of(refusal(answer, 422, "VALIDATION_ERROR")) == ["trigger"]
    tenants_own = await clone(group.ada)
    own = f"{SPEAK}/admin/voices/global/{tenants_own['id']}"
    refusal(await group.platform.delete(own, params={"trigger": "license_revoked"}), 404, "NOT_FOUND")


async def test_each_trigger_ends_the_licence_its_own_way(served: Served) -> None:
    group = await people(served)
    ends = {
        "license_revoked": "licence_revoked",
        "license_expired": "licence_expired",
        "platform_decision": "licence_ended",
    }
    for number, (trigger, event) in enumerate(ends.items()):
        voice = await global_voice(group.platform, 20 + number)
        path = f"{SPEAK}/admin/voices/global/{voice['id']}"
        if number:
            answer = await group.platform.delete(path, params={"trigger": trigger})
        else:
            answer = await group.platform.request("DELETE", path, json={"trigger": trigger})
        assert answer.status_code == 200, answer.text
        audit_id = answer.json()["data"]["audit_id"]
        refusal(await group.ada.get(f"{SPEAK}/voices/{voice['id']}"), 404, "NOT_FOUND")
        listed = (await group.platform.get(f"{SPEAK}/admin/erasure/audit")).json()["data"]
        assert [row["trigger"] for row in listed if row["audit_id"] == audit_id] == [trigger]
        async with served.plane.core.database.read() as connection:
            query = select(agreement_events.c.kind).where(agreement_events.c.voice_id == voice["id"])
            kinds = [row.kind for row in await connection.execute(query.order_by(agreement_events.c.sequence))]
            kept = (await connection.execute(select(licences).where(licences.c.voice_id == voice["id"]))).one()
        assert kinds == ["licence_granted", event]
        assert kept.kind == "perpetual"  # the row itself never changes


# Erasure


async def test_an_erasure_answers_its_audit_id_and_is_listed_for_the_tenant(served: Served) -> None:
    group = await people(served)
    voice = await clone(group.ada)
    path = f"{SPEAK}/voices/{voice['id']}"
    answer = await group.ada.delete(path)
    assert answer.status_code == 200, answer.text
    erasure = answer.json()["data"]
    assert set(erasure) == {"audit_id", "state", "blob_bytes_deleted", "warm_replicas_evicted", "error_summary"}
    refusal(await group.ada.get(path), 404, "NOT_FOUND")
    refusal(await group.ada.post(f"{path}/repromote"), 404, "NOT_FOUND")
    refusal(await group.ada.post(f"{path}/share"), 404, "NOT_FOUND")
    assert await names(group.ada) == []
    refusal(await group.ada.get(f"{SPEAK}/admin/erasure/audit"), 403, "AUTHZ_PERMISSION_DENIED")

    async def proven() -> bool:
        (row,) = (await group.admin.get(f"{SPEAK}/admin/erasure/audit")).json()["data"]
        return row["state"] == "erased" and row["blob_bytes_deleted"] > 0

    await until(proven)
    listed = (await group.admin.get(f"{SPEAK}/admin/erasure/audit")).json()
    assert listed["meta"] == {"next_cursor": None}
    (row,) = listed["data"]
    assert row["blob_bytes_deleted"] > len(GOOD) + len(SPOKEN)
    assert {name: row[name] for name in row if name not in ("requested_at", "completed_at", "blob_bytes_deleted")} == {
        "audit_id": erasure["audit_id"],
        "voice_id": voice["id"],
        "state": "erased",
        "trigger": "user_request",
        "trigger_user": "ada",
        "source": "api",
        "warm_replicas_evicted": 1,
        "error_summary": {},
        "residual_node_ids": [],
    }
    assert row["completed_at"] >= row["requested_at"]
    assert (await group.ada.delete(path)).json()["data"]["audit_id"] == erasure["audit_id"]
    # Another tenant's administrator reads nothing of it.
    others = await served.http(await served.key("admin", tenant_id="other"))
    assert (await others.get(f"{SPEAK}/admin/erasure/audit")).json()["data"] == []


async def test_the_audit_comes_in_pages_newest_first(served: Served) -> None:
    http = await served.http()
    erased = []
    for seed in range(3):
        voice = await clone(http, seed)
        await http.delete(f"{SPEAK}/voices/{voice['id']}")
        erased.append(voice["id"])
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await http.get(f"{SPEAK}/admin/erasure/audit", params={"limit": 1, "cursor": cursor})).json()
        seen += [row["voice_id"] for row in page["data"]]
        cursor = page["meta"]["next_cursor"]
    assert seen == erased[::-1]
    for wrong in ({"limit": 0}, {"limit": 201}, {"cursor": "x"}):
        error = refusal(await http.get(f"{SPEAK}/admin/erasure/audit", params=wrong), 422, "VALIDATION_ERROR")
        assert fields_of(error) == list(wrong)


async def test_tombstones_are_purged_and_the_audit_stays(serving: Serving) -> None:
    served = await serving(nodes=1, tombstone_days=0.0)
    http = await served.http()
    voice = await clone(http)
    await http.delete(f"{SPEAK}/voices/{voice['id']}")

    async def purged() -> bool:
        await served.plane.core.people.chores.run_all_once()
        async with served.plane.core.database.read() as connection:
            return not (await connection.execute(select(voices))).all()

    await until(purged)
    (row,) = (await http.get(f"{SPEAK}/admin/erasure/audit")).json()["data"]
    assert row["voice_id"] == voice["id"]
    refusal(await http.delete(f"{SPEAK}/voices/{voice['id']}"), 404, "NOT_FOUND")


# Who may

ON_ONE_VOICE = [
    ("GET", "/voices/{}"),
    ("DELETE", "/voices/{}"),
    ("POST", "/voices/{}/share"),
    ("POST", "/voices/{}/repromote"),
]
EVERY_CALL = [
    ("GET", "/voices", "voice.read"),
    ("POST", "/voices", "voice.write"),
    ("GET", f"/voices/{ABSENT}", "voice.read"),
    ("DELETE", f"/voices/{ABSENT}", "voice.write"),
    ("POST", f"/voices/{ABSENT}/repromote", "voice.write"),
    ("POST", f"/voices/{ABSENT}/share", "voice.share"),
    ("GET", "/admin/erasure/audit", "admin"),
    ("POST", "/admin/voices/global", "platform:admin"),
    ("DELETE", f"/admin/voices/global/{ABSENT}", "platform:admin"),
]


async def test_each_call_asks_for_its_own_permission(served: Served) -> None:
    nobody, unknown = await served.http(""), await served.http("sk_a_b")
    permissions = {permission for *_, permission in EVERY_CALL}
    clients = {permission: await served.http(await served.key(permission)) for permission in permissions}
    for method, path, needed in EVERY_CALL:
        refusal(await nobody.request(method, f"{SPEAK}{path}"), 401, "AUTH_TOKEN_MISSING")
        refusal(await unknown.request(method, f"{SPEAK}{path}"), 401, "AUTH_TOKEN_INVALID")
        for permission, http in clients.items():
            status = (await http.request(method, f"{SPEAK}{path}")).status_code
            includes = permission in (needed, "platform:admin") or (permission == "admin" and needed[:5] == "voice")
            # What voice.write and voice.share include of the core's scopes is theirs, not the dialect's.
            assert (status != 403) == includes, (method, path, permission, status)

"""ScaiEcho's contract over HTTP: every field, state, code and limit of its speakers."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.controlplane.conftest import speech, until, wav
from tests.controlplane.fake_node import FakeNode
from tests.edge.conftest import Served, Serving
from tests.edge.scai import ECHO, FILES, GOOD, SILENCE, SPEAKER, SPOKEN, enrol, fields_of, refusal

SPEAKER_FIELDS = {
    "id",
    "speaker_id",
    "display_name",
    "language_primary",
    "description",
    "scope",
    "enrollment_status",
    "enrollment_status_reason",
    "created_at",
    "updated_at",
}
PREFLIGHT_FIELDS = {
    "duration_ms",
    "sample_rate",
    "channels",
    "peak_dbfs",
    "snr_db",
    "voice_activity_ratio",
    "warnings",
    "fail_reasons",
    "findings",
}
ABSENT = "v_00000000000000000000"
Speaker = dict[str, Any]


async def read(http: httpx.AsyncClient, speaker: Speaker) -> Speaker:
    answer = await http.get(f"{ECHO}/speakers/{speaker['id']}")
    assert answer.status_code == 200, answer.text
    data: Speaker = answer.json()["data"]
    return data


async def warm(http: httpx.AsyncClient, speaker: Speaker) -> dict[str, Any]:
    answer = await http.get(f"{ECHO}/speakers/{speaker['id']}/warm")
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def hearing_two(served: Served) -> None:
    """A node that hears two voices in everything, from its first moment on."""
    node = FakeNode("two", served.plane.grpc_address, (served.world.data / "fleet.key").read_text().strip())
    node.num_speakers = 2
    await node.start()
    served.stack.push_async_callback(node.stop)

    async def serves() -> bool:
        return bool(await served.plane.core.fleet.serving())

    await until(serves)


# Enrolling


async def test_an_enrolment_answers_the_speaker_the_preflight_and_who_holds_it(served: Served) -> None:
    http = await served.http()
    answer = await http.post(f"{ECHO}/speakers", data=SPEAKER, files=FILES)
    assert answer.status_code == 201, answer.text
    assert set(answer.json()) == {"data"}
    data = answer.json()["data"]
    assert set(data) == SPEAKER_FIELDS | {"speaker", "preflight", "enrolled_on"}
    assert data["display_name"] == "Alice Example"
    assert (data["language_primary"], data["description"]) == ("en", "Customer success")
    assert (data["enrollment_status"], data["enrollment_status_reason"]) == ("ready", "")
    assert data["enrolled_on"] == ["node-1"]
    assert data["id"] == data["speaker_id"]
    assert data["speaker"] == {name: data[name] for name in SPEAKER_FIELDS}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", data["created_at"])
    preflight = data["preflight"]
    assert set(preflight) == PREFLIGHT_FIELDS
    assert (preflight["duration_ms"], preflight["sample_rate"], preflight["channels"]) == (6000, 16_000, 1)
    assert preflight["fail_reasons"] == []
    assert preflight["peak_dbfs"] <= 0
    assert 0 <= preflight["voice_activity_ratio"] <= 1
    assert await read(http, data) == data["speaker"]


async def test_with_no_node_the_speaker_is_pending_with_a_note_and_ready_by_itself_when_one_joins(
    serving: Serving,
) -> None:
    served = await serving(nodes=0)
    http = await served.http()
    data = await enrol(http)
    assert (data["enrollment_status"], data["enrolled_on"]) == ("pending", [])
    assert "no node is online" in data["note"]
    assert data["enrollment_status_reason"]
    assert data["preflight"]["duration_ms"] == 6000  # checked all the same
    assert await warm(http, data) == {"warm_node_ids": [], "candidate_node_ids": [], "stale_node_ids": []}
    await served.world.node(served.plane, "late")
    # Nobody asks for anything but how it stands.

    async def ready() -> bool:
        return (await read(http, data))["enrollment_status"] == "ready"

    await until(ready)
    assert (await warm(http, data))["warm_node_ids"] == ["late"]


async def test_a_speaker_whom_the_node_refuses_later_ends_as_failed_and_says_why(serving: Serving) -> None:
    served = await serving(nodes=0)
    http = await served.http()
    data = await enrol(http)
    await hearing_two(served)

    async def failed() -> bool:
        return (await read(http, data))["enrollment_status"] == "failed"

    await until(failed)
    assert "2 different voices" in (await read(http, data))["enrollment_status_reason"]


async def test_a_speaker_whose_consent_is_withdrawn_is_evicted(served: Served) -> None:
    http = await served.http()
    data = await enrol(http)
    principal = await served.plane.core.identity.principal(served.admin_key, "voices:write")
    await served.plane.core.people.changes.withdraw(principal, data["id"], opt_out=False)
    assert (await read(http, data))["enrollment_status"] == "evicted"
    assert (await warm(http, data))["warm_node_ids"] == []


async def test_each_format_is_taken(served: Served) -> None:
    http = await served.http()
    for name in ("wav", "mp3", "flac", "ogg", "m4a"):
        files = {**FILES, "reference": (f"reference.{name}", encoded(name), "application/octet-stream")}
        answer = await http.post(f"{ECHO}/speakers", data=SPEAKER, files=files)
        assert answer.status_code == 201, (name, answer.text)
        assert abs(answer.json()["data"]["preflight"]["duration_ms"] - 6000) < 200, name


async def test_each_required_field_is_named_when_it_is_missing(served: Served) -> None:
    http = await served.http()
    for name in (set(SPEAKER) | set(FILES)) - {"description"}:
        fields = {key: value for key, value in SPEAKER.items() if key != name}
        files = {key: value for key, value in FILES.items() if key != name}
        answer = await http.post(f"{ECHO}/speakers", data=fields, files=files)
        assert fields_of(refusal(answer, 422, "VALIDATION_ERROR")) == [name]


async def test_all_that_is_missing_is_told_at_once_and_description_may_be_left_out(served: Served) -> None:
    http = await served.http()
    answer = await http.post(f"{ECHO}/speakers", data={"display_name": " "}, files={"reference": FILES["reference"]})
    assert fields_of(refusal(answer, 422, "VALIDATION_ERROR")) == [
        "display_name",
        "language_primary",
        "consent_user_full_name",
        "consent_stated_purpose",
        "consent_text",
        "consent",
    ]
    without = {key: value for key, value in SPEAKER.items() if key != "description"}
    assert (await http.post(f"{ECHO}/speakers", data=without, files=FILES)).json()["data"]["description"] == ""


UNUSABLE = [
    ("reference", b"", "empty"),
    ("reference", b"this is no sound. " * 50, "send"),
    ("reference", SILENCE, "silent"),
    ("reference", wav(speech(1, 0.5)), "at least 1 s"),
    ("consent", b"", "empty"),
    ("consent", b"this is no sound. " * 50, "send"),
    ("consent", SILENCE, "silent"),
]


async def test_a_recording_that_cannot_be_used_is_a_wrong_field_with_what_to_mend(served: Served) -> None:
    http = await served.http()
    for name, data, says in UNUSABLE:
        files = {**FILES, name: ("x.wav", data, "audio/wav")}
        error = refusal(await http.post(f"{ECHO}/speakers", data=SPEAKER, files=files), 422, "VALIDATION_ERROR")
        assert set(fields_of(error)) == {name}
        assert any(says in detail["message"] for detail in error["details"]), error
    assert (await http.get(f"{ECHO}/speakers")).json()["data"] == []


PAST_THEIR_LIMITS = [
    ("display_name", "spk_0"),
    ("display_name", "x" * 201),
    ("language_primary", "english, mostly"),
    ("description", "x" * 5000),
    ("consent_text", "x" * 30_000),
]


async def test_a_field_past_its_limits_is_named_as_the_caller_knows_it(served: Served) -> None:
    http = await served.http()
    for field, value in PAST_THEIR_LIMITS:
        answer = await http.post(f"{ECHO}/speakers", data={**SPEAKER, field: value}, files=FILES)
        assert fields_of(refusal(answer, 422, "VALIDATION_ERROR")) == [field]


async def test_what_only_a_node_hears_is_refused_with_the_recording_that_it_is_about(serving: Serving) -> None:
    served = await serving(nodes=0)
    await hearing_two(served)
    http = await served.http()
    error = refusal(await http.post(f"{ECHO}/speakers", data=SPEAKER, files=FILES), 422, "VALIDATION_ERROR")
    assert fields_of(error) == ["reference"]
    assert "2 different voices" in error["message"]


async def test_a_body_that_is_too_large_or_no_form_is_refused(served: Served) -> None:
    http = await served.http()
    huge = {**FILES, "reference": ("x.wav", bytes(66 << 20), "audio/wav")}
    refusal(await http.post(f"{ECHO}/speakers", data=SPEAKER, files=huge), 413, "PAYLOAD_TOO_LARGE")
    clip = {**FILES, "reference": ("x.wav", bytes(33 << 20), "audio/wav")}
    refusal(await http.post(f"{ECHO}/speakers", data=SPEAKER, files=clip), 413, "PAYLOAD_TOO_LARGE")
    refusal(await http.post(f"{ECHO}/speakers", json=SPEAKER), 422, "VALIDATION_ERROR")


async def test_a_repeated_request_enrols_once(served: Served) -> None:
    http = await served.http()
    http.headers["idempotency-key"] = "k-1"
    first, second = [await http.post(f"{ECHO}/speakers", data=SPEAKER, files=FILES) for _ in range(2)]
    assert first.json() == second.json()
    assert len((await http.get(f"{ECHO}/speakers")).json()["data"]) == 1
    other = await http.post(f"{ECHO}/speakers", data={**SPEAKER, "display_name": "Bob"}, files=FILES)
    refusal(other, 409, "CONFLICT")


async def test_the_consent_is_kept_and_nothing_changes_it(served: Served) -> None:
    http = await served.http()
    data = await enrol(http)
    principal = await served.plane.core.identity.principal(served.admin_key, "voices:read")
    consent = await served.plane.core.people.agreements.consent(principal, data["id"])
    assert consent is not None
    said = (consent.full_name, consent.purpose, consent.text)
    assert said == tuple(SPEAKER[f"consent_{name}"] for name in ("user_full_name", "stated_purpose", "text"))
    assert len(consent.recordings_sha256) == 2


# Listing and reading


async def test_lists_come_in_pages_and_filtered(served: Served) -> None:
    http = await served.http()
    for number, language in enumerate(("en", "de", "en-GB")):
        await enrol(http, number, display_name=f"Person {number}", language_primary=language)
    listed = await http.get(f"{ECHO}/speakers")
    assert set(listed.json()) == {"data", "meta"}
    assert all(set(speaker) == SPEAKER_FIELDS for speaker in listed.json()["data"])
    assert listed.json()["meta"] == {"next_cursor": None}

    async def names(**query: str | int) -> list[str]:
        answer = await http.get(f"{ECHO}/speakers", params=query)
        assert answer.status_code == 200, answer.text
        return sorted(speaker["display_name"] for speaker in answer.json()["data"])

    everybody = ["Person 0", "Person 1", "Person 2"]
    assert await names() == everybody
    assert await names(language="en") == ["Person 0", "Person 2"]
    assert await names(q="person 1") == ["Person 1"]
    assert await names(enrollment_status="ready") == everybody
    assert await names(enrollment_status="failed") == []
    seen, cursor = [], ""
    while True:
        page = (await http.get(f"{ECHO}/speakers", params={"limit": 1, "cursor": cursor})).json()
        assert len(page["data"]) == 1
        seen += [speaker["display_name"] for speaker in page["data"]]
        cursor = page["meta"]["next_cursor"]
        if cursor is None:
            break
    assert sorted(seen) == everybody


async def test_a_query_past_its_limits_is_refused(served: Served) -> None:
    http = await served.http()
    queries: list[dict[str, Any]] = [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"enrollment_status": "asleep"}]
    for query in queries:
        error = refusal(await http.get(f"{ECHO}/speakers", params=query), 422, "VALIDATION_ERROR")
        assert fields_of(error) == list(query)


# Warming


async def test_warm_tells_who_holds_a_speaker_who_could_and_who_is_away(served: Served) -> None:
    http = await served.http()
    data = await enrol(http)
    assert await warm(http, data) == {
        "warm_node_ids": ["node-1"],
        "candidate_node_ids": ["node-1"],
        "stale_node_ids": [],
    }
    second = await served.world.node(served.plane, "node-2")

    async def both() -> bool:
        return (await warm(http, data))["warm_node_ids"] == ["node-1", "node-2"]

    await until(both)
    await second.beat_once()  # what the registry knows of it is what it said last
    await second.stop()

    async def gone() -> bool:
        found = await warm(http, data)
        return found["stale_node_ids"] == ["node-2"] and found["candidate_node_ids"] == ["node-1"]

    await until(gone)


async def test_warming_enrols_on_the_named_nodes_or_on_all(served: Served) -> None:
    http = await served.http()
    data = await enrol(http)
    path = f"{ECHO}/speakers/{data['id']}/warm"
    for body in ({"node_ids": []}, {}, {"node_ids": ["node-1"]}):
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "data": {
                "warm_node_ids": ["node-1"],
                "candidate_node_ids": ["node-1"],
                "stale_node_ids": [],
                "enrolled_on": ["node-1"],
                "error_summary": {},
            }
        }
    assert (await http.post(path)).json()["data"]["enrolled_on"] == ["node-1"]
    partly = (await http.post(path, json={"node_ids": ["node-1", "node-9"]})).json()["data"]
    assert partly["enrolled_on"] == ["node-1"]
    assert list(partly["error_summary"]) == ["node-9"]
    error = refusal(await http.post(path, json={"node_ids": "all"}), 422, "VALIDATION_ERROR")
    assert fields_of(error) == ["node_ids"]


# Deleting


async def test_a_deletion_answers_its_audit_id_and_what_became_of_it(served: Served) -> None:
    http = await served.http()
    data = await enrol(http)
    path = f"{ECHO}/speakers/{data['id']}"
    answer = await http.delete(path)
    assert answer.status_code == 200, answer.text
    deletion = answer.json()["data"]
    assert set(deletion) == {"audit_id", "state", "blob_bytes_deleted", "warm_replicas_evicted", "error_summary"}
    assert deletion["audit_id"]
    assert deletion["error_summary"] == {}
    refusal(await http.get(path), 404, "NOT_FOUND")
    refusal(await http.get(f"{path}/warm"), 404, "NOT_FOUND")
    refusal(await http.post(f"{path}/warm", json={"node_ids": []}), 404, "NOT_FOUND")
    assert (await http.get(f"{ECHO}/speakers")).json()["data"] == []

    async def proven() -> bool:
        again = (await http.delete(path)).json()["data"]
        assert again["audit_id"] == deletion["audit_id"]
        return again["state"] == "erased" and again["blob_bytes_deleted"] > len(GOOD) + len(SPOKEN)

    await until(proven)
    assert (await http.delete(path)).json()["data"]["warm_replicas_evicted"] == 1


async def test_a_node_that_does_not_answer_is_in_the_error_summary(serving: Serving) -> None:
    # Its lease is short, for its end is what this is about; the other renews five times in that while.
    served = await serving(nodes=0, renew_s=0.5, node_lease_s=2.5, lease_s=3.0)
    node = await served.world.node(served.plane, "node-1")
    http = await served.http()
    data = await enrol(http)
    node.freeze()
    await http.delete(f"{ECHO}/speakers/{data['id']}")

    async def told() -> bool:
        said = (await http.delete(f"{ECHO}/speakers/{data['id']}")).json()["data"]
        return said["state"] == "erased" and "lease ran out" in said["error_summary"].get("node-1", "")

    await until(told)


# Who may


async def test_a_missing_token_and_a_bad_one_are_told_apart(served: Served) -> None:
    for token, code in (("", "AUTH_TOKEN_MISSING"), ("sk_a_b", "AUTH_TOKEN_INVALID"), ("x", "AUTH_TOKEN_INVALID")):
        http = await served.http(token)
        for method, path in ROUTES:
            refusal(await http.request(method, f"{ECHO}{path}"), 401, code)


ROUTES = [
    ("POST", "/speakers"),
    ("GET", "/speakers"),
    ("GET", f"/speakers/{ABSENT}"),
    ("DELETE", f"/speakers/{ABSENT}"),
    ("GET", f"/speakers/{ABSENT}/warm"),
    ("POST", f"/speakers/{ABSENT}/warm"),
]


async def test_transcribing_and_diarizing_do_not_include_enrolling(served: Served) -> None:
    without = await served.http(await served.key("scaiecho:transcribe", "scaiecho:diarize", "scaiecho:admin"))
    for method, path in ROUTES:
        refusal(await without.request(method, f"{ECHO}{path}"), 403, "AUTHZ_PERMISSION_DENIED")
    enrolling = await served.http(await served.key("scaiecho:enroll"))
    data = await enrol(enrolling)
    assert [speaker["id"] for speaker in (await enrolling.get(f"{ECHO}/speakers")).json()["data"]] == [data["id"]]
    assert (await enrolling.delete(f"{ECHO}/speakers/{data['id']}")).status_code == 200


async def test_another_tenants_speaker_is_as_one_that_is_not_there(served: Served) -> None:
    await served.tenant("other")
    stranger = await served.http(await served.key("scaiecho:enroll", tenant_id="other"))
    data = await enrol(await served.http())
    for method, path in ROUTES[2:]:
        theirs = await stranger.request(method, f"{ECHO}{path.replace(ABSENT, data['id'])}")
        absent = await stranger.request(method, f"{ECHO}{path}")
        error = refusal(theirs, 404, "NOT_FOUND")
        assert error == refusal(absent, 404, "NOT_FOUND")
    assert (await stranger.get(f"{ECHO}/speakers")).json()["data"] == []


# What is left


async def test_too_many_requests_say_when_to_come_again(serving: Serving) -> None:
    served = await serving(nodes=1, http_rate_limits={"scaiecho.enroll": 1})
    http = await served.http()
    assert (await http.post(f"{ECHO}/speakers", data=SPEAKER, files=FILES)).status_code == 201
    answer = await http.post(f"{ECHO}/speakers", data=SPEAKER, files=FILES)
    error = refusal(answer, 429, "RATE_LIMITED")
    assert isinstance(error["retry_after"], int)
    assert int(answer.headers["retry-after"]) == error["retry_after"] >= 1


async def test_unknown_paths_methods_and_faults_leave_in_the_same_envelope(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = await served.http()
    refusal(await http.get(f"{ECHO}/nothing"), 404, "NOT_FOUND")
    answer = await http.put(f"{ECHO}/speakers")
    refusal(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "GET, POST"

    async def away(*_args: object, **_kwargs: object) -> None:
        from runtime.errors import Unavailable

        raise Unavailable("the database is away")

    monkeypatch.setattr(type(served.plane.core.library), "list", away)
    refusal(await http.get(f"{ECHO}/speakers"), 502, "SCAIECHO_BACKEND_UNAVAILABLE")

    async def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("Alice Example")

    monkeypatch.setattr(type(served.plane.core.library), "list", broken)
    assert "Alice" not in refusal(await http.get(f"{ECHO}/speakers"), 500, "INTERNAL_ERROR")["message"]


def encoded(name: str) -> bytes:
    """The good recording in another format."""
    import io

    import av

    formats = {"wav": ("wav", "pcm_s16le"), "mp3": ("mp3", "libmp3lame"), "flac": ("flac", "flac")}
    formats |= {"ogg": ("ogg", "libopus"), "m4a": ("ipod", "aac")}
    container, codec = formats[name]
    buffer = io.BytesIO()
    samples = speech(1, 6.0)
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48_000 if codec == "libopus" else 16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return buffer.getvalue()

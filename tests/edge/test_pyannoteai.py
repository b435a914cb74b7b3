"""The pyannoteAI dialect over HTTP: each field, limit and error of the contract, in front of a fake node."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest

from controlplane.job_spec import JobKind, JobState
from controlplane.job_view import FrameConfidences, Job, JobAsked, JobOutput, JobSpeaker, JobTurn
from edge.pyannoteai.answers import JobAnswer
from edge.pyannoteai.outputs import job_body
from tests.controlplane.conftest import speech, until, wav
from tests.edge.conftest import Served, Serving

TALK = "media://talks/one.wav"
ENDS = ("succeeded", "failed", "canceled")


async def upload(http: httpx.AsyncClient, url: str = TALK, data: bytes | None = None) -> str:
    answer = await http.post("/v1/media/input", json={"url": url})
    assert answer.status_code == 201, answer.text
    async with httpx.AsyncClient(timeout=60) as anybody:
        put = await anybody.put(answer.json()["url"], content=wav(speech()) if data is None else data)
    assert put.is_success, put.text
    return url


async def submit(http: httpx.AsyncClient, call: str = "diarize", **fields: Any) -> httpx.Response:
    return await http.post(f"/v1/{call}", json={"url": TALK, **fields})


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        found.update((await http.get(f"/v1/jobs/{job_id}")).json())
        return found["status"] in ENDS

    await until(has_ended, 60)
    return found


async def voiceprint(http: httpx.AsyncClient) -> str:
    job = await ended(http, (await submit(http, "voiceprint")).json()["jobId"])
    assert job["status"] == "succeeded", job
    return str(job["output"]["voiceprint"])


def refused(answer: httpx.Response) -> list[str]:
    """The fields that a 400 names."""
    assert answer.status_code == 400, (answer.status_code, answer.text)
    body = answer.json()
    assert (set(body), body["message"]) == ({"message", "errors"}, "Invalid request")
    assert all(set(error) == {"field", "message"} and error["message"] for error in body["errors"])
    return [error["field"] for error in body["errors"]]


@pytest.fixture
async def http(serving: Serving) -> httpx.AsyncClient:
    served = await serving(nodes=1, http_rate_limits={"pyannoteai.read": 0, "pyannoteai.submit": 0})
    client = await served.http(await served.key("jobs:write"))
    await upload(client)
    return client


async def test_a_key_is_told_to_be_good_with_a_content_type_and_no_body(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/test", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["status"]) == (200, "OK")
    assert answer.json()["message"]


async def test_what_was_put_under_a_key_comes_back_and_the_same_key_may_be_put_again(http: httpx.AsyncClient) -> None:
    place = (await http.post("/v1/media/input", json={"url": "media://a-b_c./d"})).json()["url"]
    async with httpx.AsyncClient(timeout=60) as anybody:
        for data, headers in ((b"first", {}), (b"second", {"content-type": "audio/wav"})):
            assert (await anybody.put(place, content=data, headers=headers)).is_success
        got = await anybody.get((await http.post("/v1/media/output", json={"url": "media://a-b_c./d"})).json()["url"])
        assert (got.status_code, got.content) == (200, b"second")
        never = (await http.post("/v1/media/output", json={"url": "media://never"})).json()["url"]
        assert (await anybody.get(never)).status_code == 404
        # A url for one thing is good for nothing else.
        assert (await anybody.get(place)).status_code == 403
        assert (await anybody.put(place + "x", content=b"data")).status_code == 403
        assert refused(await anybody.put(place, content=b"")) == [""]


async def test_more_than_1_gib_is_refused_before_any_of_it_is_sent(http: httpx.AsyncClient) -> None:
    place = httpx.URL((await http.post("/v1/media/input", json={"url": TALK})).json()["url"])
    for size_bytes, status in (((1 << 30) + 1, b"413"), (1 << 60, b"413")):
        reader, writer = await asyncio.open_connection(place.host, place.port)
        head = f"PUT {place.raw_path.decode()} HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: {size_bytes}\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readline()).split()[1] == status
        writer.close()
        await writer.wait_closed()


async def test_a_media_key_is_of_letters_digits_and_four_signs_and_no_longer_than_255(http: httpx.AsyncClient) -> None:
    longest = "media://" + "k" * (255 - len("media://"))
    assert (await http.post("/v1/media/input", json={"url": longest})).status_code == 201
    for url in (longest + "k", "media://", "media://a b", "media://ä", "media://a\n", "talk.wav", "", None, 7):
        for call in ("input", "output"):
            assert refused(await http.post(f"/v1/media/{call}", json={"url": url})) == ["url"], url


async def test_a_job_is_created_and_its_output_is_left_out_until_there_is_one(serving: Serving) -> None:
    served = await serving()
    http = await served.http()
    await upload(http)
    answer = await submit(http)
    assert answer.status_code == 200
    assert set(answer.json()) == {"jobId", "status"}
    assert answer.json()["status"] in ("created", "pending")
    job = (await http.get(f"/v1/jobs/{answer.json()['jobId']}", headers={"content-type": "application/json"})).json()
    assert set(job) == {"jobId", "status", "createdAt", "updatedAt", "progress"}
    assert (job["progress"], job["createdAt"][-1]) == (0, "Z")
    await served.world.node(served.plane)
    job = await ended(http, job["jobId"])
    assert (job["status"], job["progress"]) == ("succeeded", 100)
    assert set(job["output"]) == {"diarization"}


async def test_nulls_mean_the_same_as_nothing(http: httpx.AsyncClient) -> None:
    nothing = dict.fromkeys(
        ["webhook", "webhookStatusOnly", "model", "numSpeakers", "minSpeakers", "maxSpeakers", "confidence",
         "turnLevelConfidence", "exclusive", "transcription", "transcriptionConfig"]
    )  # fmt: skip
    assert (await submit(http, **nothing)).status_code == 200
    blob = await voiceprint(http)
    assert (await submit(http, "voiceprint", webhook=None, model=None, webhookStatusOnly=None)).status_code == 200
    sent = [{"label": "Ada", "voiceprint": blob}]
    assert (await submit(http, "identify", voiceprints=sent, matching=None, **nothing)).status_code == 200
    matching = {"exclusive": None, "threshold": None, "speakers": None}
    assert (await submit(http, "identify", voiceprints=sent, matching=matching)).status_code == 200


@pytest.mark.parametrize("field", ["numSpeakers", "minSpeakers", "maxSpeakers"])
async def test_numbers_of_speakers_are_whole_and_at_least_one(http: httpx.AsyncClient, field: str) -> None:
    for good in (1, 2, 2.0):
        assert (await submit(http, **{field: good})).status_code == 200
    for bad in (0, -1, 1.5, "2", True, [2]):
        assert refused(await submit(http, **{field: bad})) == [field], bad
    assert refused(await submit(http, minSpeakers=3, maxSpeakers=2)) == ["minSpeakers"]


async def test_truth_values_are_true_or_false(http: httpx.AsyncClient) -> None:
    for field in ("confidence", "turnLevelConfidence", "exclusive", "transcription", "webhookStatusOnly"):
        for bad in ("true", 1, {}):
            assert refused(await submit(http, **{field: bad})) == [field], (field, bad)


async def test_a_local_path_is_no_url(http: httpx.AsyncClient) -> None:
    for url in (
        "/etc/passwd",
        "talk.wav",
        "./talk.wav",
        "C:\\talk.wav",
        "file:///etc/passwd",
        "ftp://host/x",
        "https:",
        "",
        None,
    ):
        for call in ("diarize", "identify", "voiceprint"):
            assert "url" in refused(await http.post(f"/v1/{call}", json={"url": url})), url
    assert "url" in refused(await http.post("/v1/diarize", json={}))
    assert refused(await http.post("/v1/diarize", json={"url": "media://never/put"})) == ["url"]


async def test_a_private_address_is_neither_fetched_nor_called(http: httpx.AsyncClient) -> None:
    for url in ("https://127.0.0.1/a.wav", "https://[::1]/a.wav", "https://10.0.0.1/a.wav", "http://169.254.169.254/"):
        assert refused(await http.post("/v1/diarize", json={"url": url})) == ["url"], url
        assert refused(await submit(http, webhook=url)) == ["webhook"], url


async def test_what_is_not_done_here_is_said_and_not_left_out_in_silence(http: httpx.AsyncClient) -> None:
    assert refused(await submit(http, transcription=True)) == ["transcription"]
    assert refused(await submit(http, "identify", transcription=True, voiceprints=[])) == ["transcription"]
    answer = await submit(http, transcription=False, transcriptionConfig={"model": "parakeet-tdt-0.6b-v3"})
    assert "transcriptionConfig" in answer.json()["warning"]
    assert "warning" not in (await submit(http, model="precision-2")).json()
    assert "model" in (await submit(http, model="my-own")).json()["warning"]


async def test_fifty_voiceprints_pass_and_fifty_one_are_refused(http: httpx.AsyncClient) -> None:
    blob = await voiceprint(http)
    sent = [{"label": f"person {number}", "voiceprint": blob} for number in range(51)]
    assert (await submit(http, "identify", voiceprints=sent[:50])).status_code == 200
    assert refused(await submit(http, "identify", voiceprints=sent)) == ["voiceprints"]
    assert refused(await submit(http, "identify", voiceprints=[])) == ["voiceprints"]
    assert refused(await submit(http, "identify")) == ["voiceprints"]


async def test_a_voiceprint_is_base64_of_ours_and_at_most_20000_characters(http: httpx.AsyncClient) -> None:
    blob = await voiceprint(http)
    assert 0 < len(blob) <= 20_000
    base64.b64decode(blob, validate=True)
    for bad in ("x" * 20_001, "", "not base64!", base64.b64encode(b"of another maker").decode(), blob[:-8], None, 7):
        sent = [{"label": "Ada", "voiceprint": blob}, {"label": "Bob", "voiceprint": bad}]
        assert refused(await submit(http, "identify", voiceprints=sent)) == ["voiceprints.1.voiceprint"], bad
    # As long as may be, and refused for what it is rather than for its length.
    sent = [{"label": "Ada", "voiceprint": "A" * 20_000}]
    answer = await submit(http, "identify", voiceprints=sent)
    assert refused(answer) == ["voiceprints.0.voiceprint"]
    assert "20" not in answer.json()["errors"][0]["message"]


async def test_a_label_has_100_characters_at_most_and_does_not_look_like_a_strangers(http: httpx.AsyncClient) -> None:
    blob = await voiceprint(http)
    for good in ("x" * 100, "ä" * 100, "speaker", "Ada-speaker_1"):
        answer = await submit(http, "identify", voiceprints=[{"label": good, "voiceprint": blob}])
        assert answer.status_code == 200, (good, answer.text)
    for bad in ("x" * 101, "", "speaker_00", "SPEAKER_00", "Speaker_Ada", None, 7, "a\0b", "\ud800"):
        # Half of a surrogate pair can be written in JSON alone, where it is escaped.
        body = json.dumps({"url": TALK, "voiceprints": [{"label": bad, "voiceprint": blob}]})
        answer = await http.post("/v1/identify", content=body, headers={"content-type": "application/json"})
        assert refused(answer) == ["voiceprints.0.label"], bad
    twice = [{"label": "Ada", "voiceprint": blob}] * 2
    assert refused(await submit(http, "identify", voiceprints=twice)) == ["voiceprints.1.label"]


async def test_a_threshold_lies_between_0_and_100(http: httpx.AsyncClient) -> None:
    blob = await voiceprint(http)
    sent = [{"label": "Ada", "voiceprint": blob}]
    for good in (0, 100, 49.5):
        assert (await submit(http, "identify", voiceprints=sent, matching={"threshold": good})).status_code == 200
    for bad in (-1, 101, "50", True):
        answer = await submit(http, "identify", voiceprints=sent, matching={"threshold": bad})
        assert refused(answer) == ["matching.threshold"], bad


async def test_whom_one_may_not_see_is_not_there_to_be_looked_for(http: httpx.AsyncClient) -> None:
    assert refused(await submit(http, "identify", matching={"speakers": ["nobody"]})) == ["matching.speakers"]
    assert refused(await submit(http, "identify", matching={"speakers": "nobody"})) == ["matching.speakers"]
    assert (await submit(http, "identify", matching={"speakers": "*"})).status_code == 200
    assert (await submit(http, "identify", matching={"speakers": ["*"]})).status_code == 200


async def test_a_body_that_is_no_object_is_refused(http: httpx.AsyncClient) -> None:
    for content in (b"", b"{", b"[]", b"null", b'"text"', b"\xff", b'{"url": 1e999}'):
        answer = await http.post("/v1/diarize", content=content, headers={"content-type": "application/json"})
        refused(answer)
    refused(await http.post("/v1/diarize", content=b"url=media://x", headers={"content-type": "text/plain"}))


async def test_unknown_jobs_and_those_of_other_tenants_are_not_there(serving: Serving) -> None:
    served = await serving()
    await served.tenant("other")
    http, other = await served.http(), await served.http(await served.key("jobs:write", tenant_id="other"))
    await upload(http)
    job_id = (await submit(http)).json()["jobId"]
    for call in ("", "/rttm", "/srt", "/report"):
        theirs = await other.get(f"/v1/jobs/{job_id}{call}")
        nobodys = await other.get(f"/v1/jobs/00000000-0000-0000-0000-000000000000{call}")
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.json()["message"] == nobodys.json()["message"]
    assert (await other.delete(f"/v1/jobs/{job_id}")).status_code == 404
    assert (await http.get("/v1/jobs/" + "x" * 5000)).status_code == 404
    assert (await other.get("/v2/jobs")).json() == {"items": [], "nextCursor": None}
    # Nor is the recording of one tenant another's.
    assert refused(await submit(other)) == ["url"]


async def test_jobs_are_listed_newest_first_a_page_at_a_time_and_by_status(serving: Serving) -> None:
    served = await serving()
    http = await served.http()
    await upload(http)
    made = [(await submit(http)).json()["jobId"] for _ in range(12)]
    first = (await http.get("/v2/jobs")).json()
    assert [item["id"] for item in first["items"]] == made[:1:-1]
    assert all(set(item) == {"id", "status", "createdAt"} for item in first["items"])
    rest = (await http.get("/v2/jobs", params={"cursor": first["nextCursor"], "limit": 100})).json()
    assert ([item["id"] for item in rest["items"]], rest["nextCursor"]) == (made[1::-1], None)
    assert (await http.delete(f"/v1/jobs/{made[3]}")).json()["status"] == "canceled"
    canceled = (await http.get("/v2/jobs", params={"status": "canceled"})).json()
    assert [item["id"] for item in canceled["items"]] == [made[3]]
    for field, bad in (("limit", 0), ("limit", 101), ("limit", "x"), ("status", "done"), ("cursor", "garbage")):
        assert refused(await http.get("/v2/jobs", params={field: bad})) == [field], (field, bad)


async def test_a_canceled_job_has_no_output_and_stays_canceled(serving: Serving) -> None:
    served = await serving()
    http = await served.http()
    await upload(http)
    job_id = (await submit(http)).json()["jobId"]
    for _ in range(2):
        answer = await http.delete(f"/v1/jobs/{job_id}")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        assert "output" not in answer.json()
    assert (await http.get(f"/v1/jobs/{job_id}/rttm")).status_code == 404


async def test_a_job_that_fails_says_why_in_its_output(http: httpx.AsyncClient) -> None:
    await upload(http, "media://no/sound.wav", b"this is no sound" * 100)
    job = await ended(http, (await submit(http, url="media://no/sound.wav")).json()["jobId"])
    assert (job["status"], set(job["output"])) == ("failed", {"error"})
    assert job["output"]["error"]


async def test_a_repeated_submission_is_one_job(http: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "talk-of-monday"}
    answers = [await http.post("/v1/diarize", json={"url": TALK}, headers=headers) for _ in range(3)]
    assert len({answer.json()["jobId"] for answer in answers}) == 1
    answer = await http.post("/v1/diarize", json={"url": TALK, "exclusive": True}, headers=headers)
    assert answer.status_code == 409
    assert len((await http.get("/v2/jobs")).json()["items"]) == 1


async def test_past_100_submissions_or_300_reads_a_minute_there_is_a_429(serving: Serving) -> None:
    served = await serving()
    key = await served.key("jobs:write")
    http = await served.http(key)
    for call, limit in (("/v2/jobs", 300), ("/v1/diarize", 100)):
        asked = http.get(call) if limit == 300 else http.post(call, json={"url": "talk.wav"})
        answer = await asked
        assert answer.headers["x-ratelimit-limit"] == str(limit)
        assert answer.headers["x-ratelimit-remaining"] == str(limit - 1)
        answers = [
            await (http.get(call) if limit == 300 else http.post(call, json={"url": "talk.wav"})) for _ in range(limit)
        ]
        assert answers[-1].status_code == 429
        assert all(one.status_code != 429 for one in answers[:-1])
        assert set(answers[-1].json()) == {"message", "requestId"}
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert answers[-1].headers["x-ratelimit-remaining"] == "0"
        assert int(answers[-1].headers["x-ratelimit-reset"]) > 0
    other = await served.http(await served.key("jobs:write"))
    assert (await other.get("/v2/jobs")).status_code == 200


def finished(kind: JobKind, output: JobOutput, **asked: bool) -> dict[str, Any]:
    job = Job(
        "j-1", "acme", kind, JobState.SUCCEEDED, 1_700_000_000.0, 1_700_000_001.5,
        output=output, asked=JobAsked(**asked), warning="one thing",
    )  # fmt: skip
    body = job_body(job)
    JobAnswer.model_validate(body)
    return body


TURNS = (
    JobTurn(0, 1500, 0, name="Ada", confidence=0.931),
    JobTurn(1000, 2250, 1, confidence=0.5),
)


def test_a_diarization_is_written_as_asked_for() -> None:
    output = JobOutput(2250, TURNS, TURNS[:1], confidence=FrameConfidences(15, bytes([255, 0, 128])))
    plain = finished(JobKind.DIARIZE, output)
    assert (plain["createdAt"], plain["updatedAt"]) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:21.500Z")
    assert plain["output"] == {
        "diarization": [
            {"speaker": "SPEAKER_00", "start": 0.0, "end": 1.5},
            {"speaker": "SPEAKER_01", "start": 1.0, "end": 2.25},
        ],
        "warning": "one thing",
    }
    full = finished(JobKind.DIARIZE, output, exclusive=True, confidence=True, turn_confidence=True)["output"]
    assert full["exclusiveDiarization"] == [
        {"speaker": "SPEAKER_00", "start": 0.0, "end": 1.5, "confidence": {"SPEAKER_00": 93}}
    ]
    assert full["confidence"]["resolution"] == 0.02
    assert full["confidence"]["score"][:4] == [100, 0, 50, 50]
    assert len(full["confidence"]["score"]) == 113


def test_an_identification_names_the_match_and_else_the_speaker_and_scores_every_label() -> None:
    speakers = (
        JobSpeaker(0, 1500, 1400, match="Ada", scores={"Ada": 97, "Bob": 3}),
        JobSpeaker(1, 1250, 750, scores={"Ada": 8, "Bob": 41}),
    )
    output = finished(JobKind.IDENTIFY, JobOutput(2250, TURNS, speakers=speakers))["output"]
    assert output["identification"] == [
        {"speaker": "Ada", "start": 0.0, "end": 1.5, "diarizationSpeaker": "SPEAKER_00", "match": "Ada"},
        {"speaker": "SPEAKER_01", "start": 1.0, "end": 2.25, "diarizationSpeaker": "SPEAKER_01", "match": None},
    ]
    assert output["voiceprints"] == [
        {"speaker": "SPEAKER_00", "match": "Ada", "confidence": {"Ada": 97, "Bob": 3}},
        {"speaker": "SPEAKER_01", "match": None, "confidence": {"Ada": 8, "Bob": 41}},
    ]
    assert output["diarization"][0]["speaker"] == "SPEAKER_00"


def test_a_voiceprint_job_gives_a_voiceprint_and_nothing_else() -> None:
    output = finished(JobKind.VOICEPRINT, JobOutput(voiceprint="QUJD", warnings=("one thing", "another")))["output"]
    assert output == {"voiceprint": "QUJD", "warning": "one thing; another"}


async def test_turns_leave_as_rttm_and_srt_and_speakers_with_a_report(served: Served) -> None:
    http = await served.http()
    await upload(http)
    job_id = (await submit(http, "identify", matching={"speakers": "*"})).json()["jobId"]
    await ended(http, job_id)
    report = (await http.get(f"/v1/jobs/{job_id}/report")).json()
    assert (report["jobId"], [one["speaker"] for one in report["speakers"]]) == (job_id, ["SPEAKER_00"])
    for form, media_type in (("rttm", "application/x-rttm"), ("srt", "application/x-subrip")):
        answer = await http.get(f"/v1/jobs/{job_id}/{form}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(media_type)


async def test_urls_that_are_given_out_begin_as_the_settings_say_behind_a_proxy(serving: Serving) -> None:
    served = await serving(public_url="https://voices.example/")
    http = await served.http()
    for call in ("input", "output"):
        url = (await http.post(f"/v1/media/{call}", json={"url": TALK})).json()["url"]
        assert url.startswith("https://voices.example/v1/media/")


async def test_a_host_that_is_none_is_in_no_url(serving: Serving) -> None:
    http = await (await serving()).http()
    answer = await http.post("/v1/media/input", json={"url": TALK}, headers={"host": "a b/../c"})
    assert answer.status_code == 400

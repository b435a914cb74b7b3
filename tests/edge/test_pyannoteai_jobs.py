"""Jobs of the pyannoteAI dialect over HTTP: their course, their limits a minute, and how their results are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from controlplane.job_spec import JobKind, JobState
from controlplane.job_view import FrameConfidences, Job, JobAsked, JobOutput, JobSpeaker, JobTurn
from controlplane.rate_limits import RateLimit
from edge.pyannoteai import READ, SUBMIT
from edge.pyannoteai.answers import JobAnswer
from edge.pyannoteai.outputs import job_body, rttm, srt
from tests.edge.conftest import Served, Serving
from tests.edge.pyannoteai_calls import TALK, ended, refused, submit, upload


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


async def test_past_100_submissions_or_300_reads_a_minute_there_is_a_429(serving: Serving) -> None:
    served = await serving()
    token = await served.key("jobs:write")
    http = await served.http(token)
    for limit, calls_max in ((READ, 300), (SUBMIT, 100)):

        async def call(limit: RateLimit = limit) -> httpx.Response:
            return await (http.get("/v2/jobs") if limit is READ else http.post("/v1/diarize", json={"url": "talk.wav"}))

        answer = await call()
        assert answer.status_code in (200, 400)
        assert answer.headers["x-ratelimit-limit"] == str(calls_max)
        assert answer.headers["x-ratelimit-remaining"] == str(calls_max - 1)
        # Most of them without HTTP, so that a machine that stalls is not a minute behind at the end.
        for _ in range(calls_max - 2):
            assert (await served.plane.core.rate_limits.take(token.split("_")[1], limit)).allowed
        answer = await call()
        assert (answer.status_code in (200, 400), answer.headers["x-ratelimit-remaining"]) == (True, "0")
        answer = await call()
        assert answer.status_code == 429
        assert set(answer.json()) == {"message", "requestId"}
        assert answer.json()["requestId"] == answer.headers["x-request-id"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["x-ratelimit-remaining"] == "0"
        assert int(answer.headers["x-ratelimit-reset"]) > 1_700_000_000
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


async def test_a_long_result_is_written_anew_when_somebody_in_it_is_erased_meanwhile(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(name: str | None, voice_id: str | None) -> Job:
        turns = tuple(JobTurn(at, at + 1, 0, name=name, voice_id=voice_id) for at in range(2_000))
        # Somebody else of the same name lives on, and is a candidate still.
        speakers = (JobSpeaker(0, 2_000, 2_000, match=name, voice_id=voice_id, scores={"Alice": 3}),)
        output = JobOutput(2_000, turns, turns, speakers)
        return Job("j-1", "t", JobKind.IDENTIFY, JobState.SUCCEEDED, 0.0, 0.0, output=output, asked=JobAsked(True))

    http = await served.http()
    for form in ("", "/rttm", "/srt", "/report"):
        found = iter([job("Alice", "v_1")])

        async def get(*_: object, found: Iterator[Job] = found) -> Job:
            return next(found, job(None, None))

        monkeypatch.setattr(served.plane.core.jobs, "get", get)
        answer = await http.get(f"/v1/jobs/j-1{form}")
        assert answer.status_code == 200, form
        assert next(found, None) is None
        told = answer.text.replace('{"Alice":3}', "")
        assert "Alice" not in told and "SPEAKER_00" in told, form


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


def test_rttm_and_srt_tell_who_speaks_and_no_name_can_break_out_of_its_line() -> None:
    turns = (
        JobTurn(0, 3_723_004, 0, name="Ada L"),
        JobTurn(1000, 2250, 1),
        JobTurn(2000, 2500, 2, name="x\n\n2\n00:00:00,000 ---> 00:00:01,000\nEve"),
    )
    lines = rttm("j-1", JobOutput(4000, turns)).splitlines()
    assert lines[0] == "SPEAKER j-1 1 0.000 3723.004 <NA> <NA> Ada_L <NA> <NA>"
    assert lines[1] == "SPEAKER j-1 1 1.000 1.250 <NA> <NA> SPEAKER_01 <NA> <NA>"
    assert len(lines) == 3
    cues = srt(JobOutput(4000, turns)).split("\n\n")
    assert cues[0] == "1\n00:00:00,000 --> 01:02:03,004\nAda L"
    assert cues[1] == "2\n00:00:01,000 --> 00:00:02,250\nSPEAKER_01"
    assert len(cues) == 3
    assert cues[2].count("-->") == 1

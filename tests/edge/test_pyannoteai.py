"""The pyannoteAI dialect over HTTP: each field, limit and error of the contract, in front of a fake node.

All of these share one control plane, whose start takes longer than any of them.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
import pytest_asyncio

from tests.controlplane.conftest import World
from tests.edge.conftest import Serving
from tests.edge.pyannoteai_calls import TALK, ended, refused, submit, upload, voiceprint

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with AsyncExitStack() as stack:
        world = World(tmp_path_factory.mktemp("plane") / "data", stack, None)
        serving = Serving(world, stack)
        served = await serving(nodes=1, http_rate_limits={"pyannoteai.read": 0, "pyannoteai.submit": 0})
        client = await served.http(await served.key("jobs:write"))
        await upload(client)
        yield client


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
    answer = await http.post("/v1/diarize", content=b"url=media://x", headers={"content-type": "text/plain"})
    assert refused(answer) == [""]
    assert "application/json" in answer.json()["errors"][0]["message"]


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
    listed = (await http.get("/v2/jobs", params={"limit": 100})).json()["items"]
    assert [item["id"] for item in listed].count(answers[0].json()["jobId"]) == 1

"""Identification against enrolled people through real daemons: named, scored, reported, and gone once erased."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from speakerd.rttm import parse_rttm
from tests.edge.pyannoteai_calls import ended, submit, upload
from tests.speakerd.running import ADA, BOB, RunningUp, speakerd, write_voice


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    running = RunningUp(tmp_path_factory.mktemp("up"))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
async def http(up: RunningUp, tmp_path: Path) -> Any:
    url = dict(field.split("=", 1) for field in up.ready.split()[1:])["http"]
    headers = {"authorization": f"Bearer {(up.data / 'admin.key').read_text().strip()}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        await upload(client, data=write_voice(tmp_path / "both.wav", 8.0, ADA, BOB).read_bytes())
        yield client


async def identified(http: httpx.AsyncClient, **matching: Any) -> tuple[str, dict[str, Any]]:
    answer = await submit(http, "identify", matching=matching, exclusive=True)
    assert answer.status_code == 200, answer.text
    job = await ended(http, answer.json()["jobId"])
    assert job["status"] == "succeeded", job
    return job["jobId"], job["output"]


async def test_enrolled_people_are_named_until_they_are_erased(
    up: RunningUp, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    said = speakerd("enroll", "Ada L", write_voice(tmp_path / "ada.wav", 6.0, ADA), "--json", data=up.data)
    voice_id = json.loads(said.stdout)["voice"]["voice_id"]
    for speakers in ("*", [voice_id]):
        job_id, output = await identified(http, speakers=speakers)
        by_speaker = {one["speaker"]: one for one in output["voiceprints"]}
        assert {name: one["match"] for name, one in by_speaker.items()} == {"SPEAKER_00": "Ada L", "SPEAKER_01": None}
        assert by_speaker["SPEAKER_00"]["confidence"]["Ada L"] > 50 > by_speaker["SPEAKER_01"]["confidence"]["Ada L"]
        assert {turn["speaker"] for turn in output["identification"]} == {"Ada L", "SPEAKER_01"}
        assert {turn["speaker"] for turn in output["exclusiveDiarization"]} == {"SPEAKER_00", "SPEAKER_01"}

    turns = parse_rttm((await http.get(f"/v1/jobs/{job_id}/rttm")).text)
    assert {turn.label for turn in turns} == {"Ada_L", "SPEAKER_01"}
    subtitles = (await http.get(f"/v1/jobs/{job_id}/srt")).text
    first = subtitles.split("\n\n")[0].splitlines()
    assert (first[0], first[2], " --> " in first[1]) == ("1", "Ada L", True)
    report = (await http.get(f"/v1/jobs/{job_id}/report")).json()["speakers"]
    assert (report[0]["match"], report[0]["report"]["outcome"], report[0]["voiceId"]) == ("Ada L", "matched", voice_id)

    assert json.loads(speakerd("erase", "Ada L", "--wait", "--json", data=up.data).stdout)["state"] == "erased"
    for path in (f"/v1/jobs/{job_id}", *(f"/v1/jobs/{job_id}/{form}" for form in ("rttm", "srt", "report"))):
        answer = await http.get(path)
        assert answer.status_code == 200
        assert "Ada" not in answer.text
        assert voice_id not in answer.text
    answer = await submit(http, "identify", matching={"speakers": [voice_id]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "matching.speakers")


async def test_two_speakers_may_be_one_person_only_where_matching_is_not_exclusive(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    # Somebody who is in between, and so is a little like both of those who speak.
    await upload(http, "media://ada.wav", write_voice(tmp_path / "ada.wav", 6.0, (*ADA, *BOB)).read_bytes())
    made = await ended(http, (await submit(http, "voiceprint", url="media://ada.wav")).json()["jobId"])
    sent = [
        {"label": "Ada", "voiceprint": made["output"]["voiceprint"]},
        {"label": "Ada again", "voiceprint": made["output"]["voiceprint"]},
    ]
    matched = {}
    for exclusive in (True, False):
        answer = await submit(
            http, "identify", voiceprints=sent, matching={"exclusive": exclusive, "threshold": 0}, numSpeakers=2
        )
        output = (await ended(http, answer.json()["jobId"]))["output"]
        matched[exclusive] = [one["match"] for one in output["voiceprints"]]
        assert all(set(one["confidence"]) == {"Ada", "Ada again"} for one in output["voiceprints"])
    assert matched[True] == ["Ada", "Ada again"]
    assert len(set(matched[False])) == 1


async def test_a_threshold_that_nobody_reaches_leaves_everybody_unmatched(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    await upload(http, "media://bob.wav", write_voice(tmp_path / "bob.wav", 6.0, BOB).read_bytes())
    made = await ended(http, (await submit(http, "voiceprint", url="media://bob.wav")).json()["jobId"])
    sent = [{"label": "Bob", "voiceprint": made["output"]["voiceprint"]}]
    answer = await submit(http, "identify", voiceprints=sent, matching={"threshold": 50})
    output = (await ended(http, answer.json()["jobId"]))["output"]
    matches = {one["speaker"]: (one["match"], one["confidence"]["Bob"]) for one in output["voiceprints"]}
    assert matches["SPEAKER_00"][0] is None
    assert matches["SPEAKER_00"][1] < 50 <= matches["SPEAKER_01"][1]
    assert matches["SPEAKER_01"][0] == "Bob"

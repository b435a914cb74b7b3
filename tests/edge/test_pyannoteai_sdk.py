"""pyannoteAI's own SDK, every version of it unmodified, and pyannote.audio's SDK pipeline, against real daemons.

The voices are real ones, the engine is `builtin`; whoever is identified has to be who it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.edge.talks import Talk, write_sample, write_talk
from tests.speakerd.running import RunningUp, environment

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.4.0")
EACH = pytest.mark.parametrize(
    "version",
    [
        version if version in (VERSIONS[0], VERSIONS[-1]) else pytest.param(version, marks=pytest.mark.deep)
        for version in VERSIONS
    ],
)
"""The oldest and the newest in every run."""
ADA, BOB, EVE = "1688", "2609", "3080"
SESSION = Path(__file__).with_name("sdk_session.py")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    running = RunningUp(tmp_path_factory.mktemp("up"), "--device", "cpu")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("talks")


@pytest.fixture(scope="module")
def talk(folder: Path, audio: Path) -> Talk:
    parts = [("Ada L", ADA, 6), ("Bob", BOB, 5), ("Ada L", ADA, 3), ("Bob", BOB, 8)]
    return write_talk(folder / "talk.wav", audio, parts)


@pytest.fixture(scope="module")
def samples(folder: Path, audio: Path) -> dict[str, Path]:
    return {
        "Ada L": write_sample(folder / "ada.wav", audio, ADA, 7),
        "Bob": write_sample(folder / "bob.wav", audio, BOB, 2),
        "Eve, who is not there": write_sample(folder / "eve.wav", audio, EVE, 1),
    }


def run(up: RunningUp, version: str, talk: Talk, samples: dict[str, Path], *, pipeline: bool = False) -> dict[str, Any]:
    url = dict(field.split("=", 1) for field in up.ready.split()[1:])["http"]
    no_sound = talk.path.with_name("no-sound.wav")
    no_sound.write_bytes(b"this is no sound at all " * 100)
    asked = {
        "url": url,
        "no_sound": str(no_sound),
        "full": version == VERSIONS[-1],
        "key": (up.data / "admin.key").read_text().strip(),
        "talk": str(talk.path),
        "samples": {label: str(path) for label, path in samples.items()},
        "version": version,
        "pipeline": pipeline,
    }
    sdk = Path(sys.prefix) / "pyannoteai-sdk" / version
    assert sdk.is_dir(), f"pyannoteai-sdk {version} is not set up: make setup"
    variables = {**environment(), "PYTHONPATH": str(sdk), "PYANNOTE_METRICS_ENABLED": "0"}
    ran = subprocess.run(
        [sys.executable, str(SESSION)], input=json.dumps(asked), capture_output=True, text=True, env=variables,
        timeout=500, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def sessions(
    request: pytest.FixtureRequest, up: RunningUp, talk: Talk, samples: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """What each version that is tested got. They run side by side: most of their time they wait."""
    tested = {
        item.callspec.params.get("version")
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        running = {
            version: pool.submit(run, up, version, talk, samples)
            for version in VERSIONS
            if version in tested or version == VERSIONS[-1]
        }
        return {version: future.result() for version, future in running.items()}


@EACH
def test_an_unmodified_sdk_uploads_diarizes_and_retrieves(
    sessions: dict[str, dict[str, Any]], version: str, talk: Talk
) -> None:
    got = sessions[version]
    assert got["urls"][1] == "media://talks/of-today_1.wav"
    assert got["uploaded"] == talk.path.stat().st_size
    job = got["diarized"]
    assert (job["status"], set(job["output"])) == ("succeeded", {"diarization"})
    turns = job["output"]["diarization"]
    assert {turn["speaker"] for turn in turns} == {"SPEAKER_00", "SPEAKER_01"}
    named = [{**turn, "speaker": {"SPEAKER_00": "Ada L", "SPEAKER_01": "Bob"}[turn["speaker"]]} for turn in turns]
    assert talk.share_right(named) > 0.85
    assert got["failure"]
    assert "Please contact support" not in got["failure"]
    assert "Failed to authenticate" in got["refused"]


@EACH
def test_the_people_whom_an_unmodified_sdk_identifies_are_the_right_ones(
    sessions: dict[str, dict[str, Any]], version: str, talk: Talk
) -> None:
    got = sessions[version]
    assert all(0 < len(blob) <= 20_000 for blob in got["voiceprints"].values())
    output = got["identified"]["output"]
    assert talk.share_right(output["identification"]) > 0.85
    matches = {one["speaker"]: one["match"] for one in output["voiceprints"]}
    assert matches == {"SPEAKER_00": "Ada L", "SPEAKER_01": "Bob"}
    for one in output["voiceprints"]:
        assert set(one["confidence"]) == {"Ada L", "Bob", "Eve, who is not there"}
        assert max(one["confidence"], key=one["confidence"].__getitem__) == one["match"]
        assert one["confidence"]["Eve, who is not there"] < 50
    for turn in output["identification"]:
        assert turn["speaker"] == turn["match"] == matches[turn["diarizationSpeaker"]]


def test_options_that_an_sdk_sends_have_their_effect(sessions: dict[str, dict[str, Any]], talk: Talk) -> None:
    got = sessions[VERSIONS[-1]]
    counted = got["counted"]["output"]
    assert {turn["speaker"] for turn in counted["diarization"]} == {"SPEAKER_00", "SPEAKER_01"}
    assert counted["confidence"]["resolution"] == 0.02
    expected = talk.turns[-1][2] / 0.02
    assert expected <= len(counted["confidence"]["score"]) <= expected + 100
    assert all(0 <= score <= 100 for score in counted["confidence"]["score"])
    for turn in counted["diarization"]:
        assert set(turn["confidence"]) == {turn["speaker"]}
        assert 0 < turn["confidence"][turn["speaker"]] <= 100
    strict = got["strict"]["output"]
    assert all(one["match"] is None or one["confidence"][one["match"]] == 100 for one in strict["voiceprints"])


@pytest.mark.deep
def test_pyannote_audios_sdk_pipeline_gets_both_diarizations(
    up: RunningUp, talk: Talk, samples: dict[str, Path]
) -> None:
    got = run(up, "0.4.0", talk, samples, pipeline=True)
    for name in ("diarization", "exclusive"):
        named = [
            {**turn, "speaker": {"SPEAKER_00": "Ada L", "SPEAKER_01": "Bob"}[turn["speaker"]]} for turn in got[name]
        ]
        assert talk.share_right(named) > 0.85, name
    ordered = sorted(got["exclusive"], key=lambda turn: turn["start"])
    assert all(one["end"] <= after["start"] + 1e-6 for one, after in pairwise(ordered))

"""The lines of docs/scryon.md and docs/loccus.md, run as they stand against `speakerd up`, with real voices."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from tests.docs.run_lines import Lines, read_page
from tests.edge.talks import RATE_HZ, utterances, write_talk
from tests.speakerd.running import RunningUp


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    """Everything, with the builtin engine, and voice profiles on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRYON_VOICE_EMBEDDING_ENABLED", "true")
        running = RunningUp(tmp_path_factory.mktemp("up"), "--device", "cpu")
    try:
        yield running
    finally:
        running.stop()


def write(path: Path, sounds: list[np.ndarray], seconds: float) -> None:
    """So much of somebody speaking."""
    soundfile.write(path, np.concatenate(sounds)[: round(seconds * RATE_HZ)], RATE_HZ)


def lines_of(page: str, up: RunningUp, folder: Path, **variables: str) -> Lines:
    fields = dict(field.split("=", 1) for field in up.ready.split()[1:])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {"HOST": fields["http"], "SPEAKERD_DATA": str(up.data), "PATH": path, **variables}
    return Lines(read_page(page), folder, given)


def key_of(printed: str) -> str:
    """The secret in what `speakerd keys create` prints."""
    (secret,) = [word for word in printed.split() if word.startswith("sk_")]
    return secret


def test_scryon_s_page(up: RunningUp, audio: Path, tmp_path: Path) -> None:
    alice, bob = utterances(audio, "1688"), utterances(audio, "2033")
    write(tmp_path / "alice.wav", alice, 22)
    write(tmp_path / "alice-again.wav", alice[4:], 18)
    write_talk(tmp_path / "meeting.wav", audio, [("alice", "1688", 3), ("bob", "2033", 0), ("alice", "1688", 5)])
    lines = lines_of("scryon.md", up, tmp_path)
    key = key_of(lines.run("key").stdout)
    made = lines.run("make", KEY=key).json()
    assert (made["status"], made["provider"], made["consentVersion"]) == ("ACTIVE", "pyannote", "v1")
    assert made["sampleDurationSeconds"] == 22
    assert lines.run("make-python").stdout.split() == ["ACTIVE", "v1"]
    assert lines.run("make-javascript").json()["sampleDurationSeconds"] == 22
    status = lines.run("status").json()
    assert set(status) == {"status", "provider", "consentVersion", "createdAt"}
    match = lines.run("match").json()
    assert match["outcome"] == "MATCHED", match
    assert 0.85 <= match["voiceMatchScore"] <= 1
    write(tmp_path / "meeting.wav", bob, 12)
    assert lines.run("match").json()["outcome"] == "NO_MATCH"
    assert lines.run("delete").stdout == "204"
    assert lines.run("status").json() == {"status": "MISSING"}
    assert not lines.left()


def test_loccus_page(up: RunningUp, audio: Path, tmp_path: Path) -> None:
    alice, bob = utterances(audio, "2609"), utterances(audio, "2033")
    write(tmp_path / "alice-1.wav", alice, 12)
    write(tmp_path / "alice-2.wav", alice[3:], 8)
    write(tmp_path / "bob.wav", bob, 8)
    lines = lines_of("loccus.md", up, tmp_path, OWNER="default")
    key = key_of(lines.run("key").stdout)
    assert lines.run("space", KEY=key).json()["handle"] == "calls"
    assert lines.run("identity").json()["alias"] == "Alice Example"
    sent = lines.run("audio").json()
    assert (sent["state"], sent["duration"], sent["sampleRate"]) == ("available", "PT12.000S", 16_000)
    assert sent["identity"] == {"handle": "customer-1", "alias": "Alice Example"}
    assert lines.run("audio-raw").json()["state"] == "available"
    assert [one["handle"] for one in lines.run("models").json()["items"]] == ["default"]
    assert lines.run("voiceprint").json()["state"] == "notComputable"
    assert lines.run("add", AUDIO_ID=sent["id"]).json()["state"] == "computable"
    assert lines.run("compute").json()["state"] == "computed"
    details = lines.run("details").json()
    assert (details["state"], details["totalDuration"]) == ("computed", "PT12.000S")
    (record,) = lines.run("records").json()["items"]
    assert record["voiceprint"] == details["id"]
    verified = lines.run("verify").json()
    assert 0.75 < verified["score"] < 1, verified
    assert 0 < float(lines.run("verify-python").stdout) < 0.25
    assert [one["handle"] for one in lines.run("list-javascript").json()["items"]] == ["main"]
    erased = lines.run("erase").json()
    assert erased["state"] in ("erasing", "erased")
    (record,) = lines.run("records").json()["items"]
    place = f"{lines.variables['HOST']}/v1/spaces/default/calls/identities/customer-1"
    assert httpx.get(place, headers={"authorization": f"Bearer {key}"}, timeout=60).status_code == 404
    assert not lines.left()

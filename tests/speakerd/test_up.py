"""The whole, as processes: up, enrol, stream, erase, restart, die. The null engine hears tones for voices."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speakerd.rttm import parse_rttm
from tests.speakerd.running import ADA, BOB, RATE, RunningUp, environment, eventually, speakerd, write_voice


def value(ran: subprocess.CompletedProcess[str]) -> Any:
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def one_error(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 1, (ran.returncode, ran.stderr)
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return errors[0]


def labels(ran: subprocess.CompletedProcess[str]) -> list[str]:
    return list(value(ran)["files"][0]["speakers"])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    write_voice(folder / "ada.wav", 6.0, ADA)
    write_voice(folder / "bob.wav", 6.0, BOB)
    write_voice(folder / "both.wav", 8.0, ADA, BOB)
    write_voice(folder / "long.wav", 3.0, *([ADA, BOB] * 10))
    return folder


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    running = RunningUp(tmp_path_factory.mktemp("up"))
    try:
        yield running
    finally:
        running.stop()


def test_one_line_says_where_everything_is(up: RunningUp) -> None:
    fields = dict(field.split("=", 1) for field in up.ready.split()[1:])
    assert fields["http"].startswith("http://127.0.0.1:")
    assert fields["grpc"].startswith("127.0.0.1:")
    assert (up.data / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_second_one_on_the_same_folder_is_refused(up: RunningUp) -> None:
    assert "running for" in one_error(speakerd("up", data=up.data))


def test_people_are_named_until_they_are_erased(up: RunningUp, recordings: Path, tmp_path: Path) -> None:
    stream = ("stream", recordings / "both.wav", "--no-realtime", "--json")
    assert (
        value(speakerd("enroll", "Ada L", recordings / "ada.wav", "--json", data=up.data))["voice"]["state"] == "ready"
    )
    named = speakerd(*stream, "--out", tmp_path, data=up.data)
    assert labels(named) == ["Ada L", "spk_1"]
    written = parse_rttm((tmp_path / "both.rttm").read_text())
    assert {turn.label for turn in written} == {"Ada_L", "spk_1"}
    assert max(turn.end_ms for turn in written if turn.label == "Ada_L") < 9_000
    assert value(speakerd("erase", "Ada L", "--wait", "--json", data=up.data))["state"] == "erased"
    assert labels(speakerd(*stream, data=up.data)) == ["spk_0", "spk_1"]


def test_bad_audio_is_refused_at_every_door_and_the_daemons_live_on(
    up: RunningUp, recordings: Path, tmp_path: Path
) -> None:
    good = (recordings / "ada.wav").read_bytes()
    zero_hz = bytearray(good)
    zero_hz[24:28] = bytes(4)
    bad: dict[str, bytes] = {
        "empty.wav": b"",
        "text.wav": b"this is no sound\n" * 100,
        "truncated.wav": good[: len(good) // 2],
        "zero-hz.wav": bytes(zero_hz),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "silence.wav", np.zeros(5 * RATE), RATE)
    nan = np.full(5 * RATE, 0.1, np.float32)
    nan[1000] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, RATE, subtype="FLOAT")
    files = sorted(tmp_path.glob("*.wav"))
    assert len(files) == 6
    for file in files:
        one_error(speakerd("enroll", "nobody", file, data=up.data))
    streamed = speakerd("stream", *files, "--no-realtime", data=up.data)
    assert streamed.returncode == 1
    errors = [line for line in streamed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 6 and all(str(file) in " ".join(errors) for file in files)
    assert value(speakerd("voices", "--json", data=up.data)) == {"voices": []}
    assert eventually(lambda: up.process.poll() is None, 1.0)


def test_odd_but_good_formats_are_taken(up: RunningUp, recordings: Path, tmp_path: Path) -> None:
    samples, _ = soundfile.read(recordings / "ada.wav", dtype="float32")
    soundfile.write(tmp_path / "eight-bit.wav", samples, RATE, subtype="PCM_U8")
    six = np.repeat(np.repeat(samples, 6)[:, None], 6, axis=1)
    soundfile.write(tmp_path / "six.wav", six, 96_000)
    streamed = value(
        speakerd("stream", tmp_path / "eight-bit.wav", tmp_path / "six.wav", "--no-realtime", "--json", data=up.data)
    )
    assert [file["speakers"] for file in streamed["files"]] == [["spk_0"], ["spk_0"]]


@pytest.mark.parametrize("daemon", ["node", "controlplane"])
def test_a_daemon_that_dies_is_started_again_and_knows_who_was_enrolled(
    up: RunningUp, recordings: Path, daemon: str
) -> None:
    name = f"ada at the {daemon}"
    value(speakerd("enroll", name, recordings / "ada.wav", "--json", data=up.data))
    up.daemon(daemon).kill()
    stream = ("stream", recordings / "ada.wav", "--no-realtime", "--json")

    def named() -> bool:
        ran = speakerd(*stream, data=up.data)
        return ran.returncode == 0 and labels(ran) == [name]

    assert eventually(named, 40.0)
    value(speakerd("erase", name, "--json", data=up.data))


def test_killing_it_leaves_nothing_behind_and_loses_nobody(tmp_path: Path, recordings: Path) -> None:
    first = RunningUp(tmp_path / "data")
    enrolled = value(speakerd("enroll", "ada", recordings / "ada.wav", "--json", data=first.data))
    first.kill()
    assert first.left() == []
    assert "no server is running" in one_error(speakerd("voices", data=first.data))
    again = RunningUp(tmp_path / "data", "--drain-s", "1")
    found = value(speakerd("voices", "--json", data=again.data))["voices"]
    assert [(voice["voice_id"], voice["label"]) for voice in found] == [(enrolled["voice"]["voice_id"], "ada")]
    assert labels(speakerd("stream", recordings / "ada.wav", "--no-realtime", "--json", data=again.data)) == ["ada"]

    # And in mid-stream, asked to stop: it drains, exits 0, whoever streamed is told, and what was heard is kept.
    command = [sys.executable, "-m", "speakerd", "stream", str(recordings / "long.wav"), "--data", str(again.data)]
    command += ["--out", str(tmp_path / "turns"), "--resume", "2"]
    streaming = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert streaming.stdout is not None
    assert any("–" in line for line in iter(streaming.stdout.readline, ""))  # a first turn
    assert again.stop() == 0
    assert again.left() == []
    _, told = streaming.communicate(timeout=20)
    assert streaming.returncode == 1
    assert "Traceback" not in told
    assert len([line for line in told.splitlines() if line.startswith("error: ")]) == 1
    assert (tmp_path / "turns" / "long.rttm").read_text().startswith("SPEAKER long 1 ")


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    ran = speakerd("up", "--device", "abacus", data=tmp_path)
    assert "the node 0 ended while starting" in one_error(ran)
    assert "setting 'device'" in ran.stderr
    assert not (tmp_path / "endpoints.json").exists()

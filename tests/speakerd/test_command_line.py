"""The command line's manners: one red line, an exit code, JSON alone on stdout. The server is a fake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from runtime.errors import BadAudio, Unauthenticated
from speakerd.cli import app, group
from speakerd.cli.connection import Endpoints, read_endpoints, write_endpoints
from speakerd.rttm import parse_rttm
from speakerd.v1 import common_pb2, node_pb2
from tests.speakerd.conftest import Script, serve


@pytest.fixture
def server() -> Iterator[Script]:
    """The fakes on a loop in a thread: commands bring a loop of their own."""
    import asyncio

    script, loop = Script(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    serving = asyncio.run_coroutine_threadsafe(serve(script), loop).result(10)
    try:
        yield script
    finally:
        asyncio.run_coroutine_threadsafe(serving.stop(None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """A second of noise."""
    path = tmp_path / "some voice.wav"
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, 16_000), 16_000)
    return path


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPEAKERD_DATA", raising=False)
    monkeypatch.delenv("SPEAKERD_KEY", raising=False)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_error(result: Result, *, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    return errors[0].removeprefix("error: ")


def value(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


ON_SERVER = ("--key", "sk_test")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["enrol"], "No such command 'enrol'"),
        (["stream"], "name recordings, or say --mic"),
        (["stream", "a.wav", "--mic"], "name recordings, or say --mic"),
        (["stream", "a.wav", "--latency", "9"], "--latency"),
        (["stream", "a.wav", "--enroll", "alice"], "write NAME=FILE"),
        (["stream", "a.wav", "--server", "nowhere"], "write HOST:PORT"),
        (["diarize", "a.wav", "--format", "docx"], "one or several of rttm, json"),
        (["diarize", "a.wav", "--min-speakers", "3", "--max-speakers", "2"], "--min-speakers is more"),
        (["diarize", "a.wav", "--server", "127.0.0.1:1", "--device", "cpu"], "server's to choose"),
        (["diarize"], "Missing argument"),
        (["up", "--nodes", "0"], "--nodes"),
        (["diarize", "a.wav", "--enroll", "spk_1=a.wav"], "what strangers are called"),
        (["enroll", "spk_1", "a.wav"], "what strangers are called"),
        (["enroll", "\udcff", "a.wav"], "not valid UTF-8"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_told_in_one_line(arguments: list[str], told: str) -> None:
    assert told in one_error(run(*arguments), code=2)


@pytest.mark.parametrize("command", [["voices"], ["enroll", "a", "b.wav"], ["erase", "a"]])
def test_without_a_server_the_error_says_how_to_start_one(command: list[str]) -> None:
    assert "start one with `speakerd up`" in one_error(run(*command))


def test_a_server_that_died_is_not_taken_for_a_running_one(tmp_path: Path) -> None:
    write_endpoints(tmp_path, Endpoints(http="http://127.0.0.1:1", grpc="127.0.0.1:1", pid=2**22 + 1))
    assert read_endpoints(tmp_path) is None
    assert "no server is running" in one_error(run("voices", "--data", tmp_path))


def test_an_error_in_json_is_json_alone_on_stdout() -> None:
    result = run("voices", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["cause"] == "unavailable"


def test_commands_find_server_and_key_in_the_data_folder(server: Script, tmp_path: Path) -> None:
    import os

    write_endpoints(tmp_path, Endpoints(http="http://127.0.0.1:1", grpc=server.address, pid=os.getpid()))
    (tmp_path / "admin.key").write_text("sk_admin\n")
    assert value(run("voices", "--data", tmp_path, "--json")) == {"voices": []}
    assert server.keys == ["sk_admin"]


def test_a_person_is_enrolled_listed_and_erased(server: Script, voice: Path) -> None:
    enrolled = value(run("enroll", "Ada Lovelace", voice, "--server", server.address, *ON_SERVER, "--json"))
    assert enrolled["voice"]["state"] == "ready"
    assert bytes(server.clips[0]) == voice.read_bytes()
    assert "Ada Lovelace" in run("voices", "--server", server.address, *ON_SERVER).stdout
    erased = value(run("erase", "Ada Lovelace", "--wait", "--server", server.address, *ON_SERVER, "--json"))
    assert erased["state"] == "erased"
    told = one_error(run("erase", "Ada Lovelace", "--server", server.address, *ON_SERVER))
    assert told == "nobody called Ada Lovelace is enrolled: see `speakerd voices`"


def test_of_two_people_with_one_name_none_is_erased_by_it(server: Script, voice: Path) -> None:
    for voice_id in ("v0", "v1"):
        run("enroll", "ada", voice, "--voice-id", voice_id, "--server", server.address, *ON_SERVER)
    assert "say which by its id (v0, v1)" in one_error(run("erase", "ada", "--server", server.address, *ON_SERVER))
    assert value(run("erase", "v1", "--server", server.address, *ON_SERVER, "--json"))["voice_id"] == "v1"


@pytest.mark.parametrize("nobody", ["", "  "])
def test_an_empty_name_erases_nobody(server: Script, voice: Path, nobody: str) -> None:
    run("enroll", "ada", voice, "--server", server.address, *ON_SERVER)
    assert "the name is empty" in one_error(run("erase", nobody, "--server", server.address, *ON_SERVER))
    assert [kept.label for kept in server.voices.values()] == ["ada"]


def test_a_person_is_not_enrolled_beside_themselves(server: Script, voice: Path) -> None:
    run("enroll", "ada", voice, "--server", server.address, *ON_SERVER)
    told = one_error(run("enroll", "ada", voice, "--server", server.address, *ON_SERVER))
    assert "say --voice-id v0 to enrol that voice anew" in told
    run("enroll", "ada", voice, "--voice-id", "v0", "--server", server.address, *ON_SERVER)
    assert list(server.voices) == ["v0"]


def test_enrolling_for_a_stream_again_enrols_the_same_voice_anew(server: Script, voice: Path) -> None:
    for _ in range(2):
        where = ("--server", server.address, *ON_SERVER)
        value(run("stream", voice, "--no-realtime", "--enroll", f"ada={voice}", *where, "--json"))
    assert list(server.voices) == ["v0"]


def test_enrolling_for_a_recording_again_enrols_the_same_voice_anew(server: Script, voice: Path) -> None:
    for _ in range(2):
        value(run("diarize", voice, "--enroll", f"ada={voice}", "--server", server.address, *ON_SERVER, "--json"))
    assert list(server.voices) == ["v0"]


@pytest.mark.parametrize("command", ["stream", "diarize"])
def test_an_out_that_is_no_folder_is_told_before_any_work(voice: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "taken").touch()
    told = one_error(run(command, voice, "--out", tmp_path / "taken", "--server", "127.0.0.1:1", *ON_SERVER))
    assert "taken is a file: name a folder" in told


def test_what_a_server_says_is_told_as_it_says_it(server: Script, voice: Path) -> None:
    server.raises = Unauthenticated("this key is not known: see DATA/admin.key")
    told = one_error(run("enroll", "ada", voice, "--server", server.address, *ON_SERVER))
    assert told == "this key is not known: see DATA/admin.key"


def test_a_stream_is_printed_and_written_with_late_names_applied(server: Script, voice: Path, tmp_path: Path) -> None:
    final = common_pb2.Turn.STATE_FINAL
    turn = common_pb2.Turn(start_ms=100, end_ms=600, speaker="spk_0", label="spk_0", state=final)
    server.events = [
        node_pb2.DiarizeResponse(turns=node_pb2.Turns(turns=[turn])),
        node_pb2.DiarizeResponse(relabel=node_pb2.Relabel(speaker="spk_0", label="Ada L", voice_id="v0")),
    ]
    result = run(
        "stream", voice, "--server", server.address, *ON_SERVER, "--no-realtime", "--out", tmp_path / "out",
        "--enroll", f"Ada L={voice}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "spk_0 is Ada L" in result.stdout
    written = (tmp_path / "out" / "some voice.rttm").read_text()
    assert [(t.start_ms, t.end_ms, t.label) for t in parse_rttm(written)] == [(100, 600, "Ada_L")]
    assert server.spec is not None and server.spec.label == "Ada L"
    assert len(server.audio) == 64_000


def test_a_stream_that_ends_before_its_first_turn_writes_nothing(server: Script, voice: Path, tmp_path: Path) -> None:
    server.raises = None
    server.fail_after_bytes = 32_000
    options = ("--server", server.address, *ON_SERVER, "--no-realtime", "--out", tmp_path / "out")
    server.open_failures = [BadAudio("no sound in it")]
    told = one_error(run("stream", voice, *options))
    assert told.endswith("some voice.wav: no sound in it")
    assert not (tmp_path / "out").exists()


def test_one_bad_recording_among_several_costs_the_others_nothing(server: Script, voice: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("this is no sound")
    for command in (["stream", "--no-realtime"], ["diarize"]):
        out = tmp_path / command[0]
        server.file.clear()
        files = [bad, voice] if command[0] == "stream" else [tmp_path / "absent.wav", voice]
        result = run(*command, *files, "--server", server.address, *ON_SERVER, "--out", out)
        assert str(files[0]) in one_error(result)
        assert [path.name for path in out.iterdir()] == ["some voice.rttm"]


def test_recordings_that_would_overwrite_each_other_are_refused(voice: Path, tmp_path: Path) -> None:
    for command in ("diarize", "stream"):
        told = one_error(run(command, voice, tmp_path / "elsewhere" / "some voice.flac", "--out", tmp_path))
        assert "would both be written to some voice.rttm" in told


def test_a_recording_through_a_server_is_written_in_both_formats(server: Script, voice: Path, tmp_path: Path) -> None:
    result = value(
        run(
            "diarize",
            voice,
            "--server",
            server.address,
            *ON_SERVER,
            "--format",
            "rttm,json",
            "--out",
            tmp_path / "out",
            "--json",
        )
    )
    (file,) = result["files"]
    assert file["turns"] == [
        {"start": 0.0, "end": 1.0, "speaker": "spk_0", "label": "alice", "voice_id": "v0", "probability": 0.0}
    ]
    assert json.loads((tmp_path / "out" / "some voice.json").read_text())["speakers"] == ["alice"]
    assert parse_rttm(Path(file["rttm"]).read_text())[0].label == "alice"


def test_silence_is_refused_with_what_to_check(server: Script, tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16_000), 16_000)
    assert "silent throughout" in one_error(run("stream", silent, "--server", server.address, *ON_SERVER))


def test_the_microphone_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install sounddevice" in one_error(run("stream", "--mic", "--server", "127.0.0.1:1"))


def test_a_command_whose_packages_are_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(group_name: str, name: str) -> object:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(group, "installed", absent)
    loaded = group.SpeakerdGroup(name="speakerd")
    command = loaded.get_command(None, "node")
    with pytest.raises(group.SpeakerdError, match=r"missing: torch\): pip install 'speakerd\[node\]'"):
        command.callback()


def test_a_command_that_finds_packages_missing_as_it_begins_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "controlplane.daemon", None)
    monkeypatch.delattr("controlplane.daemon", raising=False)
    assert "pip install 'speakerd[controlplane]'" in one_error(run("controlplane"))


def test_the_help_of_all_commands_loads_no_daemon_and_tells_what_each_tells_of_itself() -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "speakerd", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert "Run the control plane" in told.stdout
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "speakerd.cli.group" in imported
    heavy = {name.partition(".")[0] for name in imported} & {"controlplane", "edge", "node", "models", "sqlalchemy"}
    assert not heavy, heavy
    for name, command in group.KNOWN.items():
        loaded = group.SpeakerdGroup(name="speakerd").get_command(None, name)
        assert command.help == loaded.help.split("\n\n")[0].replace("\n", " "), name


def test_a_fault_of_ours_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from speakerd.cli import people

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(people, "find_connection", broken)
    assert "internal error (ZeroDivisionError)" in one_error(run("voices"))


def test_every_command_takes_json() -> None:
    for command in ("up", "enroll", "voices", "erase", "stream", "diarize", "doctor", "demo"):
        assert "--json" in CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).stdout, command
    for command in ("list", "verify"):
        assert "--json" in run("models", command, "--help").stdout


def test_the_doctor_names_what_it_finds(tmp_path: Path) -> None:
    report = json.loads(run("doctor", "--data", tmp_path, "--json").stdout)
    by_name = {check["name"]: check for check in report["checks"]}
    assert by_name["torch"]["verdict"] == "ok"
    assert by_name["builtin: segmentation"]["verdict"] == "ok"
    assert by_name["Redis"]["verdict"] == "ok"
    assert all(check["mend"] for check in report["checks"] if check["verdict"] != "ok")

"""The quick start, the README and the how-tos, each line as it stands, in a folder that looks like a fresh clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.bundle import load_bundle
from models.calibration_file import with_calibration
from speakerd.cli.sample_conversation import NAMES, error_rate
from speakerd.rttm import parse_rttm
from tests.docs.run_lines import Lines, read_page

ROOT = Path(__file__).resolve().parent.parent.parent
STOP_S = 60.0
HowTo = Callable[[str], Lines]
WAV_HEADER_BYTES = 44
RECORDINGS = {
    "ada.wav": "Robin.wav",
    "ada-on-the-phone.wav": "Robin.wav",
    "grace.wav": "Sam.wav",
    "meeting.wav": "conversation.wav",
    "call.wav": "conversation.wav",
    "talk.wav": "conversation.wav",
}

# Waits for engines that start and for commands that end; nothing here is about time.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` needs of a clone. The environment is the one that runs this test, so that nothing is set up."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "Makefile").symlink_to(ROOT / "Makefile")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "setup_environment.sh").write_text("#!/bin/sh\n")
    (folder / "scripts" / "setup_environment.sh").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def quick_start(clone: Path) -> Iterator[Lines]:
    """The page, read on as far as its server runs."""
    lines = Lines(read_page("quick-start.md"), clone, {"OMP_NUM_THREADS": "1"})
    shown = lines.run("demo").stdout
    assert "speakerd says" in shown, shown
    reference, heard = (
        parse_rttm((clone / "demo-out" / name).read_text()) for name in ("reference/demo.rttm", "demo.rttm")
    )
    assert set(NAMES) <= {turn.label for turn in heard}
    assert error_rate(reference, heard) < 0.35
    lines.run("activate")
    server = lines.start("up", "ready http=")
    try:
        yield lines
    finally:
        server.terminate()
        assert server.wait(STOP_S) == 0
        assert server.stdout is not None
        server.stdout.close()


def test_the_quick_start_names_two_people_and_forgets_one(quick_start: Lines) -> None:
    run = quick_start.run
    assert len(re.findall(r"\bready\b", run("enrol").stdout)) >= 2
    assert {"Robin", "Sam"} <= labels_of(run("stream").stdout)
    run("address")
    assert {line.split()[-1] for line in run("program").stdout.splitlines()} == {"Robin", "Sam"}
    assert '"status":"OK"' in run("http").stdout.replace(" ", "")
    assert {"Robin", "Sam"} <= set(run("job").stdout.split())

    erased = run("erase").stdout
    assert erased.startswith("erased Robin"), erased
    again = run("stream-again").stdout
    assert "Robin" not in again
    assert {"Sam", "spk_0"} <= labels_of(again)
    proof = run("proof").stdout
    assert "privacy-desk" in proof
    assert "whole: " in proof
    assert not quick_start.left()


def labels_of(shown: str) -> set[str]:
    """Who the turns that a command printed are of."""
    return {found[1] for line in shown.splitlines() if (found := re.fullmatch(r"\S+ – \S+ +(.+)", line))}


@pytest.mark.deep
def test_the_readme_s_lines_do_what_it_says(quick_start: Lines) -> None:
    readme = Lines(read_page("../README.md"), quick_start.folder, dict(quick_start.variables))
    for recording, source in {"ada": "Robin", "grace": "Sam", "meeting": "conversation"}.items():
        shutil.copy(readme.folder / "demo-out" / f"{source}.wav", readme.folder / f"{recording}.wav")
    for name in ("demo", "up"):
        assert readme.blocks[name].text == quick_start.blocks[name].text, "run with the quick start, in the same words"
    assert {"Ada", "Grace"} <= set(readme.run("diarize").stdout.split())
    said = readme.run("server").stdout
    assert "spk_0 is Ada" in said
    assert "erased Ada" in said
    assert "whole: " in said
    assert readme.left() == {"demo", "up"}


@pytest.fixture
def how_to(quick_start: Lines) -> Iterator[HowTo]:
    """The server of the quick start, for the pages of docs/how-to, and recordings under the names that they use."""
    quick_start.run("address")
    quick_start.run("http")
    sound = quick_start.folder / "demo-out"
    folder = quick_start.folder / "how-to"
    folder.mkdir(exist_ok=True)
    for name, recording in RECORDINGS.items():
        shutil.copy(sound / recording, folder / name)
    (folder / "call.pcm").write_bytes((sound / "conversation.wav").read_bytes()[WAV_HEADER_BYTES:])
    variables = {**quick_start.variables, "SPEAKERD_DATA": str(quick_start.folder / "data")}
    pages: list[Lines] = []

    def read(name: str) -> Lines:
        pages.append(Lines(read_page(f"how-to/{name}.md"), folder, dict(variables)))
        return pages[-1]

    yield read
    assert not [page.left() for page in pages if page.left()]


def test_how_people_are_enrolled_named_in_a_dispatcher_and_erased(how_to: HowTo) -> None:
    enrol = how_to("enrol")
    # Whoever has read the quick start has one of these voices under another name; nobody can be told from himself.
    subprocess.run(["speakerd", "erase", "Sam", "--wait"], env=enrol.environment(), check=False, capture_output=True)
    assert "ready" in enrol.run("enrol").stdout
    assert "ready" in enrol.run("consent").stdout
    assert "node-0" in enrol.run("program").stdout
    assert enrol.run("list").stdout.count("v_") >= 3

    dispatcher = how_to("stream-from-a-dispatcher")
    key = key_of(dispatcher.run("key").stdout)
    said = dispatcher.run("dispatch", SPEAKERD_KEY=key).stdout
    assert said == "Ada Lovelace: how the transcriber\nGrace Hopper: cut the talk\n"

    erase = how_to("erase-and-prove")
    erased = json.loads(erase.run("erase").stdout)
    erase.run("proof")
    listed = (erase.folder / "erasures.json").read_text()
    assert erased["audit_id"] in listed
    assert "dpo-3" in listed
    assert json.loads((erase.folder / "verdict.json").read_text())["ok"] is True


@pytest.mark.deep
def test_how_recordings_are_worked_through(how_to: HowTo) -> None:
    batch = how_to("batch")
    written = [f"{name}.{kind}" for name in ("call", "meeting") for kind in ("json", "rttm", "svg")]
    assert batch.run("diarize").stdout.split()[-6:] == written
    assert " Ada " in (batch.folder / "turns" / "call.rttm").read_text()
    batch.run("jobs")
    assert (batch.folder / "call.rttm").read_text().startswith("SPEAKER ")
    assert batch.run("folder").stdout.count("succeeded") == 2


def test_how_one_moves_from_pyannoteai(how_to: HowTo) -> None:
    move = how_to("move-from-pyannoteai")
    key = key_of(move.run("key").stdout)
    client = Path(sys.prefix) / "pyannoteai-sdk" / "0.4.0"
    move.warnings = "default"  # the client says where it takes its uploads to be kept
    path = os.pathsep.join(filter(None, (str(client), os.environ.get("PYTHONPATH"))))
    assert "SPEAKER_00" in move.run("sdk", KEY=key, PYTHONPATH=path).stdout


@pytest.mark.deep
def test_how_thresholds_are_looked_at(how_to: HowTo) -> None:
    assert how_to("tune-thresholds").run("report").stdout.count('"outcome": "matched"') == 2


def test_the_thresholds_that_are_shown_are_those_that_ship(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/tune-thresholds.md").read_text()
    shown = re.search(r"```toml builtin\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    (tmp_path / "own.toml").write_text(shown[1])
    bundle = load_bundle("builtin")
    assert with_calibration(bundle, tmp_path / "own.toml").naming == bundle.naming


def key_of(printed: str) -> str:
    """The secret in what `speakerd keys create` prints."""
    (secret,) = [word for word in printed.split() if word.startswith("sk_")]
    return secret

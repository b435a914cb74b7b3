"""The quick start and the README, every line of them as it stands, in a folder that looks like a fresh clone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.run_lines import Lines, read_page

ROOT = Path(__file__).resolve().parent.parent.parent
STOP_S = 60.0

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

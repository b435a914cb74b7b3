"""Takes guards out in a copy of the repository, one at a time, and runs the tests that must not stand for it.

In: guards.toml. Out: for each guard, whether it was noticed. What always holds: this tree is never changed; a guard
whose text is gone, or is there twice, is told of and counts as not noticed; so does a run that failed in another way
than by a test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("guards.toml")
RUN_S_MAX = 600.0
SHADOWS = (("runtime/media/decoding.py", "sys.path.append(sys.argv[5])", "sys.path.insert(0, sys.argv[5])"),)
PLUGINS = (
    "no:cacheprovider",
    "pytest_asyncio.plugin",
    "pytest_timeout",
    "pytest_rerunfailures",
    "_hypothesis_pytestplugin",
)


class Misplaced(Exception):
    """A guard's text is not where the list says."""


@dataclass(frozen=True)
class Guard:
    """One entry of the list."""

    name: str
    file: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    tests: tuple[str, ...]

    def mutated(self, text: str) -> str:
        """The file without the guard. Raises Misplaced."""
        for old, new in zip(self.old, self.new, strict=True):
            if text.count(old) != 1:
                raise Misplaced(f"{self.name}: in {self.file} this is there {text.count(old)} times: {old!r}")
            text = text.replace(old, new)
        return text


def guards() -> list[Guard]:
    """The list."""
    entries = tomllib.loads(LIST.read_text())["guard"]
    return [
        Guard(one["name"], one["file"], _several(one["old"]), _several(one["new"]), tuple(one["tests"]))
        for one in entries
    ]


def _several(said: Any) -> tuple[str, ...]:
    return tuple(said) if isinstance(said, list) else (said,)


def copied(folder: Path) -> Path:
    """The tree as it lies here, what git ignores aside."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().split("\0"):
        here, there = ROOT / name, folder / name
        if name and here.is_file() and "node_modules" not in name:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(here.read_bytes())
    # The decoder's child looks for us among what is installed first, and that is the tree here.
    for file, old, new in SHADOWS:
        text = (folder / file).read_text()
        assert text.count(old) == 1, (file, old)
        (folder / file).write_text(text.replace(old, new))
    return folder


def run(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit status over these tests in a copy, and what it said."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    audio = os.environ.get("SPEAKERD_TEST_AUDIO", str(ROOT.parent / "shared" / "audio"))
    # What others plug into pytest takes as long to load as most of these tests take.
    plugins = [word for name in PLUGINS for word in ("-p", name)]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", *plugins, "-m", "not deep", *tests]
    done = subprocess.run(
        command,
        cwd=tree,
        env={
            **variables,
            "PYTHONPATH": str(tree),
            "SPEAKERD_TEST_AUDIO": audio,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def noticed(tree: Path, guard: Guard) -> str:
    """ "" where a test fails without the guard; else what happened in place of it. Raises Misplaced."""
    path = tree / guard.file
    whole = path.read_text()
    try:
        path.write_text(guard.mutated(whole))
        status, said = run(tree, guard.tests)
    except subprocess.TimeoutExpired:
        return "the tests did not end"
    finally:
        path.write_text(whole)
    if status == pytest.ExitCode.TESTS_FAILED:
        return ""
    if status == pytest.ExitCode.OK:
        return "all tests pass without it"
    return f"the tests did not run ({status}): {said[-1_000:]}"

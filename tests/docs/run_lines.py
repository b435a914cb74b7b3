"""Runs the lines that a page of docs/ shows, as they stand there.

A block to be run has a name behind its language: ```bash enrol. `read_page` finds them; `Lines` runs them in a
folder, with variables of the environment, and knows which were not run yet, so that no line of a page goes untried.
What a block exports is there for the next ones, as in a reader's terminal.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
TIMEOUT_S = 300.0
_FENCE = re.compile(r"^```(bash|python|javascript)[ \t]*(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ENDINGS = {"bash": "sh", "python": "py", "javascript": "mjs"}


@dataclass(frozen=True)
class Block:
    """Lines of a page."""

    name: str
    language: str
    text: str


def read_page(name: str) -> dict[str, Block]:
    """The blocks of docs/NAME (or ../README.md) by their names.

    A block of these languages without a name is an error of the page.
    """
    found: dict[str, Block] = {}
    for language, block, text in _FENCE.findall((DOCS / name).read_text()):
        assert block, f"docs/{name}: a block of {language} has no name: {text[:60]!r}"
        assert block not in found, f"docs/{name}: two blocks are called {block}"
        found[block] = Block(block, language, text)
    assert found, f"docs/{name} has no lines to run"
    return found


@dataclass(frozen=True)
class Ran:
    """What came of a block."""

    stdout: str
    stderr: str

    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.stdout)


@dataclass
class Lines:
    """The lines of a page, run one block after another. warnings: what Python does with those of programs."""

    blocks: Mapping[str, Block]
    folder: Path
    variables: dict[str, str]
    warnings: str = "error"
    ran: set[str] = field(default_factory=set)

    def run(self, name: str, **variables: str) -> Ran:
        """Run a block to its end; it has to end well. variables: set for it and for those after it."""
        self.variables.update(variables)
        block = self.blocks[name]
        file = self.folder / f"lines-{name}.{_ENDINGS[block.language]}"
        file.write_text(block.text)
        exported = self.folder / "exported"
        lines = f"source {shlex.quote(str(file))}\nenv --null > {shlex.quote(str(exported))}"
        command = {
            "bash": ["bash", "-euo", "pipefail", "-c", lines],
            "python": [sys.executable, "-W", self.warnings, str(file)],
            "javascript": ["node", str(file)],
        }[block.language]
        before = self.environment()
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=before,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert ended.returncode == 0, f"{name}: {ended.stdout}\n{ended.stderr}"
        if block.language == "bash":
            said = dict(pair.split("=", 1) for pair in exported.read_text().split("\0") if pair)
            self.variables |= {key: value for key, value in said.items() if before.get(key) != value and key != "_"}
        self.ran.add(name)
        return Ran(ended.stdout, ended.stderr)

    def environment(self) -> dict[str, str]:
        """What a block sees: the variables over this process's, without settings of whoever runs the tests."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SPEAKERD_")}
        return {**kept, **self.variables}

    def start(self, name: str, ready: str) -> subprocess.Popen[str]:
        """Run a block that goes on, until it has printed a line that begins so; the caller ends it."""
        block = self.blocks[name]
        assert block.language == "bash"
        with (self.folder / f"said-{name}.txt").open("w") as complaints:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f"exec {block.text}"],
                cwd=self.folder,
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(ready), (name, line, (self.folder / f"said-{name}.txt").read_text())
        self.ran.add(name)
        return process

    def left(self) -> set[str]:
        """Blocks that were not run."""
        return set(self.blocks) - self.ran

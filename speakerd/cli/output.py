"""What a command shows: results on stdout, everything else on stderr.

With --json, stdout holds one JSON value and nothing else. Without it, results are lines and tables for people. Progress
and notes go to stderr either way, and an error is one red line there that says what to mend.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from speakerd.errors import SpeakerdError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]

PLAIN_WIDTH = 120
"""Columns of a table where stdout is no terminal."""


class Output:
    """Where one command writes."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        # Where both are one terminal, one console draws on it, so that lines of the result come above a moving bar.
        one_terminal = sys.stdout.isatty() and sys.stderr.isatty() and not as_json
        self._err = self._out if one_terminal else Console(stderr=True, highlight=False)

    def __repr__(self) -> str:
        return f"Output(as_json={self._as_json})"

    @property
    def as_json(self) -> bool:
        """Whether a program reads stdout."""
        return self._as_json

    def say(self, text: str = "", *, style: str = "") -> None:
        """A line of the result, for people."""
        if not self._as_json:
            self._out.print(Text(text, style=style), soft_wrap=True)
            sys.stdout.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str = "") -> None:
        """A table of the result, for people."""
        if self._as_json:
            return
        table = Table(*columns, title=title or None, title_justify="left")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        self._out.print(table)

    def show(self, drawn: Table) -> None:
        """A table of the result that is drawn already, for people."""
        if not self._as_json:
            self._out.print(drawn)

    def result(self, value: Any) -> None:
        """The result, for programs."""
        if self._as_json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def note(self, text: str, *, style: str = "dim") -> None:
        """A remark on stderr."""
        self._err.print(Text(text, style=style), soft_wrap=True)

    def error(self, text: str) -> None:
        """What went wrong, in one line on stderr."""
        Console(stderr=True, highlight=False).print(
            Text(f"error: {' '.join(text.split())}", style="red"), soft_wrap=True
        )

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show that something without a measure of progress is going on."""
        if self._err.is_terminal:
            with self._err.status(Text(text)):
                yield
        else:
            self.note(f"{text} …")
            yield

    def progress(self) -> Progress:
        """Bars on stderr, gone when they are done; invisible where stderr is no terminal."""
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
            disable=not self._err.is_terminal,
        )


def results_folder(folder: Path | None) -> None:
    """Look whether results can be written to --out, before there are any. Raises SpeakerdError, naming it."""
    if folder is None:
        return
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise SpeakerdError("invalid", f"--out {folder}: {there} is a file: name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SpeakerdError("invalid", f"--out {folder}: you may not write to {there}: name another folder")

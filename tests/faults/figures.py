"""What the tests of the fault matrix measure, written down when somebody asks.

`SPEAKERD_FIGURES=run.jsonl pytest -m fault` appends one line for each marked test that ends and one for each figure.
Without the variable nothing is written. `scripts/reliability_table.py run.jsonl` makes the table of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import Any

import pytest

from tests.faults import matrix


class Figures:
    """The figures of one test."""

    def __init__(self, test: str, cells: list[str]) -> None:
        self._test = test
        self._cells = cells

    def record(self, what: str, value: float, unit: str = "s", *, cell: str = "") -> None:
        """One figure: what it is in a few words, how much, of what. A test of several cells says which."""
        if not cell:
            assert len(self._cells) == 1, f"{self._test} is marked with {self._cells}: say which cell this is of"
        assert not cell or cell in self._cells, f"{self._test} is not marked with {cell}"
        _append({"test": self._test, "cell": cell or self._cells[0], "what": what, "value": value, "unit": unit})


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Where a test of the fault matrix leaves what it measured."""
    return Figures(request.node.nodeid, _cells(request.node))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """How each test of the matrix ended."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for cell in _cells(item):
            _append({"test": item.nodeid, "cell": cell, "outcome": report.outcome, "took_s": round(call.duration, 1)})
    return report


def _cells(item: pytest.Item) -> list[str]:
    cells = []
    for mark in item.iter_markers("fault"):
        matrix.check(mark.args[0], tuple(mark.args[1:]))
        cells.append(str(mark.args[0]))
    return sorted(set(cells))


def _append(line: dict[str, Any]) -> None:
    path = os.environ.get("SPEAKERD_FIGURES", "")
    if path:
        # One write in append mode: several processes of tests share the file.
        with open(path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

"""The matrix is whole: every fault has tests, every test of it exists and has a row with what a run said."""

from __future__ import annotations

import json
import sys

import pytest

from tests.conftest import ROOT
from tests.faults import matrix

sys.path.insert(0, str(ROOT / "scripts"))
import reliability_table

TESTS = matrix.marked(ROOT / "tests")


def test_every_fault_has_tests() -> None:
    assert {f"F{number}" for number in range(1, 26)} <= matrix.CELLS.keys()
    assert {one.cell for one in TESTS} == matrix.CELLS.keys()
    assert {promise for one in TESTS for promise in one.promises} <= matrix.PROMISES.keys()


def test_every_fault_has_a_row_with_a_run_that_passed_and_the_page_is_of_these_tests() -> None:
    recorded = json.loads(reliability_table.RECORDED.read_text())
    text = reliability_table.PAGE.read_text()
    assert reliability_table.page(text, TESTS, recorded) == text, "run scripts/reliability_table.py"
    passed = {cell for cells in recorded.values() for cell, found in cells.items() if found["outcome"] == "passed"}
    assert passed == matrix.CELLS.keys()
    for cell in matrix.CELLS:
        assert f"| **{cell}** |" in text
    for promise, meaning in matrix.PROMISES.items():
        assert f"| {promise} | {meaning[0].upper()}{meaning[1:]}. |" in text


def test_a_mark_that_names_nothing_of_the_matrix_is_refused() -> None:
    for cell, promises in (("F99", ("P1",)), ("F1", ("P99",)), ("F1", ())):
        with pytest.raises(ValueError, match="a fault is marked"):
            matrix.check(cell, promises)


def test_a_table_shows_the_last_run_of_each_test_and_hides_no_failure() -> None:
    lines = [
        {"test": "t.py::a[1]", "cell": "F1", "what": "found after", "value": 9.0, "unit": "s"},
        {"test": "t.py::a[1]", "cell": "F1", "outcome": "failed", "took_s": 1.0},
        {"test": "t.py::a[1]", "cell": "F1", "what": "found after", "value": 0.25, "unit": "s"},
        {"test": "t.py::a[1]", "cell": "F1", "outcome": "passed", "took_s": 1.0},
        {"test": "t.py::a[2]", "cell": "F1", "what": "found after", "value": 0.5, "unit": "s"},
        {"test": "t.py::a[2]", "cell": "F1", "outcome": "passed", "took_s": 2.0},
        {"test": "t.py::b", "cell": "F1", "outcome": "failed", "took_s": 2.0},
    ]
    recorded = {"t.py::b": {"F1": {"outcome": "passed", "took_s": 1.0, "day": "2026-01-01", "figures": []}}}
    reliability_table.take(lines, recorded, "2026-01-02")
    tests = [matrix.Marked("F1", ("P6",), f"t.py::{name}", False) for name in "abc"]
    rows = reliability_table.table(tests, recorded).splitlines()[2:]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == [
        "found after 0.25–0.5 s",
        "**failed** (2026-01-02)",
        "not run yet",
    ]

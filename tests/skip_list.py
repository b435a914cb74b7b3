"""Permitted skips: a run with a skip that tests/skips.toml does not name fails, and every run tells what it left out.

In come the reports of tests and collectors, those of xdist's workers too; out goes a section at the end of the run.
A test that is expected to fail counts as skipped: it shows as little. A rerun that ends in a skip is a skip. Why a test
had a second try is told as well.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

LIST = Path(__file__).with_name("skips.toml")
TELLING = "speakerd_deselected"
"""Under which a worker of xdist tells its controller what it deselected."""


@dataclass(frozen=True, slots=True)
class Permitted:
    """One entry of the list."""

    tests: str
    reason: re.Pattern[str]
    why: str

    def names(self, test_id: str, reason: str) -> bool:
        return fnmatchcase(test_id, self.tests) and self.reason.fullmatch(reason) is not None


def read(path: Path = LIST) -> list[Permitted]:
    """The permitted skips. KeyError and re.error where the list is not one.

    What a tool says of what it lacks may be of several lines.
    """
    entries = tomllib.loads(path.read_text())["skip"]
    return [Permitted(entry["tests"], re.compile(entry["reason"], re.DOTALL), entry["why"]) for entry in entries]


class SkipList:
    """A pytest plugin: one a process; that of the controller, or of a run without xdist, judges and tells."""

    def __init__(self, permitted: list[Permitted]) -> None:
        self._permitted = permitted
        self._skips: dict[str, str] = {}  # test id: reason
        self._ran: set[str] = set()
        self._failed_first: list[str] = []
        self._deselected: Counter[str] = Counter()

    @property
    def unnamed(self) -> dict[str, str]:
        return {
            test_id: reason
            for test_id, reason in self._skips.items()
            if not any(entry.names(test_id, reason) for entry in self._permitted)
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._ran.add(report.nodeid)
        if str(report.outcome) == "rerun":  # a plugin's own
            self._failed_first.append(f"{report.nodeid}: {failure_of(report)}")
        if report.skipped:
            self._skips[report.nodeid] = reason_of(report)
        elif report.when == "call" and report.passed:
            # An earlier try may have been skipped or failed.
            self._skips.pop(report.nodeid, None)
            if hasattr(report, "wasxfail"):
                self._skips[report.nodeid] = f"xfail: {report.wasxfail}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._skips[report.nodeid] = reason_of(report)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._deselected.update("deep" if item.get_closest_marker("deep") else "other" for item in items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Each worker of xdist deselects the same; one that died tells nothing."""
        self._deselected |= Counter(getattr(node, "workeroutput", {}).get(TELLING, {}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[TELLING] = dict(self._deselected)
        elif self.unnamed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        write = terminalreporter.write_line
        left_out = f"{self._deselected['deep']} deep tests left to `make check-deep`"
        if self._deselected["other"]:
            left_out += f", {self._deselected['other']} deselected otherwise"
        terminalreporter.section("skips")
        write(f"{len(self._skips)} of {len(self._ran | self._skips.keys())} tests skipped, {left_out}")
        unnamed = self.unnamed
        for reason, times in sorted(Counter(self._skips.values()).items()):
            write(f"  {times} × {reason}")
        for test_id, reason in sorted(unnamed.items()):
            write(f"NOT PERMITTED by {LIST.name}: {test_id}: {reason}", red=True)
        if self._failed_first:
            terminalreporter.section("why tests had a second try")
        for failure in self._failed_first:
            write(failure)
        if unnamed:
            write(f"The run fails: {len(unnamed)} skips that {LIST.name} does not name.", red=True)


def failure_of(report: pytest.TestReport) -> str:
    """The first line of what a failed try raised."""
    lines = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return lines[0] if lines else report.longreprtext[-300:]


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What a skip says for itself, without pytest's own word before it."""
    if hasattr(report, "wasxfail"):
        return f"xfail: {report.wasxfail}"
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")

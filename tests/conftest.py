"""What every package's tests share: where the recordings are, and where figures of the fault matrix go."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from runtime.loading import loading
from tests import skip_list
from tests.faults import network
from tests.faults.figures import figures, pytest_runtest_makereport
from tests.running_order import in_order

__all__ = ["figures", "pytest_runtest_makereport"]  # a fixture and a hook

ROOT = Path(__file__).resolve().parent.parent

REAL_TIME = (
    "contract", "controlplane", "docs", "edge", "faults", "fuzz", "interop", "leaks", "machines", "node", "operations",
    "speakerd",
)  # fmt: skip
"""Tests of daemons under real clocks. `make test` gives these a second try, and prints which needed it."""


def pytest_configure(config: pytest.Config) -> None:
    """What is skipped is listed, and fails the run unless tests/skips.toml names it."""
    config.pluginmanager.register(skip_list.SkipList(skip_list.read()), "speakerd-skips")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Hundreds of modules are imported here, which stay: neither this nor the tests look through them for garbage."""
    with loading():
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever depends on no clock has one try: what fails there once is wrong. Long files are begun first."""
    file_of = {item: item.path.relative_to(ROOT / "tests").as_posix() for item in items}
    for item, file in file_of.items():
        if file.partition("/")[0] not in REAL_TIME:
            item.add_marker(pytest.mark.flaky(reruns=0))
    place = {
        file: number
        for number, file in enumerate(in_order(file_of.values(), are_deep=config.option.markexpr == "deep"))
    }
    items.sort(key=lambda item: place[file_of[item]])


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(report: pytest.CollectReport | pytest.TestReport) -> Generator[None, Any, Any]:
    """A test of half characters that fails must not end the run: what cannot be sent between processes is escaped."""
    data = yield
    return _sendable(data)


def _sendable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_sendable(key): _sendable(one) for key, one in value.items()}
        case list():
            return [_sendable(one) for one in value]
        case tuple():
            return tuple(_sendable(one) for one in value)
        case _:
            return value


@pytest.fixture(scope="session")
def audio() -> Path:
    """The folder of test recordings (SPEAKERD_TEST_AUDIO, else ../shared/audio beside the checkout)."""
    folder = Path(os.environ.get("SPEAKERD_TEST_AUDIO", ROOT.parent / "shared" / "audio"))
    if not folder.is_dir():
        pytest.skip(f"no recordings: {folder.name} is absent; set SPEAKERD_TEST_AUDIO to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def needs_netns() -> None:
    """Skips where there can be no network namespaces, naming why."""
    reason = network.works()
    if reason:
        pytest.skip(f"no network namespaces: {reason}")

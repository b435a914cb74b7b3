"""What every package's tests share: where the recordings are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults import network

ROOT = Path(__file__).resolve().parent.parent

REAL_TIME = ("controlplane", "docs", "edge", "faults", "interop", "node", "speakerd")
"""Tests of daemons under real clocks. `make test` gives these a second try, and prints which needed it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever depends on no clock has one try: what fails there once is wrong."""
    for item in items:
        if item.path.relative_to(ROOT / "tests").parts[0] not in REAL_TIME:
            item.add_marker(pytest.mark.flaky(reruns=0))


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

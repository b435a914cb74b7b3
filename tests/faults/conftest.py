"""A fleet of real processes for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.processes import Processes, processes


@pytest.fixture
async def daemons(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path) as made:
        yield made

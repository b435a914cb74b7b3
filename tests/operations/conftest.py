"""What tests of operations share."""

from __future__ import annotations

import pytest

from tests.controlplane.conftest import postgresql_server
from tests.operations.prometheus_tools import require

__all__ = ["postgresql_server"]  # a fixture


@pytest.fixture(scope="session")
def promtool() -> str:
    return require("promtool")

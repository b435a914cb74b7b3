"""What the node's command does to its process before it begins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import os
os.sched_setaffinity(0, {cores})
from node.commands import _let_threads_finish
_let_threads_finish()
print(os.sched_getscheduler(0) == os.SCHED_BATCH)
"""
CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(("cores", "waits"), [(CORES[:1], "True"), (CORES, str(len(CORES) == 1))])
def test_threads_that_share_a_single_core_let_each_other_finish(cores: list[int], waits: str) -> None:
    child = [sys.executable, "-c", CHILD.format(cores=set(cores))]
    assert subprocess.run(child, check=True, capture_output=True, text=True).stdout.strip() == waits

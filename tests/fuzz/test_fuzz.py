"""What fuzzing found stays found: seeds, old failures and a fixed set of mutations of them, through every target."""

from __future__ import annotations

import pytest

from tests.fuzz.corpus import TARGETS, corpus
from tests.fuzz.target import Target, mutations


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_no_input_that_was_found_and_no_neighbour_of_a_real_one_does_harm(target: Target) -> None:
    inputs = corpus(target)
    with target.opened() as one:
        for data in inputs if target.is_fast else (*inputs[:: max(1, len(inputs) // 40)], *target.found()):
            one(data)
        for data in mutations(inputs, target.replays):
            one(data)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute_of_fuzzing_finds_nothing(name: str) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--seconds", "60"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-6_000:]

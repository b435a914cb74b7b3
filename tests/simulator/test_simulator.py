"""The fleet keeps its promises under every fault that a seed draws, and each rule that keeps them is needed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulator.mutants import MUTANTS, REDUNDANT
from tests.simulator.quiet import quiet
from tests.simulator.world import BOUND_S, SOUND, Rules, run

# Found by `python -m tests.simulator --mutant NAME --seeds 0:5000 --until-caught`; found again the same way when a
# change of the code that is simulated makes a seed another run.
CATCHING_SEEDS = {
    "redis-listed-holders-only": 1,
    "no-self-eviction": 0,
    "lease-counted-from-receipt": 319,
    "no-as-of": 6,
    "acknowledgements-with-gaps": 1,
    "without-incarnation": 50,
    "not-waiting-for-silent-leases": 1,
    "no-hold-rule": 2,
    "hold-is-forgotten": 3915,
    "serve-before-reconcile": 2,
    "superseded-is-gone": 343,
    "relay-without-lease": 19,
    "relays-not-waited-for": 115,
    "relay-begins-at-the-head": 143,
    "database-clock-decides": 21,
}


@pytest.fixture(autouse=True)
def without_logs() -> Iterator[None]:
    with quiet():
        yield


def broken(seeds: range, rules: Rules) -> list[str]:
    """What did not hold, with the seed that shows it."""
    found = []
    for seed in seeds:
        outcome = run(seed, rules)
        if outcome.violations:
            found.append(f"python -m tests.simulator --seeds {seed}: {outcome.violations[0]}")
    return found


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.deep) for first in range(25, 400, 25))])
def test_the_fleet_keeps_its_promises(first: int) -> None:
    assert broken(range(first, first + 25), SOUND) == []


def test_the_table_knows_every_mutant() -> None:
    assert CATCHING_SEEDS.keys() == MUTANTS.keys()


@pytest.mark.parametrize("name", MUTANTS)
def test_each_rule_is_needed(name: str) -> None:
    seed = CATCHING_SEEDS[name]
    assert broken(range(seed, seed + 1), SOUND) == []
    assert broken(range(seed, seed + 1), MUTANTS[name]), f"look for another seed: --mutant {name} --until-caught"


def test_what_is_redundant_breaks_nothing() -> None:
    for rules in REDUNDANT.values():
        assert broken(range(10), rules) == []


@pytest.mark.parametrize("seeds", [10, pytest.param(100, marks=pytest.mark.deep)])
def test_an_erasure_is_proven_within_its_bound_while_a_control_plane_runs(seeds: int) -> None:
    proven_s = [took_s for seed in range(seeds) for took_s in run(seed).proven_s]
    assert len(proven_s) > 1.5 * seeds
    assert max(proven_s) <= BOUND_S


def test_a_seed_is_the_same_run_in_every_process() -> None:
    command = (
        "import hashlib\n"
        "from tests.simulator.quiet import quiet\n"
        "from tests.simulator.world import run\n"
        "with quiet():\n"
        "    print(hashlib.sha256('\\n'.join(run(7, traced=True).trace).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", command], cwd=root, env=environment, capture_output=True, check=True)
    here = "\n".join(run(7, traced=True).trace).encode()
    assert told.stdout.decode().strip() == hashlib.sha256(here).hexdigest()


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_the_fleet_keeps_its_promises_over_six_thousand_seeds() -> None:
    assert broken(range(6_000), SOUND) == []


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_found_anew(name: str) -> None:
    for seed in range(100_000, 104_000):
        if run(seed, MUTANTS[name]).violations:
            return
    pytest.fail("no seed of 4,000 caught it")

"""Runs seeds: python -m tests.simulator --seeds 0:6000 [--jobs 2] [--mutant NAME] [--trace LINES].

Prints every failure with its seed and the end of its trace, then how long erasures took. Exit code 1 when a promise
was broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulator.mutants import MUTANTS, REDUNDANT
from tests.simulator.quiet import quiet
from tests.simulator.world import SOUND, Outcome, Rules, run

ALL = {**MUTANTS, **REDUNDANT}
CHUNK_SEEDS = 20
FAILURES_SHOWN = 5


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description="Runs seeds of the simulated fleet.")
    parser.add_argument("--seeds", default="0:300", help="FIRST:END, or one seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--mutant", choices=sorted(ALL), help="break one rule")
    parser.add_argument("--until-caught", action="store_true", help="stop at the first failure")
    parser.add_argument("--trace", type=int, default=60, help="lines of trace to print of a failure")
    options = parser.parse_args()
    first, _, end = options.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    began_s, done, failed, proven_s = time.perf_counter(), 0, 0, list[float]()
    for outcome in _outcomes(seeds, options.mutant, options.jobs):
        done += 1
        proven_s += outcome.proven_s
        if outcome.violations:
            failed += 1
            if failed <= FAILURES_SHOWN:
                _show(outcome.seed, options.mutant, options.trace)
            if options.until_caught:
                break
    took_s = time.perf_counter() - began_s
    print(f"{done} runs, {failed} with a promise broken, {took_s:.1f} s, {done / took_s:.1f} runs a second")
    _tell_times(sorted(proven_s))
    return 1 if failed else 0


def _outcomes(seeds: range, mutant: str | None, jobs: int) -> Iterator[Outcome]:
    chunks = [seeds[at : at + CHUNK_SEEDS] for at in range(0, len(seeds), CHUNK_SEEDS)]
    if jobs == 1:
        with quiet():
            for seed in seeds:
                yield run(seed, _rules(mutant))
        return
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(partial(_chunk, mutant), chunks):
            yield from found


def _chunk(mutant: str | None, seeds: range) -> list[Outcome]:
    with quiet():
        return [run(seed, _rules(mutant)) for seed in seeds]


def _rules(mutant: str | None) -> Rules:
    return ALL[mutant] if mutant else SOUND


def _show(seed: int, mutant: str | None, lines: int) -> None:
    with quiet():
        told = run(seed, _rules(mutant), traced=True)
    print("\n".join(told.trace[len(told.trace) - lines :] if lines else ()))
    print(f"seed {seed}: {told.violations[0]}", flush=True)


def _tell_times(proven_s: list[float]) -> None:
    if not proven_s:
        return
    at = {share: proven_s[min(len(proven_s) - 1, int(len(proven_s) * share))] for share in (0.5, 0.9, 0.99)}
    shares = ", ".join(f"p{share * 100:g} {value:.2f} s" for share, value in at.items())
    print(f"{len(proven_s)} erasures under a control plane that ran throughout: {shares}, max {proven_s[-1]:.2f} s")


if __name__ == "__main__":
    sys.exit(main())

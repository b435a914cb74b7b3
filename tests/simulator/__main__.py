"""Runs seeds: python -m tests.simulator --seeds 0:6000 [--mutant NAME] [--trace]. Exit code 1 when a promise broke."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulator.mutants import MUTANTS
from tests.simulator.quiet import quiet
from tests.simulator.world import SOUND, run


def main() -> int:
    """Run, print failures with their seed and the end of their trace, and how long erasures took."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=main.__doc__)
    parser.add_argument("--seeds", default="0:300", help="FIRST:END, or one seed")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="break one rule")
    parser.add_argument("--until-caught", action="store_true", help="stop at the first failure")
    parser.add_argument("--trace", type=int, default=60, help="lines of trace to print of a failure")
    options = parser.parse_args()
    first, _, end = options.seeds.partition(":")
    seeds = range(int(first), int(end) if end else int(first) + 1)
    rules = MUTANTS[options.mutant] if options.mutant else SOUND
    began_s, proven_s, failed, done = time.perf_counter(), [], 0, 0
    with quiet():
        for seed in seeds:
            outcome = run(seed, rules)
            done += 1
            proven_s += outcome.proven_s
            if outcome.violations:
                failed += 1
                if failed <= 5:
                    told = run(seed, rules, traced=True)
                    print("\n".join(told.trace[-options.trace :]))
                    print(f"seed {seed}: {outcome.violations[0]}", flush=True)
                if options.until_caught:
                    break
    took_s = time.perf_counter() - began_s
    proven_s.sort()
    print(f"{done} runs, {failed} with a promise broken, {took_s:.1f} s, {done / took_s:.1f} runs a second")
    if proven_s:
        at = {share: proven_s[min(len(proven_s) - 1, int(len(proven_s) * share))] for share in (0.5, 0.9, 0.99)}
        print(
            f"{len(proven_s)} erasures proven under a control plane that ran throughout: "
            + ", ".join(f"p{share * 100:g} {value:.2f} s" for share, value in at.items())
            + f", max {proven_s[-1]:.2f} s"
        )
    return 1 if failed else 0


sys.exit(main())

"""The most that holds the promises: ever more streams at once, beside enrolments, erasures and jobs.

    python -m benchmarks.load_limit [--streams 10 25 50 75] [--enrolling 2] [--jobs 2] [--seconds 30] [--json OUT]

Two nodes with the null engine, two control planes, PostgreSQL, Redis and everybody who uses them, on this machine alone
(the users take about as much as the fleet). A stage holds when no call fails, nothing is refused, no promise of the
soak's is broken, p99 of a turn's lag is at most a step and 200 ms, and p99 of an erasure's proof at most 2.5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.soak import hooks, percentiles_ms
from benchmarks.soak_churn import Churn, Record
from benchmarks.soak_fleet import SoakFleet, soak_fleet

LAG_MS_MAX = 700.0
PROVEN_MS_MAX = 2_500.0
SETTLE_S = 8.0


async def stage(fleet: SoakFleet, given: argparse.Namespace, streams: int, hook_url: str) -> dict[str, Any]:
    """So many streams at once for a while, and what came of it."""
    record = Record()
    churn = Churn(fleet, record, seed=streams, enrolled_max=4, hook_url=hook_url, told={})
    churn.weights = (1.0, 0.0, 0.0, 0.0)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(streams):
            tasks.create_task(churn.forever(churn.talk, (0.0, 0.5)))
            await asyncio.sleep(2.0 / streams)
        for _ in range(given.enrolling):
            tasks.create_task(churn.forever(churn.enrol, (0.1, 0.3)))
        for _ in range(given.jobs):
            tasks.create_task(churn.forever(churn.job, (0.1, 0.3)))
        await asyncio.sleep(SETTLE_S)
        record.lags_s.clear()
        record.proven_s.clear()
        record.enrolled_s.clear()
        before, began_s = dict(record.done), time.monotonic()
        cpu_s = sum(taken["cpu_s"] for taken in fleet.sample().values())
        await asyncio.sleep(given.seconds)
        took_s = time.monotonic() - began_s
        cpu_s = sum(taken["cpu_s"] for taken in fleet.sample().values()) - cpu_s
        lags, proven, answered = list(record.lags_s), list(record.proven_s), list(record.enrolled_s)
        done = {name: count - before.get(name, 0) for name, count in record.done.items()}
        churn.over.set()
    lag, proof = percentiles_ms(lags), percentiles_ms(proven)
    faults = [*record.errors, *record.broken, *(f"refused: {what}" for what in record.refused)]
    holds = not faults and lag.get("p99", 1e9) <= LAG_MS_MAX and proof.get("p99", 0.0) <= PROVEN_MS_MAX
    return {
        "streams": streams,
        "holds": holds,
        "lag_ms": lag,
        "erasure_proven_ms": proof,
        "enrolment_answered_ms": percentiles_ms(answered),
        "enrolled_per_min": round(60 * done.get("enrolled", 0) / took_s, 1),
        "jobs_per_min": round(60 * done.get("jobs", 0) / took_s, 1),
        "cores_of_daemons": round(cpu_s / took_s, 2),
        "faults": faults[:5],
    }


async def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Stage after stage, to the first that does not hold."""
    found = []
    with tempfile.TemporaryDirectory(prefix="speakerd-load-") as folder:
        async with hooks() as (port, _), soak_fleet(Path(folder), webhook_port=port, streams_max=400) as fleet:
            for streams in given.streams:
                found.append(await stage(fleet, given, streams, f"http://127.0.0.1:{port}/hook"))
                print(json.dumps(found[-1]), flush=True)
                if not found[-1]["holds"]:
                    break
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 25, 50, 75, 100, 150])
    parser.add_argument("--enrolling", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    found = asyncio.run(run(given))
    held = [one["streams"] for one in found if one["holds"]]
    print(f"holds with {max(held, default=0)} streams at once")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

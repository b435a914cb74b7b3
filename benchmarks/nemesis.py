"""Anything, in any order: faults drawn from a seed, under the churn of a soak, and the same checks over all of it.

    python -m benchmarks.nemesis --seed 1 [--minutes 2] --out nemesis

Nodes and control planes killed, ended and frozen, and Redis emptied; then all is left alone, and has to settle: every
node holds who is enrolled and nobody else, the audit verifies, no stream lost or doubled a turn, no label changed, and
nobody was named whose erasure had been proven. The seed is printed first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from benchmarks.soak import Soak, holds, hooks, report
from benchmarks.soak_churn import Churn, Record
from benchmarks.soak_fleet import AWAY_AFTER_S, Away, Member, SoakFleet, soak_fleet

SETTLES_S = 30.0
EVERY_S = (3.0, 9.0)


class Nemesis:
    """Breaks one thing after another. what: how often it did what."""

    def __init__(self, fleet: SoakFleet, seed: int) -> None:
        self._fleet = fleet
        self._random = random.Random(seed)
        self.what: Counter[str] = Counter()
        self.exit_codes: list[tuple[str, int]] = []

    def __repr__(self) -> str:
        return f"Nemesis({dict(self.what)})"

    async def act(self) -> None:
        """One fault, to its end."""
        faults: list[tuple[str, Callable[[], Awaitable[None]], float]] = [
            ("a node killed", lambda: self._restart(self._fleet.nodes, signal.SIGKILL), 3),
            ("a node ended", lambda: self._restart(self._fleet.nodes, signal.SIGTERM), 3),
            ("a node frozen", lambda: self._freeze(self._fleet.nodes, self._random.uniform(1, 14)), 3),
            ("a control plane killed", lambda: self._restart(self._fleet.planes, signal.SIGKILL), 2),
            ("a control plane ended", lambda: self._restart(self._fleet.planes, signal.SIGTERM), 2),
            ("a control plane frozen", lambda: self._freeze(self._fleet.planes, self._random.uniform(1, 8)), 2),
            ("Redis emptied", self._empty, 2),
        ]
        (name, act, _) = self._random.choices(faults, [weight for *_, weight in faults])[0]
        self.what[name] += 1
        await act()

    async def _restart(self, members: Sequence[Member], number: signal.Signals) -> None:
        member = self._random.choice(members)
        code = await self._fleet.restart(member, number)
        if number is signal.SIGTERM:
            self.exit_codes.append((member.name, code))

    async def _freeze(self, members: Sequence[Member], seconds: float) -> None:
        member = self._random.choice(members)
        assert member.process is not None
        away = Away(member.name, time.monotonic())
        self._fleet.aways.append(away)
        member.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            member.process.send_signal(signal.SIGCONT)
            away.ended_s = time.monotonic() + 2 * AWAY_AFTER_S  # it has its leases to find lapsed, and to take anew

    async def _empty(self) -> None:
        with contextlib.suppress(RedisError):
            await self._fleet.redis.flushall()


class NemesisRun(Soak):
    """A soak whose restarts are the nemesis's."""

    def __init__(self, fleet: SoakFleet, churn: Churn, given: argparse.Namespace) -> None:
        super().__init__(fleet, churn, given)
        self.nemesis = Nemesis(fleet, given.seed)
        self._chooser = random.Random(given.seed + 1)

    async def _restart(self) -> None:
        until_s = self._began_s + self._seconds - SETTLES_S
        while time.monotonic() < until_s:
            await self._churn.pause(self._chooser.uniform(*EVERY_S))
            if time.monotonic() < until_s:
                await self.nemesis.act()
        for name, code in self.nemesis.exit_codes:
            if code != 0:
                self._churn.record.broken.append(f"{name}: exit code {code} on SIGTERM")


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run once; its report."""
    print(f"seed {given.seed}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    async with hooks() as (port, told), soak_fleet(given.out / "fleet", webhook_port=port) as fleet:
        record = Record()
        churn = Churn(
            fleet,
            record,
            seed=given.seed,
            enrolled_max=given.enrolled,
            hook_url=f"http://127.0.0.1:{port}/hook",
            told=told,
        )
        made = NemesisRun(fleet, churn, given)
        try:
            await made.run()
        finally:
            found = {**report(made, fleet, record, given), "faults": dict(made.nemesis.what), "not_flat": []}
            (given.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="absent: a random one")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--streams", type=int, default=5)
    parser.add_argument("--enrolled", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(1 << 30)
    return given


def main() -> None:
    """Run, tell, and say by the exit code whether it held."""
    found = asyncio.run(run(parse()))
    shown = ("seed", "minutes_run", "faults", "done", "refused", "in_restarts", "errors", "broken", "away_ms")
    print(json.dumps({name: found[name] for name in shown}, indent=1))
    sys.exit(0 if holds(found) else 1)


if __name__ == "__main__":
    main()

"""What routing and leases cost one control plane with many nodes: Redis, the choice, and SQL.

    python -m benchmarks.routing [--nodes 1000] [--database-url URL]

One process and a Redis of its own; the nodes are rows and heartbeats, nobody is dialled. Prints one JSON object: CPU
milliseconds of this process for one of each, and how many a second one core could do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from controlplane.database.engine import open_database
from controlplane.embedded_redis import EmbeddedRedis
from controlplane.fleet import Acknowledgement, Fleet
from controlplane.keys import KeyRing
from controlplane.lease_rules import LeaseRules, LeaseTimes, NodeReport
from controlplane.leases import SqlTables
from controlplane.metrics import declare
from controlplane.node_view import NodeView
from controlplane.placement import some_of, two_choices
from controlplane.registry import Registry, Wish
from controlplane.wanted import Wanted
from runtime.clock import SystemClock
from runtime.lifecycle import Tasks
from runtime.logs import configure

WANTED = Wanted(5, frozenset({"m@1"}))


async def measure(num_nodes: int, database_url: str | None) -> dict[str, object]:
    """Each thing again and again, at four at once."""
    found: dict[str, object] = {"nodes": num_nodes}
    with tempfile.TemporaryDirectory(prefix="speakerd-routing-") as folder:
        clock, tasks = SystemClock(), Tasks()
        metrics = declare(CollectorRegistry())
        redis = EmbeddedRedis(Path(folder) / "redis")
        await redis.start(tasks)
        registry = Registry(redis.url, clock, metrics)
        url = database_url or f"sqlite+aiosqlite:///{folder}/bench.db"
        database = await open_database(url, clock, lease_s=10.0)
        rules = LeaseRules(LeaseTimes(9.0, 10.0, 2.0, 4.0))

        async def nobody(_address: str) -> None:
            return None

        async def keep_all(_addresses: set[str]) -> None:
            return None

        fleet = Fleet(
            rules=rules,
            tables=SqlTables(database),
            keys=KeyRing(bytes(32)),
            registry=registry,
            clock=clock,
            metrics=metrics,
            probe=nobody,
            keep_only=keep_all,
            reconcile_s=5.0,
        )
        views = [
            NodeView(f"node-{number}", number + 1, f"10.0.0.1:{number}", "m@1", "serving", 5, number % 90, 100)
            for number in range(num_nodes)
        ]
        found["heartbeat"] = await timed(num_nodes, lambda number: registry.heartbeat(views[number]))
        found["view_of_all"] = await timed(50, lambda _: registry.known(fresh=True))
        known = await registry.known()
        assert len(known) == num_nodes
        draw = random.Random(0)

        async def choose(_number: int) -> None:
            best = some_of(known, WANTED, (), "", lambda number: draw.sample(known, number))
            two_choices(best, WANTED, "", lambda alike: draw.sample(alike, 2))

        found["choose"] = await timed(50, choose)

        async def reserve(number: int) -> None:
            few = tuple(view.node_id for view in draw.sample(known, 32))
            assert await registry.reserve(
                Wish(f"t/s-{number}", few, frozenset(), WANTED.revision, WANTED.models, hold_s=10.0)
            )

        found["reserve"] = await timed(500, reserve)
        reports = [
            NodeReport(view.node_id, "p", 0, 0, 0, bytes(32), view.address, view.model, "joining") for view in views
        ]
        found["join"] = await timed(min(num_nodes, 500), lambda number: fleet.renew(reports[number]))
        holders, _ = await fleet.holders()
        renewals = [
            NodeReport(lease.node_id, "p", lease.incarnation, 0, 0, bytes(32), lease.address, lease.model, "serving")
            for lease in holders
        ]
        found["renew"] = await timed(len(renewals), lambda number: fleet.renew(renewals[number]))
        found["look_at_all_leases"] = await timed(20, lambda _: fleet.look())
        acknowledged = [Acknowledgement(lease.incarnation, lease.incarnation, 0) for lease in holders]
        found["acknowledge_all"] = await timed(3, lambda _: fleet.acknowledged_all(acknowledged))
        await registry.close()
        await database.close()
        await redis.stop()
        await tasks.cancel()
    return found


async def timed(count: int, call: Callable[[int], Awaitable[object]], *, at_once: int = 4) -> dict[str, float]:
    """CPU and wall milliseconds of one call."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await call(number)

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {
        "cpu_ms": round(1000 * cpu_s / count, 3),
        "wall_ms_at_4": round(1000 * wall_s / count, 3),
        "a_second_and_core": round(count / cpu_s) if cpu_s else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--database-url", default=None)
    options = parser.parse_args()
    configure("error", service="benchmark")
    print(json.dumps(asyncio.run(measure(options.nodes, options.database_url)), indent=1))


if __name__ == "__main__":
    main()

"""An hour of use: people stream, hang up, vanish, enrol and are erased, jobs run, and daemons are restarted under them.

    nice -n -5 python -m benchmarks.soak --minutes 60 --out soak [--chart docs/soak.svg] [--streams 5] [--seed 1]

Two nodes with the null engine and two control planes, over PostgreSQL and Redis, each a process; one node is restarted
every tenth of the time, by SIGTERM and by kill -9 in turn, the other once; one control plane twice; the other lives
throughout. Every five seconds: memory, descriptors and threads of each process, Redis's keys, lag, errors. In the end:
whether all of it stayed flat, and whether every promise was kept. Exit code 1 when one was not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.soak_chart import draw
from benchmarks.soak_churn import Churn, Record, wrong_labels
from benchmarks.soak_fleet import SoakFleet, soak_fleet
from benchmarks.soak_judge import JUDGED_MIN_S, Series, Verdict, judge
from runtime.grpc_server import open_channel
from speakerd.v1 import node_pb2, node_pb2_grpc

SAMPLE_S = 5.0
STORED_EVERY = 12
QUIET_S = 12.0
LONG_S = 10 * 60.0
REFUSALS = ("no node is serving", "call PlaceStream again")
"""Words of refusals that say when, or how, to come back."""


@dataclass(frozen=True, slots=True)
class Restart:
    """A daemon is ended, at a share of the soak's time, and started again."""

    share: float
    member: str
    number: signal.Signals


def schedule(seconds: float) -> list[Restart]:
    """When which daemon is restarted."""
    if seconds < LONG_S:
        return [
            Restart(0.2, "node-a", signal.SIGTERM),
            Restart(0.4, "controlplane-a", signal.SIGTERM),
            Restart(0.6, "node-a", signal.SIGKILL),
        ]
    often = [Restart(step / 10, "node-a", signal.SIGTERM if step % 2 else signal.SIGKILL) for step in range(1, 10)]
    seldom = [
        Restart(0.25, "controlplane-a", signal.SIGTERM),
        Restart(0.45, "node-b", signal.SIGKILL),
        Restart(0.65, "controlplane-a", signal.SIGKILL),
    ]
    return sorted([*often, *seldom], key=lambda restart: restart.share)


@asynccontextmanager
async def hooks() -> AsyncIterator[tuple[int, dict[str, str]]]:
    """A receiver of webhooks: its port, and what it was told, job by job."""
    told: dict[str, str] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
            said = json.loads(await reader.readexactly(length))
            told[said["jobId"]] = said["status"]
            writer.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # a control plane that was killed while it told us
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1]), told
    finally:
        server.close()


class Soak:
    """One soak."""

    def __init__(self, fleet: SoakFleet, churn: Churn, given: argparse.Namespace) -> None:
        self._fleet = fleet
        self._churn = churn
        self._given = given
        self._seconds = 60.0 * given.minutes
        self._began_s = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.restarts: list[dict[str, Any]] = []
        self.lags_s: list[float] = []

    def __repr__(self) -> str:
        return f"Soak({len(self.rows)} samples)"

    async def run(self) -> None:
        """All of it, to the end of the last stream."""
        churn, given = self._churn, self._given
        self._began_s = time.monotonic()
        with (given.out / "samples.jsonl").open("w") as file:
            async with asyncio.TaskGroup() as tasks:
                sampling = tasks.create_task(self._sample(file))
                async with asyncio.TaskGroup() as working:
                    for _ in range(given.streams):
                        working.create_task(churn.forever(churn.talk, (0.0, 2.0)))
                    working.create_task(churn.forever(churn.enrol, (4.0, 8.0)))
                    working.create_task(churn.forever(churn.job, (8.0, 20.0)))
                    working.create_task(churn.forever(churn.socket, (2.0, 6.0)))
                    working.create_task(self._restart())
                    await asyncio.sleep(max(0.0, self._began_s + self._seconds - time.monotonic()))
                    churn.over.set()
                await self._require_settled()
                await asyncio.sleep(QUIET_S)
                sampling.cancel()

    async def _restart(self) -> None:
        members = {member.name: member for member in self._fleet.members}
        for restart in schedule(self._seconds):
            await self._churn.pause(self._began_s + restart.share * self._seconds - time.monotonic())
            if self._churn.over.is_set():
                return
            at_s = round(time.monotonic() - self._began_s, 1)
            self.restarts.append({"at_s": at_s, "name": restart.member, "how": restart.number.name})
            died = members[restart.member].has_died
            code = await self._fleet.restart(members[restart.member], restart.number)
            if died:
                self._churn.record.broken.append(f"{restart.member} ended by itself, exit code {code}")
                continue
            if restart.number is signal.SIGTERM and code != 0:
                self._churn.record.broken.append(f"{restart.member}: exit code {code} on SIGTERM")

    async def _sample(self, file: Any) -> None:
        number, record, told = 0, self._churn.record, (0, 0)
        while True:
            await asyncio.sleep(max(0.0, self._began_s + (number + 1) * SAMPLE_S - time.monotonic()))
            number = int((time.monotonic() - self._began_s) // SAMPLE_S)
            lags, record.lags_s = record.lags_s, []
            self.lags_s += lags
            row: dict[str, Any] = {
                "at_s": round(time.monotonic() - self._began_s, 2),
                "daemons": self._fleet.sample(),
                "redis": await self._fleet.redis_sample(),
                "lags_ms": [round(1000 * lag_s, 2) for lag_s in lags],
                "running": record.running,
                "errors": record.errors[told[0] :],
                "broken": record.broken[told[1] :],
            }
            told = len(record.errors), len(record.broken)
            if number % STORED_EVERY == 0:
                row["stored"] = await self._fleet.stored()
            self.rows.append(row)
            if number % STORED_EVERY == 0:
                self.write_report()
            file.write(json.dumps(row) + "\n")
            file.flush()

    def write_report(self) -> None:
        """As far as it has got."""
        found = report(self, self._fleet, self._churn.record, self._given)
        (self._given.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")

    async def _require_settled(self) -> None:
        """Nobody streams any more: every node holds who is enrolled and nobody else, and the audit verifies."""
        churn, record = self._churn, self._churn.record
        wanted = {one.voice_id for one in churn.enrolled.values()}
        began_s = time.monotonic()
        held: dict[str, set[str]] = {}
        while time.monotonic() - began_s < 30.0:
            held = {node.name: await self._held(node.ready["grpc"]) for node in self._fleet.nodes}
            if all(voices == wanted for voices in held.values()):
                break
            await asyncio.sleep(0.5)
        else:
            record.broken += [
                f"{name} holds {len(voices - wanted)} voices too many and lacks {len(wanted - voices)}"
                for name, voices in held.items()
                if voices != wanted
            ]
        verdict = await churn.ask("verify", lambda client: client.verify_audit())
        if not verdict.ok:
            record.broken.append(f"the audit does not verify: {len(verdict.problems)} problems")
        for _ in range(30):
            nodes = (await churn.ask("nodes", lambda client: client.nodes())).nodes
            if not any(node.load.streams for node in nodes):
                break
            await asyncio.sleep(1.0)
        else:
            record.broken.append("a node carries streams that nobody has")
        await asyncio.sleep(2.0)
        churn.require_webhooks()

    async def _held(self, address: str) -> set[str]:
        metadata = (("authorization", f"Bearer {self._fleet.fleet_key}"),)
        try:
            async with open_channel(address) as channel:
                call = node_pb2_grpc.NodeStub(channel).Inventory(
                    node_pb2.InventoryRequest(), metadata=metadata, timeout=10
                )
                return {voice.voice_id async for page in call for voice in page.voices}
        except grpc.RpcError:
            return set()

    def verdicts(self) -> list[Verdict]:
        """Each life of each daemon, each daemon over all of its lives, and Redis."""
        return judgements(self.rows, self._seconds)


def judgements(rows: Sequence[dict[str, Any]], seconds: float) -> list[Verdict]:
    """Each series of a soak of so many seconds."""
    if seconds < LONG_S:
        return [judge(series, slack_times=5.0) for series in series_of(rows)]
    return [judge(series, judged_min_s=JUDGED_MIN_S) for series in series_of(rows)]


def series_of(rows: Sequence[dict[str, Any]]) -> list[Series]:
    """What is judged of a soak's samples."""
    found = []
    names = sorted({name for row in rows for name in row["daemons"]})
    for name in names:
        there = [row for row in rows if name in row["daemons"]]
        lives = sorted({row["daemons"][name]["life"] for row in there})
        for what, field in (("rss", "rss_mib"), ("fds", "fds"), ("threads", "threads"), ("children", "children")):
            for life in lives:
                points = [
                    (row["at_s"], row["daemons"][name][field]) for row in there if row["daemons"][name]["life"] == life
                ]
                found.append(Series(what, f"{name} life {life}", *zip(*points, strict=True)))
            if len(lives) > 1:
                points = [(row["at_s"], row["daemons"][name][field]) for row in there]
                found.append(Series(what, f"{name} all lives", *zip(*points, strict=True)))
    times = [row["at_s"] for row in rows]
    found.append(Series("redis keys", "Redis", times, [row["redis"]["keys"] for row in rows]))
    found.append(Series("redis memory", "Redis", times, [row["redis"]["mib"] for row in rows]))
    return found


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the greatest, milliseconds."""
    if not seconds:
        return {}
    values = 1000 * np.asarray(seconds)
    return {"p50": round(float(np.percentile(values, 50)), 1), "p99": round(float(np.percentile(values, 99)), 1),
            "max": round(float(values.max()), 1), "n": len(seconds)}  # fmt: skip


def report(soak: Soak, fleet: SoakFleet, record: Record, given: argparse.Namespace) -> dict[str, Any]:
    """All of it as plain values."""
    verdicts = soak.verdicts()
    stored = [row["stored"] for row in soak.rows if "stored" in row]
    seconds = soak.rows[-1]["at_s"] if soak.rows else 1.0
    cpu_s: dict[tuple[str, int], float] = {}
    for row in soak.rows:
        for name, taken in row["daemons"].items():
            cpu_s[name, taken["life"]] = taken["cpu_s"]
    return {
        "minutes": given.minutes,
        "minutes_run": round(seconds / 60, 1),
        "seed": given.seed,
        "streams_at_once": given.streams,
        "done": dict(sorted(record.done.items())),
        "refused": dict(record.refused),
        "in_restarts": dict(record.in_restarts),
        "errors": record.errors,
        "broken": record.broken,
        "lag_ms": percentiles_ms(soak.lags_s),
        "lag_around_restarts_ms": percentiles_ms(record.restart_lags_s),
        "away_ms": percentiles_ms(record.away_s),
        "erasure_proven_ms": percentiles_ms(record.proven_s),
        "enrolment_answered_ms": percentiles_ms(record.enrolled_s),
        "cpu_share_of_daemons": round(sum(cpu_s.values()) / seconds, 3),
        "restarts": soak.restarts,
        "lives": [asdict(life) for member in fleet.members for life in member.lives],
        "verdicts": [{**asdict(verdict), "text": str(verdict)} for verdict in verdicts],
        "not_flat": [str(verdict) for verdict in verdicts if verdict.flat is False],
        "stored_first": stored[0] if stored else {},
        "stored_last": stored[-1] if stored else {},
    }


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run a soak; its report."""
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
        soak = Soak(fleet, churn, given)
        try:
            await soak.run()
        finally:
            soak.write_report()
            found = report(soak, fleet, record, given)
            if soak.rows:
                for path in (given.out / "soak.png", given.chart or given.out / "soak.svg"):
                    draw(soak.rows, soak.restarts, title_of(soak.rows[-1]["at_s"] / 60), path)
    return found


def judged(out: Path, chart: Path | None = None) -> dict[str, Any]:
    """The report of a soak that has run, judged by the rules of now: from its samples and what it was told."""
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    verdicts = judgements(rows, 60.0 * found["minutes"])
    found["verdicts"] = [{**asdict(verdict), "text": str(verdict)} for verdict in verdicts]
    found["not_flat"] = [str(verdict) for verdict in verdicts if verdict.flat is False]
    found["broken"] = [line for line in found["broken"] if _is_broken(line)]
    told = [line for line in found["errors"] if any(words in line for words in REFUSALS)]
    found["errors"] = [line for line in found["errors"] if line not in told]
    for line in told:
        found["refused"][line] = found["refused"].get(line, 0) + 1
    if chart is not None:
        draw(rows, found["restarts"], title_of(found["minutes_run"]), chart)
    return found


def _is_broken(line: str) -> bool:
    _, _, story = line.partition(": {")
    if not story:
        return True
    told = json.loads("{" + story)
    named = {label for _, _, label in told["told"] if label.startswith("P")}
    known = {told["talk"][1][2]: next(iter(named), None)} if len(named) == 1 else {}
    return wrong_labels(told["told"], told["talk"], known) is not None


def title_of(minutes: float) -> str:
    """What a chart says above it."""
    return f"{minutes:.0f} minutes of churn: two nodes (null engine), two control planes"


def holds(found: dict[str, Any]) -> bool:
    """Whether it all stayed flat and every promise was kept."""
    return not (found["errors"] or found["broken"] or found["not_flat"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=5)
    parser.add_argument("--enrolled", type=int, default=14, help="people beyond so many are erased")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--judge", action="store_true", help="judge again what has run before, in --out")
    return parser.parse_args(arguments)


def main() -> None:
    """Run, tell, and say by the exit code whether it held."""
    given = parse()
    found = judged(given.out, given.chart) if given.judge else asyncio.run(run(given))
    told = {name: found[name] for name in found if name not in ("lives", "verdicts", "stored_first", "stored_last")}
    print(json.dumps(told, indent=1))
    sys.exit(0 if holds(found) else 1)


if __name__ == "__main__":
    main()

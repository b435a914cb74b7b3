"""F25: anything, in any order, from a seed; and the checker of the soak over all that everybody was told.

Ten minutes of a seed of your own: `python -m benchmarks.nemesis --minutes 10 [--seed N] --out FOLDER`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak_churn import wrong_labels
from benchmarks.soak_judge import Series, judge
from tests.conftest import ROOT
from tests.faults.figures import Figures

SEEDS = [int(seed) for seed in os.environ.get("SPEAKERD_NEMESIS_SEEDS", "1,2,3").split(",")]
MINUTES = float(os.environ.get("SPEAKERD_NEMESIS_MINUTES", "2"))


async def ran(module: str, *arguments: str) -> tuple[int, str]:
    """A program of ours, to its end: exit code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def record_worst(figures: Figures, found: dict[str, Any]) -> None:
    """The longest of what a run reports: nothing of what did not happen in it."""
    for what, times in (("a stream goes on", found["away_ms"]), ("an erasure is proven", found["erasure_proven_ms"])):
        if times:
            figures.record(f"{what} after, at worst", times["max"] / 1000)


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.fault("F25", "P1", "P2", "P3", "P4", "P5", "P6", "P9", "P13", "P15")
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_fails_in_whatever_order_no_promise_is_broken(
    tmp_path: Path, figures: Figures, seed: int
) -> None:
    arguments = ("--seed", str(seed), "--minutes", str(MINUTES), "--out", str(tmp_path))
    code, said = await ran("benchmarks.nemesis", *arguments)
    assert code == 0, said[-6_000:]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["done"]["streams"] and found["done"]["erased"]
    figures.record("faults", sum(found["faults"].values()), "")
    figures.record("streams to their end", found["done"]["streams"], "")
    record_worst(figures, found)
    figures.record("turns lost or doubled", 0, "")


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.fault("F21", "P9", "P6", "P13")
async def test_a_minute_of_churn_and_restarts_breaks_no_promise_and_leaves_nothing_behind(
    tmp_path: Path, figures: Figures
) -> None:
    code, said = await ran("benchmarks.soak", "--minutes", "1.2", "--enrolled", "4", "--out", str(tmp_path))
    assert code == 0, said[-6_000:]
    assert (tmp_path / "soak.svg").stat().st_size > 10_000
    found = json.loads((tmp_path / "report.json").read_text())
    figures.record("restarts", len(found["restarts"]), "")
    figures.record("streams to their end", found["done"]["streams"], "")
    record_worst(figures, found)
    figures.record("turns lost or doubled", 0, "")


def test_what_grows_is_told_from_what_is_noise() -> None:
    times = [5.0 * number for number in range(720)]
    noise = [(number * 7_919) % 13 - 6 for number in range(720)]

    def rss(mib_per_hour: float) -> Series:
        values = [140 + mib_per_hour * at / 3600 + wobble / 3 for at, wobble in zip(times, noise, strict=True)]
        return Series("rss", "node", times, values)

    assert judge(rss(0)).flat and judge(rss(5)).flat
    assert judge(rss(25)).flat is False
    warming = [140 + min(60, at / 10) for at in times]
    assert judge(Series("rss", "node", times, warming)).flat, "what a process takes as it begins is no leak"
    assert judge(Series("fds", "node", times, [20 + at / 60 for at in times])).flat is False
    assert judge(Series("fds", "node", times[:5], [20.0] * 5)).flat is None


def test_a_label_that_changes_is_told_from_a_voice_that_was_not_heard_for_long_enough() -> None:
    talk = [(0, 4_000, 1), (4_000, 8_000, 2), (8_000, 12_000, 1), (12_000, 14_000, 2)]
    told = [(0, 4_000, "spk_0"), (4_000, 8_000, "P2"), (8_000, 12_000, "spk_0"), (12_000, 14_000, "P2")]
    assert wrong_labels(told, talk, {2: "P2"}) is None
    changed = [*told[:3], (12_000, 14_000, "spk_1")]
    assert "P2 was called" in (wrong_labels(changed, talk, {2: "P2"}) or "")
    assert wrong_labels(changed, talk, {}, excused=2) is None
    longer, twice = [*talk, (14_000, 18_000, 2)], [*told, (14_000, 18_000, "spk_1")]
    assert "one person was called" in (wrong_labels(twice, longer, {}) or "")
    short = [(0, 4_000, 1), (4_000, 6_000, 2), (6_000, 10_000, 1), (10_000, 14_000, 2)]
    assert wrong_labels([(0, 10_000, "spk_0"), (10_000, 14_000, "P2")], short, {2: "P2"}) is None

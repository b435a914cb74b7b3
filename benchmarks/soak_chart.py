"""The chart of a soak: memory, descriptors, threads, keys, what is stored, and lag, over its time.

In: the lines that a soak writes. Out: an SVG. What always holds: it is drawn from the samples as they are, averaged
over half a minute at most; restarts are marked where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

COLOURS = {
    "node-a": "#1f77b4",
    "node-b": "#17becf",
    "controlplane-a": "#d62728",
    "controlplane-b": "#ff7f0e",
}
GATHERED_S = 30.0


def draw(rows: Sequence[dict[str, Any]], restarts: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw a soak's samples. rows: as benchmarks.soak writes them. restarts: {at_s, name, how}."""
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "soak"
    figure = Figure(figsize=(10, 13))
    axes = figure.subplots(6, 1, sharex=True)
    names = [name for name in COLOURS if any(name in row["daemons"] for row in rows)]
    for axis, (what, unit) in zip(
        axes, (("rss_mib", "memory, MiB"), ("fds", "descriptors"), ("threads", "threads")), strict=False
    ):
        for name in names:
            at, values = _lives(rows, name, what)
            axis.plot(at, values, color=COLOURS[name], linewidth=1.2, label=name)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    axes[0].legend(loc="lower right", ncols=4, fontsize=8, frameon=False)
    at, keys = _gathered(rows, lambda row: row["redis"]["keys"])
    axes[3].plot(at, keys, color="#2ca02c", label="Redis keys")
    at, memory = _gathered(rows, lambda row: row["redis"]["mib"])
    beside = axes[3].twinx()
    beside.plot(at, memory, color="#98df8a", linestyle="--")
    beside.set_ylim(bottom=0)
    beside.set_ylabel("Redis memory, MiB (dashed)")
    axes[3].set_ylabel("Redis keys")
    axes[3].set_ylim(bottom=0)
    stored = [row for row in rows if "stored" in row]
    axes[4].plot(
        [row["at_s"] / 60 for row in stored],
        [row["stored"]["sql_mib"] for row in stored],
        color="#9467bd",
        label="database",
    )
    axes[4].plot(
        [row["at_s"] / 60 for row in stored],
        [sum(row["stored"]["data_kib"].values()) / 1024 for row in stored],
        color="#8c564b",
        label="data folder",
    )
    axes[4].set_ylabel("kept on disk, MiB\n(meant to grow)")
    axes[4].set_ylim(bottom=0)
    axes[4].legend(loc="lower right", ncols=2, fontsize=8, frameon=False)
    for share, colour in ((50, "#1f77b4"), (99, "#d62728")):
        at, values = _lag(rows, share)
        axes[5].plot(at, values, color=colour, linewidth=1.0, label=f"p{share}")
    axes[5].set_ylabel("lag of a turn, ms")
    axes[5].set_yscale("log")
    axes[5].legend(loc="upper right", ncols=2, fontsize=8, frameon=False)
    axes[5].set_xlabel("minutes; dotted: a restart (blue: node, red: control plane)")
    for axis in axes:
        axis.grid(alpha=0.25)
        for restart in restarts:
            colour = "#1f77b4" if restart["name"].startswith("node") else "#d62728"
            axis.axvline(restart["at_s"] / 60, color=colour, linestyle=":", linewidth=0.8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _lives(rows: Sequence[dict[str, Any]], name: str, what: str) -> tuple[list[float], list[float]]:
    """One line, with a gap where one process ended and the next began."""
    at, values, life = [], [], None
    for row in rows:
        taken = row["daemons"].get(name)
        if taken is None or (life is not None and taken["life"] != life):
            at.append(row["at_s"] / 60)
            values.append(float("nan"))
        if taken is not None:
            at.append(row["at_s"] / 60)
            values.append(taken[what])
            life = taken["life"]
    return at, values


def _gathered(
    rows: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], float]
) -> tuple[list[float], list[float]]:
    bins: dict[int, list[float]] = {}
    for row in rows:
        bins.setdefault(int(row["at_s"] // GATHERED_S), []).append(read(row))
    return [(number + 0.5) * GATHERED_S / 60 for number in bins], [float(np.mean(values)) for values in bins.values()]


def _lag(rows: Sequence[dict[str, Any]], share: int) -> tuple[list[float], list[float]]:
    bins: dict[int, list[float]] = {}
    for row in rows:
        bins.setdefault(int(row["at_s"] // GATHERED_S), []).extend(row["lags_ms"])
    there = {number: lags for number, lags in bins.items() if lags}
    return [(number + 0.5) * GATHERED_S / 60 for number in there], [
        max(0.1, float(np.percentile(lags, share))) for lags in there.values()
    ]

"""What happens to a recording of many hours after its windows were analysed: seconds, and memory, by length.

    python -m benchmarks.long_files --audio FILE… [--bundle builtin] [--hours 1 2 6 24] [--cache FILE] [--json OUT]

The windows of some minutes of real conversations are analysed once, kept in a file, and looped: every embedding drifts
slowly, as voices and rooms do over a day, and gets some noise of its own, so that no two are equal. Each length runs in
a process of its own, so that its peak of memory is its own. The sound itself is not part of this: it is streamed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.bundle import AnyBundle, load_bundle
from models.diarize import analyze_blocks
from models.engines import collecting
from models.seams import SlotKind
from runtime.media import decode
from runtime.units import SAMPLE_RATE_HZ

DRIFT, DRIFT_HOURS, NOISE = 0.15, 5.0, 0.1
"""Of the length of an embedding: how far it is carried, how long there and back takes, and what is its own."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """take_in_s: to keep all windows. finish_s: to cluster them and make turns. Both of one core, in seconds."""

    hours: float
    windows: int
    take_in_s: float
    finish_s: float
    finish_s_an_hour: float
    peak_mib: int
    speakers: int
    turns: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredWindows:
    """activity (W, F, S), embeddings (W, S, D), clean_frames (W, S) of windows a hop apart."""

    activity: FloatArray
    embeddings: FloatArray
    clean_frames: FloatArray


class GridOnly:
    """What a collector asks of a device."""

    def __init__(self, bundle: AnyBundle) -> None:
        self.grid = getattr(bundle, "file_grid", bundle.grid)

    def grid_of(self, kind: SlotKind) -> FrameGrid:
        """The same for all."""
        grid: FrameGrid = self.grid
        return grid


def analyse(bundle: AnyBundle, files: list[Path]) -> StoredWindows:
    """The windows of some recordings, one after the other."""
    from models.engines import open_device

    device = open_device(bundle)
    found = [
        window
        for file in files
        for windows, _ in analyze_blocks(device, [decode(file).samples], 0, SlotKind.FILE)
        for window in windows
        if window.start_samples >= 0
    ]
    return StoredWindows(
        np.stack([window.activity for window in found]),
        np.stack([window.embeddings for window in found]),
        np.stack([window.clean_frames for window in found]),
    )


def looped(stored: StoredWindows, hours: float, hop_samples: int, *, seed: int = 0) -> Iterator[WindowAnalysis]:
    """Windows of so many hours."""
    rng = np.random.default_rng(seed)
    dim, count = stored.embeddings.shape[2], len(stored.activity)
    ways = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T.astype(np.float32)  # (2, D)
    is_unit = abs(float(np.linalg.norm(stored.embeddings, axis=2).max()) - 1.0) < 1e-3
    for index in range(round(hours * 3600 * SAMPLE_RATE_HZ / hop_samples)):
        embeddings = stored.embeddings[index % count]
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
        angle = 2 * np.pi * index * hop_samples / SAMPLE_RATE_HZ / 3600 / DRIFT_HOURS
        carried = DRIFT * (np.sin(angle) * ways[0] + np.sin(1.6 * angle) * ways[1])
        own = NOISE / np.sqrt(dim) * rng.normal(size=embeddings.shape).astype(np.float32)
        moved = embeddings + length * (carried + own)
        if is_unit:
            moved = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9) * (length > 0)
        yield WindowAnalysis(
            index * hop_samples,
            stored.activity[index % count],
            moved.astype(np.float32),
            stored.clean_frames[index % count],
        )


def measure(bundle: AnyBundle, stored: StoredWindows, hours: float) -> Measured:
    """Take windows of so many hours in, and finish."""
    device = GridOnly(bundle)
    file = collecting(bundle, device)(SlotKind.FILE)  # type: ignore[arg-type]
    began_s = time.process_time()
    batch: list[WindowAnalysis] = []
    count = 0
    for window in looped(stored, hours, device.grid.hop_samples):
        batch.append(window)
        count += 1
        if len(batch) == BATCH:
            file.add(batch)
            batch = []
    file.add(batch)
    taken_s = time.process_time()
    file.parts()
    found = file.finish(round(hours * 3600 * SAMPLE_RATE_HZ))
    finish_s = time.process_time() - taken_s
    return Measured(
        hours=hours,
        windows=count,
        take_in_s=round(taken_s - began_s, 2),
        finish_s=round(finish_s, 2),
        finish_s_an_hour=round(finish_s / hours, 3),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        speakers=len(found.speakers),
        turns=len(found.turns),
    )


def main() -> None:
    """Measure each length and print a table."""
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--audio", type=Path, nargs="+", default=[])
    arg.add_argument("--bundle", default="builtin")
    arg.add_argument("--hours", type=float, nargs="+", default=[1.0, 2.0, 6.0, 24.0])
    arg.add_argument("--cache", type=Path, default=Path("long_files_windows.npz"))
    arg.add_argument("--json", type=Path)
    arg.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = arg.parse_args()
    bundle = load_bundle(options.bundle)
    if not options.cache.exists():
        if not options.audio:
            arg.error("--audio: name recordings to analyse, a few minutes in all")
        np.savez(options.cache, **asdict(analyse(bundle, options.audio)))
    if options.one:
        stored = StoredWindows(**dict(np.load(options.cache)))
        print(json.dumps(asdict(measure(bundle, stored, options.hours[0]))))
        return
    rows = []
    for hours in options.hours:
        command = [sys.executable, "-m", "benchmarks.long_files", "--one", "--bundle", options.bundle]
        command += ["--cache", str(options.cache), "--hours", str(hours)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""How fast the nearest voices are found among 10,000 to 1,000,000, as a share of the memory bandwidth there is.

    python benchmarks/gallery.py [--voices 10000 100000 1000000] [--queries 1 16] [--k 16] [--dim 256]
        [--device cpu|cuda] [--threads N] [--json OUT]

The bandwidth is measured in the same run: reading a buffer as large as the largest gallery, from one end to the other.
A look at a gallery has to read it once, so its share is bytes of the gallery a second over that. Each figure is the
median of several runs; the result of each is compared with a plain product and sort.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.torch_gallery import TorchGallery

RUNS_MIN, RUN_S_MIN = 5, 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """One gallery and number of queries. share: of the bandwidth measured in the same run."""

    voices: int
    queries: int
    ms: float
    ms_scattered: float
    gib_a_second: float
    share: float
    is_exact: bool


def filled(voices: int, dim: int, device: str) -> TorchGallery:
    """A gallery of random unit vectors."""
    gallery = TorchGallery(dim, device)
    gallery.put(voices - 1, np.zeros(dim, np.float32))  # grows it at once
    torch.manual_seed(voices)
    step = 65_536
    for begin in range(0, voices, step):
        rows = torch.nn.functional.normalize(torch.randn(min(step, voices - begin), dim), dim=1)
        gallery._rows[begin : begin + len(rows)] = rows.to(gallery._rows)
    return gallery


def bandwidth(num_bytes: int, device: str) -> float:
    """Bytes a second of reading so much memory, by as many threads as torch has."""
    buffer = torch.ones(num_bytes // 4, device=device)
    return num_bytes / timed(lambda: buffer.sum().item(), device)


def timed(act: Callable[[], object], device: str) -> float:
    """Seconds that it takes: the median of several runs, after one that does not count."""
    act()
    taken: list[float] = []
    while len(taken) < RUNS_MIN or sum(taken) < RUN_S_MIN:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        began_s = time.perf_counter()
        act()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)


def measure(
    gallery: TorchGallery, voices: int, queries: int, *, k: int, dim: int, device: str, peak: float
) -> Measured:
    """One figure, with the rows in one piece and, more slowly, scattered."""
    rng = np.random.default_rng(queries)
    asked = rng.normal(size=(queries, dim)).astype(np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    everyone = range(voices)
    taken_s = timed(lambda: gallery.top_k(asked, k, everyone), device)
    rows = np.random.default_rng(0).permutation(voices)
    scattered_s = timed(lambda: gallery.top_k(asked, k, rows), device)
    found = gallery.top_k(asked, k, everyone)
    stored = gallery._rows[:voices].float().cpu().numpy()
    plain = np.sort(stored @ asked[0].astype(gallery_precision(gallery)))[::-1][:k]
    speed = voices * dim * gallery._rows.element_size() / taken_s
    return Measured(
        voices,
        queries,
        round(taken_s * 1e3, 4),
        round(scattered_s * 1e3, 4),
        round(speed / 2**30, 2),
        round(speed / peak, 3),
        bool(np.allclose(found.cosines[0], plain, atol=1e-3)),
    )


def gallery_precision(gallery: TorchGallery) -> type[np.floating]:
    """That in which queries are asked."""
    return np.float16 if gallery._rows.dtype is torch.float16 else np.float32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    size = 2 if arguments.device.startswith("cuda") else 4
    peak = bandwidth(max(arguments.voices) * arguments.dim * size, arguments.device)
    print(f"{arguments.device}, {torch.get_num_threads()} threads: reads {peak / 2**30:.1f} GiB/s")
    rows = []
    for voices in arguments.voices:
        gallery = filled(voices, arguments.dim, arguments.device)
        for queries in arguments.queries:
            rows.append(
                measure(gallery, voices, queries, k=arguments.k, dim=arguments.dim, device=arguments.device, peak=peak)
            )
            row = rows[-1]
            print(
                f"{voices:>9,} voices, {queries:>3} queries: {row.ms:9.3f} ms ({row.ms_scattered:.3f} ms scattered), "
                f"{row.gib_a_second:6.1f} GiB/s, {row.share:.0%} of bandwidth{'' if row.is_exact else ', NOT EXACT'}",
                flush=True,
            )
    if arguments.json:
        told = {
            "device": arguments.device,
            "threads": torch.get_num_threads(),
            "bandwidth_gib_a_second": round(peak / 2**30, 2),
            "k": arguments.k,
            "dim": arguments.dim,
            "figures": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

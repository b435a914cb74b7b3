"""How many live streams a node carries, at what lag and cost, and what diart takes for one over the same checkpoint.

    python -m benchmarks.streams [--streams N [--runs R]] [--peer diart] [--json OUT] [--only null builtin pyannote]

Real processes: a node on one core, a client of its own on another (`taskset`; with one core, or without it, they
share). Three engines: `builtin`; `pyannote`, which is a checkpoint of pyannote's shapes (4-layer PyanNet, ResNet34),
generated where none is given; and `null`, which has no model, so that what is left is the way in and out. Without
--streams their number is raised until the lag breaks; with it, R runs are made and each is shown, since a machine that
shares its processors is slower at times. Streams send 100 ms at the pace of speech, each from another place of the
recordings, begin at times of their own, and share connections as those of the Python client do.

A lag is counted from when the chunk was due that completes a window until its turns are there; sound that came first
in a step is older by up to one step (0.5 s). It holds with p99 <= 200 ms (null: 20 ms), no stream refused or failed,
and nothing skipped. With --realtime, and kernel.sched_rr_timeslice_ms=1 (a node's threads take turns) and
kernel.sched_rt_runtime_us=-1, what else the machine does counts for less. CPU is of the node's whole process, gRPC and
clustering included; the peer's is of its pipeline alone, over one stream, with as many threads
(benchmarks/diart_peer.py, in a Python of its own: --peer-python or SPEAKERD_DIART_PYTHON).

OUT: streams_held, lag_p50_ms and lag_p99_ms (of `builtin` at that number), cpu_s_per_audio_s and peer_cpu_s_per_audio_s
(of pyannote's shapes), ratio of the two, and every run under `engines`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("null", "builtin", "pyannote")
HOLDS_MS = {"null": 20.0, "builtin": 200.0, "pyannote": 200.0}
FIRST_STREAMS = {"null": 100, "builtin": 4, "pyannote": 1}
WARM_UP_S = {"null": 5.0, "builtin": 8.0, "pyannote": 12.0}
LATENCY_S = 2.0
PEER_STEP_S = 0.48  # that of our live windows of pyannote's shapes
PEERS = {"diart": ROOT / "benchmarks" / "diart_peer.py"}
RUNS_MAX = 8
RECOVERY_S = 12.0
"""A node that was late admits nobody for so long."""

Run = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node process that serves."""

    pid: int
    address: str


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, help="so many, instead of searching for the most")
    parser.add_argument("--runs", type=int, default=1, help="with --streams: so many, one after the other")
    parser.add_argument("--peer", choices=(*PEERS, "none"), default="none")
    parser.add_argument("--peer-python", default=os.environ.get("SPEAKERD_DIART_PYTHON", sys.executable))
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement, after a warm-up")
    parser.add_argument("--realtime", action="store_true", help="as root: ahead of all other work on the machine")
    parser.add_argument("--audio", type=Path, nargs="+", metavar="FILE", help="conversations at 16 kHz")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="what scripts/generate_checkpoint.py wrote")
    parser.add_argument("--json", type=Path, metavar="OUT")
    given = parser.parse_args(argv)
    given.audio = [file.resolve() for file in given.audio or _recordings()]
    with tempfile.TemporaryDirectory(prefix="speakerd-streams-") as folder:
        result = _measure(given, Path(folder))
    _show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def _measure(given: argparse.Namespace, folder: Path) -> Run:
    checkpoint = given.checkpoint
    if checkpoint is None and ("pyannote" in given.only or given.peer != "none"):
        checkpoint = _generated(folder / "checkpoint")
    engines: dict[str, list[Run]] = {}
    for engine in given.only:
        bundle = {
            "builtin": "builtin",
            "null": "null@1",
            "pyannote": str(checkpoint / "bundle-VBxClustering") if checkpoint else "",
        }
        device = "null" if engine == "null" else given.device
        with _node(bundle[engine], device, folder / f"{engine}.log", given) as node:
            engines[engine] = _until_lag_breaks(engine, node, given)
    peer = None if given.peer == "none" else _peer(given, checkpoint)
    return _summed_up(engines, peer)


def _until_lag_breaks(engine: str, node: RunningNode, given: argparse.Namespace) -> list[Run]:
    """Runs with more and more streams, the last of which does not hold; or those that were asked for."""
    runs: list[Run] = []
    num_streams = given.streams or FIRST_STREAMS[engine]
    held, broke = 0, 0
    while len(runs) < max(RUNS_MAX, given.runs):
        run = _load(engine, node, num_streams, given)
        runs.append(run)
        print(_line(engine, run), file=sys.stderr)
        if given.streams:
            if len(runs) == given.runs:
                break
            if not run["holds"]:
                time.sleep(RECOVERY_S)
            continue
        if run["holds"]:
            held = num_streams
            # What it took says how many fit; then halfway between what held and what broke.
            fits = int(num_streams / max(run["cpu_share"], 0.01))
            ahead = max(num_streams + 1, min(int(0.9 * fits), 4 * num_streams))
        else:
            broke = num_streams
            ahead = held
            time.sleep(RECOVERY_S)
        num_streams = ahead if not broke else (held + broke + 1) // 2 if held else broke // 2
        if not num_streams or (broke and broke - held <= max(1, broke // 20)):
            break
    return runs


def _load(engine: str, node: RunningNode, num_streams: int, given: argparse.Namespace) -> Run:
    """One run of the client."""
    command = [*_pinned(1, given), sys.executable, "-m", "benchmarks.stream_load", "--address", node.address]
    command += ["--streams", str(num_streams), "--seconds", str(given.seconds), "--node-pid", str(node.pid)]
    command += ["--warm-up", str(WARM_UP_S[engine]), "--latency-ms", str(round(LATENCY_S * 1000))]
    if engine != "null":
        command += ["--audio", *map(str, given.audio)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    run: Run = json.loads(done.stdout.splitlines()[-1])
    run["holds"] = (
        run["lag_p99_ms"] <= HOLDS_MS[engine]
        and not run["failed"]
        and not run["refused"]
        and not run["skipped_windows"]
    )
    return run


def _peer(given: argparse.Namespace, checkpoint: Path) -> Run:
    """The peer's own code over the same checkpoint and recordings, one stream after the other.

    Its last line is a JSON object with cpu_s_per_audio_s, lag_p50_ms and lag_p99_ms (of a step) and audio_s.
    """
    command = [*_pinned(0, given), given.peer_python, str(PEERS[given.peer]), "--checkpoint", str(checkpoint)]
    command += ["--step-s", str(PEER_STEP_S), "--latency-s", str(LATENCY_S), "--threads", "1"]
    command += ["--seconds", str(given.seconds), "--device", given.device, "--audio", *map(str, given.audio)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYANNOTE_METRICS_ENABLED": "false"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def _node(bundle: str, device: str, log: Path, given: argparse.Namespace) -> Iterator[RunningNode]:
    """A standalone node on the first core."""
    command = [*_pinned(0, given), sys.executable, "-m", "node", "--standalone", "--device", device, "--bundle", bundle]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--streams-max", "4096", "--drain-s", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready.startswith("ready "):
                raise SystemExit(f"the node did not start: {log.read_text()[-2000:]}")
            yield RunningNode(process.pid, ready.split("grpc=")[1].split()[0])
        finally:
            process.terminate()
            process.wait(30)


def _pinned(core: int, given: argparse.Namespace) -> list[str]:
    """Words that keep a command on one core, where there are several, and before other work where that is asked for."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    before = ["chrt", "--rr", "10"] if given.realtime else []
    return [*before, *(["taskset", "-c", str(cores[core])] if len(cores) > 1 else [])]


def _recordings() -> list[Path]:
    """The meetings of the test recordings where they are, and the conversation that pyannote.audio brings."""
    import importlib.metadata

    shared = Path(os.environ.get("SPEAKERD_TEST_AUDIO", ROOT.parent / "shared" / "audio"))
    sample = importlib.metadata.distribution("pyannote.audio").locate_file("pyannote/audio/sample/sample.wav")
    return [Path(str(sample)), *sorted((shared / "ami").glob("*.flac"))]


def _generated(folder: Path) -> Path:
    """A checkpoint of real size: its labels mean little, its work is the real one."""
    voices = Path(os.environ.get("SPEAKERD_TEST_AUDIO", ROOT.parent / "shared" / "audio")) / "librispeech" / "guests"
    command = [sys.executable, "-m", "scripts.generate_checkpoint", str(folder), "--size", "full"]
    command += ["--voices", str(voices)] if voices.is_dir() else ["--pieces-of", str(_recordings()[0])]
    print("making a checkpoint of real size …", file=sys.stderr)
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


def _summed_up(engines: dict[str, list[Run]], peer: Run | None) -> Run:
    best = {
        engine: max((run for run in runs if run["holds"]), key=_streams, default=None)
        for engine, runs in engines.items()
    }
    builtin = best.get("builtin")
    # As many streams as the peer has: one, or as near to it as was run; what it costs does not hang on what it lags.
    alike = min(engines.get("pyannote", ()), key=_streams, default=None)
    ours = alike["cpu_s_per_audio_s"] if alike else None
    theirs = peer["cpu_s_per_audio_s"] if peer else None
    return {
        "streams_held": builtin["streams"] if builtin else 0,
        "ratio": round(theirs / ours, 3) if ours and theirs else None,
        "cpu_s_per_audio_s": ours,
        "peer_cpu_s_per_audio_s": theirs,
        "lag_p50_ms": builtin["lag_p50_ms"] if builtin else None,
        "lag_p99_ms": builtin["lag_p99_ms"] if builtin else None,
        "held": {engine: run["streams"] if run else 0 for engine, run in best.items()},
        "engines": engines,
        "peer": peer,
    }


def _streams(run: Run) -> int:
    return int(run["streams"])


def _line(engine: str, run: Run) -> str:
    return (
        f"{engine:>9} {run['streams']:>5} streams: lag p50 {run['lag_p50_ms']:.1f} ms, p99 {run['lag_p99_ms']:.1f} ms; "
        f"{run['cpu_s_per_audio_s']:.5f} s CPU a second of sound, {100 * run['cpu_share']:.0f} % of a core; "
        f"{'holds' if run['holds'] else 'does not hold'} (failed {run['failed']}, refused {run['refused']}, "
        f"skipped {run['skipped_windows']})"
    )


def _show(result: Run) -> None:
    for engine, runs in result["engines"].items():
        for run in runs:
            print(_line(engine, run))
    print({name: result[name] for name in ("streams_held", "ratio", "cpu_s_per_audio_s", "peer_cpu_s_per_audio_s")})


if __name__ == "__main__":
    main()

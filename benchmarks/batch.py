"""Recordings diarized by speakerd's engine and by pyannote.audio's own pipeline: time, memory, and what differs.

    python benchmarks/batch.py --peer pyannote --audio FILE… [--device cuda] [--json OUT] [--checkpoint DIR]

Each engine runs in a fresh process, over the same checkpoint and the same samples in memory, with as many threads as
the other. Times are of diarizing alone, after a warm-up on the first 12 s; memory is the most that the process held,
weights and libraries included (on a GPU also what torch held there). Without --checkpoint one of real size (4-layer
PyanNet, ResNet34 of 6.6 M parameters, PLDA) is generated: its labels mean little, its work is the real one. DIR is
what scripts/generate_checkpoint.py writes. Prints seconds an hour of sound, ratios, and differences in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
WARM_UP_S = 12
FRAME_STEP, FRAME_FIELD = 270, 991
METHODS = {"vbx": "VBxClustering", "agglomerative": "AgglomerativeClustering"}
Samples = Any  # (N,) float32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--peer", choices=("pyannote", "none"), default="none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", choices=("float32", "float16", "bfloat16"), default="float32", help="of our trunk"
    )
    parser.add_argument("--method", choices=tuple(METHODS), default="vbx")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each recording")
    parser.add_argument("--checkpoint", type=Path, help="what scripts/generate_checkpoint.py wrote")
    parser.add_argument("--voices", type=Path, help="speakers to fit a generated checkpoint on, a folder each")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--worker", choices=("exact", "fast", "pyannote"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        _work(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or _generated(Path(folder) / "checkpoint", given)
        engines = ("exact", "fast", *(("pyannote",) if given.peer == "pyannote" else ()))
        runs = {engine: _run(engine, checkpoint, given, Path(folder)) for engine in engines}
    result = _compared(runs, given)
    _show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def _generated(folder: Path, given: argparse.Namespace) -> Path:
    """A checkpoint of real size, in a process of its own: fitted on voices where there are any, else on the audio."""
    voices = given.voices
    if voices is None:
        shared = Path(os.environ.get("SPEAKERD_TEST_AUDIO", Path(__file__).parents[2] / "shared" / "audio"))
        voices = shared / "librispeech" / "guests"
    command = [sys.executable, "-m", "scripts.generate_checkpoint", str(folder), "--size", "full"]
    if voices.is_dir():
        command += ["--voices", str(voices)]
    else:
        command += ["--pieces-of", *(str(file.resolve()) for file in given.audio)]
    print("making a checkpoint of real size …", file=sys.stderr)
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    return folder


def _run(engine: str, checkpoint: Path, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    out = folder / f"{engine}.json"
    command = [sys.executable, str(Path(__file__)), "--worker", engine, "--checkpoint", str(checkpoint)]
    command += ["--audio", *map(str, given.audio), "--device", given.device, "--precision", given.precision]
    command += ["--method", given.method, "--threads", str(given.threads), "--seconds", str(given.seconds)]
    environment = os.environ | {
        "PYANNOTE_METRICS_ENABLED": "false",
        "OMP_NUM_THREADS": str(given.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    print(f"{engine} …", file=sys.stderr)
    subprocess.run([*command, "--json", str(out)], check=True, env=environment)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _work(given: argparse.Namespace) -> None:
    """One engine over all recordings, in this process."""
    import soundfile
    import torch

    torch.set_num_threads(given.threads)
    recordings = []
    for file in given.audio:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        if rate != RATE:
            raise SystemExit(f"{file}: {rate} Hz; give recordings at {RATE} Hz, decoding is not what is measured")
        recordings.append(np.ascontiguousarray(samples.mean(axis=1)[: int(min(given.seconds * RATE, len(samples)))]))
    warnings.simplefilter("ignore")
    make = _theirs if given.worker == "pyannote" else _ours
    diarize = make(given)
    diarize(recordings[0][: WARM_UP_S * RATE])
    wall_s, cpu_s, answers = time.perf_counter(), time.process_time(), []
    for samples in recordings:
        answers.append(diarize(samples))
    result = {
        "wall_s": time.perf_counter() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "audio_s": sum(len(samples) for samples in recordings) / RATE,
        "device_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if given.device.startswith("cuda") else 0.0,
        "answers": answers,
    }
    given.json.write_text(json.dumps(result))


def _ours(given: argparse.Namespace) -> Any:
    import torch

    from models.bundle import load_bundle
    from models.diarize import analyze_blocks
    from models.pyannote.bundle import PyannoteBundle
    from models.pyannote.device import PyannoteDevice
    from models.pyannote.file import PyannoteFile
    from models.seams import SlotKind

    bundle = load_bundle(given.checkpoint / f"bundle-{METHODS[given.method]}")
    assert isinstance(bundle, PyannoteBundle)
    device = PyannoteDevice(bundle, given.device, given.precision)
    kind = SlotKind.FILE if given.worker == "exact" else SlotKind.FAST_FILE
    # A GPU takes as many windows at once as a node would give it of several recordings.
    windows_a_batch = 256 if given.device.startswith("cuda") else 32

    def diarize(samples: Samples) -> dict[str, Any]:
        file = PyannoteFile(bundle)
        for analyses, _ in analyze_blocks(device, [samples], 0, kind, windows_a_batch=windows_a_batch):
            file.add(analyses)
        found = file.finish_frames()
        if given.device.startswith("cuda"):
            torch.cuda.synchronize()
        return {
            "turns": sorted((turn.begin, turn.end, turn.speaker) for turn in found.turns),
            "exclusive": sorted((turn.begin, turn.end, turn.speaker) for turn in found.exclusive),
            "embeddings": found.embeddings.tolist(),
        }

    return diarize


def _theirs(given: argparse.Namespace) -> Any:
    import torch
    from pyannote.audio import Pipeline

    pipeline: Any = Pipeline.from_pretrained(given.checkpoint / f"pyannote-{METHODS[given.method]}")
    pipeline.to(torch.device(given.device))

    def diarize(samples: Samples) -> dict[str, Any]:
        found = pipeline({"waveform": torch.from_numpy(samples)[None], "sample_rate": RATE, "uri": "recording"})
        return {
            "turns": _frames(found.speaker_diarization),
            "exclusive": _frames(found.exclusive_speaker_diarization),
            "embeddings": np.asarray(found.speaker_embeddings, np.float64).tolist(),
        }

    return diarize


def _frames(annotation: Any) -> list[tuple[int, int, int]]:
    """Turns in the network's frames, in whose middle they begin and end."""
    found = []
    for segment, _, label in annotation.itertracks(yield_label=True):
        begin, end = (round((edge * RATE - FRAME_FIELD / 2) / FRAME_STEP) for edge in (segment.start, segment.end))
        found.append((begin, end, int(label.removeprefix("SPEAKER_"))))
    return sorted(found)


def _compared(runs: dict[str, dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    hours = runs["exact"]["audio_s"] / 3600
    result: dict[str, Any] = {
        "device": given.device,
        "threads": given.threads,
        "precision": given.precision,
        "method": METHODS[given.method],
        "audio_s": runs["exact"]["audio_s"],
        "recordings": [file.name for file in given.audio],
        "seconds_per_hour": runs["exact"]["wall_s"] / hours,
        "peak_mib": runs["exact"]["peak_mib"],
        "engines": {
            engine: {
                "seconds_per_hour": run["wall_s"] / hours,
                "cpu_seconds_per_hour": run["cpu_s"] / hours,
                "peak_mib": run["peak_mib"],
                "device_peak_mib": run["device_peak_mib"],
                "turns": sum(len(answer["turns"]) for answer in run["answers"]),
                "speakers": [len(answer["embeddings"]) for answer in run["answers"]],
            }
            for engine, run in runs.items()
        },
    }
    peer = runs.get("pyannote")
    if peer is None:
        return result
    for engine in ("exact", "fast"):
        result[f"ratio_{engine}"] = peer["wall_s"] / runs[engine]["wall_s"]
        result[f"cpu_ratio_{engine}"] = peer["cpu_s"] / runs[engine]["cpu_s"]
        result["engines"][engine]["frames_differing"] = _differing(runs[engine]["answers"], peer["answers"])
    result["peer_seconds_per_hour"] = peer["wall_s"] / hours
    result["peer_peak_mib"] = peer["peak_mib"]
    pairs = list(zip(runs["exact"]["answers"], peer["answers"], strict=True))
    result["turns_identical"] = all(
        ours[name] == theirs[name] for ours, theirs in pairs for name in ("turns", "exclusive")
    )
    result["embeddings_difference"] = max((_apart(ours["embeddings"], theirs["embeddings"]) for ours, theirs in pairs))
    return result


def _apart(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The largest difference between embeddings; infinite where there are not as many."""
    one, other = np.array(ours), np.array(theirs)
    if one.shape != other.shape:
        return float("inf")
    return float(np.nan_to_num(np.abs(one - other)).max(initial=0.0))


def _differing(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Share of the peer's speech, in frames, that ours gives to others, leaves out or adds; speakers mapped at best."""
    from scipy.optimize import linear_sum_assignment

    wrong = speech = 0.0
    for one, other in zip(ours, theirs, strict=True):
        length = max((end for some in (one, other) for _, end, _ in some["turns"]), default=0)
        a, b = _activity(one["turns"], length), _activity(other["turns"], length)
        together = a.T.astype(np.float64) @ b
        rows, columns = linear_sum_assignment(together, maximize=True)
        heard = np.maximum(a.sum(axis=1), b.sum(axis=1))
        wrong += float(heard.sum() - together[rows, columns].sum())
        speech += float(b.sum())
    return wrong / max(speech, 1.0)


def _activity(turns: list[list[int]], length: int) -> Any:
    activity = np.zeros((length, 1 + max((speaker for _, _, speaker in turns), default=0)), np.int32)
    for begin, end, speaker in turns:
        activity[begin:end, speaker] = 1
    return activity


def _show(result: dict[str, Any]) -> None:
    print(f"{result['audio_s']:.0f} s of sound, {result['device']}, {result['threads']} threads, {result['method']}")
    print(f"{'':10}{'s an hour':>12}{'CPU s an hour':>16}{'peak MiB':>10}{'turns':>8}{'frames differing':>18}")
    for engine, run in result["engines"].items():
        differing = f"{100 * run['frames_differing']:.2f} %" if "frames_differing" in run else ""
        print(
            f"{engine:10}{run['seconds_per_hour']:12.1f}{run['cpu_seconds_per_hour']:16.1f}{run['peak_mib']:10.0f}"
            f"{run['turns']:8}{differing:>18}"
        )
    if "ratio_exact" in result:
        print(f"exact {result['ratio_exact']:.1f}x, fast {result['ratio_fast']:.1f}x as fast as pyannote.audio")
        print(f"turns identical: {result['turns_identical']}; embeddings within {result['embeddings_difference']:.1e}")


if __name__ == "__main__":
    main()

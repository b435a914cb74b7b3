"""Hold our engine against pyannote.audio's own, with your weights of pyannote's and your labelled recordings.

    python -m scripts.verify_bundle PIPELINE --audio FOLDER [--device cpu|cuda] [--seconds N] [--json OUT]

PIPELINE is what `speakerd models import` takes: a folder or tarball with config.yaml and its networks. FOLDER holds
NAME.wav (or .flac, .mp3, …) and NAME.rttm. Every recording goes through pyannote's SpeakerDiarization, and through our
`exact` and `fast`, with the same weights and samples. Printed are, a recording, whether the turns of `exact` are
pyannote's to the frame, and the diarization error (overlap scored, no collar) of all three. Ends with 0 where all turns
are identical and `fast` is within 0.1 point of `exact`, else with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from models.analysis import FloatArray
from models.bundle_archive import unpack
from models.bundle_import import import_bundle
from models.diarize import analyze_blocks
from models.pipeline_files import NETWORK, PLDA, find_pipeline
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.device import PyannoteDevice
from models.pyannote.file import PyannoteFile
from models.pyannote.networks import import_pyannote
from models.seams import SlotKind
from runtime.media import decode
from runtime.units import SAMPLE_RATE_HZ, samples_from_seconds

FRAME_FIELD_SAMPLES = 991
FAST_POINTS_MAX = 0.1
SLOT = 0
Turns = list[tuple[int, int, int]]
"""(first frame, last frame, speaker), sorted. A turn begins and ends in the middle of its frames."""


@dataclass(frozen=True, slots=True)
class Verified:
    """One recording; errors are in percent of the reference's speech."""

    name: str
    seconds: float
    is_identical: bool
    exact: float
    fast: float
    pyannote: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--audio", type=Path, required=True, help="folder with recordings and their RTTMs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each recording, from its start")
    parser.add_argument("--json", type=Path, metavar="OUT")
    given = parser.parse_args(argv)
    recordings = _recordings(given.audio)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.pipeline
        if not folder.is_dir():
            folder = Path(scratch) / "unpacked"
            folder.mkdir()
            unpack(given.pipeline, folder)
        os.environ["SPEAKERD_MODELS"] = str(Path(scratch) / "models")
        bundle = import_bundle(folder, "verified")
        assert isinstance(bundle, PyannoteBundle)
        rows = verify(bundle, _for_pyannote(folder, Path(scratch) / "peer"), recordings, given.device, given.seconds)
    _show(rows[-1])
    gap = abs(rows[-1].fast - rows[-1].exact)
    told = {"recordings": [asdict(row) for row in rows], "fast_minus_exact_points": rows[-1].fast - rows[-1].exact}
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    good = rows[-1].is_identical and gap <= FAST_POINTS_MAX
    print(
        f"exact {'is' if rows[-1].is_identical else 'IS NOT'} pyannote's to the frame; fast is {gap:.2f} points from it"
        f"{'' if gap <= FAST_POINTS_MAX else f', MORE THAN {FAST_POINTS_MAX}'}"
    )
    return 0 if good else 1


def verify(
    bundle: PyannoteBundle, pipeline: Path, recordings: Sequence[Path], device_name: str, seconds: float
) -> list[Verified]:
    """A row a recording, and ALL at the end, weighted by speech."""
    import torch
    from pyannote.metrics.diarization import DiarizationErrorRate

    device = PyannoteDevice(bundle, device_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer: Any = import_pyannote("pyannote.audio").Pipeline.from_pretrained(pipeline).to(torch.device(device_name))
    errors = {engine: DiarizationErrorRate() for engine in ("exact", "fast", "pyannote")}
    rows = []
    for path in recordings:
        samples = decode(path).samples
        samples = samples[: min(len(samples), samples_from_seconds(min(seconds, 1e6)))]
        found = {
            "exact": _ours(device, bundle, samples, SlotKind.FILE),
            "fast": _ours(device, bundle, samples, SlotKind.FAST_FILE),
            "pyannote": _theirs(peer, samples, bundle.file_grid.step_samples),
        }
        length_s = len(samples) / SAMPLE_RATE_HZ
        scored = {
            engine: 100 * _error(errors[engine], path.with_suffix(".rttm"), turns, length_s, bundle)
            for engine, turns in found.items()
        }
        rows.append(Verified(path.stem, round(length_s, 2), found["exact"] == found["pyannote"], **scored))
        _show(rows[-1])
    totals = {engine: 100 * abs(metric) for engine, metric in errors.items()}
    rows.append(Verified("ALL", sum(row.seconds for row in rows), all(row.is_identical for row in rows), **totals))
    return rows


def _ours(device: PyannoteDevice, bundle: PyannoteBundle, samples: FloatArray, kind: SlotKind) -> Turns:
    file = PyannoteFile(bundle)
    for analyses, _ in analyze_blocks(device, [samples], SLOT, kind):
        file.add(analyses)
    return sorted((turn.begin, turn.end, turn.speaker) for turn in file.finish_frames().turns)


def _theirs(pipeline: Any, samples: FloatArray, step_samples: int) -> Turns:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pipeline(
            {"waveform": torch.from_numpy(samples)[None], "sample_rate": SAMPLE_RATE_HZ, "uri": "recording"}
        )
    turns = []
    for segment, _, label in found.speaker_diarization.itertracks(yield_label=True):
        begin, end = (
            round((edge * SAMPLE_RATE_HZ - FRAME_FIELD_SAMPLES / 2) / step_samples)
            for edge in (segment.start, segment.end)
        )
        turns.append((begin, end, int(label.removeprefix("SPEAKER_"))))
    return sorted(turns)


def _error(metric: Any, reference: Path, turns: Turns, length_s: float, bundle: PyannoteBundle) -> float:
    """The diarization error of one recording, a share of its speech; the metric adds it to its total."""
    from pyannote.core import Annotation, Segment, Timeline

    said, so = Annotation(uri=reference.stem), Annotation(uri=reference.stem)
    for number, (begin, end, speaker) in enumerate(turns):
        edges = [
            (edge * bundle.file_grid.step_samples + FRAME_FIELD_SAMPLES / 2) / SAMPLE_RATE_HZ for edge in (begin, end)
        ]
        said[Segment(*edges), number] = str(speaker)
    for number, line in enumerate(reference.read_text().splitlines()):
        field = line.split()
        if field and field[0] == "SPEAKER":
            so[Segment(float(field[3]), float(field[3]) + float(field[4])), number] = field[7]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metric(so, said, uem=Timeline([Segment(0, length_s)])))


def _recordings(folder: Path) -> list[Path]:
    """Every file that has an RTTM beside it."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix not in {".rttm", ".json", ".txt"} and path.is_file() and path.with_suffix(".rttm").is_file()
    ]
    if not found:
        raise SystemExit(f"{folder} holds no recordings with an RTTM of the same name beside them")
    return found


def _for_pyannote(folder: Path, target: Path) -> Path:
    """The same pipeline laid out so that pyannote finds all of it without the hub, wherever its parts were."""
    pipeline = find_pipeline(folder)
    config = yaml.safe_load(pipeline.config.read_text())
    parts = {"segmentation": [(pipeline.segmentation, NETWORK)], "embedding": [(pipeline.embedding, NETWORK)]}
    if pipeline.plda is not None:
        parts["plda"] = list(zip(pipeline.plda, PLDA, strict=True))
    else:
        # It is loaded by every pipeline, from the hub where none is named, and without VBx used by none.
        (target / "plda").mkdir(parents=True)
        config["pipeline"]["params"]["plda"] = "$model/plda"
        lda = np.eye(256, 128)
        np.savez(target / "plda" / PLDA[0], mean1=np.zeros(256), mean2=np.zeros(128), lda=lda)
        np.savez(target / "plda" / PLDA[1], mu=np.zeros(128), tr=np.eye(128), psi=np.linspace(2.0, 1.0, 128))
    for kind, files in parts.items():
        (target / kind).mkdir(parents=True)
        config["pipeline"]["params"][kind] = f"$model/{kind}"
        for path, name in files:
            (target / kind / name).symlink_to(path.resolve())
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


def _show(row: Verified) -> None:
    print(
        f"{row.name:<24} {row.seconds:8.1f} s  turns {'identical' if row.is_identical else 'DIFFER   '}  "
        f"DER exact {row.exact:6.2f} %  fast {row.fast:6.2f} %  pyannote {row.pyannote:6.2f} %",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

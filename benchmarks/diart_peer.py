"""diart's own streaming pipeline over a checkpoint that speakerd runs too: what a second of sound costs it.

    PYTHON benchmarks/diart_peer.py --checkpoint DIR --audio FILE... [--step-s 0.48] [--latency-s 2] [--seconds 20]

PYTHON is that of the environment which scripts/setup_diart.sh makes: diart wants another NumPy and another
pyannote.audio than we do, so nothing of ours is imported here. DIR is what scripts/generate_checkpoint.py wrote; the
tensors come from its bundle, the very files that speakerd reads. diart's `SpeakerDiarization` runs under its own
`StreamingInference`, one window at a time, as its server does; the window is the checkpoint's own.

The last line is a JSON object: cpu_s_per_audio_s, wall_s_per_audio_s, lag_p50_ms and lag_p99_ms (of one step), audio_s,
window_s, step_s. Loading and the first window are left out. --forward OUT.npz also writes what the networks make of the
first window, for benchmarks/diart_agreement.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["PYANNOTE_METRICS_ENABLED"] = "false"
warnings.simplefilter("ignore")
try:
    import sounddevice  # noqa: F401
except OSError:
    # It is diart's way to a microphone, and wants PortAudio, which a machine without sound has not got.
    sys.modules["sounddevice"] = types.ModuleType("sounddevice")

import numpy as np  # noqa: E402 - the switches above have to come first
import soundfile  # noqa: E402
import torch  # noqa: E402
from diart import SpeakerDiarization, SpeakerDiarizationConfig  # noqa: E402
from diart.inference import StreamingInference  # noqa: E402
from diart.models import EmbeddingModel, PowersetAdapter, SegmentationModel  # noqa: E402
from diart.sources import AudioSource  # noqa: E402
from pyannote.audio.core.task import Problem, Resolution, Specifications  # noqa: E402
from pyannote.audio.models.embedding import wespeaker  # noqa: E402
from pyannote.audio.models.segmentation import PyanNet  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

RATE_HZ = 16_000


class Recordings(AudioSource):  # type: ignore[misc]
    """Recordings one after the other, from memory, in blocks of a step."""

    def __init__(self, files: Sequence[Path], seconds: float, block_samples: int) -> None:
        super().__init__("recordings", RATE_HZ)
        self._block_samples = block_samples
        sounds: list[Any] = []
        held = 0
        while held < seconds * RATE_HZ:
            for file in files:
                samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
                assert rate == RATE_HZ, f"{file} has {rate} Hz"
                sounds.append(samples.mean(axis=1))
                held += len(samples)
        self.samples = np.concatenate(sounds)[: round(seconds * RATE_HZ)]

    @property
    def duration(self) -> float:
        """In seconds."""
        return float(len(self.samples) / RATE_HZ)

    def blocks(self) -> Iterator[Any]:
        """Pieces of a step, (1, N)."""
        for at in range(0, len(self.samples) - self._block_samples + 1, self._block_samples):
            yield self.samples[None, at : at + self._block_samples]

    def read(self) -> None:
        """Send all of it, as fast as it is taken."""
        for block in self.blocks():
            self.stream.on_next(block)
        self.stream.on_completed()

    def close(self) -> None:
        """There is nothing to let go of."""


def networks(checkpoint: Path) -> tuple[Any, Any, float]:
    """The checkpoint's networks as pyannote's own classes, and the window that they were made for, in seconds."""
    folder = checkpoint / "bundle-VBxClustering" if (checkpoint / "bundle-VBxClustering").is_dir() else checkpoint
    manifest = tomllib.loads((folder / "bundle.toml").read_text())
    given = dict(manifest["segmentation"]["specifications"])
    given["problem"], given["resolution"] = Problem[given["problem"]], Resolution[given["resolution"]]
    segmentation: Any = PyanNet(**manifest["segmentation"]["hyperparameters"])
    segmentation.specifications = Specifications(**given)
    segmentation.build()
    known = {"sample_rate", "num_channels", "num_mel_bins", "frame_length", "frame_shift", "dither", "window_type"}
    hyperparameters = manifest["embedding"]["hyperparameters"]
    embedding: Any = getattr(wespeaker, manifest["embedding"]["architecture"])(
        **{name: value for name, value in hyperparameters.items() if name in known}
    )
    for network, name in ((segmentation, "segmentation"), (embedding, "embedding")):
        missing, unexpected = network.load_state_dict(load_file(folder / f"{name}.safetensors"), strict=False)
        assert not unexpected, f"{name}: {unexpected}"
        assert all(key.endswith(("num_batches_tracked", ".n_", ".window_")) for key in missing), f"{name}: {missing}"
        network.eval()
    return segmentation, embedding, float(given["duration"])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--audio", type=Path, nargs="+", required=True)
    parser.add_argument("--step-s", type=float, default=0.48)
    parser.add_argument("--latency-s", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forward", type=Path, metavar="OUT.npz")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    segmentation, embedding, window_s = networks(given.checkpoint)
    source = Recordings(given.audio, window_s + given.seconds, round(given.step_s * RATE_HZ))
    if given.forward:
        _forward(segmentation, embedding, source.samples[: round(window_s * RATE_HZ)], given.forward)
    print(json.dumps(_measured(segmentation, embedding, window_s, source, given)))


def _measured(
    segmentation: Any, embedding: Any, window_s: float, source: Recordings, given: argparse.Namespace
) -> dict[str, float]:
    pipeline = SpeakerDiarization(
        SpeakerDiarizationConfig(
            segmentation=SegmentationModel(lambda: PowersetAdapter(segmentation)),
            embedding=EmbeddingModel(lambda: embedding),
            duration=window_s,
            step=given.step_s,
            latency=given.latency_s,
            device=torch.device(given.device),
        )
    )
    inference = StreamingInference(pipeline, source, batch_size=1, do_profile=False, show_progress=False)
    steps: list[tuple[float, float]] = []
    inference.attach_hooks(lambda _: steps.append((time.process_time(), time.perf_counter())))
    inference()
    assert len(steps) > 2, "too little sound for a measurement"
    cpu, wall = np.diff(np.array(steps), axis=0).T
    audio_s = len(cpu) * given.step_s
    return {
        "cpu_s_per_audio_s": float(cpu.sum() / audio_s),
        "wall_s_per_audio_s": float(wall.sum() / audio_s),
        "lag_p50_ms": float(np.percentile(wall, 50) * 1000),
        "lag_p99_ms": float(np.percentile(wall, 99) * 1000),
        "audio_s": audio_s,
        "window_s": window_s,
        "step_s": given.step_s,
    }


@torch.inference_mode()
def _forward(segmentation: Any, embedding: Any, window: Any, out: Path) -> None:
    sound = torch.from_numpy(window)[None, None]
    classes = segmentation(sound)  # (1, F, K) log probabilities
    weights = torch.ones(1, classes.shape[1])
    weights[:, : classes.shape[1] // 3] = 0.0
    np.savez(out, window=window, classes=classes[0].numpy(), embedding=embedding(sound, weights)[0].numpy())


if __name__ == "__main__":
    main()

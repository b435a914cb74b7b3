"""What the tests of pyannote's family share: recordings, our answers, and those of pyannote.audio as reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from models.analysis import FloatArray
from models.bundle import load_bundle
from models.clustering import SpeakerBounds
from models.diarize import analyze_blocks
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.device import PyannoteDevice
from models.pyannote.file import FrameDiarization, PyannoteFile
from models.pyannote.networks import import_pyannote
from models.seams import SlotKind
from tests.models.builtin_engine import sample_folder

RATE = 16_000
FRAME_STEP, FRAME_FIELD = 270, 991
EMBEDDING_TOLERANCE = 1e-4
Recording = Callable[[Path], FloatArray]


@dataclass(frozen=True)
class Case:
    """A recording, the checkpoint and method that it is diarized with, and how many speakers are asked for."""

    name: str
    recording: Recording
    checkpoint: str = "plain"
    method: str = "VBxClustering"
    asked: tuple[int | None, int | None, int | None] = (None, None, None)  # num, min, max

    def __str__(self) -> str:
        asked = "".join(
            f"-{word}{count}" for word, count in zip(("num", "min", "max"), self.asked, strict=True) if count
        )
        return f"{self.name}-{self.checkpoint}-{self.method.removesuffix('Clustering')}{asked}"

    @property
    def bounds(self) -> SpeakerBounds:
        num, least, most = self.asked
        return SpeakerBounds(num or least or 1, num or most)


@dataclass(frozen=True)
class Answer:
    """Turns (begin frame, end frame, speaker), at most one speaker at a time in `exclusive`, and (K, D) embeddings."""

    turns: list[tuple[int, int, int]]
    exclusive: list[tuple[int, int, int]]
    embeddings: np.ndarray

    def equals(self, other: Answer) -> bool:
        return (
            self.turns == other.turns
            and self.exclusive == other.exclusive
            and self.embeddings.shape == other.embeddings.shape
            and bool(np.allclose(self.embeddings, other.embeddings, rtol=0, atol=EMBEDDING_TOLERANCE, equal_nan=True))
        )


def sample(_: Path) -> FloatArray:
    """The 30 s of two people that pyannote.audio installs with itself."""
    return _read(sample_folder() / "sample.wav")


def meeting(name: str, seconds: float = 30.0) -> Recording:
    """An excerpt of a meeting, far microphone."""
    return lambda audio: _read(audio / "ami" / f"{name}.flac")[: int(seconds * RATE)]


def conversation(speakers: int, seconds: float, seed: int) -> Recording:
    """Members and guests of LibriSpeech in turns, with pauses and overlaps, a few of them quieter, some noise."""

    def made(audio: Path) -> FloatArray:
        chance = np.random.default_rng(seed)
        folders = sorted(path for part in ("members", "guests") for path in (audio / "librispeech" / part).iterdir())
        people = [folders[index] for index in chance.choice(len(folders), speakers, replace=False)]
        mixed = 0.0005 * chance.standard_normal(int(seconds * RATE)).astype(np.float32)
        at, before = 0, -1
        while at < len(mixed):
            who = int(chance.choice([index for index in range(speakers) if index != before]))
            files = sorted(people[who].iterdir())
            said = _read(files[int(chance.integers(len(files)))])
            begin = int(chance.integers(max(1, len(said) - 6 * RATE)))
            said = said[begin : begin + int(chance.uniform(2, 6) * RATE)][: len(mixed) - at]
            mixed[at : at + len(said)] += said * chance.uniform(0.4, 1.2)
            at, before = max(0, at + len(said) + int(chance.uniform(-1.5, 0.8) * RATE)), who
        return mixed

    return made


def theirs(folder: Path, samples: FloatArray, asked: tuple[int | None, int | None, int | None]) -> Answer:
    """What pyannote.audio's own pipeline, loaded from `folder` in its own format, answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = import_pyannote("pyannote.audio").Pipeline.from_pretrained(folder)
        file = {"waveform": torch.from_numpy(samples)[None], "sample_rate": RATE, "uri": "file"}
        given = dict(zip(("num_speakers", "min_speakers", "max_speakers"), asked, strict=True))
        found = pipeline(file, **given)
    return Answer(
        _frames(found.speaker_diarization),
        _frames(found.exclusive_speaker_diarization),
        np.asarray(found.speaker_embeddings),
    )


def ours(
    folder: Path, samples: FloatArray, bounds: SpeakerBounds, change: Callable[[Any], Any] = lambda bundle: bundle
) -> Answer:
    """What our engine answers with the same checkpoint, its bundle changed by `change`."""
    bundle = change(ours_loaded(folder))
    return answer(collected(PyannoteDevice(bundle), bundle, samples).finish_frames(bounds))


def ours_loaded(folder: Path) -> PyannoteBundle:
    """A bundle of this family."""
    bundle = load_bundle(folder)
    assert isinstance(bundle, PyannoteBundle)
    return bundle


def collected(
    device: PyannoteDevice, bundle: PyannoteBundle, samples: FloatArray, kind: SlotKind = SlotKind.FILE
) -> PyannoteFile:
    """All windows of a recording, analysed."""
    file = PyannoteFile(bundle)
    for analyses, _ in analyze_blocks(device, [samples], 0, kind):
        file.add(analyses)
    return file


def answer(found: FrameDiarization) -> Answer:
    """Our result in the form in which it is compared."""
    turns, exclusive = (
        sorted((turn.begin, turn.end, turn.speaker) for turn in some) for some in (found.turns, found.exclusive)
    )
    return Answer(turns, exclusive, found.embeddings)


def _frames(annotation: Any) -> list[tuple[int, int, int]]:
    found = []
    for segment, _, label in annotation.itertracks(yield_label=True):
        ends = [(edge * RATE - FRAME_FIELD / 2) / FRAME_STEP for edge in (segment.start, segment.end)]
        assert all(abs(edge - round(edge)) < 0.01 for edge in ends), "turns end in the middle of frames"
        found.append((round(ends[0]), round(ends[1]), int(label.removeprefix("SPEAKER_"))))
    return sorted(found)


def _read(path: Path) -> FloatArray:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    found: FloatArray = samples
    return found

"""Conversations of real voices for tests, and who speaks when in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000
PAUSE_S = 0.4


@dataclass(frozen=True)
class Talk:
    """A recording, and its turns: (who, start, end) in seconds."""

    path: Path
    turns: tuple[tuple[str, float, float], ...]

    def share_right(self, heard: Iterable[Mapping[str, object]]) -> float:
        """The share of the speech in which the right one, and nobody else, is said to speak."""
        said = list(heard)
        right = total = 0
        for who, start, end in self.turns:
            for at in np.arange(start + 0.05, end - 0.05, 0.05):
                speaking = {str(one["speaker"]) for one in said if float(one["start"]) <= at < float(one["end"])}  # type: ignore[arg-type]
                total += 1
                right += speaking == {who}
        return right / total


def utterances(audio: Path, speaker: str) -> list[np.ndarray]:
    """What a member says, utterance by utterance."""
    files = sorted((audio / "librispeech" / "members" / speaker).glob("*.flac"))
    assert files, f"no recordings of {speaker}"
    return [soundfile.read(file, dtype="float32")[0] for file in files]


def write_talk(path: Path, audio: Path, parts: Sequence[tuple[str, str, int]]) -> Talk:
    """People speaking one after another; parts: (what they are called, member, which utterance)."""
    sound: list[np.ndarray] = []
    turns: list[tuple[str, float, float]] = []
    at = 0
    pause = np.random.default_rng(0).normal(0, 1e-4, round(PAUSE_S * RATE_HZ)).astype(np.float32)
    for who, member, number in parts:
        said = utterances(audio, member)[number]
        turns.append((who, at / RATE_HZ, (at + len(said)) / RATE_HZ))
        sound += [said, pause]
        at += len(said) + len(pause)
    soundfile.write(path, np.concatenate(sound), RATE_HZ)
    return Talk(path, tuple(turns))


def write_sample(path: Path, audio: Path, member: str, number: int) -> Path:
    """One utterance of a member."""
    soundfile.write(path, utterances(audio, member)[number], RATE_HZ)
    return path

"""The 30 s conversation that pyannote.audio installs with itself, cut for a demo.

Out come a recording of each of the two people alone, from the first half of what they say, and the second half with
its reference. pyannote is found by its package metadata and never imported: importing it would load torch, and its
telemetry.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from speakerd.errors import SpeakerdError
from speakerd.rttm import RttmTurn, parse_rttm

# Nobody in the reference has a name; these will do, in order of appearance.
NAMES = ("Robin", "Sam")
GAP_MS = 100


@dataclass(frozen=True, slots=True)
class SampleConversation:
    """The conversation, cut: a wav of each person alone, a wav of the second half, and who speaks in it, by name."""

    enrolment: dict[str, Path]
    rest: Path
    reference: list[RttmTurn]


def cut_sample(folder: Path) -> SampleConversation:
    """Cut the conversation into wav files in a folder, made if need be.

    Raises SpeakerdError when pyannote.audio is not installed.
    """
    recording, turns = _sample()
    sound = _Sound.read(recording)
    folder.mkdir(parents=True, exist_ok=True)
    names = dict(zip(dict.fromkeys(turn.label for turn in turns), NAMES, strict=True))
    turns = [RttmTurn(turn.start_ms, turn.end_ms, names[turn.label]) for turn in turns]
    middle_ms = _pause_nearest_the_middle(turns)
    enrolment = {}
    for name in NAMES:
        enrolment[name] = folder / f"{name}.wav"
        sound.write(enrolment[name], _alone(turns, name, middle_ms))
    rest = folder / "conversation.wav"
    sound.write(rest, [(middle_ms, sound.duration_ms)])
    reference = [
        RttmTurn(max(turn.start_ms, middle_ms) - middle_ms, turn.end_ms - middle_ms, turn.label)
        for turn in turns
        if turn.end_ms > middle_ms
    ]
    return SampleConversation(enrolment, rest, reference)


def error_rate(reference: Sequence[RttmTurn], heard: Sequence[RttmTurn], step_ms: int = 10) -> float:
    """Share of the reference's speech that was missed, made up, or given to the wrong name."""
    wrong = spoken = 0
    for at_ms in range(0, max((turn.end_ms for turn in (*reference, *heard)), default=0), step_ms):
        who = {turn.label for turn in reference if turn.start_ms <= at_ms < turn.end_ms}
        said = {turn.label for turn in heard if turn.start_ms <= at_ms < turn.end_ms}
        spoken += len(who)
        wrong += max(len(who), len(said)) - len(who & said)
    return wrong / spoken if spoken else 0.0


def _sample() -> tuple[Path, list[RttmTurn]]:
    try:
        files = metadata.files("pyannote.audio") or []
    except metadata.PackageNotFoundError:
        files = []
    found = {file.name: Path(str(file.locate())) for file in files if file.parts[-2:-1] == ("sample",)}
    if not {"sample.wav", "sample.rttm"} <= found.keys():
        raise SpeakerdError(
            "unavailable", "the demo's conversation comes with pyannote.audio: pip install 'speakerd[node]'"
        )
    return found["sample.wav"], parse_rttm(found["sample.rttm"].read_text())


def _pause_nearest_the_middle(turns: Sequence[RttmTurn]) -> int:
    """The instant without speech that is nearest to the middle of what is said, milliseconds."""
    first_ms, last_ms = min(turn.start_ms for turn in turns), max(turn.end_ms for turn in turns)
    middle_ms = (first_ms + last_ms) // 2
    silent = (
        at_ms
        for at_ms in range(first_ms, last_ms, 10)
        if not any(turn.start_ms - 50 < at_ms < turn.end_ms + 50 for turn in turns)
    )
    return min(silent, key=lambda at_ms: abs(at_ms - middle_ms), default=middle_ms)


def _alone(turns: Sequence[RttmTurn], name: str, end_ms: int) -> list[tuple[int, int]]:
    """Where one person speaks, and nobody else does, before a moment."""
    pieces: list[tuple[int, int]] = []
    for turn in turns:
        if turn.label != name or turn.start_ms >= end_ms:
            continue
        rest = [(turn.start_ms, min(turn.end_ms, end_ms))]
        for other in turns:
            if other.label != name:
                rest = [
                    part
                    for start, end in rest
                    for part in ((start, min(end, other.start_ms)), (max(start, other.end_ms), end))
                    if part[0] < part[1]
                ]
        pieces += rest
    return pieces


@dataclass(frozen=True, slots=True)
class _Sound:
    """PCM as it lies in a wav file."""

    frames: bytes
    frame_bytes: int
    rate_hz: int
    settings: tuple[int, int]  # channels, bytes a sample

    @classmethod
    def read(cls, path: Path) -> _Sound:
        with wave.open(str(path), "rb") as file:
            channels, width = file.getnchannels(), file.getsampwidth()
            return cls(file.readframes(file.getnframes()), channels * width, file.getframerate(), (channels, width))

    @property
    def duration_ms(self) -> int:
        return len(self.frames) // self.frame_bytes * 1000 // self.rate_hz

    def write(self, path: Path, pieces: Sequence[tuple[int, int]]) -> None:
        """Write pieces (milliseconds) one after another, with short silences between them."""
        gap = bytes(GAP_MS * self.rate_hz // 1000 * self.frame_bytes)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(self.settings[0])
            file.setsampwidth(self.settings[1])
            file.setframerate(self.rate_hz)
            file.writeframes(gap.join(self.frames[self._at(start) : self._at(end)] for start, end in pieces))

    def _at(self, time_ms: int) -> int:
        return time_ms * self.rate_hz // 1000 * self.frame_bytes

"""A user's own labelled recordings: a folder with a sub-folder a person, heard by an engine.

In comes a folder; out come the clips that are fit to calibrate on, and why the others are not. Recordings are decoded
in the sandbox. What always holds: folders and files are bounded in number, and links are not followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.in_process import NET_SPEECH_MIN, read_sound
from models.recalibrate import HeardClip
from models.seams import AnalysisDevice
from runtime.errors import InvalidRequest, NotFound, SpeakerdError
from runtime.units import samples_from_seconds, seconds_from_samples

CLIPS_MAX = 5_000
CLIP_S_MAX = 60.0
"""Of a longer clip, so much is heard."""


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A recording of one person. name: "PERSON/FILE"."""

    person: str
    path: Path

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.person}/{self.path.name}"


@dataclass(frozen=True, slots=True)
class UnfitClip:
    """A recording that cannot be used, and why."""

    name: str
    reason: str


def find_clips(folder: Path) -> list[LabelledClip]:
    """Every file of every sub-folder, by name; hidden ones and links are passed over. NotFound or InvalidRequest."""
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder: name one with a sub-folder of recordings for each person")
    clips = [
        LabelledClip(person.name, path)
        for person in sorted(folder.iterdir())
        if person.is_dir() and not person.is_symlink() and not person.name.startswith(".")
        for path in sorted(person.iterdir())
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    ]
    if not clips:
        raise InvalidRequest(f"{folder} holds no sub-folders with recordings: make one for each person")
    if len(clips) > CLIPS_MAX:
        raise InvalidRequest(f"{folder} holds {len(clips)} recordings, at most {CLIPS_MAX} are read: leave some out")
    return clips


def hear_clips(
    device: AnalysisDevice, clips: list[LabelledClip], on_progress: Callable[[int, int], None]
) -> tuple[list[HeardClip], list[UnfitClip]]:
    """Hear each clip: those of one person with a second of clean speech, and the others with the reason."""
    heard: list[HeardClip] = []
    unfit: list[UnfitClip] = []
    for number, clip in enumerate(clips, start=1):
        try:
            sample = device.analyze_voice(read_sound(clip.path)[: samples_from_seconds(CLIP_S_MAX)])
        except SpeakerdError as error:
            unfit.append(UnfitClip(clip.name, str(error).removeprefix(f"{clip.path}: ")))
            continue
        finally:
            on_progress(number, len(clips))
        if sample.num_speakers > 1:
            unfit.append(UnfitClip(clip.name, f"{sample.num_speakers} people are heard in it"))
        elif sample.net_speech_samples < NET_SPEECH_MIN or not np.any(sample.embedding):
            clean_s = seconds_from_samples(sample.net_speech_samples)
            unfit.append(UnfitClip(clip.name, f"{clean_s:.1f} s of clean speech; 1 s is needed, 5 to 30 s are best"))
        else:
            heard.append(HeardClip(clip.person, clip.name, sample.embedding, sample.net_speech_samples))
    return heard, unfit

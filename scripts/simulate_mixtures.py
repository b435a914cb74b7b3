"""Simulate windows of conversation out of recordings of single speakers, with the truth about who speaks when.

In come folders with one sub-folder of recordings a speaker; out come mixtures of one to four voices with pauses,
overlaps, room echo, noise and narrow bands, and for each frame of the network which of three local speakers speak.
A batch depends on the seed and its own number alone, so that a run can be taken up again anywhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from scipy.signal import butter, fftconvolve, lfilter, resample_poly, sosfilt

RATE = 16_000
FRAME_STEP_SAMPLES = 270
FRAME_CENTRE_SAMPLES = 495
NUM_LOCAL_SPEAKERS = 3
MAX_VOICES = 4
MAX_TURNS = 200
SPEECH_LEVEL = 0.06  # root mean square of a voice before its gain
SPEEDS = (0.88, 0.94, 1.0, 1.06, 1.12)

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Style:
    """How people take turns: chunks a turn (inclusive), and how often they interrupt, break off and fall silent."""

    chunks_per_turn: tuple[int, int]
    overlap_probability: float
    cut_probability: float
    silence_probability: float


CONVERSATION = Style((1, 4), overlap_probability=0.25, cut_probability=0.1, silence_probability=0.02)
MEETING = Style((1, 2), overlap_probability=0.6, cut_probability=0.6, silence_probability=0.15)


@dataclass(slots=True)
class Voices:
    """Chunks of speech by speaker, float32 at 16 kHz. Chunks at other speeds are made once and kept."""

    chunks: dict[str, list[FloatArray]]
    _resampled: dict[tuple[str, int, float], FloatArray] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The speakers, sorted, so that a seed means the same draw everywhere."""
        return sorted(self.chunks)

    @property
    def hours(self) -> float:
        """Hours of speech in all chunks."""
        return sum(len(chunk) for chunks in self.chunks.values() for chunk in chunks) / RATE / 3600

    def chunk(self, name: str, index: int, speed: float) -> FloatArray:
        """One chunk, spoken `speed` times as fast (and as high)."""
        if speed == 1.0:
            return self.chunks[name][index]
        key = (name, index, speed)
        if key not in self._resampled:
            percent = round(100 * speed)
            self._resampled[key] = resample_poly(self.chunks[name][index], 100, percent).astype(np.float32)
        return self._resampled[key]

    def split(self, rng: np.random.Generator, num_held_out: int) -> tuple[Voices, Voices]:
        """(the rest, held out): speakers drawn by `rng`, no speaker in both. ValueError if nobody would be left."""
        if not 0 < num_held_out < len(self.chunks):
            raise ValueError(f"cannot hold out {num_held_out} of {len(self.chunks)} speakers")
        held = set(rng.choice(self.names, size=num_held_out, replace=False).tolist())
        rest = {name: chunks for name, chunks in self.chunks.items() if name not in held}
        return Voices(rest), Voices({name: self.chunks[name] for name in held})


def load_voices(folders: Sequence[Path]) -> Voices:
    """The stretches of speech in every recording (.flac, .ogg or .wav at 16 kHz) of every sub-folder.

    Nobody who is kept for tests may ever be heard here: a folder named `members` is refused with ValueError.
    """
    for folder in folders:
        heard = [*folder.resolve().parts, *(child.resolve().name for child in folder.iterdir())]
        if "members" in map(str.lower, heard):
            raise ValueError(f"{folder}: the members are kept for tests and never trained on")
    return load_any_voices(folders)


def load_any_voices(folders: Sequence[Path]) -> Voices:
    """As load_voices, for measurement only: the members too."""
    from silero_vad import get_speech_timestamps, load_silero_vad

    with warnings.catch_warnings():
        # The package ships TorchScript, whose loader is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        vad = load_silero_vad()
    chunks: dict[str, list[FloatArray]] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/*")):
        if path.suffix not in {".flac", ".ogg", ".wav"}:
            continue
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != RATE or samples.ndim != 1:
            raise ValueError(f"{path}: expected one channel at {RATE} Hz")
        stamps = get_speech_timestamps(
            torch.from_numpy(samples), vad, sampling_rate=RATE, min_silence_duration_ms=250, speech_pad_ms=20
        )
        found = [samples[stamp["start"] : stamp["end"]] for stamp in stamps]
        chunks.setdefault(path.parent.name, []).extend(found)
    voices = Voices({name: found for name, found in chunks.items() if found})
    if not voices.chunks:
        raise ValueError(f"no speech under {', '.join(map(str, folders))}")
    return voices


def num_frames(num_samples: int) -> int:
    """Frames the network gives for a window: its convolutions and poolings in turn."""
    frames = (num_samples - 251) // 10 + 1
    for kernel, stride in ((3, 3), (5, 1), (3, 3), (5, 1), (3, 3)):
        frames = (frames - kernel) // stride + 1
    return frames


@dataclass(frozen=True, slots=True)
class Simulator:
    """Draws windows out of voices. `augment` adds what only training needs: speed, disturbances and narrow bands."""

    voices: Voices
    augment: bool = True

    def batch(
        self, rng: np.random.Generator, batch_size: int, num_samples: int
    ) -> tuple[FloatArray, BoolArray, BoolArray]:
        """Mixtures (B, 1, N), who speaks (B, F, S), and which frames count (B, F)."""
        windows = [self.window(rng, num_samples) for _ in range(batch_size)]
        mixtures, activities = zip(*windows, strict=True)
        targets, scored = zip(*(local_speakers(activity) for activity in activities), strict=True)
        return np.stack(mixtures)[:, None], np.stack(targets), np.stack(scored)

    def window(self, rng: np.random.Generator, num_samples: int) -> tuple[FloatArray, BoolArray]:
        """One mixture (N,) and the speech of each of its voices (F, MAX_VOICES)."""
        num_voices = min(int(rng.choice([1, 2, 3, 4], p=[0.15, 0.4, 0.3, 0.15])), len(self.voices.chunks))
        names = rng.choice(self.voices.names, size=num_voices, replace=False).tolist()
        style = CONVERSATION if rng.random() < 0.4 else MEETING
        tracks = np.zeros((num_voices, num_samples), np.float32)
        activity = np.zeros((num_frames(num_samples), MAX_VOICES), np.bool_)
        for voice, start, chunk in self._turns(rng, names, style, num_samples):
            left, right = max(start, 0), min(start + len(chunk), num_samples)
            level = SPEECH_LEVEL / (math.sqrt(float(np.mean(chunk**2))) + 1e-6)
            tracks[voice, left:right] += level * chunk[left - start : right - start]
            activity[_first_frame(left) : _first_frame(right), voice] = True
        mixture = self._in_a_room(rng, tracks)
        mixture += _noise(rng, num_samples)
        if self.augment:
            mixture += _knocks(rng, num_samples) + _unsteady_noise(rng, num_samples)
            mixture = _narrowed(rng, mixture)
        return np.clip(mixture, -1, 1).astype(np.float32), activity

    def _turns(
        self, rng: np.random.Generator, names: list[str], style: Style, num_samples: int
    ) -> list[tuple[int, int, FloatArray]]:
        """(voice, start in samples, chunk) of all that is heard in the window; the talk began some time before it."""
        heard: list[tuple[int, int, FloatArray]] = []
        speeds = [float(rng.choice(SPEEDS)) if self.augment else 1.0 for _ in names]
        cursor = -int(rng.uniform(0, 15) * RATE)
        busy_until = [cursor] * len(names)
        last = -1
        for _ in range(MAX_TURNS):
            if cursor >= num_samples + 2 * RATE:
                break
            others = [voice for voice in range(len(names)) if voice != last] or [0]
            voice = others[int(rng.integers(len(others)))]
            interrupts = last >= 0 and voice != last and rng.random() < style.overlap_probability
            shift_s = -rng.uniform(0.3, 2.0) if interrupts else rng.exponential(0.5)
            if rng.random() < style.silence_probability:
                shift_s = rng.exponential(6.0)
            at = max(cursor + int(shift_s * RATE), busy_until[voice])
            for _ in range(int(rng.integers(style.chunks_per_turn[0], style.chunks_per_turn[1] + 1))):
                index = int(rng.integers(len(self.voices.chunks[names[voice]])))
                chunk = self.voices.chunk(names[voice], index, speeds[voice])
                if rng.random() < style.cut_probability and len(chunk) > RATE // 2:
                    length = min(len(chunk), int(rng.uniform(0.3, 2.5) * RATE))
                    begin = int(rng.integers(0, len(chunk) - length + 1))
                    chunk = chunk[begin : begin + length]
                if at < num_samples and at + len(chunk) > 0:
                    heard.append((voice, at, chunk))
                at += len(chunk) + int(rng.uniform(0.05, 0.35) * RATE)
            busy_until[voice] = at
            cursor, last = max(cursor, at), voice
        return heard

    def _in_a_room(self, rng: np.random.Generator, tracks: FloatArray) -> FloatArray:
        """The voices at their gains, each from its own place in one room, or dry."""
        gains = 10 ** (rng.uniform(-8, 6, size=len(tracks)) / 20)
        dry = rng.random() < 0.1
        rt60_s = rng.uniform(0.08, 0.5)
        # Now and then the microphone is far away, and the echo as loud as the voice.
        tail = 0.35 if rng.random() < 0.6 else rng.uniform(0.35, 2.0)
        mixture = np.zeros(tracks.shape[1], np.float32)
        for gain, track in zip(gains, tracks, strict=True):
            wet = track if dry else fftconvolve(track, room_response(rng, rt60_s, tail))[: len(track)]
            mixture += np.float32(gain) * wet.astype(np.float32)
        return mixture


def room_response(rng: np.random.Generator, rt60_s: float, tail_level: float) -> FloatArray:
    """Direct path and an exponentially decaying tail of noise, 2 ms later, of `tail_level` times its amplitude."""
    n = int(rt60_s * RATE)
    tail = rng.standard_normal(n, dtype=np.float32) * np.exp(-6.9 * np.arange(n, dtype=np.float32) / n)
    tail[: int(0.002 * RATE)] = 0
    tail *= tail_level / (math.sqrt(float(np.sum(tail**2))) + 1e-9)
    tail[0] = 1.0
    return tail.astype(np.float32)


def local_speakers(activity: BoolArray) -> tuple[BoolArray, BoolArray]:
    """The three who speak most (F, S), and which frames count (F,): those the powerset can express."""
    order = np.argsort(-activity.sum(0), kind="stable")
    target, rest = activity[:, order[:NUM_LOCAL_SPEAKERS]], activity[:, order[NUM_LOCAL_SPEAKERS:]]
    return target, (target.sum(1) <= 2) & ~rest.any(1)


def _noise(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """Pink noise (Kellet's filter), or white one time in five, 10 to 35 dB below speech."""
    noise: FloatArray = rng.standard_normal(num_samples, dtype=np.float32)
    if rng.random() < 0.8:
        b = [0.049922035, -0.095993537, 0.050612699, -0.004408786]
        noise = lfilter(b, [1, -2.494956002, 2.017265875, -0.522189400], noise).astype(np.float32)
    level = SPEECH_LEVEL * 10 ** (-rng.uniform(10, 35) / 20)
    return noise * np.float32(level / (noise.std() + 1e-9))


def _knocks(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """What a table microphone hears beside speech, in half of all windows: short ringing bursts, no voice."""
    sound = np.zeros(num_samples, np.float32)
    if rng.random() < 0.5:
        return sound
    for _ in range(int(rng.integers(1, 9))):
        length = int(rng.uniform(0.01, 0.4) * RATE)
        envelope = np.exp(-rng.uniform(3, 8) * np.arange(length) / length)
        burst = lfilter([1], _resonance(rng, 0.6, 0.98), rng.standard_normal(length) * envelope)
        level = SPEECH_LEVEL * 10 ** (rng.uniform(-20, 6) / 20) / (burst.std() + 1e-9)
        start = int(rng.integers(0, num_samples))
        sound[start : start + length] += (level * burst[: num_samples - start]).astype(np.float32)
    return sound


def _unsteady_noise(rng: np.random.Generator, num_samples: int) -> FloatArray:
    """Noise of some colour that swells and fades like speech but is none, in half of all windows.

    Without it a quiet room, brought to full level by the network's normalisation, is taken for talk.
    """
    if rng.random() < 0.5:
        return np.zeros(num_samples, np.float32)
    noise: FloatArray = rng.standard_normal(num_samples, dtype=np.float32)
    for _ in range(int(rng.integers(1, 3))):
        noise = lfilter([1], _resonance(rng, 0.5, 0.95), noise).astype(np.float32)
    num_swells = 2 + int(num_samples / RATE * rng.uniform(0.5, 8))
    swells_db = np.interp(
        np.linspace(0, num_swells - 1, num_samples), np.arange(num_swells), rng.normal(0, rng.uniform(1, 8), num_swells)
    )
    noise *= (10 ** (swells_db / 20)).astype(np.float32)
    level = SPEECH_LEVEL * 10 ** (-rng.uniform(12, 40) / 20)
    return noise * np.float32(level / (noise.std() + 1e-9))


def _resonance(rng: np.random.Generator, radius_min: float, radius_max: float) -> list[float]:
    """The denominator of a two-pole resonance between 80 and 5000 Hz: from a thud to a click, from rumble to hiss."""
    angle = 2 * math.pi * math.exp(rng.uniform(math.log(80), math.log(5000))) / RATE
    radius = rng.uniform(radius_min, radius_max)
    return [1.0, -2 * radius * math.cos(angle), radius**2]


def _narrowed(rng: np.random.Generator, mixture: FloatArray) -> FloatArray:
    """A telephone's band, or the loss of the highest tones, three times in ten."""
    draw = rng.random()
    if draw < 0.1:
        band = butter(4, [300, 3400], "band", fs=RATE, output="sos")
    elif draw < 0.3:
        band = butter(2, rng.uniform(3000, 7500), "low", fs=RATE, output="sos")
    else:
        return mixture
    narrowed: FloatArray = np.asarray(sosfilt(band, mixture), np.float32)
    return narrowed


def _first_frame(sample: int) -> int:
    """The first frame whose centre lies at or after `sample`."""
    return max(0, math.ceil((sample - FRAME_CENTRE_SAMPLES) / FRAME_STEP_SAMPLES))

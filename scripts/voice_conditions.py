"""The same voices under many conditions: partial embeddings to fit a backend and a calibration on.

In come folders with one sub-folder of recordings a speaker; out come GE2E's vectors of 1.6 s partials of each speaker,
as recorded, in simulated rooms with noise, by other microphones and over telephones. The members, kept for tests, are
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import butter, fftconvolve, firwin2, lfilter, sosfilt

from models.embedding import FRAME_SAMPLES, FRAME_STEP_SAMPLES, PARTIAL_FRAMES
from models.torch_device import TorchDevice
from scripts.simulate_mixtures import RATE, SPEECH_LEVEL, load_voices, room_response

FloatArray = npt.NDArray[np.float32]
HOP_FRAMES = 50
MICROPHONE_TAPS = 257
NUM_CONDITIONS = 14
FIRST_ROOM, FIRST_TELEPHONE = 2, 10  # before them: as recorded, and by another microphone


@dataclass(frozen=True, slots=True)
class VoicePartials:
    """Partials of one speaker's speech: (P, 256) vectors as the encoder gives them, condition and last mel frame."""

    speaker: str
    vectors: FloatArray
    condition: npt.NDArray[np.int64]
    end_frame: npt.NDArray[np.int64]


def load_partials(folders: Sequence[Path], device: TorchDevice, seed: int) -> list[VoicePartials]:
    """Every speaker of the folders under every condition, drawn from the seed."""
    rng = np.random.default_rng(seed)
    gap = np.zeros(int(0.2 * RATE), np.float32)
    found = []
    voices = load_voices(folders)
    for name in voices.names:
        speech = np.concatenate([part for chunk in voices.chunks[name] for part in (chunk, gap)])
        vectors, conditions, ends = [], [], []
        for condition in range(NUM_CONDITIONS):
            heard = in_condition(speech, condition, rng)
            batch, last = _partials(heard, device, int(rng.integers(HOP_FRAMES)))
            vectors.append(batch)
            ends.append(last)
            conditions.append(np.full(len(batch), condition))
        found.append(VoicePartials(name, np.concatenate(vectors), np.concatenate(conditions), np.concatenate(ends)))
    return found


def in_condition(speech: FloatArray, condition: int, rng: np.random.Generator) -> FloatArray:
    """As recorded, in eight rooms, over four telephones; every second of them by another microphone."""
    telephone = condition >= FIRST_TELEPHONE
    heard = speech
    if condition >= FIRST_ROOM and (not telephone or condition >= FIRST_TELEPHONE + 2):
        heard = in_a_room(heard, rng)
    if condition % 2:
        heard = through_a_microphone(heard, rng)
    return over_a_telephone(heard, rng) if telephone else heard


def over_a_telephone(speech: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The same in a band of about 250 to 3,400 Hz."""
    band_hz = (rng.uniform(150, 350), rng.uniform(3_200, 3_700))
    heard: FloatArray = sosfilt(butter(4, band_hz, "band", fs=RATE, output="sos"), speech).astype(np.float32)
    return heard


def in_a_room(speech: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Speech at another level, with the echo of a room and pink noise 12 to 32 dB below it."""
    wet = fftconvolve(speech, room_response(rng, rng.uniform(0.08, 0.5), 0.35))[: len(speech)]
    wet *= SPEECH_LEVEL * 10 ** (rng.uniform(-5, 3) / 20) / (wet.std() + 1e-6)
    b = [0.049922035, -0.095993537, 0.050612699, -0.004408786]
    noise = lfilter(b, [1, -2.494956002, 2.017265875, -0.522189400], rng.standard_normal(len(speech)))
    noise *= wet.std() * 10 ** (-rng.uniform(12, 32) / 20) / noise.std()
    heard: FloatArray = (wet + noise).astype(np.float32)
    return heard


def through_a_microphone(speech: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The same with another frequency response: up to 5 dB either way in each of eight bands, and a tilt."""
    hertz = np.array([0.0, 100, 300, 700, 1500, 3000, 5000, RATE / 2])
    octaves = np.log2(np.maximum(hertz, 60.0) / 1000.0)
    gain_db = rng.uniform(-5, 5, len(hertz)) + rng.uniform(-4 / 3, 4 / 3) * octaves
    taps = firwin2(MICROPHONE_TAPS, hertz / (RATE / 2), 10 ** (gain_db / 20))
    heard: FloatArray = fftconvolve(speech, taps, mode="same").astype(np.float32)
    return heard


def _partials(samples: FloatArray, device: TorchDevice, first: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    with torch.inference_mode():
        padded = np.pad(samples, (FRAME_SAMPLES - FRAME_STEP_SAMPLES, 0))
        mels = device.mel_frames(torch.from_numpy(padded))
        ends = np.arange(PARTIAL_FRAMES + first, len(mels) + 1, HOP_FRAMES)
        if len(ends) == 0:
            return np.zeros((0, 256), np.float32), ends
        batch = torch.stack([mels[end - PARTIAL_FRAMES : end] for end in ends])
        vectors: FloatArray = device.encode_partials(batch).numpy()
        return vectors, ends

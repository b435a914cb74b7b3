"""Talks of a few people made of single-speaker recordings, with a reference recording of each: to calibrate on.

In come voices (chunks of speech by speaker); out come talks with the truth about who speaks when, and for every speaker
a recording to enrol by that shares no sound with any talk. Rooms, noise, levels, microphones and telephones are drawn:
so are lengths, from a single sentence on. The same generator state makes the same talk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve, lfilter

from scripts.simulate_mixtures import RATE, SPEECH_LEVEL, Voices, room_response
from scripts.voice_conditions import NUM_CONDITIONS, in_condition, over_a_telephone, through_a_microphone

FloatArray = npt.NDArray[np.float32]
GAP = np.zeros(int(0.2 * RATE), np.float32)
ENROLMENT_S = (3.0, 8.0)
CLEAN_ENROLMENTS = 0.5
OVERLAP_PROBABILITY = 0.25
TELEPHONE_PROBABILITY = 0.25
LEAST_CHUNK_SAMPLES = RATE // 10


@dataclass(frozen=True, slots=True)
class Talk:
    """samples: (N,) at 16 kHz. spoken: (first sample, last sample, speaker), half-open, by start; they may overlap."""

    samples: FloatArray
    spoken: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class SplitVoice:
    """A speaker's sound, parted: what to enrol by, as recorded, and the chunks that are left for talks."""

    enrolment: FloatArray
    chunks: list[FloatArray]


def split_voices(voices: Voices, rng: np.random.Generator) -> dict[str, SplitVoice]:
    """Keep 3 to 8 s of each voice for its enrolment; voices with no second of speech left over are passed over."""
    found = {}
    for name in voices.names:
        wanted = int(rng.uniform(*ENROLMENT_S) * RATE)
        kept: list[FloatArray] = []
        left: list[FloatArray] = []
        for chunk in [chunk for chunk in voices.chunks[name] if len(chunk) >= LEAST_CHUNK_SAMPLES]:
            room = wanted - sum(map(len, kept))
            if room >= len(chunk):
                kept.append(chunk)
            elif room > RATE:
                kept.append(chunk[:room])
                left.append(chunk[room:])
            else:
                left.append(chunk)
        if kept and sum(map(len, left)) >= RATE:
            found[name] = SplitVoice(np.concatenate([piece for chunk in kept for piece in (chunk, GAP)]), left)
    return found


def enrolment_clip(voice: SplitVoice, rng: np.random.Generator) -> FloatArray:
    """What somebody enrols by: as recorded half of the time, else under another condition."""
    condition = 0 if rng.random() < CLEAN_ENROLMENTS else int(rng.integers(1, NUM_CONDITIONS))
    return in_condition(voice.enrolment, condition, rng)


def make_talk(
    voices: Mapping[str, SplitVoice], names: Sequence[str], rng: np.random.Generator, *, repeats: int = 1
) -> Talk:
    """A talk of these people: turns of one to three chunks, pauses, interruptions, each from a place of the room.

    repeats: how often each chunk may come, so that a little sound makes a long talk.
    """
    queues = {name: _turns(voices[name].chunks * repeats, rng) for name in names}
    total = sum(len(chunk) for turns in queues.values() for turn in turns for chunk in turn)
    mix = np.zeros(2 * total + 8 * RATE, np.float32)
    rt60_s, tail = rng.uniform(0.08, 0.6), rng.uniform(0.2, 0.5)
    echo = {name: room_response(rng, rt60_s, tail) for name in names}
    gain = {name: SPEECH_LEVEL * 10 ** (rng.uniform(-5, 3) / 20) for name in names}
    busy_until = dict.fromkeys(names, 0)
    spoken: list[tuple[int, int, str]] = []
    cursor, last = int(rng.uniform(0.2, 1.5) * RATE), ""
    while any(queues.values()):
        ready = [name for name in names if queues[name] and name != last] or [name for name in names if queues[name]]
        name = ready[int(rng.integers(len(ready)))]
        interrupts = bool(last) and name != last and rng.random() < OVERLAP_PROBABILITY
        shift_s = -rng.uniform(0.3, 2.0) if interrupts else rng.exponential(0.5)
        at = max(cursor + int(shift_s * RATE), busy_until[name], 0)
        for chunk in queues[name].pop(0):
            wet = fftconvolve(chunk, echo[name])
            end = min(at + len(wet), len(mix))
            mix[at:end] += gain[name] / (float(chunk.std()) + 1e-6) * wet[: end - at]
            spoken.append((at, at + len(chunk), name))
            at += len(chunk) + int(rng.uniform(0.05, 0.35) * RATE)
        busy_until[name], cursor, last = at, max(cursor, at), name
    return Talk(_as_heard(mix[: cursor + RATE // 2], rng), tuple(sorted(spoken)))


def _turns(chunks: Sequence[FloatArray], rng: np.random.Generator) -> list[list[FloatArray]]:
    """A speaker's turns, from a random share of what there is: so that some are hardly heard."""
    order = [chunks[int(index)] for index in rng.permutation(len(chunks))]
    order = order[: int(rng.integers(1, len(order) + 1))]
    turns, at = [], 0
    while at < len(order):
        count = int(rng.integers(1, 4))
        turns.append(order[at : at + count])
        at += count
    return turns


def _as_heard(mix: FloatArray, rng: np.random.Generator) -> FloatArray:
    """With pink noise, through a microphone, now and then over a telephone."""
    noise = lfilter(
        [0.049922035, -0.095993537, 0.050612699, -0.004408786],
        [1, -2.494956002, 2.017265875, -0.522189400],
        rng.standard_normal(len(mix)),
    )
    heard = mix + (mix.std() * 10 ** (-rng.uniform(8, 32) / 20) / noise.std() * noise).astype(np.float32)
    if rng.random() < 0.5:
        heard = through_a_microphone(heard, rng)
    if rng.random() < TELEPHONE_PROBABILITY:
        heard = over_a_telephone(heard, rng)
    found: FloatArray = (heard * min(1.0, 0.9 / float(np.abs(heard).max()))).astype(np.float32)
    return found

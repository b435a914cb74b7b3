"""Streams beside each other tell, each, what they tell alone, to a frame: nothing leaks from one into another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.node.conftest import RATE, Heard, RunningNode, running_node, tones


def told(heard: Heard) -> list[tuple[int, int, int, str]]:
    """Final turns."""
    assert heard.closed is not None and heard.closed.skipped_windows == 0
    return [(turn.sequence, turn.start_ms, turn.end_ms, turn.speaker) for turn in heard.turns]


async def beside_and_alone(node: RunningNode, conversations: list[np.ndarray]) -> None:
    """Stream all of them at once, then one after the other, and compare."""
    beside = await asyncio.gather(*(node.diarize(samples, latency_ms=2_000) for samples in conversations))
    for number, samples in enumerate(conversations):
        alone = await node.diarize(samples, latency_ms=2_000)
        assert told(beside[number]) == told(alone), f"stream {number} of {len(conversations)}"
        assert relabels(beside[number]) == relabels(alone), f"stream {number} of {len(conversations)}"


def relabels(heard: Heard) -> list[tuple[str, str, int]]:
    """Who became whom since when. How sure it was is as of when it was written, and not compared."""
    return [(relabel.speaker, relabel.label, relabel.since_ms) for relabel in heard.relabels]


def conversation(folder: Path, seed: int, seconds: float) -> np.ndarray:
    """Two or three people in turns of an utterance each, some of it over each other, in noise of its own."""
    draw = np.random.default_rng(seed)
    guests = sorted(folder.glob("guests/*/*.*")) + sorted(folder.glob("members/*/*.flac"))
    voices = [soundfile.read(guests[at], dtype="float32")[0] for at in draw.choice(len(guests), 3, replace=False)]
    mixed = draw.normal(0, 10 ** draw.uniform(-4, -3), round(seconds * RATE)).astype(np.float32)
    at = 0
    while at < len(mixed):
        voice = voices[int(draw.integers(len(voices)))]
        first = int(draw.integers(max(1, len(voice) - 4 * RATE)))
        piece = voice[first : first + int(draw.uniform(1, 6) * RATE)][: len(mixed) - at]
        mixed[at : at + len(piece)] += piece
        at += max(RATE // 2, len(piece) + int(draw.uniform(-0.5, 1.0) * RATE))
    return np.clip(mixed, -1, 1)


async def test_streams_of_tones_tell_beside_each_other_what_they_tell_alone(tmp_path: Path) -> None:
    conversations = [
        np.concatenate([tones(2.0 + number / 7, pitch, 3 * pitch), tones(3.0, 1.5 * pitch, 4 * pitch)] * 3)
        for number, pitch in enumerate(range(300, 900, 50))
    ]
    async with running_node("--standalone", "--device", "null", log=tmp_path / "node.log") as node:
        await beside_and_alone(node, conversations)


async def test_a_few_conversations_tell_beside_each_other_what_they_tell_alone(audio: Path, tmp_path: Path) -> None:
    conversations = [conversation(audio / "librispeech", seed, 12.0 + seed) for seed in range(4)]
    async with running_node("--standalone", "--device", "cpu", log=tmp_path / "node.log") as node:
        await beside_and_alone(node, conversations)


@pytest.mark.deep
async def test_fifty_conversations_tell_beside_each_other_what_they_tell_alone(audio: Path, tmp_path: Path) -> None:
    conversations = [conversation(audio / "librispeech", 100 + seed, 30.0) for seed in range(50)]
    flags = ("--standalone", "--device", "cpu", "--streams-max", "64")
    async with running_node(*flags, log=tmp_path / "node.log") as node:
        await beside_and_alone(node, conversations)

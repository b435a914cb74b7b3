"""A node with the builtin engine, on the recording that pyannote.audio installs with itself."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.node.conftest import RATE, running_node

CHANGE_S = 15
"""Enrolled from what comes before, streamed from here on."""


@pytest.fixture
def conversation() -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    """Samples, and the reference: (start, end, person) in seconds."""
    folder = Path(str(importlib.metadata.distribution("pyannote.audio").locate_file("pyannote/audio/sample")))
    samples, rate = soundfile.read(folder / "sample.wav", dtype="float32")
    assert rate == RATE
    fields = [line.split() for line in (folder / "sample.rttm").read_text().splitlines()]
    return samples, [(float(field[3]), float(field[3]) + float(field[4]), field[7]) for field in fields]


async def test_two_people_enrolled_by_voice_are_named_in_the_rest_of_their_conversation(
    conversation: tuple[np.ndarray, list[tuple[float, float, str]]], tmp_path: Path
) -> None:
    samples, reference = conversation
    async with running_node("--standalone", "--device", "cpu", log=tmp_path / "node.log") as node:
        for person in sorted({person for _, _, person in reference}):
            spoken = [samples[int(a * RATE) : int(min(b, CHANGE_S) * RATE)] for a, b, p in reference if p == person]
            await node.enroll(person, person, np.concatenate(spoken))
        heard = await node.diarize(samples[CHANGE_S * RATE :], latency_ms=2000)
        assert await node.is_alive()

    def truth(at_s: float) -> set[str]:
        return {person for start, end, person in reference if start <= at_s < end}

    right = wrong = 0
    for turn in heard.turns:
        for at_ms in range(turn.start_ms, turn.end_ms, 10):
            spoken_by = truth(CHANGE_S + at_ms / 1000)
            right, wrong = right + (turn.label in spoken_by), wrong + (turn.label not in spoken_by)
    assert heard.closed is not None and heard.closed.duration_ms == 15_000
    assert "speaker91" in heard.names  # who speaks most of it
    assert right > wrong, (right, wrong)

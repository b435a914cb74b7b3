"""Accuracy, end to end: simulated conversations of real people, through the command line, scored against the truth.

Deep: minutes of work. The simulator and the recordings lie beside the checkout; where they are absent it skips.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accuracy import Score, run, score

pytestmark = pytest.mark.deep

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(os.environ.get("SPEAKERD_TEST_TOOLS", ROOT.parent / "shared" / "tools"))


@pytest.fixture(scope="module")
def conversations(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    simulator = TOOLS / "make_conversations.py"
    if not simulator.exists():
        pytest.skip("no conversation simulator: set SPEAKERD_TEST_TOOLS to the folder that holds make_conversations.py")
    out = tmp_path_factory.mktemp("conversations")
    speech = audio / "librispeech"
    options = ["--count", "10", "--seed", "1", "--duration", "150"]
    people = ["--speakers", str(speech / "members"), "--guests", str(speech / "guests")]
    subprocess.run([sys.executable, str(simulator), *people, "--out", str(out), *options], check=True)
    return out


@pytest.fixture(scope="module")
def offline(conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Score:
    out = tmp_path_factory.mktemp("diarize")
    run("diarize", conversations, out, [])
    return score(conversations, out)[-1]


def test_a_recording_is_diarized_with_at_most_nine_percent_error_and_people_called_by_name(offline: Score) -> None:
    assert offline.der <= 0.09, offline
    assert offline.ier <= offline.der + 0.02, offline


def test_a_stream_is_within_two_points_of_the_recording(conversations: Path, offline: Score, tmp_path: Path) -> None:
    run("stream", conversations, tmp_path, ["--no-realtime", "--latency", "2"])
    live = score(conversations, tmp_path)[-1]
    assert live.der <= offline.der + 0.02, (live, offline)
    assert live.ier <= offline.ier + 0.02, (live, offline)

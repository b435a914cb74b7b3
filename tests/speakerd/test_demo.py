"""What a newcomer sees first, with the real engine on the sample that pyannote.audio installs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speakerd.cli.sample_conversation import NAMES, cut_sample, error_rate
from speakerd.rttm import RttmTurn, parse_rttm
from tests.speakerd.running import speakerd


@pytest.mark.deep  # the quick start of the documentation begins with it, in every run
def test_the_demo_names_both_people(tmp_path: Path) -> None:
    ran = speakerd("demo", "--no-realtime", "--json", "--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    shown = json.loads(ran.stdout)
    assert {turn["label"] for turn in shown["turns"] if "voice_id" in turn} == set(NAMES)
    assert shown["error_rate"] < 0.35
    written = parse_rttm((tmp_path / "demo.rttm").read_text())
    assert len(written) == len(shown["turns"])


def test_the_sample_is_cut_into_each_person_alone_and_the_rest(tmp_path: Path) -> None:
    import soundfile

    sample = cut_sample(tmp_path)
    assert set(sample.enrolment) == set(NAMES)
    for recording in sample.enrolment.values():
        assert 3.0 < soundfile.info(recording).duration < 10.0
    rest_s = soundfile.info(sample.rest).duration
    assert 10.0 < rest_s < 15.0
    assert {turn.label for turn in sample.reference} == set(NAMES)
    assert all(0 <= turn.start_ms < turn.end_ms <= rest_s * 1000 + 10 for turn in sample.reference)


def test_the_error_rate_counts_what_was_missed_made_up_and_misnamed() -> None:
    reference = [RttmTurn(0, 1000, "a"), RttmTurn(1000, 2000, "b")]
    assert error_rate(reference, reference) == 0.0
    assert error_rate(reference, []) == 1.0
    assert error_rate(reference, [RttmTurn(0, 2000, "a")]) == 0.5
    assert error_rate(reference, [*reference, RttmTurn(0, 1000, "c")]) == 0.5

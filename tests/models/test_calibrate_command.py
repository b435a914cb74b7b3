"""`speakerd calibrate`: folders of people in, error rates and a calibration out, or a reason why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from models import in_process
from models.bundle import load_bundle
from models.calibration_file import with_calibration
from models.labelled_clips import find_clips
from runtime.errors import InvalidRequest, NotFound
from speakerd.cli import app
from tests.models.builtin_engine import engine


@pytest.fixture
def people(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four members with three recordings each, a silent one, and one that is no sound."""
    monkeypatch.setattr(in_process, "open_device", lambda bundle, device: engine())
    folder = tmp_path / "people"
    for member in sorted((audio / "librispeech" / "members").iterdir())[:4]:
        (folder / member.name).mkdir(parents=True)
        long = [path for path in sorted(member.iterdir()) if soundfile.info(path).duration > 4.0]
        for clip in long[:3]:
            samples, rate = soundfile.read(clip, dtype="float32")
            soundfile.write(folder / member.name / f"{clip.stem}.wav", samples[: 5 * rate], rate)
    soundfile.write(folder / member.name / "silence.wav", np.zeros(32_000), 16_000)
    (folder / member.name / "notes.txt").write_text("no sound")
    (folder / member.name / ".hidden").write_text("passed over")
    return folder


def test_clips_of_people_become_a_calibration_that_loads(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.toml"
    told = CliRunner().invoke(app, ["calibrate", str(people), "--out", str(out), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert (found["people"], found["clips"]) == (4, 12)
    assert found["ece"] <= 0.1
    assert {"threshold", "far", "frr", "wrong"} == set(found["thresholds"][0])
    assert [clip["name"].rpartition("/")[2] for clip in found["left_out"]] == ["notes.txt", "silence.wav"]
    bundle = with_calibration(load_bundle("builtin"), out)
    assert bundle.naming.cosine_weight == found["naming"]["cosine_weight"]


def test_too_few_people_are_refused_and_nothing_is_written(people: Path, tmp_path: Path) -> None:
    for folder in sorted(people.iterdir())[2:]:
        shutil.rmtree(folder)
    told = CliRunner().invoke(app, ["calibrate", str(people), "--out", str(tmp_path / "own.toml")])
    assert told.exit_code != 0
    assert not (tmp_path / "own.toml").exists()
    assert "2 people with two usable clips" in f"{told.output}{told.exception}"


def test_folders_that_hold_no_people_say_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="sub-folder of recordings"):
        find_clips(tmp_path / "gone")
    (tmp_path / "flat.wav").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="sub-folders"):
        find_clips(tmp_path)

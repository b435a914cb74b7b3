"""`speakerd diarize` with the engine in its own process, on real voices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import soundfile

from models.bundle import load_bundle
from models.in_process import InProcessDiarizer
from models.seams import AnalysisDevice, VoiceSample
from runtime.errors import BadAudio
from speakerd.rttm import parse_rttm
from tests.speakerd.running import speakerd

RATE = 16_000


@pytest.fixture(scope="module")
def people(audio: Path) -> dict[str, list[Path]]:
    """Recordings of two people, by name, longest first."""
    folders = sorted((audio / "librispeech" / "members").iterdir())[:2]
    by_length = [sorted(folder.glob("*.flac"), key=lambda file: -file.stat().st_size) for folder in folders]
    return dict(zip(("Ada Lovelace", "Bob"), by_length, strict=True))


def test_people_are_named_and_bad_files_among_good_ones_are_told(people: dict[str, list[Path]], tmp_path: Path) -> None:
    parts = [soundfile.read(files[0])[0][: 6 * RATE] for files in people.values()]
    recording = tmp_path / "a talk.wav"
    soundfile.write(recording, np.concatenate(parts), RATE)
    (tmp_path / "text.wav").write_text("this is no sound\n" * 100)
    soundfile.write(tmp_path / "silence.wav", np.zeros(5 * RATE), RATE)
    enrolments = [f"--enroll={name}={file}" for name, files in people.items() for file in files[1:3]]
    files = [tmp_path / "text.wav", recording, tmp_path / "silence.wav", tmp_path / "absent.wav"]
    ran = speakerd("diarize", *files, *enrolments, "--out", tmp_path / "out", "--format", "rttm,json", "--json")

    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    told = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 3
    by_file = {Path(file["file"]).name: file for file in json.loads(ran.stdout)["files"]}
    assert by_file["text.wav"]["error"]["cause"] == "unsupported_media"
    assert by_file["silence.wav"]["error"]["cause"] == "bad_audio"
    assert by_file["absent.wav"]["error"]["cause"] == "not_found"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a talk.json", "a talk.rttm"]

    spoken_ms = dict.fromkeys(people, 0)
    for turn in by_file["a talk.wav"]["turns"]:
        middle_s = len(parts[0]) / RATE
        half = "Ada Lovelace" if turn["end"] <= middle_s + 0.5 else "Bob"
        if turn["label"] == half:
            spoken_ms[half] += round(1000 * (turn["end"] - turn["start"]))
    assert all(spoken > 3_000 for spoken in spoken_ms.values()), by_file["a talk.wav"]["turns"]
    labels = {turn.label for turn in parse_rttm((tmp_path / "out" / "a talk.rttm").read_text())}
    assert {"Ada_Lovelace", "Bob"} <= labels


@pytest.mark.parametrize(
    ("num_speakers", "speech_s", "told"),
    [(0, 0.0, "no speech is heard"), (2, 5.0, "2 people are heard"), (1, 0.5, "0.5 s of clean speech; 1 s is needed")],
)
def test_what_cannot_enrol_one_person_is_told_by_file(
    tmp_path: Path, num_speakers: int, speech_s: float, told: str
) -> None:
    class Hears:
        grid = load_bundle("builtin").grid

        def analyze_voice(self, samples: np.ndarray) -> VoiceSample:
            return VoiceSample(np.zeros(self.grid.embedding_dim, np.float32), round(speech_s * RATE), num_speakers, 0.9)

    soundfile.write(tmp_path / "clip.wav", 0.1 * np.sin(np.arange(RATE)), RATE)
    diarizer = InProcessDiarizer(cast(AnalysisDevice, Hears()), load_bundle("builtin"))
    with pytest.raises(BadAudio, match=rf"clip\.wav: {told}"):
        diarizer.enroll("Ada", [tmp_path / "clip.wav"])

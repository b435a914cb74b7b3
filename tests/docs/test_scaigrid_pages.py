"""The lines of docs/scaiecho.md and docs/scaispeak.md, run as they stand against `speakerd up` with real voices."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from tests.docs.run_lines import Lines, Ran, read_page
from tests.speakerd.running import RATE, RunningUp, eventually

ALICE = "2609"
GUEST = "1069"


def said_by(folder: Path, *numbers: int) -> np.ndarray:
    """Utterances of a speaker, one after another: (N,) float32."""
    utterances = sorted(folder.rglob("*.flac"))
    return np.concatenate([soundfile.read(utterances[number], dtype="float32")[0] for number in numbers])


@pytest.fixture(scope="module")
def folder(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has: Alice's recordings, an announcer's, a meeting, and a drive."""
    made = tmp_path_factory.mktemp("lines")
    members, guests = audio / "librispeech" / "members", audio / "librispeech" / "guests"
    people = sorted(path for path in members.iterdir() if path.is_dir())
    alice = members / ALICE
    announcer = next(path for path in people if path.name != ALICE)
    soundfile.write(made / "alice-reference.wav", said_by(alice, 0, 1, 2)[: 20 * RATE], RATE)
    soundfile.write(made / "alice-consent.wav", said_by(alice, 3)[: 15 * RATE], RATE)
    soundfile.write(made / "announcer.wav", said_by(announcer, 0, 1)[: 20 * RATE], RATE)
    guest = said_by(guests / GUEST, 0)[: 10 * RATE]
    meeting = [said_by(alice, 5)[: 12 * RATE], guest, said_by(alice, 6)[: 8 * RATE]]
    soundfile.write(made / "meeting.wav", np.concatenate(meeting), RATE)
    (made / "clips").mkdir()
    (made / "clips" / "alice-reference.wav").write_bytes((made / "alice-reference.wav").read_bytes())
    return made


@pytest.fixture(scope="module")
def up(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    data = tmp_path_factory.mktemp("up")
    running = RunningUp(data, "--device", "cpu", SPEAKERD_DRIVE_FOLDER=str(folder))
    try:
        yield running
    finally:
        running.stop()


def lines_of(page: str, up: RunningUp, folder: Path) -> Lines:
    """The page's lines, with what it says that is there, and a key made as it says."""
    address = dict(field.split("=", 1) for field in up.ready.split()[1:])["http"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"HOST": address, "PATH": path, "SPEAKERD_DATA": str(up.data)}
    variables["ADMIN_KEY"] = (up.data / "admin.key").read_text().strip()
    lines = Lines(read_page(page), folder, variables)
    key = re.search(r"sk_\w+_[\w-]+", lines.run("key").stdout)
    assert key is not None
    lines.variables["KEY"] = key[0]
    return lines


def data_of(ran: Ran) -> Any:
    body = ran.json()
    assert "data" in body, body
    return body["data"]


def test_the_lines_of_scaiecho_enrol_warm_stream_and_delete(up: RunningUp, folder: Path) -> None:
    lines = lines_of("scaiecho.md", up, folder)
    speaker = data_of(lines.run("enrol"))
    assert (speaker["enrollment_status"], len(speaker["enrolled_on"])) == ("ready", 1), speaker
    assert data_of(lines.run("warm", SPEAKER_ID=speaker["id"]))["warm_node_ids"] == speaker["enrolled_on"]
    assert data_of(lines.run("warm-again"))["enrolled_on"] == speaker["enrolled_on"]

    # A reader runs them all, and Alice is enrolled three times then.
    alice = [speaker["id"], lines.run("enrol-python").stdout.split()[0], data_of(lines.run("enrol-javascript"))["id"]]

    said = lines.run("stream").stdout.splitlines()
    assert "'type': 'ready'" in said[0] and "'backend_used': 'A'" in said[0], said
    labels = {" ".join(line.split()[:2]) if line.startswith("Alice") else line.split()[0] for line in said[1:]}
    assert labels == {"Alice Example", "spk_0"}, said

    for speaker_id in alice:
        deleted = data_of(lines.run("delete", SPEAKER_ID=speaker_id))
        assert deleted["audit_id"]
        assert deleted["error_summary"] == {}
    gone = lines.run("stream").stdout
    assert "Alice" not in gone
    assert "spk_0" in gone
    assert lines.left() == set()


def test_the_lines_of_scaispeak_clone_share_and_erase(up: RunningUp, folder: Path) -> None:
    lines = lines_of("scaispeak.md", up, folder)
    voice = data_of(lines.run("clone"))
    assert (voice["scope"], voice["owner_user_id"]) == ("user", "alice")
    assert voice["embedding_status"] == "ready", voice
    assert voice["preflight"]["fail_reasons"] == []
    assert voice["id"] in [one["id"] for one in data_of(lines.run("list"))]
    assert data_of(lines.run("repromote", VOICE_ID=voice["id"]))["embedding_status"] == "ready"
    assert data_of(lines.run("share"))["scope"] == "tenant"
    mine = [voice["id"], lines.run("clone-python").stdout.strip(), data_of(lines.run("clone-javascript"))["id"]]
    everybodys = data_of(lines.run("global"))
    assert everybodys["license"]["license_type"] == "time_bound"
    assert {one["id"] for one in data_of(lines.run("list"))} >= {*mine, everybodys["id"]}

    audit_ids = [data_of(lines.run("erase", VOICE_ID=voice_id))["audit_id"] for voice_id in mine]
    audit_ids.append(data_of(lines.run("erase-global", VOICE_ID=everybodys["id"]))["audit_id"])
    assert not {one["id"] for one in data_of(lines.run("list"))} & {*mine, everybodys["id"]}

    def proven() -> bool:
        listed = data_of(lines.run("audit"))[: len(audit_ids)]
        return [row["audit_id"] for row in listed] == audit_ids[::-1] and all(
            row["state"] == "erased" and row["blob_bytes_deleted"] > 0 for row in listed
        )

    assert eventually(proven, 60.0)
    assert lines.left() == set()


def test_the_pages_name_every_path_that_is_served(up: RunningUp) -> None:
    address = dict(field.split("=", 1) for field in up.ready.split()[1:])["http"]
    for name in ("scaiecho", "scaispeak"):
        page = (Path(__file__).parents[2] / "docs" / f"{name}.md").read_text()
        document = httpx.get(f"{address}/openapi/{name}.json", timeout=60).json()
        for path in document["paths"]:
            short = (
                path.removeprefix(f"/v1/modules/{name}").replace("{speaker_id}", "{id}").replace("{voice_id}", "{id}")
            )
            shell = short.replace("{id}", "$SPEAKER_ID" if name == "scaiecho" else "$VOICE_ID")
            assert short in page or shell in page, (name, path)

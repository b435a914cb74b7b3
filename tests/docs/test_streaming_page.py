"""The lines of docs/streaming.md, run as they stand there against a real `speakerd up`."""

from __future__ import annotations

from pathlib import Path

from tests.docs.run_lines import Lines, read_page
from tests.speakerd.running import ADA, BOB, RunningUp, speakerd, tones, write_voice


def test_the_lines_of_the_page_put_a_name_on_a_piece_of_transcript(tmp_path: Path) -> None:
    up = RunningUp(tmp_path / "data")
    try:
        address = up.ready.split("grpc=")[1].split()[0]
        key = (tmp_path / "data" / "admin.key").read_text().strip()
        clip = write_voice(tmp_path / "ada.wav", 5, ADA)
        enrolled = speakerd("enroll", "Ada Lovelace", clip, data=tmp_path / "data")
        assert enrolled.returncode == 0, enrolled.stderr
        sound = [tones(4, *ADA), tones(4, *BOB)]
        (tmp_path / "talk.pcm").write_bytes(b"".join((part * 32767).astype("<i2").tobytes() for part in sound))
        lines = Lines(read_page("streaming.md"), tmp_path, {"SPEAKERD_SERVER": address, "SPEAKERD_KEY": key})
        assert lines.run("label").stdout == "Ada Lovelace\n"
        assert lines.run("asyncio").stdout == "Ada Lovelace\n"
        assert not lines.left()
        assert len(lines.blocks["label"].text.strip().splitlines()) <= 10
    finally:
        up.stop()

from __future__ import annotations

from pathlib import Path

import pytest

from speakerd.rttm import RttmTurn, parse_rttm, rttm_line, write_rttm, write_whole


def test_a_turn_becomes_a_line_with_milliseconds() -> None:
    line = rttm_line("call", RttmTurn(1_234, 5_000, "alice"))
    assert line == "SPEAKER call 1 1.234 3.766 <NA> <NA> alice <NA> <NA>"


def test_blanks_in_names_never_shift_the_fields_of_a_line() -> None:
    line = rttm_line("my call", RttmTurn(0, 1_000, "Ada  Lovelace\t(work)"))
    assert line.split()[1] == "my_call"
    assert line.split()[7] == "Ada_Lovelace_(work)"
    assert len(line.split()) == 10


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    turns = [RttmTurn(0, 1_500, "alice"), RttmTurn(1_500, 1_501, "spk_0")]
    write_rttm(tmp_path / "deep" / "call.rttm", turns)
    assert parse_rttm((tmp_path / "deep" / "call.rttm").read_text()) == turns


def test_a_line_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_rttm("SPEAKER a 1 0.0 1.0 <NA> <NA> x <NA> <NA>\nSPEAKER a 1 zero\n")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "call.rttm"
    path.write_text("old")

    def full(_path: Path, _mode: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "chmod", full)  # the last thing before the new file takes the old one's place
    with pytest.raises(OSError, match="full"):
        write_whole(path, "half a file")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

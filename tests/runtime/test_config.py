"""Configuration: file, then environment, then flags; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.config import DaemonSettings, load
from runtime.errors import InvalidRequest


class Settings(DaemonSettings):
    streams_max: int = 8
    data: Path = Path("here")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "speakerd.toml"
    path.write_text('[node]\nstreams_max = 1\ndata = "from-file"\n[other]\nstreams_max = 99\n')
    return path


def test_flags_win_over_environment_and_environment_over_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(Settings, section="node", file=file, flags={}).streams_max == 1
    monkeypatch.setenv("SPEAKERD_STREAMS_MAX", "2")
    assert load(Settings, section="node", file=file, flags={}).streams_max == 2
    assert load(Settings, section="node", file=file, flags={"streams_max": 3}).streams_max == 3
    assert load(Settings, section="node", file=file, flags={"streams_max": 3}).data == Path("from-file")


def test_a_flag_that_was_not_given_changes_nothing(file: Path) -> None:
    assert load(Settings, section="node", file=file, flags={"streams_max": None}).streams_max == 1


def test_a_wrong_value_is_reported_with_the_name_of_its_setting_and_without_the_value() -> None:
    with pytest.raises(InvalidRequest, match="streams_max") as caught:
        load(Settings, section="node", file=None, flags={"streams_max": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_an_unknown_setting_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speakerd.toml"
    path.write_text("[node]\nstream_max = 1\n")
    with pytest.raises(InvalidRequest, match="stream_max"):
        load(Settings, section="node", file=path, flags={})


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speakerd.toml"
    path.write_text("streams_max: 1")
    with pytest.raises(InvalidRequest, match=r"speakerd\.toml"):
        load(Settings, section="node", file=path, flags={})


def test_settings_cannot_be_changed_once_read() -> None:
    settings = load(Settings, section="node", file=None, flags={})
    with pytest.raises(ValueError, match="frozen"):
        settings.streams_max = 9  # type: ignore[misc]

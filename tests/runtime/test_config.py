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


class Guarded(DaemonSettings):
    SECRETS = frozenset({"database_url", "kek"})

    database_url: str | None = None
    kek: str | None = None
    kek_file: Path | None = None
    ports: tuple[int, ...] = ()


def read(**flags: object) -> Guarded:
    return load(Guarded, section="node", file=None, flags=flags)


def test_a_secret_is_read_from_the_file_that_its_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("postgresql://me:s3cret@db/x\n")
    (tmp_path / "url").chmod(0o440)  # as Kubernetes mounts it
    monkeypatch.setenv("SPEAKERD_DATABASE_URL_FILE", str(tmp_path / "url"))
    settings = read()
    assert settings.database_url == "postgresql://me:s3cret@db/x"
    assert "s3cret" not in repr(settings) + str(settings)
    monkeypatch.setenv("SPEAKERD_DATABASE_URL", "postgresql://other")
    with pytest.raises(InvalidRequest, match="both set"):
        read()


def test_a_folder_of_secrets_gives_settings_by_the_names_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kek").write_text("AAAA")
    (tmp_path / "ports").write_text("[1, 2]\n")
    (tmp_path / "what_another_daemon_wants").write_text("x")
    monkeypatch.setenv("SPEAKERD_SECRETS_DIR", str(tmp_path))
    settings = read()
    assert (settings.kek, settings.ports) == ("AAAA", (1, 2))
    monkeypatch.setenv("SPEAKERD_KEK", "BBBB")  # set at the one process, it wins over what is mounted for all
    assert read().kek == "BBBB"


def test_a_setting_that_ends_in_file_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEAKERD_KEK_FILE", str(tmp_path / "kek"))
    assert (read().kek, read().kek_file) == (None, tmp_path / "kek")


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_secret_that_cannot_be_read_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "url").write_text(content)
    monkeypatch.setenv("SPEAKERD_DATABASE_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(InvalidRequest, match=r"setting 'database_url': .*url"):
        read()


def test_no_password_is_taken_from_a_command_line() -> None:
    assert read(database_url="postgresql://me@db/x").database_url == "postgresql://me@db/x"
    urls = ("postgresql://me:s3cret@db/x", "postgresql://db/x?password=s3cret", "postgresql://me:s3cret@[db/x")
    for flags in (*({"database_url": url} for url in urls), {"kek": "s3cret"}):
        with pytest.raises(InvalidRequest, match="_FILE") as caught:
            read(**flags)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("value", ["10.0.0.0/8", "", '["10.0.0.1/8"]'])
def test_what_is_no_list_of_networks_is_reported_with_the_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SPEAKERD_TRUSTED_PROXIES", value)
    with pytest.raises(InvalidRequest, match=r"setting 'trusted_proxies"):
        read()

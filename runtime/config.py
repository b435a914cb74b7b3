"""Configuration: a TOML file, then files of secrets, then `SPEAKERD_*` variables, then flags; the later one wins.

In: the settings class of a daemon, a file, and the flags that were given. Out: one frozen object, validated as it is
read. Nothing else in the system reads the environment, and a mistake is reported with the name of the setting. A
setting NAME may be in a file of its own: the one that SPEAKERD_NAME_FILE names, or one called `name` in the folder that
SPEAKERD_SECRETS_DIR names. What is secret is taken from no command line, and shown by no settings object.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from runtime.connection_caps import Caps, networks
from runtime.errors import InvalidRequest
from runtime.tls import Tls, TlsFiles

PREFIX = "SPEAKERD_"


class DaemonSettings(BaseSettings):
    """What every daemon's settings share. The environment gives a field `name` as SPEAKERD_NAME."""

    SECRETS: ClassVar[frozenset[str]] = frozenset()
    """Settings whose value is nobody's to see, or may hold a password."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    log_level: str = Field("info", description="debug, info, warning or error. Logs are JSON lines on stderr.")
    stall_s: float = Field(
        30.0,
        ge=0.0,
        description="Seconds for which the event loop or the device may hang before the process ends itself (exit code "
        "70), for its supervisor to start another; 0: never.",
    )
    connections_per_address: int = Field(
        1_000,
        ge=0,
        description="Connections from one address (of IPv6 from one /64) at once, on all ports together; the newest "
        "beyond are closed. 0: any number. All descriptors but some are the bound in all.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Networks (CIDR) of load balancers and proxies: no bound on connections from one of these."
    )
    # `speakerd certs init` makes them; exchanged files are taken by themselves.
    tls_cert: Path | None = Field(
        None, description="This daemon's certificate chain, PEM. Absent: plain text, on loopback alone."
    )
    tls_key: Path | None = Field(None, description="Its key, PEM.")
    tls_ca: Path | None = Field(None, description="The fleet's authority, PEM.")

    @model_validator(mode="after")
    def _whole_identity(self) -> Self:
        if len({path is None for path in (self.tls_cert, self.tls_key, self.tls_ca)}) > 1:
            raise ValueError("tls_cert, tls_key and tls_ca belong together: give all three, or none")
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        networks(texts)
        return texts

    def connection_caps(self) -> Caps:
        """How many connections are let be."""
        return Caps(self.connections_per_address, networks(self.trusted_proxies))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, "***" if name in self.SECRETS and value is not None else value

    def tls(self) -> Tls | None:
        """The daemon's identity; None for plain text. Raises InvalidRequest when the files do not make one."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return Tls(TlsFiles(self.tls_cert, self.tls_key, self.tls_ca))


SettingsT = TypeVar("SettingsT", bound=DaemonSettings)


def load(kind: type[SettingsT], *, section: str, file: Path | None, flags: Mapping[str, Any]) -> SettingsT:
    """Read the settings of a daemon.

    section: table of the TOML file that is this daemon's, so that one file can serve all of them.
    flags: values of the command line; None means that the flag was not given.
    Raises InvalidRequest, naming the setting, when one is unknown or out of range.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    for name in kind.SECRETS & given.keys():
        _require_no_password(name, given[name])
    values = _file_table(file, section) if file is not None else {}
    values |= _from_secret_files(kind)
    values |= _Environment(kind)()
    values |= given
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise InvalidRequest(f"setting {name!r}: {first['msg']}") from None


class _Environment(EnvSettingsSource):
    """Variables; one that holds no list where a list is wanted is told by its name, as every mistake is."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            raise InvalidRequest(f'setting {field_name!r}: write a list as JSON, as in ["one", "two"]') from None


def _file_table(file: Path, section: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text()).get(section, {})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"cannot read the configuration file {file.name}: {error}") from None
    if not isinstance(table, dict):
        raise InvalidRequest(f"configuration file {file.name}: [{section}] is not a table")
    return dict(table)


def _require_no_password(name: str, value: object) -> None:
    if isinstance(value, str) and "://" in value and not _holds_password(value):
        return
    raise InvalidRequest(
        f"--{name.replace('_', '-')}: whatever is on a command line, every user of the machine can read; put it in a "
        f"file and name that with {PREFIX}{name.upper()}_FILE"
    )


def _holds_password(url: str) -> bool:
    """Whether a URL says a password, or may say one: before the host, or as drivers of PostgreSQL take it behind."""
    try:
        parts = urlsplit(url)
        return parts.password is not None or any("password" in name.lower() for name, _ in parse_qsl(parts.query))
    except ValueError:
        return "@" in url or "password" in url.lower()  # no URL, as whoever opens it will tell


def _from_secret_files(kind: type[DaemonSettings]) -> dict[str, Any]:
    """Settings that lie in files of their own, read as variables of the environment are."""
    folder = os.environ.get(f"{PREFIX}SECRETS_DIR")
    if folder is not None and not Path(folder).is_dir():
        raise InvalidRequest(f"{PREFIX}SECRETS_DIR: {folder} is no folder")
    said: dict[str, str | None] = {}
    for name in kind.model_fields:
        variable = f"{PREFIX}{name.upper()}"
        if folder is not None and (Path(folder) / name).is_file():
            said[variable.lower()] = _secret(Path(folder) / name, name)
        # kek_file and fleet_key_file are settings themselves, and mean the same.
        named = None if f"{name}_file" in kind.model_fields else os.environ.get(f"{variable}_FILE")
        if named:
            if variable in os.environ:
                raise InvalidRequest(f"{variable} and {variable}_FILE are both set: leave one of them out")
            said[variable.lower()] = _secret(Path(named), name)
    source = _Environment(kind)
    source.env_vars = said
    return source()


def _secret(file: Path, name: str) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise InvalidRequest(f"setting {name!r}: cannot read {file}: {why}") from None
    if not text:
        raise InvalidRequest(f"setting {name!r}: {file} is empty")
    return text

"""Configuration: a TOML file, then `SPEAKERD_*` variables, then flags; the later one wins.

In: the settings class of a daemon, a file, and the flags that were given. Out: one frozen object, validated as it is
read. Nothing else in the system reads the environment, and a mistake is reported with the name of the setting.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from runtime.errors import InvalidRequest
from runtime.tls import Tls, TlsFiles


class DaemonSettings(BaseSettings):
    """What every daemon's settings share. The environment gives a field `name` as SPEAKERD_NAME."""

    model_config = SettingsConfigDict(env_prefix="SPEAKERD_", extra="forbid", frozen=True, hide_input_in_errors=True)

    log_level: str = Field("info", description="debug, info, warning or error. Logs are JSON lines on stderr.")
    stall_s: float = Field(
        30.0,
        ge=0.0,
        description="Seconds for which the event loop or the device may hang before the process ends itself (exit code "
        "70), for its supervisor to start another; 0: never.",
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
    values = _file_table(file, section) if file is not None else {}
    values |= EnvSettingsSource(kind)()
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise InvalidRequest(f"setting {name!r}: {first['msg']}") from None


def _file_table(file: Path, section: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text()).get(section, {})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"cannot read the configuration file {file.name}: {error}") from None
    if not isinstance(table, dict):
        raise InvalidRequest(f"configuration file {file.name}: [{section}] is not a table")
    return dict(table)

"""The reference of settings, from the models that the daemons read them with.

In: the settings classes and the commands' options. Out: one page. What always holds: every setting is on it with its
name in the file, its variable, its flag where it has one, its type, default and meaning; one without a meaning fails.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from controlplane.config import ControlPlaneSettings
from edge.app import DIALECTS
from node.config import NodeSettings
from runtime.config import DaemonSettings
from scripts.reference.markdown import code, page, prose, table
from speakerd.cli import app

SOURCE = "node/config.py, controlplane/config.py and runtime/config.py"
ENV_PREFIX = "SPEAKERD_"
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", SecretStr: "secret"}
_BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "more than"), (Le, "le", "at most"), (Lt, "lt", "less than"))
_HEADS = ("setting", "type", "default", "meaning")

INTRO = """
`speakerd node` and `speakerd controlplane` read their settings from a TOML file (`--config FILE`, tables `[node]` and
`[controlplane]`; one file may hold both), then from files of secrets, then from variables, then from flags; the later
one wins. A setting that is unknown or out of range ends the daemon at once, and is named. Times are in seconds.
`deploy/speakerd.example.toml` is a file to begin with. `speakerd up` has [options](command-line.md#speakerd-up)
instead, and hands variables on to both daemons.

In a variable, lists and tables are JSON: `SPEAKERD_FETCH_PORTS='[443, 8443]'`. Any setting may lie in a file of its
own: `SPEAKERD_NAME_FILE` names it, or `SPEAKERD_SECRETS_DIR` a folder of files that are called as settings are. Secrets
belong there, and are refused as flags ([security](../operations/security.md#secrets-of-settings)).
""".strip()

OTHERS = (
    ("SPEAKERD_SERVER_CA", "every command", "The authority of a server that speaks TLS; as `--tls-ca`."),
    ("SPEAKERD_KEY", "commands that call a server", "The API key; as `--key`."),
    ("SPEAKERD_DATA", "commands on a data folder", "The data folder; as `--data`."),
    ("SPEAKERD_MODELS", "`models`, and whatever loads a bundle", "Where imported bundles lie."),
    ("HF_TOKEN", "`models pull`", "A token that may read gated repositories; nothing else ever asks for one."),
    ("SPEAKERD_TRACEBACK", "every command", "Set: a fault of ours is shown with its traceback."),
)


def configuration_page() -> str:
    """The page."""
    rates = table(
        ("kind", "calls a minute and key"),
        ((code(limit.kind), str(limit.calls_max)) for dialect in DIALECTS for limit in dialect.rates),
    )
    return page(
        "Settings",
        SOURCE,
        INTRO,
        "## Node",
        _settings(NodeSettings, "node"),
        "## Control plane and HTTP",
        "The HTTP dialects are a part of the control plane's process (the role `http`), and so are their settings.",
        _settings(ControlPlaneSettings, "controlplane"),
        *_tables(ControlPlaneSettings),
        "### Kinds of calls that are counted\n\nFor `http_rate_limits`. Calls that are not named here are not limited.",
        rates,
        "## Variables of the command line\n\nBeside the settings of daemons, which no other command reads.",
        table(("variable", "read by", "meaning"), ((code(name), who, what) for name, who, what in OTHERS)),
    )


def _settings(kind: type[DaemonSettings], command: str) -> str:
    flags = _flags(command)
    return table(
        _HEADS,
        (
            (_names(name, field, flags), *_described(f"{command}.{name}", field))
            for name, field in _own_first(kind)
            if not _is_table(field)
        ),
    )


def _own_first(kind: type[DaemonSettings]) -> list[tuple[str, FieldInfo]]:
    """As they are declared, those of the class itself before what it shares with others."""
    return sorted(kind.model_fields.items(), key=lambda item: item[0] not in kind.__annotations__)


def _tables(kind: type[DaemonSettings]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if _is_table(field):
            inner = typing.cast(type[BaseModel], field.annotation)
            yield f"### [controlplane.{name}]\n\n{prose(field.description or '')}"
            yield table(_HEADS, ((code(one), *_described(one, its)) for one, its in inner.model_fields.items()))


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _names(name: str, field: FieldInfo, flags: dict[str, str]) -> str:
    named = [code(name), *map(code, _variables(name, field))]
    if name in flags:
        named.append(code(flags[name]))
    return "<br>".join(named)


def _variables(name: str, field: FieldInfo) -> Sequence[str]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [choice for choice in alias.choices if isinstance(choice, str) and choice.isupper()]
    return [f"{ENV_PREFIX}{name.upper()}"]


def _described(name: str, field: FieldInfo) -> tuple[str, str, str]:
    if not field.description:
        raise SystemExit(f"setting {name}: give it a description, Field(…, description=…)")
    return _type(field), _default(field), prose(field.description)


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{said} {getattr(bound, attribute):g}"
        for kind, attribute, said in _BOUNDS
        for bound in field.metadata
        if isinstance(bound, kind)
    ]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(kind: Any) -> str:
    arguments = [argument for argument in typing.get_args(kind) if argument not in (type(None), Ellipsis)]
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_type_name, arguments))
    if origin is typing.Literal:
        return " or ".join(map(code, arguments))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    return _NAMES[kind]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if field.default_factory is not None:
        # What a machine is called is no default to print.
        value = field.default_factory() if field.default_factory is dict else None
    if value is None:
        return ""
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, tuple):
        return code("[" + ", ".join(f'"{one}"' if isinstance(one, str) else str(one) for one in value) + "]")
    if isinstance(value, float):
        return code(f"{value:.0f}" if value.is_integer() else f"{value:g}")
    return code(value) if value != "" else ""


def _flags(command: str) -> dict[str, str]:
    """The options of a daemon's command, by the setting that they are for."""
    found = typer.main.get_command(app).get_command(typer.Context(typer.main.get_command(app)), command)  # type: ignore[attr-defined]
    return {
        option.name: next(flag for flag in option.opts if re.match(r"--\w", flag))
        for option in found.params
        if option.name and option.opts
    }

"""The reference of the command line, from the commands themselves.

In: the application as `speakerd` runs it. Out: one page. What always holds: every command that `speakerd --help` lists
is on it, with every argument and option.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from scripts.reference.markdown import code, page, prose, table
from speakerd.cli import app

SOURCE = "speakerd/cli and the commands of the daemons"

INTRO = """
Results go to stdout, everything else to stderr. An error is one line that says what to mend; with `--json` it is an
object. The exit code is 0 only when the command did its work, 1 when it did not, and 2 when the command line itself
could not be understood.
""".strip()


def command_line_page() -> str:
    """The page."""
    root = typer.main.get_command(app)
    return page("Command line", SOURCE, INTRO, *_command(root, "speakerd", None))


def _command(command: Any, name: str, parent: typer.Context | None) -> Iterator[str]:
    context = typer.Context(command, info_name=name.rpartition(" ")[2], parent=parent)
    yield f"## {name}\n\n{_help(command)}"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
    for kind in ("argument", "option"):
        told = [one.get_help_record(context) for one in command.params if one.param_type_name == kind]
        yield table((kind, "meaning"), [(code(names), _meaning(said)) for names, said in filter(None, told)])
    if hasattr(command, "list_commands"):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if not found.hidden:
                yield from _command(found, f"{name} {inner}", context)


def _help(command: Any) -> str:
    return "\n\n".join(prose(part) for part in (command.help or "").split("\n\n"))


def _meaning(said: str) -> str:
    """A parameter's help: what Typer adds to it in brackets is set apart."""
    text, bracket, added = said.partition("  [")
    return prose(text) + (f" {code(bracket.strip() + added)}" if bracket else "")

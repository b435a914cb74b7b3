"""The command `speakerd`: its own commands, those of installed packages, and one way to fail.

This package imports none of the daemons; it finds their commands through entry points, and only when they are run, so
that `speakerd voices` and `speakerd --help` load no engine. A command whose package cannot be loaded says what to
install.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from speakerd.cli.failures import tell
from speakerd.errors import SpeakerdError


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A command of ours that lives in another package: entry point, extra that brings what it needs, line of help."""

    entry: str
    extra: str
    help: str


KNOWN = {
    "node": Elsewhere("node", "node", "Run a node: one device, the voices that it holds, the streams that it carries."),
    "controlplane": Elsewhere(
        "controlplane", "controlplane", "Run the control plane: voices, consent, erasure, fleet, placement."
    ),
    "models": Elsewhere("models", "node", "Bundles of weights: what is there, and whether it is intact."),
    "calibrate": Elsewhere(
        "models", "node", "Fit the probabilities of names to your own people, microphones and rooms."
    ),
    "certs": Elsewhere("certs", "runtime", "Certificates between control plane and nodes: make, renew, look at."),
    "backup": Elsewhere(
        "backup", "controlplane", "Copy what may be kept, and apart from it the voices' keys, which may not for long."
    ),
    "restore": Elsewhere("backup", "controlplane", "Bring a backup back, and nobody who was erased since."),
}

TLS_CA_FLAG = "--tls-ca"
DAEMONS = ("node", "controlplane")
"""Commands whose own flag it is, for what they serve with."""


class SpeakerdGroup(TyperGroup):
    """Commands by name, loaded when needed; errors in one line."""

    _is_telling_help = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command there is."""
        if _words_to_complete() is None:
            self._load_all(but_for=KNOWN if self._is_telling_help else ())
        return sorted({*super().list_commands(ctx), *KNOWN})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, or None."""
        if cmd_name not in self.commands:
            words = _words_to_complete()
            is_named_only = self._is_telling_help or (words is not None and cmd_name not in words)
            if is_named_only and cmd_name in KNOWN:
                # Who asks what there is, and a shell that completes, do not wait for an engine to be imported.
                return TyperCommand(cmd_name, help=KNOWN[cmd_name].help)
            if cmd_name in KNOWN:
                self._load(KNOWN[cmd_name].entry)
            else:
                self._load_all()
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Tell the help of `speakerd` itself, for which commands of other packages are not loaded."""
        self._is_telling_help = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_telling_help = False

    def main(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> NoReturn:
        """Run a command line, and end the process with its exit code."""
        given = list(sys.argv[1:] if args is None else args)
        settings["standalone_mode"] = False
        if not set(DAEMONS) & set(given):
            # What gRPC says of a failed handshake, an error of ours says better, and in one line.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            code = super().main(_everywhere(given, TLS_CA_FLAG), *more, **settings)
        except ModuleNotFoundError as error:
            code = tell(_missing(error, given), as_json="--json" in given)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, the user is told in one line
            code = tell(error, as_json="--json" in given)
        sys.exit(code if isinstance(code, int) else 0)

    def _load_all(self, *, but_for: Iterable[str] = ()) -> None:
        """Load the commands of all packages that are installed, and of ours; those of but_for and with them not."""
        named = {entry.name for entry in entry_points(group="speakerd.commands")}
        for name in (named | {command.entry for command in KNOWN.values()}) - {KNOWN[name].entry for name in but_for}:
            self._load(name)

    def _load(self, entry_name: str) -> None:
        wanted = [name for name, command in KNOWN.items() if command.entry == entry_name]
        if wanted and all(name in self.commands for name in wanted):
            return
        found = typer.Typer()
        try:
            register: Callable[[typer.Typer], None] = installed("speakerd.commands", entry_name).load()
            register(found)
        except (ImportError, SpeakerdError) as error:
            for name in wanted:
                found.command(name, help="(not installed)", hidden=True, context_settings=_TAKES_ANYTHING)(
                    _refusal(name, KNOWN[name].extra, error)
                )
        for name, command in typer.main.get_group(found).commands.items():
            self.commands.setdefault(name, command)


def _words_to_complete() -> list[str] | None:
    """What stands on the command line that a shell has us complete; None where none does."""
    if not any(name.startswith("_SPEAKERD_COMPLETE") for name in os.environ):
        return None
    return " ".join(os.environ.get(name, "") for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")).split()


def _everywhere(given: Sequence[str], flag: str) -> list[str]:
    """An option of every command but the daemons, wherever it stands: put first, where it is looked for."""
    if next((argument for argument in given if not argument.startswith("-")), "") in DAEMONS:
        return list(given)
    first: list[str] = []
    rest: list[str] = []
    arguments = iter(given)
    for argument in arguments:
        if argument == "--":
            rest += [argument, *arguments]
        elif argument == flag:
            first += [argument, *itertools.islice(arguments, 1)]
        elif argument.startswith(f"{flag}="):
            first.append(argument)
        else:
            rest.append(argument)
    return first + rest


_TAKES_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}


def installed(group: str, name: str) -> EntryPoint:
    """An entry point of an installed package. Raises SpeakerdError when no package provides it."""
    for entry in entry_points(group=group, name=name):
        return entry
    raise SpeakerdError("unavailable", f"no installed package provides {name!r} ({group})")


def load_installed(group: str, name: str, *, extra: str, what_for: str) -> Any:
    """What an entry point names. Raises SpeakerdError, naming the extra to install, when it cannot be loaded."""
    try:
        return installed(group, name).load()
    except (ImportError, SpeakerdError) as error:
        raise SpeakerdError("unavailable", needs(what_for, extra, error)) from None


def needs(what_for: str, extra: str, error: Exception) -> str:
    """What to install, in one line."""
    missing = f" (missing: {error.name})" if isinstance(error, ModuleNotFoundError) and error.name else ""
    return f"{what_for} needs packages that are not installed{missing}: pip install 'speakerd[{extra}]'"


def _missing(error: ModuleNotFoundError, given: Sequence[str]) -> Exception:
    """What to say where a command finds while it runs that a package is missing."""
    name = next((argument for argument in given if not argument.startswith("-")), "")
    if name not in KNOWN:
        return error
    return SpeakerdError("unavailable", needs(f"`speakerd {name}`", KNOWN[name].extra, error))


def _refusal(name: str, extra: str, error: Exception) -> Callable[[], None]:
    def refuse() -> None:
        raise SpeakerdError("unavailable", needs(f"`speakerd {name}`", extra, error))

    return refuse

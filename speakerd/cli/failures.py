"""Exceptions of commands, told in one line.

In comes whatever a command raised; out comes an exit code: 2 for a command line that cannot be understood, 1 for
everything else that failed, 130 when the user broke it off. Never a traceback, unless SPEAKERD_TRACEBACK asks for one;
and then without the exception's message, which may hold anything and would lie in a daemon's log.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass

import typer

from speakerd.cli.output import Output

USAGE_EXIT = 2
FAILURE_EXIT = 1
INTERRUPTED_EXIT = 130


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is told: the contract's word for its cause, what happened, and the exit code."""

    cause: str
    message: str
    exit_code: int


def tell(error: BaseException, *, as_json: bool) -> int:
    """Write a failure where it belongs and return the exit code."""
    failure = failure_of(error)
    out = Output(as_json=as_json)
    out.error(failure.message)
    out.result({"error": {"cause": failure.cause, "message": failure.message}})
    if failure.cause == "internal" and os.environ.get("SPEAKERD_TRACEBACK"):
        traceback.print_tb(error.__traceback__)
        print(type(error).__name__, file=sys.stderr)
    return failure.exit_code


def failure_of(error: BaseException) -> Failure:
    """What an exception of a command amounts to."""
    if isinstance(error, BaseExceptionGroup):
        return failure_of(error.exceptions[0])
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure("interrupted", "interrupted", INTERRUPTED_EXIT)
    usage = getattr(error, "format_message", None)
    if callable(usage):  # typer's usage errors; their base class has moved between its versions
        text = str(usage()).removeprefix("Invalid value: ").rstrip(".")
        return Failure("usage", f"{text} (see --help)", USAGE_EXIT)
    cause = getattr(error, "cause", None)
    if cause is not None:  # SpeakerdError: the client's, or the daemons', whose class is not ours to import
        return Failure(str(getattr(cause, "value", cause)), str(error), FAILURE_EXIT)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Failure("invalid", f"{where}{error.strerror or type(error).__name__}", FAILURE_EXIT)
    return Failure(
        "internal",
        f"internal error ({type(error).__name__}): set SPEAKERD_TRACEBACK=1 to see where, and report it",
        FAILURE_EXIT,
    )

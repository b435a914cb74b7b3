"""What `speakerd doctor` found: one line a thing, and what to do about it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OK, NOTE, PROBLEM = "ok", "note", "problem"

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. verdict: OK; NOTE: it works, but is worth knowing; PROBLEM: something will not work.

    mend: what to do about it; empty where there is nothing to do.
    """

    name: str
    verdict: str
    found: str
    mend: str = ""


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, OK, found)


def note(name: str, found: str, mend: str) -> Check:
    """It works, but is worth knowing."""
    return Check(name, NOTE, found, mend)


def problem(name: str, found: str, mend: str) -> Check:
    """Something will not work."""
    return Check(name, PROBLEM, found, mend)


def guarded(name: str, look: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """What a look found until it failed: a broken machine is reported, and does not end the report."""
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001 - whatever is broken, the other checks are worth having
        why = getattr(error, "strerror", None) or type(error).__name__
        yield problem(name, f"could not be looked at ({why})", "see whether another line says why; else report it")


def write_probe(folder: Path) -> str:
    """Write a small file into a folder, and take it away again: "" where that works, else why not."""
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"\0" * 65_536)
    except OSError as error:
        return error.strerror or type(error).__name__
    finally:
        probe.unlink(missing_ok=True)
    return ""

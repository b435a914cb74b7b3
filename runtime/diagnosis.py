"""What a daemon's package tells the doctor: rows of plain values, and what every daemon has in common.

A row is name, verdict ("ok", "note", "problem"), found, mend. The command line imports no daemon, so that is the shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.certificates import describe
from runtime.config import DaemonSettings
from runtime.errors import SpeakerdError

Row = dict[str, Any]

CERTIFICATE_DAYS_MIN = 14.0


def ok(name: str, found: str) -> Row:
    """All is well."""
    return _row(name, "ok", found)


def note(name: str, found: str, mend: str) -> Row:
    """It works, but is worth knowing."""
    return _row(name, "note", found, mend)


def problem(name: str, found: str, mend: str) -> Row:
    """Something will not work."""
    return _row(name, "problem", found, mend)


def certificates(settings: DaemonSettings, whose: str) -> Iterator[Row]:
    """Whom a daemon's certificates are for, and how long they last."""
    for setting in ("tls_cert", "tls_ca"):
        file: Path | None = getattr(settings, setting)
        if file is None:
            continue
        name = f"{whose}: {setting}"
        try:
            report = describe(file)
        except SpeakerdError as error:
            yield problem(name, str(error), "make certificates: speakerd certs init")
            continue
        left_days = (report.not_after - datetime.now(UTC)).total_seconds() / 86_400
        found = f"{report.name}, good until {report.not_after:%Y-%m-%d}"
        mend = "issue another with `speakerd certs init`: daemons take exchanged files by themselves"
        if left_days <= 0:
            yield problem(name, f"{found}: it has run out", mend)
        elif left_days < CERTIFICATE_DAYS_MIN:
            yield note(name, f"{found}: {left_days:.0f} days left", mend)
        else:
            yield ok(name, found)
    try:
        settings.tls()
    except SpeakerdError as error:
        yield problem(f"{whose}: certificates", str(error), "make certificates: speakerd certs init")


def _row(name: str, verdict: str, found: str, mend: str = "") -> Row:
    return {"name": name, "verdict": verdict, "found": found, "mend": mend}

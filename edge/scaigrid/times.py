"""Instants as these dialects write them: UTC, to the millisecond, with a Z."""

from __future__ import annotations

from datetime import UTC, datetime


def instant(seconds: float) -> str:
    """Unix seconds as text."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def maybe_instant(seconds: float | None) -> str | None:
    """The same, of an instant that may not have come."""
    return None if seconds is None else instant(seconds)

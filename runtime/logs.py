"""Logs: one JSON object a line, an event name and fields. Never audio, embeddings, names or keys.

`configure` is called once, by a daemon's shell. Anything that looks like a secret or like biometric data is cut out on
the way, as a net under the rule that such things are not logged in the first place. Of an exception, ours or a
library's, the log gets the types and the places in the code, never the message: that may hold anything.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog

FORBIDDEN_FIELDS = frozenset(
    {"audio", "embedding", "embeddings", "label", "name", "full_name", "key", "ticket", "token", "secret"}
)
"""Fields that are cut out of every log line."""


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for field in FORBIDDEN_FIELDS & event.keys():
        event[field] = "[cut]"
    for field, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[field] = f"[{len(value)} bytes cut]"
    return event


def stack_of(error: BaseException) -> list[str]:
    """An exception without its message: its type, then "file:line:function" from the outermost call to the innermost.

    What it was raised from follows in the same way, and so do the members of a group.
    """
    lines: list[str] = []
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        lines.append(type(one).__name__)
        lines += [f"{frame.filename}:{frame.lineno}:{frame.name}" for frame in _frames(one.__traceback__)]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        before = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if before is not None:
            waiting.append(before)
    return lines


def _frames(at: TracebackType | None) -> list[traceback.FrameSummary]:
    # Without the lines of source, which would be read from disk, and without locals.
    return list(traceback.StackSummary.extract(traceback.walk_tb(at), lookup_lines=False))


def _cut_exceptions(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    told = event.pop("exc_info", None)
    if told is True:
        told = sys.exc_info()
    error = told[1] if isinstance(told, tuple) else told
    if isinstance(error, BaseException):
        event["error_type"] = type(error).__name__
        event["stack"] = stack_of(error)
    return event


def configure(level: str, *, service: str) -> None:
    """Send all logs, ours and libraries', to stderr as JSON lines. `service` is put on every line."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _method, event: {**event, "service": service},
        _redact,
        _cut_exceptions,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries are heard from WARNING up: their debug lines may hold what ours must not.
    root.setLevel(max(number, logging.WARNING))


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The logger: `log.info("stream.closed", stream_id=...)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger

"""Logs: one JSON object a line, an event name and fields. Never audio, embeddings, names or keys.

`configure` is called once, by a daemon's shell. Anything that looks like a secret or like biometric data is cut out on
the way, as a net under the rule that such things are not logged in the first place.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
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


def configure(level: str, *, service: str) -> None:
    """Send all logs, ours and libraries', to stderr as JSON lines. `service` is put on every line."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _method, event: {**event, "service": service},
        _redact,
        structlog.processors.format_exc_info,
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

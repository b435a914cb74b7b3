"""Keeps the daemons' log lines to themselves, and the store's memory of evictions short, while simulations run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from node import voice_store


class Unmeasured:
    """Every metric, and none: counting costs more than what is counted."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_values: Any) -> Any:
        return self


@contextmanager
def quiet() -> Iterator[None]:
    """No logs; and tombstones that are forgotten at once, so that nothing but the log's order can keep a voice away."""
    before, kept = structlog.get_config(), voice_store.TOMBSTONES_MAX
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    voice_store.TOMBSTONES_MAX = 1
    # A run leaves cycles by the thousand; they are collected between runs rather than in their midst.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        voice_store.TOMBSTONES_MAX = kept
        structlog.configure(**before)

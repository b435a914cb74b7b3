"""A call's own status, where gRPC would put INTERNAL in its place.

A peer may refuse a call while we are still writing into it. grpc.aio then settles the call as INTERNAL, "Internal error
from Core", although the status that says why is about to arrive, and drops that status. What always holds for a call
that went through `keep_status`: a write that fails waits for the peer's status, and raises that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def keep_status(call: Any, on_failed_write: Callable[[], None] = lambda: None) -> Any:
    """The same streaming call, which ends with its peer's status. Apply it before the first write.

    on_failed_write: told as a write has failed and waits for the status, which comes after what is not read yet.
    """
    inner = getattr(call, "_cython_call", None)
    if inner is not None:  # without it this is another gRPC, about which a test will tell
        call._cython_call = _PatientCall(inner, on_failed_write)
    return call


class _PatientCall:
    """The core's call, but for its own guess at a status. A write fails only once a call has ended: a status comes."""

    def __init__(self, inner: Any, on_failed_write: Callable[[], None]) -> None:
        self._inner = inner
        self._on_failed_write = on_failed_write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return repr(self._inner)

    def set_internal_error(self, _details: str) -> None:
        """Leave the status to the peer."""
        self._on_failed_write()

"""The points at which a test may have a node killed (runtime.fault_points), by what it is doing there."""

from __future__ import annotations

from runtime.fault_points import reach

__all__ = ["ANALYSIS", "ENROLMENT", "EVICTION", "POINTS", "reach"]

ANALYSIS = (
    "analyze.received",
    "analyze.heard",
)
ENROLMENT = (
    "enroll.received",
    "enroll.written",  # to the device; nobody is named by it yet
    "enroll.held",  # named, and the cursor does not tell of it
    "enroll.applied",  # all but the answer
)
EVICTION = (
    "evict.received",
    "evict.unnamed",  # named by nobody, and still on the device
    "evict.zeroed",  # nowhere any more, and the cursor does not tell of it
    "evict.applied",  # all but the answer
)
POINTS = frozenset((*ANALYSIS, *ENROLMENT, *EVICTION))

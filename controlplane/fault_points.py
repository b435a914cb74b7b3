"""The points at which a test may have the control plane killed (runtime.fault_points), by what it is doing there."""

from __future__ import annotations

from runtime.fault_points import reach

__all__ = ["COMPLETION", "ENROLMENT", "ERASURE", "POINTS", "REPLACEMENT", "reach"]

ENROLMENT = (
    "enrol.blob_stored",
    "enrol.voice_written",
    "enrol.samples_written",
    "enrol.voiceprint_placed",
    "enrol.audited",
    "enrol.committed",
    "push.answered",
    "push.acknowledged",
    "redis.advanced",
    "redis.published",
)
REPLACEMENT = ("enrol.old_blob_deleted",)
COMPLETION = (
    "complete.analyzed",
    "complete.placed",
    "complete.committed",
)
ERASURE = (
    "erase.logged",
    "erase.destroyed",
    "erase.recorded",
    "erase.audited",
    "erase.committed",
    "erase.journaled",
    "erase.marked",
    "erase.blob_deleted",
    "erase.blobs_deleted",
    "erase.pushed",
    "erase.acknowledged",
    "erase.settled",
    "erase.finishing",
    "erase.finished",
    "erase.told",
    "erase.closed",
    "erase.checkpointed",
)
POINTS = frozenset((*ENROLMENT, *REPLACEMENT, *COMPLETION, *ERASURE))

"""What a node measures. Declared here alone; base units; no label names a tenant, a voice, a speaker or a stream."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from models.naming import Reason
from node.naming import Match
from runtime.errors import Cause
from runtime.metric_set import LATENCY_BUCKETS, MetricSet

PART = "node"
CAUSES = tuple(cause.value for cause in Cause)
STATES = ("joining", "serving", "draining", "fenced")
STAGES = ("queue", "analyse", "step", "match")
KINDS = ("live", "file")
REASONS = tuple(reason.value for reason in Reason)


class NodeMetrics:
    """The metrics of one node on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        made = MetricSet(registry, PART)
        self.described = made.described

        self.streams_active = made.gauge("streams_active", "Live streams that hold a slot.")
        self.streams_limit = made.gauge("streams_limit", "Slots for live streams.")
        self.files_active = made.gauge("files_active", "Recordings that hold a slot.")
        self.files_limit = made.gauge("files_limit", "Slots for recordings.")
        self.streams_opened = made.counter(
            "streams_opened_total", "Live streams that began here.", kind=("new", "resumed")
        )
        self.stream_end = made.counter(
            "streams_ended_total",
            "Live streams that ended, by what ended them.",
            reason=("closed", "cancelled", *CAUSES),
        )
        self.rejected = made.counter("rejected_total", "Streams and recordings that were refused.", reason=CAUSES)

        self.audio_seconds = made.counter("audio_seconds_total", "Sound that was analysed.", kind=KINDS)
        self.windows = made.counter(
            "windows_total",
            "Windows that were due: analysed, left out because the device was late (live streams only), or failed.",
            outcome=("analysed", "skipped", "failed"),
        )
        self.windows_due = made.gauge("windows_due", "Windows that wait for the device now: the depth of its queue.")
        self.batch_size = made.histogram("batch_windows", "Windows in a batch.", (1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.stage_seconds = made.histogram(
            "stage_seconds",
            "Where time goes. queue: from a live window's sound being here to its batch. analyse: a batch on the "
            "device, segmentation and embeddings. step: what a stream makes of it, time of the processor. match: a "
            "look in the store of voices.",
            (0.001, 0.0025, 0.005, *LATENCY_BUCKETS),
            stage=STAGES,
        )
        # Asked for once: each window comes by here.
        self.windows_analysed, self.windows_skipped, self.windows_failed = (
            self.windows.labels(outcome) for outcome in ("analysed", "skipped", "failed")
        )
        self.live_seconds, self.file_seconds = (self.audio_seconds.labels(kind) for kind in KINDS)
        self.queue_seconds, self.analyse_seconds, self.step_seconds, self.match_seconds = (
            self.stage_seconds.labels(stage) for stage in STAGES
        )
        self.live_window_seconds = made.histogram(
            "live_window_seconds", "From a live window's sound being here to its analysis."
        )
        self.stream_lag_seconds = made.histogram(
            "stream_lag_seconds",
            "How far analysis is behind what was received, of each stream as it tells progress.",
            (*LATENCY_BUCKETS, 10, 30),
        )
        self.real_time_factor = made.histogram(
            "real_time_factor_ratio",
            "Time of the device over the time of new sound that it heard in it, a batch at a time.",
            (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3),
        )
        self.late_results = made.counter("late_results_total", "Analyses that came back after their slot was closed.")
        self.device_faults = made.counter("device_faults_total", "Streams and files that a fault of the device ended.")
        self.batches_halved = made.counter(
            "device_batches_halved_total", "Batches for which the device had not memory enough, and which were halved."
        )
        self.memory_free = made.gauge(
            "device_memory_free_bytes",
            "Memory that is free where the device has its rings: of the GPU, or of the host.",
        )
        self.memory_total = made.gauge("device_memory_total_bytes", "Memory that there is in all, of the same.")

        self.voices_warm = made.gauge("voices_warm", "Voices held on the device.")
        self.enroll = made.counter("enrollments_total", "Voices sent here one by one.", result=("ok", *CAUSES))
        self.evict = made.counter(
            "evictions_total", "Voices forgotten.", reason=("erase", "lease_lost", "resync", "drain")
        )
        self.matches = made.counter(
            "matches_total",
            "Speakers of streams and recordings that ended, by why they have a name or none.",
            reason=REASONS,
        )

        self.state = made.gauge("state", "1 for what the node is now, 0 for the others.", state=STATES)
        self.lease_remaining_seconds = made.gauge(
            "lease_remaining_seconds", "What is left of the lease; 0 without one, and always 0 on a standalone node."
        )
        self.applied_revision = made.gauge("applied_revision", "The node's cursor in the fleet log.")
        self.cursor_lag = made.gauge(
            "cursor_lag_revisions", "Revisions of the fleet log that the node has heard of and not applied yet."
        )
        self.incarnation = made.gauge("incarnation", "The node's incarnation; 0 without one.")

    def matched(self, found: Iterable[Match | None]) -> None:
        """Count why the speakers of what ended have names, or none."""
        for match in found:
            if match is not None:
                self.matches.labels(match.reason.value).inc()
